# SPDX-License-Identifier: Apache-2.0
"""For tests: of slimnet, of its backends, of what uses it.

- :func:`check_backend`: holds a backend to the contract of :class:`slimnet.abc.Backend`.
- :func:`check_store`: holds a store to the contract of :class:`slimnet.abc.Store`.
- :class:`MemoryBackend`: a backend without a kernel, for unit tests.
- :class:`MemoryStore`: a store without a file, for the agents of one process.
- :class:`Underlay`: hosts on one network, out of network namespaces.
- :class:`Resident`: a process in an endpoint that makes connections on request.
"""

from slimnet.testing._backend import BACKEND_CLAUSES, check_backend
from slimnet.testing._memory import MemoryBackend
from slimnet.testing._memory_store import MemoryStore
from slimnet.testing._resident import Reached, Resident
from slimnet.testing._store import check_store
from slimnet.testing._underlay import Underlay, UnderlayHost

__all__ = [
    "BACKEND_CLAUSES",
    "MemoryBackend",
    "MemoryStore",
    "Reached",
    "Resident",
    "Underlay",
    "UnderlayHost",
    "check_backend",
    "check_store",
]
