# SPDX-License-Identifier: Apache-2.0
"""[backend.ebpf]: what will do, and how a wrong entry is named."""

import pytest
from netaddr import IPNetwork

from slimnet import ConfigError
from slimnet_ebpf import EbpfBackend
from slimnet_ebpf.options import Options


def test_defaults():
    expected = Options(inner_range=IPNetwork("240.0.0.0/4"), wire_ports=4790, held_ports=65535)
    assert expected == Options.parse({})


def test_values_are_taken():
    options = Options.parse({"inner_range": "224.0.0.0/4", "wire_ports": 6000, "held_ports": 1})
    assert options == Options(IPNetwork("224.0.0.0/4"), 6000, 1)


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"inner_range": "10.0.0.0/8"}, "backend.ebpf.inner_range"),
        ({"inner_range": "241.0.0.0/4"}, "backend.ebpf.inner_range"),
        ({"inner_range": 4}, "backend.ebpf.inner_range"),
        ({"inner_range": "fd00::/4"}, "backend.ebpf.inner_range"),
        ({"wire_ports": 0}, "backend.ebpf.wire_ports"),
        ({"wire_ports": 1}, "backend.ebpf.wire_ports"),
        ({"wire_ports": 1023}, "backend.ebpf.wire_ports"),
        ({"wire_ports": 65441}, "backend.ebpf.wire_ports"),
        ({"wire_ports": 65500}, "backend.ebpf.wire_ports"),
        ({"wire_ports": True}, "backend.ebpf.wire_ports"),
        ({"wire_ports": "4790"}, "backend.ebpf.wire_ports"),
        ({"held_ports": -1}, "backend.ebpf.held_ports"),
        ({"held_port": 1}, "backend.ebpf.held_port"),
        ({"device": "macvlan"}, "backend.ebpf.device"),
        ({"device": 1}, "backend.ebpf.device"),
    ],
)
def test_a_wrong_entry_is_named(table, field):
    with pytest.raises(ConfigError) as error:
        Options.parse(table)
    assert field == error.value.field


def test_an_unknown_key_lists_what_would_do():
    with pytest.raises(ConfigError, match="inner_range, wire_ports, held_ports.*mean held_ports"):
        Options.parse({"held_port": 1})


def test_wire_ports_end_within_the_ports_that_there_are():
    assert Options.parse({"wire_ports": 65440}).ports == range(65440, 65536)
    assert EbpfBackend.ports({"wire_ports": 1024}) == {"wire_ports": range(1024, 1120)}
