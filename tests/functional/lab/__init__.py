# SPDX-License-Identifier: Apache-2.0
"""A cluster small enough for one test: hosts as network namespaces, a data
path in each (any of paths.py), endpoints with remote hands in them, and a
machine that is not in the cluster. No agent, no store, no CLI: the tables are
made by hand, or (Compiled) by the compiler out of a desired state."""

from lab.cluster import Endpoint, Host, Lab
from lab.compiled import Compiled
from lab.hands import DEADLINE, PATIENCE, Hands, Program, Remote
from lab.paths import DATA_PATHS, PLAIN, Can, DataPath, require
from lab.wires import Namespace, Underlay

__all__ = [
    "DATA_PATHS",
    "DEADLINE",
    "PATIENCE",
    "PLAIN",
    "Can",
    "Compiled",
    "DataPath",
    "Endpoint",
    "Hands",
    "Host",
    "Lab",
    "Namespace",
    "Program",
    "Remote",
    "Underlay",
    "require",
]
