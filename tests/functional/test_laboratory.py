# SPDX-License-Identifier: Apache-2.0
"""What the laboratory takes a data path for is what that says of itself."""

from __future__ import annotations

from lab import DATA_PATHS, Can

from slimnet.model import Feature, Wire
from slimnet.plugins import backend_names


def test_every_backend_is_in_the_laboratory():
    assert sorted(DATA_PATHS) == backend_names()


def test_what_the_backend_states(lab):
    backend = lab.hosts[0].backend
    assert backend.get("features") == {each for each in Feature if lab.can(Can(each))}
    assert lab.wire in backend.get("wires")
    assert (Wire.SYN in backend.get("wires")) == lab.can(Can.DIRECT)
    endpoint = lab.endpoint()
    assert (endpoint.netns is endpoint.host.netns) == (not lab.can(Can.OWN_NAMESPACE))
    assert backend.get("enforcing")
