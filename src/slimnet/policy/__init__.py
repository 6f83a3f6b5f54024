# SPDX-License-Identifier: Apache-2.0
"""The policy engine: what users write, and the tables that it becomes.

====================  ==================================================================
:func:`load`          documents from manifests (:mod:`slimnet.policy.manifest`)
:class:`Document`     policies, services, ports, limits (``document``, ``rule``, ``selector``)
:class:`State`        everything that tables are compiled from (``state``)
:func:`compile`       the tables of one host (``compiler``; :class:`Compiler` for changes)
:func:`explain`       why a flow is allowed or denied (``explanation``)
:func:`check`         warnings: what was surely not meant (``warning``)
:class:`Oracle`       what policies mean, evaluated slowly (``oracle``)
====================  ==================================================================
"""

from slimnet.policy.compiler import Compiler, compile  # noqa: A004
from slimnet.policy.document import (
    ClusterNetworkPolicy,
    Document,
    EgressLimit,
    NetworkPolicy,
    Policy,
    PublishedPort,
    Service,
    ServicePort,
    Source,
    Weight,
)
from slimnet.policy.explanation import Explanation, Stage, explain
from slimnet.policy.manifest import load
from slimnet.policy.oracle import Judgement, Oracle
from slimnet.policy.rule import Action, Block, Peer, Port, Rule, Tier
from slimnet.policy.selector import Operator, Requirement, Selector
from slimnet.policy.state import State
from slimnet.policy.warning import PolicyWarning, check

__all__ = [
    "Action",
    "Block",
    "ClusterNetworkPolicy",
    "Compiler",
    "Document",
    "EgressLimit",
    "Explanation",
    "Judgement",
    "NetworkPolicy",
    "Operator",
    "Oracle",
    "Peer",
    "Policy",
    "PolicyWarning",
    "Port",
    "PublishedPort",
    "Requirement",
    "Rule",
    "Selector",
    "Service",
    "ServicePort",
    "Source",
    "Stage",
    "State",
    "Tier",
    "Weight",
    "check",
    "compile",
    "explain",
    "load",
]
