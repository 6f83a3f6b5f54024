# SPDX-License-Identifier: Apache-2.0
"""Whether the data path can run here, and what it can do."""

from __future__ import annotations

import errno
import os
import subprocess

from slimnet import contract
from slimnet.linux import cgroup, libc
from slimnet.model import Answer, Capabilities, Feature, Probe, Wire, WireFormat
from slimnet.place import Part
from slimnet_preload.router import PROGRAM, SHIM

__all__ = ["capabilities", "probe"]

_BUILD = "build it again: make -C backends/preload"
#: Of a router that is called without what it needs.
_USAGE = 2


def capabilities() -> Capabilities:
    """Of this user on this machine. Root's endpoints have a cgroup too, so that their
    processes can be told and ended whatever they do to their environment."""
    needs = {Part.ENVIRONMENT}
    if os.geteuid() == 0 and cgroup.mounted():
        needs.add(Part.CGROUP)
    return Capabilities(
        wires=frozenset({WireFormat(Wire.ANNOUNCE, contract.SLIM_ANNOUNCE_VERSION)}),
        features=frozenset({Feature.SERVICES, Feature.PUBLISHED_PORTS}),
        needs=frozenset(needs),
    )


def probe() -> Probe:
    """See :meth:`slimnet.abc.Backend.probe`. The router is called, and refuses at once."""
    for file in (PROGRAM, SHIM):
        if not file.is_file():
            return Probe(Answer.NO, f"no {file.name}", _BUILD)
    try:
        done = subprocess.run([PROGRAM], capture_output=True, check=False, timeout=10)
    except OSError as error:
        return Probe(Answer.NO, f"{PROGRAM.name} cannot be run: {error.strerror}", _BUILD)
    if done.returncode != _USAGE:
        said = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        return Probe(Answer.NO, f"{PROGRAM.name} cannot be run: {said or done.returncode}", _BUILD)
    whose = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    found = f"needs no privilege: runs as {whose}"
    if not _revokes():
        found += "; live connections go on when policy forbids them, before Linux 5.6"
    return Probe(Answer.YES, found, capabilities=capabilities())


def _revokes() -> bool:
    """Whether a router of this user can close what its processes have."""
    if os.geteuid() == 0:
        return True
    try:
        libc.pidfd_getfd(-1, 0)
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True
