# SPDX-License-Identifier: Apache-2.0
"""Redis under its own redis-benchmark: GET."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from slimnet.demo.setting import Setting
from slimnet.demo.workload import ANY, Reading, Workload

__all__ = ["Redis"]

_RATE = re.compile(r"throughput summary: ([\d.]+) requests per second")
_COUNT = re.compile(r"(\d+) requests completed in")


class Redis(Workload):
    """50 connections, GET of three bytes, redis-benchmark's defaults."""

    name = "redis"
    title = "redis, GET"
    unit = "requests/s"
    operation = "request"
    target = 0.97
    needs: ClassVar[Mapping[str, str]] = {
        "redis-server": "redis-server",
        "redis-benchmark": "redis-tools",
    }
    port = 6379

    def server(self, setting: Setting) -> Sequence[str]:
        """See :meth:`.Workload.server`."""
        return setting.as_server(
            *("redis-server", "--port", self.port, "--bind", ANY),
            *("--protected-mode", "no", "--save", "", "--appendonly", "no"),
            *("--dir", setting.scratch),
        )

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.client`."""
        return setting.as_client(
            *("redis-benchmark", "-h", address, "-p", self.port),
            *("-t", "get", "-c", 50, "-n", setting.requests),
        )

    def read(self, output: str) -> Reading:
        """See :meth:`.Workload.read`."""
        rate, count = _RATE.search(output), _COUNT.search(output)
        if not rate or not count:
            raise ValueError("redis-benchmark printed no 'throughput summary'")
        return Reading(value=float(rate[1]), operations=float(count[1]))
