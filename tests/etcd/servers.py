# SPDX-License-Identifier: Apache-2.0
"""What the tests do to etcd servers, and who signs their certificates."""

import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path


def own_address():
    """Of 127.64.0.0/10, one for each process."""
    number = 0x7F400000 + os.getpid() % 0x3FFFFF
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


def etcdctl(server, *words, options=()):
    """What etcd's own client answers, from the first of the servers."""
    argv = ["etcdctl", f"--endpoints={server.endpoints[0]}", *options, *words]
    environment = {"PATH": os.environ["PATH"], "ETCDCTL_API": "3"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def leader(server):
    """The number of the member that leads."""
    every = ",".join(server.endpoints)
    deadline = time.monotonic() + 60
    while True:
        status = etcdctl(server, "endpoint", "status", options=[f"--endpoints={every}"])
        lines = [line.split(", ") for line in status.splitlines()]
        leads = [line[0] for line in lines if line[4] == "true"]
        if len(set(leads)) == 1:  # the first of them is named twice
            return server.endpoints.index(leads[0])
        assert time.monotonic() < deadline, status


@contextmanager
def away(server):
    """Nobody reaches the servers meanwhile."""
    for member in range(len(server.endpoints)):
        server.kill(member)
    try:
        yield
    finally:
        server.start()


class Authority:
    """Signs certificates for servers and clients."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory / name
        self.directory.mkdir()
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", "ca.key", "-out", "ca.crt"),
        )
        self.ca = str(self.directory / "ca.crt")

    def sign(self, name, alternative="IP:127.0.0.1"):
        """The paths of a certificate and its key."""
        (self.directory / f"{name}.ext").write_text(f"subjectAltName={alternative}\n")
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        self._openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt"),
        )
        return str(self.directory / f"{name}.crt"), str(self.directory / f"{name}.key")

    def _openssl(self, *words):
        subprocess.run(
            ["openssl", *words], cwd=self.directory, check=True, capture_output=True, timeout=60
        )
