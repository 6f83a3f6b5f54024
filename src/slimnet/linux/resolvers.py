# SPDX-License-Identifier: Apache-2.0
"""The name servers of the host, as an endpoint can use them."""
# pathlib would be start-up time of what is run in a sandbox:
# ruff: noqa: PTH123

from __future__ import annotations

__all__ = ["resolv_conf"]


def resolv_conf() -> str:
    """The host's resolv.conf(5) without resolvers on its loopback, which an
    endpoint does not reach; where that is all (systemd-resolved), the
    upstream servers that it knows of."""
    kept = _without_loopback("/etc/resolv.conf")
    if not any(line.split()[:1] == ["nameserver"] for line in kept):
        kept = _without_loopback("/run/systemd/resolve/resolv.conf") or kept
    return "".join(kept)


def _without_loopback(path: str) -> list[str]:
    try:
        with open(path) as lines:
            return [line for line in lines if not _is_loopback_resolver(line.split())]
    except OSError:
        return []


def _is_loopback_resolver(words: list[str]) -> bool:
    if len(words) < 2 or words[0] != "nameserver":
        return False
    address = words[1].partition("%")[0].lower().removeprefix("::ffff:")
    return address.startswith("127.") or address in ("::1", "0.0.0.0", "::")  # noqa: S104
