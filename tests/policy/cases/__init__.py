# SPDX-License-Identifier: Apache-2.0
"""Reachability cases of two public suites, for the engine and for real connections.

``KUBERNETES`` follows the end-to-end NetworkPolicy suite of Kubernetes
(test/e2e/network/netpol), ``CLUSTER`` the conformance suite of ClusterNetworkPolicy
(kubernetes-sigs/network-policy-api). Each :class:`~cases.case.Case` is named after its
original; whoever runs one brings its world up, takes its steps in order, and compares
each probe's table with what really is reachable. A test in another directory puts
``tests/policy`` on ``sys.path`` first.
"""

from cases.case import Case, Probe, Step, World
from cases.cluster import CLUSTER
from cases.kubernetes import KUBERNETES

__all__ = ["CLUSTER", "KUBERNETES", "Case", "Probe", "Step", "World"]
