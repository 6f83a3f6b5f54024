# SPDX-License-Identifier: Apache-2.0
"""The fallback overlay (design, section 5): an ordinary routed VXLAN.

One address per endpoint, static routes, neighbours and forwarding entries from
the compiled tables, no flooding, no learning, and policy at the router:

- :class:`Fallback`: all of it on one host, which a backend composes; with
  :func:`probe`, :func:`find` and :func:`purge`; :class:`Beneath` says where it is then.
- :class:`Router`: one network's part of one host, drawn in its module.
- :mod:`~slimnet.fallback.ruleset`: the tables as nftables rules.
- :class:`Outside`: the host's own table: what is in force, and the way out.
- :func:`tracked`, :func:`refusals`, :func:`counters`: what the routers saw.

A router is a namespace because networks may use the same addresses, because
root in an endpoint must not reach the rules, and because what is removed whole
leaves nothing. The host's own namespace gets one device and one small table.
"""

from slimnet.fallback.answer import carried
from slimnet.fallback.beneath import Beneath
from slimnet.fallback.flows import TrackedFlow, tracked
from slimnet.fallback.outside import Outside, Stamp
from slimnet.fallback.overlay import (
    CAPABILITIES,
    PORT,
    Fallback,
    find,
    life,
    place,
    probe,
    purge,
)
from slimnet.fallback.pair import DevicePair
from slimnet.fallback.refusals import Refused, counters, refusals
from slimnet.fallback.router import Plug, Router
from slimnet.fallback.ruleset import RESET

__all__ = [
    "CAPABILITIES",
    "PORT",
    "RESET",
    "Beneath",
    "DevicePair",
    "Fallback",
    "Outside",
    "Plug",
    "Refused",
    "Router",
    "Stamp",
    "TrackedFlow",
    "carried",
    "counters",
    "find",
    "life",
    "place",
    "probe",
    "purge",
    "refusals",
    "tracked",
]
