# SPDX-License-Identifier: Apache-2.0
"""The sockets of endpoints, with what the data path keeps for them."""

from __future__ import annotations

from collections.abc import Iterable

from slimnet.linux import sock_diag
from slimnet_ebpf.libbpf import BpfError

__all__ = ["SocketDiagnosis"]


class SocketDiagnosis(sock_diag.Diagnosis):
    """As :class:`slimnet.linux.sock_diag.Diagnosis`; what the kernel does not destroy is
    a failure of the data path."""

    def destroy(self, victims: Iterable[sock_diag.Socket]) -> int:
        """As there.

        Raises:
            BpfError: the kernel cannot.
        """
        try:
            return super().destroy(victims)
        except OSError as error:
            raise BpfError(error.errno or 0, "destroy a socket") from error
