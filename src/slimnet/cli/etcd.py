# SPDX-License-Identifier: Apache-2.0
"""The etcd server that ``slimnet cluster init --store etcd`` starts on its machine.

It listens at the underlay address, speaks TLS, and takes nobody without a certificate of an
authority of its own, as k3s and kubeadm have it: who may write to the store is the cluster's
master. All hosts have one certificate, which a token carries.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from netaddr import IPAddress

from slimnet import directories
from slimnet.agent.member import beside
from slimnet.exceptions import AlreadyExists, CapabilityMissing, SlimnetError
from slimnet.testbed import etcd
from slimnet.trusted import make_trusted

__all__ = ["UNIT", "serve", "unit"]

#: Where systemd runs the machine.
UNIT = Path("/etc/systemd/system/slimnet-etcd.service")
_DAYS = 3650
#: Not 2380: the package's own etcd.service, which its installation starts, has that one.
_PEERS = "127.0.0.1:12380"
_PARTS = ("ca", "cert", "key")


@contextlib.contextmanager
def serve(
    instance: str, address: IPAddress, member: Path
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A server that runs; its URL and the driver's options. Where the block fails, nothing of it
    is left.

    Args:
        instance: whose; each has a directory of its own below ``/var/lib/slimnet``.
        address: of the underlay.
        member: the file that says which cluster this machine is in.

    Raises:
        CapabilityMissing: a program is not installed; names its package.
        AlreadyExists: there is one, or what it left.
        SlimnetError: it does not start.
    """
    program = etcd.found()
    if shutil.which("openssl") is None:
        raise CapabilityMissing("no openssl: install it (Debian: apt install openssl)")
    directory = directories.state() / ("etcd" if instance == "default" else f"etcd-{instance}")
    files = {part: beside(member, part) for part in _PARTS}
    managed = Path("/run/systemd/system").is_dir()
    for path in (directory, *files.values(), *([UNIT] if managed else ())):
        if path.exists():
            raise AlreadyExists(f"{path} is there: remove it, if no cluster needs it")
    cert, key, ca = (str(directory / name) for name in ("server.crt", "server.key", "ca.crt"))
    server = etcd.Etcd(
        directory,
        str(address),
        scheme="https",
        peers=_PEERS,
        durable=True,
        options=(
            f"--cert-file={cert}",
            f"--key-file={key}",
            f"--trusted-ca-file={ca}",
            "--client-cert-auth",
        ),
    )
    with contextlib.ExitStack() as undo:
        fresh = not directory.parent.exists()
        if fresh:
            undo.callback(directory.parent.rmdir)
        undo.callback(server.remove)
        make_trusted(directory.parent)
        directory.mkdir(mode=0o700)
        _certify(directory, address)
        make_trusted(member.parent.parent)
        for path, name in zip(files.values(), ("ca.crt", "client.crt", "client.key"), strict=True):
            undo.callback(path.unlink, missing_ok=True)
            path.touch(mode=0o600)
            path.write_bytes((directory / name).read_bytes())
        if managed:
            undo.callback(_forget)
            UNIT.write_text(unit(server.command(program, 0), directory))
            _run("systemctl", "daemon-reload")
            _run("systemctl", "enable", "--now", UNIT.name)
        else:
            server.start()
        yield server.url, {part: str(path) for part, path in files.items()}
        undo.pop_all()


def unit(command: Sequence[str], directory: Path) -> str:
    """The server's unit, for systemd.unit(5)."""
    # systemd.service(5), "Command lines": `%` and `$` are its own.
    words = shlex.join(command).replace("%", "%%").replace("$", "$$")
    return f"""\
# By `slimnet cluster init --store etcd`.
[Unit]
Description=etcd of a slimnet cluster
After=network-online.target
Wants=network-online.target
Before=slimnet-agent.service
# Its address may come late: try for as long as it takes.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={words}
Restart=always
RestartSec=2
LimitNOFILE=65536
# Root without its capabilities: {directory.parent} is root's, and hidden from endpoints.
CapabilityBoundingSet=
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={directory}

[Install]
WantedBy=multi-user.target
"""


def _certify(directory: Path, address: IPAddress) -> None:
    """An authority, a certificate of the server, and one of all hosts."""
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    days = ("-days", str(_DAYS))

    def openssl(*words: str) -> None:
        _run("openssl", *words, where=directory)

    openssl(
        *("req", "-x509", *new, *days, "-subj", "/CN=slimnet etcd authority"),
        *("-keyout", "ca.key", "-out", "ca.crt"),
    )
    for name in ("server", "client"):
        openssl(
            *("req", *new, "-subj", f"/CN=slimnet {name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        (directory / f"{name}.ext").write_text(f"subjectAltName=IP:{address}\n")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key"),
            *("-CAcreateserial", *days, "-extfile", f"{name}.ext", "-out", f"{name}.crt"),
        )
        for kind in ("csr", "ext"):
            (directory / f"{name}.{kind}").unlink()
    for path in directory.iterdir():
        path.chmod(0o600)


def _forget() -> None:
    if UNIT.exists():
        with contextlib.suppress(SlimnetError):
            _run("systemctl", "disable", "--now", UNIT.name)
        UNIT.unlink()


def _run(*words: str, where: Path | None = None) -> None:
    done = subprocess.run(
        words,
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise SlimnetError(f"{' '.join(words[:2])}: {last}")
