# SPDX-License-Identifier: Apache-2.0
"""The store of several machines: etcd, 3.4 and later.

Over gRPC, with etcd's own messages. Its JSON gateway would need no package, but a watch there
is one HTTP request that nothing can be said to any more, and etcd3gw, the kept client of it,
knows one server; aetcd knows one server and no TLS; etcd3 and etcd3-py are kept by nobody.
"""

from slimnet_etcd._store import EtcdStore

__all__ = ["EtcdStore"]
