# SPDX-License-Identifier: Apache-2.0
"""The hosts files (hosts(5)) of endpoints: names to overlay addresses, live.

One per namespace, ``<run>/hosts/<network>/<namespace>``, so that a bare name is
that of one's own namespace. A name that an endpoint and a service of a namespace
share is the endpoint's. Rewritten in place: whoever bind-mounts one sees every
change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from netaddr import IPAddress

from slimnet.model import Endpoint, Namespace
from slimnet.policy.document import Service

__all__ = ["path", "write"]

_HEAD = """\
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
"""


def path(run: Path, network: str, namespace: str) -> Path:
    """Where the file of a namespace is."""
    return run / "hosts" / network / namespace


def write(
    run: Path,
    namespaces: Iterable[Namespace],
    endpoints: Iterable[Endpoint],
    services: Iterable[Service] = (),
) -> None:
    """Make the files say what these say; those of other namespaces go."""
    networks: dict[str, dict[tuple[str, str], IPAddress]] = {}
    named: list[Service | Endpoint] = [*services, *endpoints]
    for each in named:
        if each.address is not None:
            networks.setdefault(each.network, {})[each.namespace, each.name] = each.address
    groups = {(each.network, each.name) for each in namespaces}
    groups |= {(network, group) for network, those in networks.items() for group, _ in those}
    for network, namespace in groups:
        text = _text(network, namespace, networks.get(network, {}))
        _rewrite(path(run, network, namespace), text)
    wanted = {path(run, *group) for group in groups}
    for file in (run / "hosts").glob("*/*"):
        if file not in wanted:
            file.unlink(missing_ok=True)


def _text(network: str, namespace: str, addresses: dict[tuple[str, str], IPAddress]) -> str:
    lines = []
    for (group, name), address in sorted(addresses.items(), key=lambda item: item[0]):
        names = [f"{name}.{group}.{network}", f"{name}.{group}"]
        if group == namespace:
            names.insert(0, name)
        lines.append(f"{address} {' '.join(names)}\n")
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
