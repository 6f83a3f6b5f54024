# SPDX-License-Identifier: Apache-2.0
"""The values that everything talks about: frozen, converted, and refused by field."""

import pickle
from ipaddress import ip_address

import attrs
import pytest
from netaddr import IPAddress, IPNetwork

from slimnet import model
from slimnet.exceptions import InvalidValue
from slimnet.model import (
    Direction,
    Endpoint,
    Flow,
    Host,
    Namespace,
    Network,
    Protocol,
    Wire,
    WireFormat,
)

WEB = {"network": "prod", "name": "web", "address": "10.1.0.1", "host": "h1"}
OPEN = {
    "network": "prod",
    "source": "10.1.0.1",
    "destination": "10.1.0.2",
    "protocol": 6,
    "port": 80,
    "direction": 1,
}

CLASSES = [
    getattr(model, name) for name in model.__all__ if attrs.has(getattr(model, name))
]  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_is_frozen_and_documented(kind):
    assert kind.__setattr__ is not object.__setattr__
    assert kind.__doc__
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        kind.__setattr__(object.__new__(kind), attrs.fields(kind)[0].name, None)


def test_text_becomes_addresses():
    """netaddr's, wherever an address or a range is."""
    assert Network("prod", 1, "10.1.0.0/16").cidrs == (IPNetwork("10.1.0.0/16"),)
    assert Network("prod", 1, ["10.1.0.0/16", "10.2.0.0/16"]).cidrs[1] == IPNetwork("10.2.0.0/16")
    assert Host("h1", "192.0.2.1").address == IPAddress("192.0.2.1")
    assert Endpoint(**WEB).address == IPAddress("10.1.0.1")
    flow = Flow(**OPEN)
    assert (flow.source, flow.destination) == (IPAddress("10.1.0.1"), IPAddress("10.1.0.2"))


def test_numbers_and_words_become_enumerations():
    assert Host("h1", "192.0.2.1", ["syn"]).wires == {WireFormat(Wire.SYN)}
    assert Flow(**OPEN).protocol is Protocol.TCP
    assert Flow(**OPEN).direction is Direction(1)


def test_values_are_equal_hashable_and_travel():
    one, other = Endpoint(**WEB, labels={"app": "web"}), Endpoint(**WEB, labels={"app": "web"})
    assert one == other
    assert len({one, other}) == 1
    assert pickle.loads(pickle.dumps(one)) == one


def test_tables_cannot_be_changed_behind_the_value():
    labels = {"app": "web"}
    endpoint = Endpoint(**WEB, labels=labels)
    labels["app"] = "db"
    assert endpoint.labels == {"app": "web"}
    with pytest.raises(TypeError):
        endpoint.labels["app"] = "db"


@pytest.mark.parametrize(
    ("make", "field", "wanted", "got"),
    [
        (lambda: Network("Prod", 1, "10.1.0.0/16"), "network.name", "lower-case", "'Prod'"),
        (lambda: Network("-", 1, "10.1.0.0/16"), "network.name", "RFC 1123", "'-'"),
        (lambda: Network("a" * 64, 1, "10.1.0.0/16"), "network.name", "at most 63", "aaa"),
        (lambda: Network(3, 1, "10.1.0.0/16"), "network.name", "lower-case", "3"),
        (lambda: Network("prod", 0, "10.1.0.0/16"), "network.vni", "1 to 16777215", "0"),
        (lambda: Network("prod", 1 << 24, "10.1.0.0/16"), "network.vni", "1 to 16777215", "16777"),
        (lambda: Network("prod", "1", "10.1.0.0/16"), "network.vni", "a VNI", "'1'"),
        (lambda: Network("prod", 1, "10.1"), "network.cidrs", "such as 10.1.0.0/16", "10.1"),
        (lambda: Network("prod", 1, []), "network.cidrs", "one or more", "()"),
        (lambda: Network("prod", 1, None), "network.cidrs", "one or more", "nothing"),
        (lambda: Namespace("prod", "a/b"), "namespace.name", "lower-case", "'a/b'"),
        (lambda: Namespace("prod", "a", {"app": 3}), "namespace.labels", "labels", "3"),
        (lambda: Namespace("prod", "a", {"a b": "c"}), "namespace.labels", "labels", "a b"),
        (lambda: Namespace("prod", "a", ["app"]), "namespace.labels", "labels", "['app']"),
        (lambda: Host("h1", "192.0.2.256"), "host.address", "an IP address", "192.0.2.256"),
        (lambda: Host("h1", ip_address("192.0.2.1")), "host.address", "an IP address", "IPv4"),
        (lambda: Host("h1", "192.0.2.1", ["sin"]), "host.wires", "syn, announce, vxlan", "'sin'"),
        (lambda: Host("h1", "192.0.2.1", 3), "host.wires", "syn, announce, vxlan", "3"),
        (lambda: Endpoint(**{**WEB, "name": "web."}), "endpoint.name", "lower-case", "'web.'"),
        (lambda: Endpoint(**WEB, namespace=""), "endpoint.namespace", "lower-case", "''"),
        (lambda: Endpoint(**WEB, id=-1), "endpoint.id", "a 32-bit number", "-1"),
        (lambda: Endpoint(**WEB, identity=1 << 32), "endpoint.identity", "32-bit", "4294967296"),
        (lambda: Flow(**{**OPEN, "port": 65536}), "flow.port", "0 to 65535", "65536"),
        (lambda: Flow(**{**OPEN, "port": "http"}), "flow.port", "a port", "'http'"),
        (lambda: Flow(**{**OPEN, "protocol": 99}), "flow.protocol", "TCP (6)", "99"),
        (lambda: Flow(**{**OPEN, "direction": 7}), "flow.direction", "EGRESS", "7"),
    ],
)
def test_a_wrong_value_is_refused(make, field, wanted, got):
    """The message names the field, what was wanted and what came, on one line."""
    with pytest.raises(InvalidValue) as caught:
        make()
    assert caught.value.field == field
    said = str(caught.value)
    assert said.startswith(f"{field}: wanted ")
    assert wanted in said
    assert said.rpartition(", got ")[2].find(got) >= 0
    assert "\n" not in said


def test_a_boolean_is_no_number():
    with pytest.raises(InvalidValue, match=r"network\.vni"):
        Network("prod", True, "10.1.0.0/16")  # the value under test
    with pytest.raises(InvalidValue, match=r"flow\.port"):
        Flow(**{**OPEN, "port": True})


def test_a_probe_is_true_for_a_certain_yes_only():
    answers = {answer: bool(model.Probe(answer, "because")) for answer in model.Answer}
    assert answers == {
        model.Answer.YES: True,
        model.Answer.NO: False,
        model.Answer.UNKNOWN: False,
    }
