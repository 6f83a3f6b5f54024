# SPDX-License-Identifier: Apache-2.0
"""Networks, hosts, namespaces, endpoints and policies: desired state in a store.

:class:`~slimnet.cluster.cluster.Cluster` has the operations.
"""

from slimnet.cluster.cluster import Cluster

__all__ = ["Cluster"]
