# SPDX-License-Identifier: Apache-2.0
"""What a container in the host's network namespace may still do that ``slimnet run`` takes
from a command, by its configuration
(https://github.com/opencontainers/runtime-spec, ``config.md``, ``config-linux.md``)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from slimnet.linux.mounts import table
from slimnet.sandbox.capabilities import LEADING_OUT
from slimnet.sandbox.mounts import FORBIDDEN
from slimnet.sandbox.seccomp import PAST_HOOKS

__all__ = ["leaks"]

_ALLOWING = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE"})


def leaks(config: Mapping[str, Any]) -> list[str]:
    """What the engine is to take away, in its words; nothing where a container that nothing
    else closes is held."""
    return [
        *_capabilities(config),
        *_families(config),
        *_cgroup_namespace(config),
        *_file_systems(config),
    ]


def _capabilities(config: Mapping[str, Any]) -> Iterator[str]:
    sets = config.get("process", {}).get("capabilities") or {}
    held = {name for each in sets.values() for name in each}
    if kept := [name.removeprefix("CAP_") for name in LEADING_OUT if name in held]:
        yield f"--cap-drop {','.join(kept)}"


def _families(config: Mapping[str, Any]) -> Iterator[str]:
    rules = config.get("linux", {}).get("seccomp")
    if left := [name for name, number in PAST_HOOKS.items() if _may_ask(rules, number)]:
        yield f"a seccomp profile that refuses socket(2) for {' and '.join(left)}"


def _may_ask(rules: Mapping[str, Any] | None, family: int) -> bool:
    """Whether socket(2) may ask for a family: by any rule that could allow it, or where none
    could refuse it."""
    if not rules:
        return True
    about = [each for each in rules.get("syscalls") or () if "socket" in each.get("names", ())]
    if any(each["action"] in _ALLOWING and _could_match(each, family) for each in about):
        return True
    if rules.get("defaultAction") not in _ALLOWING:
        return False
    return not any(each["action"] not in _ALLOWING and _matches(each, family) for each in about)


def _could_match(rule: Mapping[str, Any], family: int) -> bool:
    conditions = rule.get("args") or ()
    return all(_holds(each, family) for each in conditions if each["index"] == 0)


def _matches(rule: Mapping[str, Any], family: int) -> bool:
    conditions = rule.get("args") or ()
    return all(each["index"] == 0 and _holds(each, family) for each in conditions)


def _holds(condition: Mapping[str, Any], value: int) -> bool:
    wanted, more = condition["value"], condition.get("valueTwo", 0)
    return bool(
        {
            "SCMP_CMP_NE": value != wanted,
            "SCMP_CMP_LT": value < wanted,
            "SCMP_CMP_LE": value <= wanted,
            "SCMP_CMP_EQ": value == wanted,
            "SCMP_CMP_GE": value >= wanted,
            "SCMP_CMP_GT": value > wanted,
            "SCMP_CMP_MASKED_EQ": value & wanted == more,
        }[condition["op"]]
    )


def _cgroup_namespace(config: Mapping[str, Any]) -> Iterator[str]:
    """In the host's it sees cgroups above its own. clone3(2) with CLONE_INTO_CGROUP enters
    what an O_PATH descriptor names, of a mount for reading only too: the kernel asks the inode
    (``cgroup_may_write()``), which knows nothing of mounts."""
    namespaces = config.get("linux", {}).get("namespaces") or ()
    if not any(each.get("type") == "cgroup" and not each.get("path") for each in namespaces):
        yield "--cgroupns private"


def _file_systems(config: Mapping[str, Any]) -> Iterator[str]:
    """What is mounted for writing, and is or shows what no endpoint must see: cgroups, a data
    path's pins."""
    points = [each.point for each in table(*FORBIDDEN)]
    for each in config.get("mounts") or ():
        if "ro" in (each.get("options") or ()):
            continue
        source = os.path.realpath(each.get("source") or "/dev/null")
        brought = each.get("type") == "bind" or "bind" in " ".join(each.get("options") or ())
        beside = any(os.path.commonpath((source, point)) in (source, point) for point in points)
        if each.get("type") in FORBIDDEN or (brought and beside):
            yield f"no {each['destination']}, or that read-only"
