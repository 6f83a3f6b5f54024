# SPDX-License-Identifier: Apache-2.0
"""The backend that needs no privilege, no BPF and no module.

A library that is preloaded into an endpoint's processes (the shim) gives their sockets overlay
addresses, and a daemon of the host (the router) decides, with the C of every other data path over
the same tables. This package supervises the router and hands it tables::

    agent --control.h--> router --announce.h--> router of another host
                           ^
      shim in a process ---'  shim.h, one Unix socket for each endpoint

It is cooperative: a process that does not want the shim is a process of the host.
"""

from slimnet_preload.backend import PreloadBackend

__all__ = ["PreloadBackend"]
