# SPDX-License-Identifier: Apache-2.0
"""The hosts files (hosts(5)) of endpoints: names to overlay addresses, live.

One per namespace, ``<run>/hosts/<network>/<namespace>``, so that a bare name is
that of one's own namespace. Rewritten in place: whoever bind-mounts one sees
every change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from slimnet.model import Endpoint, Namespace

__all__ = ["path", "write"]

_HEAD = """\
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
"""


def path(run: Path, network: str, namespace: str) -> Path:
    """Where the file of a namespace is."""
    return run / "hosts" / network / namespace


def write(run: Path, namespaces: Iterable[Namespace], endpoints: Iterable[Endpoint]) -> None:
    """Make the files say what these say; those of other namespaces go."""
    networks: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        networks.setdefault(endpoint.network, []).append(endpoint)
    groups = {(each.network, each.name) for each in namespaces}
    groups |= {(each.network, each.namespace) for those in networks.values() for each in those}
    for network, namespace in groups:
        _rewrite(path(run, network, namespace), _text(namespace, networks.get(network, [])))
    wanted = {path(run, *group) for group in groups}
    for file in (run / "hosts").glob("*/*"):
        if file not in wanted:
            file.unlink(missing_ok=True)


def _text(namespace: str, endpoints: list[Endpoint]) -> str:
    lines = []
    for each in sorted(endpoints, key=lambda each: (each.namespace, each.name)):
        names = [f"{each.name}.{each.namespace}.{each.network}", f"{each.name}.{each.namespace}"]
        if each.namespace == namespace:
            names.insert(0, each.name)
        lines.append(f"{each.address} {' '.join(names)}\n")
    return _HEAD + "".join(lines)


def _rewrite(file: Path, text: str) -> None:
    data = text.encode()
    try:
        if file.read_bytes() == data:
            return
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(fd, 0o644)
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)
