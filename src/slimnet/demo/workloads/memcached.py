# SPDX-License-Identifier: Apache-2.0
"""memcached under memcaslap (libmemcached): nine gets to one set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from slimnet.demo.setting import Setting
from slimnet.demo.workload import Reading, Workload

__all__ = ["Memcached"]

_RESULT = re.compile(r"Ops: (\d+) TPS: (\d+)")


class Memcached(Workload):
    """32 connections, keys of 64 bytes and values of 1 KiB, memcaslap's defaults."""

    name = "memcached"
    title = "memcached"
    unit = "operations/s"
    operation = "operation"
    target = 0.97
    needs: ClassVar[Mapping[str, str]] = {
        "memcached": "memcached",
        "memcaslap": "libmemcached-tools",
    }
    port = 11211

    def server(self, setting: Setting) -> Sequence[str]:
        """See :meth:`.Workload.server`."""
        return setting.as_server(
            *("memcached", "--listen=0.0.0.0", f"--port={self.port}", "--udp-port=0"),
            *("--threads=1", "--memory-limit=256"),
        )

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.client`."""
        return setting.as_client(
            *("memcaslap", f"--servers={address}:{self.port}", "--threads=1"),
            *("--concurrency=32", "--win_size=1k", f"--execute_number={setting.requests}"),
        )

    def read(self, output: str) -> Reading:
        """See :meth:`.Workload.read`."""
        found = _RESULT.search(output)
        if not found:
            raise ValueError("memcaslap printed no 'Ops: ... TPS: ...'")
        return Reading(value=float(found[2]), operations=float(found[1]))
