# SPDX-License-Identifier: Apache-2.0
"""What the demo ran on."""

from __future__ import annotations

import datetime as dt
import os
import platform
from pathlib import Path
from typing import Any

from slimnet.demo.setting import CPUS
from slimnet.linux import sysctl

__all__ = ["describe"]


def describe() -> dict[str, Any]:
    """Processor, kernel, time, the load before the start, and what else matters."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cpus": len(CPUS),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "load_before": os.getloadavg()[0],
        "congestion_control": sysctl.read("net/ipv4/tcp_congestion_control"),
        # Somebody counts BPF programs' time, which makes each run some 90 ns longer.
        "bpf_stats": sysctl.read("kernel/bpf_stats_enabled") == "1",
    }
