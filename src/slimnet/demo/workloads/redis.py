# SPDX-License-Identifier: Apache-2.0
"""Redis under its own redis-benchmark: GET."""

from __future__ import annotations

import csv
from collections.abc import Sequence

from slimnet.demo.setting import Setting
from slimnet.demo.workload import Reading, Workload

__all__ = ["Redis"]


class Redis(Workload):
    """50 connections, GET of three bytes, redis-benchmark's defaults."""

    name = "redis"
    title = "redis, GET"
    unit = "requests/s"
    operation = "request"
    target = 0.97
    needs = {"redis-server": "redis-server", "redis-benchmark": "redis-tools"}
    port = 6379

    def server(self, setting: Setting) -> Sequence[str]:
        return setting.as_server(
            *("redis-server", "--port", self.port, "--bind", "0.0.0.0"),
            *("--protected-mode", "no", "--save", "", "--appendonly", "no"),
            *("--dir", setting.directory),
        )

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        return setting.as_client(
            *("redis-benchmark", "-h", address, "-p", self.port, "--csv"),
            *("-t", "get", "-c", 50, "-n", setting.requests),
        )

    def read(self, output: str, setting: Setting) -> Reading:
        rows = {row["test"]: row for row in csv.DictReader(output.splitlines())}
        if "GET" not in rows:
            raise ValueError("redis-benchmark printed no line for GET")
        row = rows["GET"]
        return Reading(
            value=float(row["rps"]),
            operations=setting.requests,
            detail={"p50_ms": float(row["p50_latency_ms"]), "p99_ms": float(row["p99_latency_ms"])},
        )
