# SPDX-License-Identifier: Apache-2.0
"""slimnet's eBPF data path.

================  =====================================================================
``backend``       the backend: start or adopt, and the calls of the interface
``requirements``  what the machine must have; ``probe`` asks, then loads
``options``       ``[backend.ebpf]``
``objects``       the object file; ``libbpf``, ``maps``, ``links``, ``filters`` are the
                  kernel's calls
``pins``          what outlives the process
``underlay``      the host's side: route, sysctl, tc
``endpoints``     cgroups, inner indexes, programs on them
``writer``        tables in force; ``records`` and ``layout`` are their bytes
``events``        the ring buffer; ``sockets`` and ``connections`` the live sockets
================  =====================================================================
"""

from slimnet_ebpf.backend import EbpfBackend

__all__ = ["EbpfBackend"]
