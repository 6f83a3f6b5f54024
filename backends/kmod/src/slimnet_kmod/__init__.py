# SPDX-License-Identifier: Apache-2.0
"""The backend that drives the kernel module ``slimnet`` (``kernel/module``).

An endpoint keeps a network namespace of its own. Its TCP sockets move into the underlay's
when they are bound, or connected, to the overlay, and cost what the host's own cost; whatever
the module leaves where it is (UDP, ICMP, the outside, hosts that do not speak wire ``syn``)
takes the fallback overlay, which is composed here as ``noop`` is made of it.

- :mod:`~slimnet_kmod.messages`: the family's messages (``slimnet/netlink.h``).
- :mod:`~slimnet_kmod.module`: a socket to the module: requests, dumps, events.
- :mod:`~slimnet_kmod.requirements`: what the machine has to have.
- :mod:`~slimnet_kmod.backend`: the backend.
"""

from slimnet_kmod.backend import KmodBackend

__all__ = ["KmodBackend"]
