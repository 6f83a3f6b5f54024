# SPDX-License-Identifier: Apache-2.0
"""The hosts files (hosts(5)) of endpoints: names to overlay addresses, live.

One per namespace that has, or had, endpoints on this host,
``<run>/hosts/<network>/<namespace>``, so that a bare name is that of one's own
namespace. A name that an endpoint and a service of a namespace share is the
endpoint's. Rewritten in place: whoever bind-mounts one sees every change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from netaddr import IPAddress

from slimnet.model import Endpoint
from slimnet.policy.document import Service

__all__ = ["path", "write", "written"]

_HEAD = """\
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
"""


def path(run: Path, network: str, namespace: str) -> Path:
    """Where the file of a namespace is."""
    return run / "hosts" / network / namespace


def written(run: Path) -> set[tuple[str, str]]:
    """The namespaces that have a file, by network and name."""
    return {(file.parent.name, file.name) for file in (run / "hosts").glob("*/*")}


def write(
    run: Path,
    namespaces: Iterable[tuple[str, str]],
    endpoints: Iterable[Endpoint],
    services: Iterable[Service] = (),
) -> None:
    """Make the files say what these say; those of other namespaces go.

    Args:
        run: the instance's directory.
        namespaces: whose files there are to be, by network and name.
        endpoints: all that have a name, wherever they live.
        services: likewise.
    """
    wanted = set(namespaces)
    #: Network to namespace to name to address.
    networks: dict[str, dict[str, dict[str, IPAddress]]] = {network: {} for network, _ in wanted}
    named: list[Service | Endpoint] = [*services, *endpoints]
    for each in named:
        if each.address is not None and each.network in networks:
            networks[each.network].setdefault(each.namespace, {})[each.name] = each.address
    for network, groups in networks.items():
        # Of all files of a network only the lines of its own namespace differ.
        lines = {group: _lines(network, group, groups[group]) for group in sorted(groups)}
        for namespace in (name for of, name in wanted if of == network):
            own = _lines(network, namespace, groups.get(namespace, {}), bare=True)
            text = "".join({**lines, namespace: own}.values())
            _rewrite(path(run, network, namespace), _HEAD + text)
    for network, namespace in written(run) - wanted:
        path(run, network, namespace).unlink(missing_ok=True)


def _lines(
    network: str, namespace: str, addresses: dict[str, IPAddress], *, bare: bool = False
) -> str:
    return "".join(
        f"{address} {f'{name} ' if bare else ''}{name}.{namespace}.{network} {name}.{namespace}\n"
        for name, address in sorted(addresses.items(), key=lambda item: item[0])
    )


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
