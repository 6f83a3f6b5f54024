# SPDX-License-Identifier: Apache-2.0
"""Connections that come and go between two endpoints, and one that stays, until they are stopped:
each that fails is written down."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

PORT = 7000
PATIENCE = 120


class Traffic:
    """From a client on one host to a server on another one, each an endpoint.

    Args:
        client: the client's host; has an agent.
        server: the server's.
        directory: of their output.
        name: of the two endpoints, with ``-client`` and ``-server`` behind it.
    """

    def __init__(self, client, server, directory, name="load"):
        self.names = (f"{name}-client", f"{name}-server")
        self._hosts = (client, server)
        self._log = Path(directory, f"{name}.json")
        self._processes = []

    def __enter__(self):
        client, server = self._hosts
        self._run(server, self.names[1], "serve")
        with server.node() as node:
            address = str(self._endpoint(node, self.names[1]).address)
        with client.node() as node:
            self._run(client, self.names[0], "call", address)
            self._endpoint(node, self.names[0])
            node.wait()
        self.goes_on()
        return self

    def __exit__(self, *_):
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
                continue
            process.kill()
            process.wait()

    def _run(self, host, name, *words):
        argv = [sys.executable, "-m", "slimnet.cli", "run", "-n", "prod", "--name", name, "--",
                sys.executable, "-c", Path(__file__).read_text(), *words]  # fmt: skip
        log = self._log if words[0] == "call" else self._log.with_suffix(".server")
        with host.enter(), log.open("w") as out:
            self._processes.append(
                subprocess.Popen(
                    argv, env=host.environment(), stdout=out, stderr=subprocess.STDOUT, cwd="/"
                )
            )

    def _endpoint(self, node, name):
        deadline = time.monotonic() + PATIENCE
        while True:
            for each in node.endpoints():
                if each.name == name:
                    return each
            assert time.monotonic() < deadline, self._log.read_text()
            assert all(each.poll() is None for each in self._processes), self.said()
            time.sleep(0.05)

    def said(self):
        """All that it wrote."""
        return self._log.read_text() + self._log.with_suffix(".server").read_text()

    def reports(self):
        """What it counted, each time."""
        return [
            json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("}")
        ]

    def goes_on(self, more=50):
        """Until as many connections more were made, which may be none, and the one that stays
        was used."""
        before = self.reports()[-1] if self.reports() else {"done": 0, "kept": 0}
        deadline = time.monotonic() + PATIENCE
        while True:
            now = self.reports()[-1] if self.reports() else before
            if now["done"] >= before["done"] + more and now["kept"] > before["kept"]:
                return now
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)


def serve():
    import socketserver

    class Echo(socketserver.BaseRequestHandler):
        def handle(self):
            while data := self.request.recv(64):
                self.request.sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 128

    Server(("0.0.0.0", PORT), Echo).serve_forever()


def call(address):
    import socket

    def ask(sock):
        sock.sendall(b"x")
        if sock.recv(64) != b"x":
            raise ConnectionError("the answer did not come")

    counts = {"done": 0, "kept": 0, "failed": []}
    while True:  # the server, or the tables, may come later
        try:
            kept = socket.create_connection((address, PORT), 10)
            ask(kept)
            break
        except OSError:
            time.sleep(0.05)
    told = 0.0
    while True:
        try:
            with socket.create_connection((address, PORT), 20) as sock:
                ask(sock)
            counts["done"] += 1
        except OSError as error:
            counts["failed"].append(f"connect: {error!r} at {time.time():.3f}")
            time.sleep(0.05)
        try:
            ask(kept)
            counts["kept"] += 1
        except OSError as error:
            counts["failed"].append(f"kept: {error!r} at {time.time():.3f}")
            kept = socket.create_connection((address, PORT), 20)
        if time.monotonic() - told > 0.1:
            told = time.monotonic()
            print(json.dumps(counts), flush=True)
        time.sleep(0.002)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    serve() if sys.argv[1] == "serve" else call(sys.argv[2])
