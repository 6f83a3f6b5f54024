# SPDX-License-Identifier: Apache-2.0
"""The name servers of the host, and what endpoints are told of them: resolv.conf(5)."""
# pathlib would be start-up time of what is run in a sandbox:
# ruff: noqa: PTH123

from __future__ import annotations

__all__ = ["RESOLV_CONF", "name_servers", "own_resolv_conf", "resolv_conf", "words"]

#: What the C libraries read, and the file of an endpoint that has a resolver of its own.
RESOLV_CONF = "/etc/resolv.conf"
#: Searched domains that the C libraries read: glibc before 2.26, and musl's 256 characters.
_DOMAINS = 6


def resolv_conf() -> str:
    """The host's resolv.conf(5) without resolvers on its loopback, which an
    endpoint does not reach; where that is all (systemd-resolved), the
    upstream servers that it knows of."""
    kept = _without_loopback(RESOLV_CONF)
    if not any(line.split()[:1] == ["nameserver"] for line in kept):
        kept = _without_loopback("/run/systemd/resolve/resolv.conf") or kept
    return "".join(kept)


def name_servers() -> list[str]:
    """Those of :func:`resolv_conf`; where it names none, the host's own on its loopback."""
    return _values(resolv_conf(), "nameserver") or _values(
        "".join(_lines(RESOLV_CONF)), "nameserver"
    )


def own_resolv_conf(server: str, domains: tuple[str, ...]) -> str:
    """A resolv.conf(5) of one server, which searches ``domains`` before those of the host.

    With ``ndots:2`` a name with a dot in it is looked for in these domains too, which musl
    does only to names of fewer dots than that.
    """
    host = resolv_conf()
    searched = [line.split()[1:] for line in host.splitlines() if line.startswith("search")]
    kept = [
        option
        for line in host.splitlines()
        if line.startswith("options")
        for option in line.split()[1:]
        # The server is another than that of which these were said.
        if not option.startswith("ndots:") and option not in ("trust-ad", "use-vc", "rotate")
    ]
    every = dict.fromkeys([*domains, *(searched[-1] if searched else ())])
    return (
        f"nameserver {server}\n"
        f"search {' '.join(list(every)[:_DOMAINS])}\n"
        f"options {' '.join(['ndots:2', *kept])}\n"
    )


def words(text: str) -> dict[str, list[str]]:
    """What a resolv.conf(5) such as that of :func:`own_resolv_conf` says, by its keywords."""
    lines = [line.split() for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines if line}


def _values(text: str, option: str) -> list[str]:
    words = (line.split() for line in text.splitlines())
    return [each[1] for each in words if each[:1] == [option] and len(each) > 1]


def _lines(path: str) -> list[str]:
    try:
        with open(path) as lines:
            return list(lines)
    except OSError:
        return []


def _without_loopback(path: str) -> list[str]:
    return [line for line in _lines(path) if not _is_loopback_resolver(line.split())]


def _is_loopback_resolver(words: list[str]) -> bool:
    if len(words) < 2 or words[0] != "nameserver":
        return False
    address = words[1].partition("%")[0].lower().removeprefix("::ffff:")
    return address.startswith("127.") or address in ("::1", "0.0.0.0", "::")  # noqa: S104
