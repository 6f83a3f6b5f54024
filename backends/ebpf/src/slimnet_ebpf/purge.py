# SPDX-License-Identifier: Apache-2.0
"""Away with a data path that cannot be adopted: by its pins and its record alone."""

from __future__ import annotations

import contextlib
import logging
import os

from netaddr import IPNetwork

from slimnet_ebpf.options import Options
from slimnet_ebpf.pins import Pins
from slimnet_ebpf.underlay import UnderlayPrograms

__all__ = ["purge"]

_log = logging.getLogger(__name__)


def purge(instance: str) -> None:
    """See :meth:`slimnet.abc.Backend.purge`. What a cgroup keeps of it goes with the cgroup."""
    pins = Pins(instance)
    if not pins.root.is_dir():
        return
    with pins.lock():
        try:
            _restore_host(pins)
        except Exception as error:  # noqa: BLE001  # whatever is wrong with it, the pins go
            _log.warning("instance %s: the host's settings stay: %s", instance, error)
        pins.remove()
        pins.remove_root()


def _restore_host(pins: Pins) -> None:
    with contextlib.ExitStack() as held:
        programs = pins.open_programs()
        for program in programs:
            held.callback(os.close, program.fd)
        by_name = {program.name: program for program in programs}
        inner_range = pins.record().get("inner_range", Options().inner_range)
        UnderlayPrograms(pins, by_name, IPNetwork(inner_range)).restore()
