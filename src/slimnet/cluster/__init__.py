# SPDX-License-Identifier: Apache-2.0
"""Networks, hosts, namespaces, endpoints and documents: desired state in a store.

:class:`~slimnet.cluster.cluster.Cluster` has the operations;
:class:`~slimnet.cluster.documents.Documents` those on what users write.
"""

from slimnet.cluster.cluster import Cluster

__all__ = ["Cluster"]
