# SPDX-License-Identifier: Apache-2.0
"""The policy engine: what users write, and the tables that it becomes.

Values stand on the ground; ``language`` makes them of documents, ``compile`` makes tables of
them, and ``explain`` says what both mean.

====================  ==================================================================
:func:`load`          documents from manifests (``language.manifest``)
:func:`read`          manifests as JSON values, of a file or a text
:func:`is_foreign`    whether one of these is for others than slimnet
:func:`parse`         documents from them
:class:`Document`     policies, services, ports, limits (``document``, ``rule``, ``selector``)
:class:`State`        everything that tables are compiled from (``state``)
:func:`compile`       the tables of one host (``compile``; :class:`Compiler` for changes)
:func:`explain`       why a flow is allowed or denied (``explain.explanation``)
:func:`check`         warnings: what was surely not meant (``explain.warning``)
:class:`Oracle`       what policies mean, evaluated slowly (``explain.oracle``)
====================  ==================================================================
"""

from slimnet.policy.compile.compiler import Compiler, compile  # noqa: A004
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
from slimnet.policy.explain.explanation import Explanation, Stage, explain
from slimnet.policy.explain.oracle import Judgement, Oracle
from slimnet.policy.explain.warning import PolicyWarning, check, uncarried
from slimnet.policy.language.manifest import is_foreign, load, parse, read
from slimnet.policy.rule import Action, Block, Peer, Port, Rule, Tier
from slimnet.policy.selector import Operator, Requirement, Selector
from slimnet.policy.state import State

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
    "is_foreign",
    "load",
    "parse",
    "read",
    "uncarried",
]
