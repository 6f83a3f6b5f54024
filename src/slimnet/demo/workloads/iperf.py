# SPDX-License-Identifier: Apache-2.0
"""Bulk throughput: iperf3, one flow and ten."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import ClassVar

from slimnet.demo.setting import Setting
from slimnet.demo.workload import Reading, Workload

__all__ = ["Iperf", "IperfTen"]


class Iperf(Workload):
    """One TCP flow from the client to the server."""

    name = "iperf3"
    title = "iperf3, one flow"
    unit = "Gb/s"
    operation = "GB"
    target = 0.97
    needs: ClassVar[Mapping[str, str]] = {"iperf3": "iperf3"}
    port = 5201
    flows: ClassVar[int] = 1

    def server(self, setting: Setting) -> Sequence[str]:
        """See :meth:`.Workload.server`."""
        return setting.as_server("iperf3", "--server", "--port", self.port)

    def ready(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.ready`. iperf3 takes that for a test that failed, and opens its
        port anew: who comes in between is reset."""
        waits = shlex.join(map(str, super().ready(setting, address)))
        return ["sh", "-c", f"{waits} && sleep 0.5"]

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.client`."""
        return setting.as_client(
            *("iperf3", "--client", address, "--port", self.port, "--json"),
            *("--time", setting.seconds, "--parallel", self.flows),
        )

    def read(self, output: str) -> Reading:
        """See :meth:`.Workload.read`."""
        said = json.loads(output)
        end = said["end"]
        if "sum_received" not in end:
            raise ValueError(f"iperf3: {said.get('error', 'said nothing of what it received')}")
        received = end["sum_received"]
        return Reading(
            value=received["bits_per_second"] / 1e9,
            operations=received["bytes"] / 1e9,
            detail={"retransmits": end["sum_sent"].get("retransmits", 0)},
        )


class IperfTen(Iperf):
    """Ten TCP flows at once."""

    name = "iperf3-10"
    title = "iperf3, ten flows"
    port = 5202
    flows = 10
