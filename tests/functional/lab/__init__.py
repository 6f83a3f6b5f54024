# SPDX-License-Identifier: Apache-2.0
"""A cluster small enough for one test: hosts as network namespaces, a data
path in each, endpoints with remote hands in them, and a machine that is not
in the cluster. No agent, no store, no CLI: the tables are made by hand."""

from lab.cluster import Endpoint, Host, Lab
from lab.hands import DEADLINE, Hands, Program, Remote
from lab.wires import Namespace, Underlay

__all__ = [
    "DEADLINE",
    "Endpoint",
    "Hands",
    "Host",
    "Lab",
    "Namespace",
    "Program",
    "Remote",
    "Underlay",
]
