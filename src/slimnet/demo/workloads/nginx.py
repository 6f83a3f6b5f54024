# SPDX-License-Identifier: Apache-2.0
"""nginx under wrk: connections kept alive, and one per request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from slimnet.demo.setting import Setting
from slimnet.demo.workload import Reading, Workload

__all__ = ["NginxClose", "NginxKeepAlive"]

_RATE = re.compile(r"^Requests/sec:\s+([\d.]+)", re.MULTILINE)
_COUNT = re.compile(r"^\s*(\d+) requests in", re.MULTILINE)
_ERRORS = re.compile(r"^\s*(Socket errors: .*|Non-2xx .*)$", re.MULTILINE)

# One worker, as everything else here has one processor; the rest is nginx's default.
_CONFIGURATION = """\
daemon off;
worker_processes 1;
pid {scratch}/nginx-{port}.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {scratch}/nginx-{port}-body;
    proxy_temp_path {scratch}/nginx-{port}-proxy;
    fastcgi_temp_path {scratch}/nginx-{port}-fastcgi;
    uwsgi_temp_path {scratch}/nginx-{port}-uwsgi;
    scgi_temp_path {scratch}/nginx-{port}-scgi;
    server {{
        listen 0.0.0.0:{port};
        location / {{ return 200 "{body}"; }}
    }}
}}
"""


class NginxKeepAlive(Workload):
    """32 connections, each for many requests of 256 bytes of text."""

    name = "nginx"
    title = "nginx, keep-alive"
    unit = "requests/s"
    operation = "request"
    target = 0.97
    needs: ClassVar[Mapping[str, str]] = {"nginx": "nginx-light", "wrk": "wrk"}
    port = 8080
    headers: ClassVar[Sequence[str]] = ()

    def prepare(self, setting: Setting) -> None:
        """See :meth:`.Workload.prepare`."""
        self._configuration(setting).write_text(
            _CONFIGURATION.format(scratch=setting.scratch, port=self.port, body="s" * 256)
        )

    def server(self, setting: Setting) -> Sequence[str]:
        """See :meth:`.Workload.server`."""
        return setting.as_server(
            "nginx", "-c", self._configuration(setting), "-p", setting.scratch, "-e", "stderr"
        )

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.client`."""
        return setting.as_client(
            *("wrk", "--threads", 1, "--connections", 32, "--duration", f"{setting.seconds}s"),
            *(*self.headers, f"http://{address}:{self.port}/"),
        )

    def read(self, output: str) -> Reading:
        """See :meth:`.Workload.read`."""
        rate, count, errors = (regex.search(output) for regex in (_RATE, _COUNT, _ERRORS))
        if not rate or not count:
            raise ValueError("wrk printed no 'Requests/sec'")
        if errors:
            raise ValueError(f"wrk: {errors[1]}")
        return Reading(value=float(rate[1]), operations=float(count[1]))

    def _configuration(self, setting: Setting) -> Path:
        return setting.directory / f"{self.name}.conf"


class NginxClose(NginxKeepAlive):
    """32 clients, each with a new connection for every request; nginx closes first."""

    name = "nginx-close"
    title = "nginx, connection per request"
    target = 0.95
    port = 8081
    headers = ("--header", "Connection: close")
