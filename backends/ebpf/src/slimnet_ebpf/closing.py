# SPDX-License-Identifier: Apache-2.0
"""Closed endpoints: what is kept from processes that somebody else starts in an endpoint's
cgroup, in the host's network namespace (``bpf/closed.bpf.c``).

The programs are of the BPF LSM (BPF_LSM_CGROUP, Linux 6.0; the layout of ``struct cgroup``
that they read is 6.1's), and loaded with the first endpoint that is to be closed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from slimnet.exceptions import BackendUnavailable, CapabilityMissing
from slimnet.linux import cgroup as cgroups
from slimnet.linux import lsm
from slimnet.sandbox import capabilities, seccomp
from slimnet_ebpf import links
from slimnet_ebpf.libbpf import BpfError
from slimnet_ebpf.objects import AbiStamp, Object, Program
from slimnet_ebpf.pins import Pins

__all__ = ["OBJECT", "Closing", "check", "closes"]

OBJECT = Path(__file__).with_name("closed.bpf.o")
_MAP = "slim_closed"
_PREFIX = f"{_MAP}_"
_TO = struct.Struct("=QQ")  # slim_closed_to: families, capabilities
_CGROUP = struct.Struct("=QI4x")  # struct slim_closed_cgroup


@contextlib.contextmanager
def _loaded() -> Iterator[Object]:
    if "bpf" not in lsm.active():
        raise CapabilityMissing("the BPF LSM is off: boot with lsm=...,bpf")
    with Object(OBJECT) as loaded:
        if loaded.stamp() != AbiStamp.ours():
            raise BackendUnavailable(f"{OBJECT} is of another build: make -C backends/ebpf")
        loaded.set_constant(
            "slim_closed_to",
            _TO.pack(
                sum(1 << family for family in seccomp.FAMILIES),
                sum(1 << number for number in capabilities.AROUND.values()),
            ),
        )
        try:
            loaded.load()
        except BpfError as error:
            raise CapabilityMissing(f"the kernel does not take what closes it ({error})") from error
        yield loaded


def check() -> None:
    """Whether this kernel can close endpoints, by loading what does.

    Raises:
        CapabilityMissing: it cannot; says why, and what to do.
    """
    try:
        with _loaded():
            pass
    except (CapabilityMissing, BackendUnavailable) as error:
        names = ", ".join(capabilities.LEADING_OUT)
        families = " and ".join(seccomp.PAST_HOOKS)
        raise CapabilityMissing(
            f"endpoint.closed: {error}; or leave it out, and have the container's engine drop"
            f" {names}, refuse {families} (seccomp), and show it no cgroup but its own"
        ) from error


@functools.cache
def closes() -> bool:
    """The same as an answer, once for each process: another kernel needs a boot."""
    try:
        check()
    except CapabilityMissing:
        return False
    return True


class Closing:
    """What closes the endpoints of one instance. Its caller holds the instance's lock.

    Args:
        pins: of the instance.
    """

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._programs: list[Program] = []

    def put(self, path: Path) -> None:
        """Close a cgroup, whose processes are held to it when this returns.

        Raises:
            CapabilityMissing: the kernel cannot.
            BackendUnavailable: the object file is not there.
            BpfError: the kernel refused.
        """
        self._load()
        with cgroups.opened(path) as fd:
            for program in self._programs:
                links.keep(program.fd, fd, program.attach_type)
        number = cgroups.number(path)
        level = len(path.resolve().relative_to(cgroups.mount()).parts)
        with contextlib.closing(self._pins.open_map(_MAP)) as told:
            told.set(number.to_bytes(8, sys.byteorder), _CGROUP.pack(number, level))

    def lacks(self, path: Path) -> bool:
        """Whether something of that is missing on a cgroup."""
        self._load()
        with cgroups.opened(path) as fd:
            there = links.attached(fd, links.ATTACH_LSM_CGROUP)
        return any(links.program_id(program.fd) not in there for program in self._programs)

    def take_off(self, path: Path) -> None:
        """The inverse of :meth:`put`; what is not there is no error."""
        with cgroups.opened(path) as fd:
            for program in self._programs:
                links.take_off(program.fd, fd, program.attach_type)

    def close(self) -> None:
        """Let go of the programs."""
        while self._programs:
            os.close(self._programs.pop().fd)

    def _load(self) -> None:
        """Open the programs, which are pinned first where they are not, the map last."""
        if self._programs:
            return
        if not (self._pins.maps / _MAP).exists():
            with _loaded() as loaded:
                self._pins.add(loaded, _MAP)
        self._programs = self._pins.open_programs(_PREFIX)
