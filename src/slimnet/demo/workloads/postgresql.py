# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL under pgbench: read-only transactions over eight connections."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from slimnet.demo.setting import Setting
from slimnet.demo.workload import ANY, USER, Reading, Workload

__all__ = ["PostgreSQL", "binaries"]

_RATE = re.compile(r"^tps = ([\d.]+) \(without initial connection time\)", re.MULTILINE)
_COUNT = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: ([1-9]\d*)", re.MULTILINE)

# The network is to be measured, not the disk.
_OPTIONS = {
    "fsync": "off",
    "autovacuum": "off",
    "shared_buffers": "64MB",
    "max_connections": "32",
    "unix_socket_directories": "",
}


def binaries() -> Path:
    """Where Debian keeps the server's programs: they are not in PATH."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4])
    )
    return found[-1].parent if found else Path("/usr/lib/postgresql")


class PostgreSQL(Workload):
    """``pgbench --select-only`` with prepared statements, scale 1."""

    name = "postgresql"
    title = "PostgreSQL, pgbench -S"
    unit = "transactions/s"
    operation = "transaction"
    target = 0.97
    needs: ClassVar[Mapping[str, str]] = {
        str(binaries() / "postgres"): "postgresql",
        "pgbench": "postgresql-client",
    }
    port = 5432
    stop = signal.SIGINT

    def prepare(self, setting: Setting) -> None:
        """See :meth:`.Workload.prepare`."""
        data = setting.scratch / "postgresql"
        initdb = [binaries() / "initdb", "--pgdata", data, "--username=demo", "--auth=trust"]
        _run(setting, *initdb, "--no-sync", "--no-locale", "--encoding=UTF8")
        with (data / "pg_hba.conf").open("a") as hba:
            hba.write("host all all 0.0.0.0/0 trust\n")
        # Loaded over a Unix socket, once, for all modes.
        control = [binaries() / "pg_ctl", "--pgdata", data, "--silent", "--wait"]
        where = setting.scratch
        options = f"-c listen_addresses='' -c unix_socket_directories={where} -c fsync=off"
        _run(setting, *control, "--log", data / "log", f"--options={options}", "start")
        try:
            load = ["pgbench", "--initialize", "--quiet", "-h", where, "-U", "demo", "postgres"]
            _run(setting, *load)
        finally:
            _run(setting, *control, "--mode=fast", "stop")

    def server(self, setting: Setting) -> Sequence[str]:
        """See :meth:`.Workload.server`."""
        options = {**_OPTIONS, "listen_addresses": ANY, "port": str(self.port)}
        return setting.as_server(
            *(binaries() / "postgres", "-D", setting.scratch / "postgresql"),
            *(word for key, value in options.items() for word in ("-c", f"{key}={value}")),
        )

    def ready(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.ready`. It listens before it has started up, and turns clients
        away until then."""
        ask = f"until pg_isready --quiet --host={address} --port={self.port}; do sleep 0.05; done"
        return setting.as_client("sh", "-c", ask)

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.client`."""
        return setting.as_client(
            *("pgbench", "--host", address, "--port", self.port, "--username=demo"),
            *("--select-only", "--protocol=prepared", "--no-vacuum", "--client=8", "--jobs=1"),
            *("--time", setting.seconds, "postgres"),
        )

    def read(self, output: str) -> Reading:
        """See :meth:`.Workload.read`."""
        rate, count, bad = (regex.search(output) for regex in (_RATE, _COUNT, _FAILED))
        if not rate or not count:
            raise ValueError("pgbench printed no 'tps = ...'")
        if bad:
            raise ValueError(f"pgbench: {bad[0]}")
        return Reading(value=float(rate[1]), operations=float(count[1]))


def _run(setting: Setting, *argv: object) -> None:
    subprocess.run(
        [str(word) for word in argv],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        cwd=setting.scratch,
        user=USER,
        extra_groups=[],
    )
