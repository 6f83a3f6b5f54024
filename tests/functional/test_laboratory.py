# SPDX-License-Identifier: Apache-2.0
"""What the laboratory takes a data path for is what that says of itself."""

from __future__ import annotations

from lab import Can
from lab.paths import EVERY

from slimnet.model import Feature
from slimnet.place import Part
from slimnet.plugins import backend_names


def test_every_backend_is_in_the_laboratory():
    assert sorted(EVERY) == backend_names()


def test_what_the_backend_states(lab):
    stated = lab.hosts[0].backend.get("capabilities")
    assert stated.enforcing == lab.can(Can.ENFORCES)
    assert stated.features == {each for each in Feature if lab.can(Can(each))}
    assert {each.wire for each in stated.wires} == {lab.wire}
    endpoint = lab.endpoint()
    assert (Part.NETNS in stated.needs) == lab.can(Can.OWN_NAMESPACE)
    assert (endpoint.netns is not endpoint.host.netns) == lab.can(Can.OWN_NAMESPACE)
