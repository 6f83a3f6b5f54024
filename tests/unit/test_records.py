# SPDX-License-Identifier: Apache-2.0
"""Values as JSON and the same values again."""

import json

import pytest
from netaddr import IPAddress

from slimnet import records
from slimnet.agent import failure
from slimnet.exceptions import (
    AgentUnreachable,
    CapabilityMissing,
    Conflict,
    InvalidValue,
    NotFound,
    PolicyError,
    SlimnetError,
)
from slimnet.model import (
    Account,
    Connection,
    Decision,
    Direction,
    Endpoint,
    Event,
    EventKind,
    Feature,
    Flow,
    Host,
    Namespace,
    Network,
    Protocol,
    Reason,
    Status,
    Verdict,
    Way,
    WayKind,
    Wire,
)

END = (IPAddress("10.1.0.1"), 80)
OTHER = (IPAddress("10.1.0.2"), 40000)
FLOW = (END[0], OTHER[0])
DENIED = Verdict(False, Reason.DEFAULT_DENY)
ALLOWED = Verdict(True, Reason.RULE_ALLOW, 7)
WAY = Way(WayKind.REFUSED, Reason.UNREACHABLE, 113, Direction.INGRESS)


@pytest.mark.parametrize(
    ("decode", "value"),
    [
        (records.network, Network("prod", 7, ["10.1.0.0/16", "10.3.0.0/16"])),
        (records.namespace, Namespace("prod", "shop", {"tier": "a"})),
        (records.host, Host("h1", "192.0.2.1", {Wire.SYN, Wire.VXLAN}, "ebpf", {"zone": "a"})),
        (records.host, Host("h1", "192.0.2.1", enforcing=True, features=set(Feature))),
        (records.host, Host("h1", "192.0.2.1", key="0f1e", ranges=["198.51.100.0/24"])),
        (records.host, Host("h1", "192.0.2.1", taken={"172.30.0.0/16": "interface dk0"})),
        (records.account, Account(7, 9, Direction.INGRESS, 3, 1, 1000, 50)),
        (
            records.endpoint,
            Endpoint(
                "prod",
                "web",
                "10.1.0.1",
                "h1",
                id=3,
                labels={"app": "web"},
                ports={"http": ("tcp", 80)},
                identity=256,
                cgroup="/sys/fs/cgroup/x",
            ),
        ),
        (
            records.connection,
            Connection(1, 2, END, OTHER, Direction.INGRESS, Wire.SYN, "ESTAB", 12.5, 99),
        ),
        (records.connection, Connection(1, 0, END, OTHER, Direction.EGRESS, None, "ESTAB", 1.0)),
        (records.flow, Flow("prod", *FLOW, Protocol.TCP, 80, Direction.EGRESS)),
        (records.decision, Decision(DENIED, 12, 256, 0, 0, 0, END, None)),
        (
            records.decision,
            Decision(ALLOWED, 12, 256, 257, 3, 9, OTHER, IPAddress("192.0.2.1"), WAY),
        ),
        (
            records.event,
            Event(
                EventKind.REFUSED, 1.0, 1, 2, OTHER, END, 6, Direction.EGRESS, Reason.RULE_DENY, 4
            ),
        ),
    ],
)
def test_there_and_back(decode, value):
    assert records.load("key", records.dump(value), decode) == value


def test_a_host_that_is_too_old_to_say_which_key_it_has():
    """No trouble: nobody knows that it is another."""
    old = records.host({"name": "h1", "address": "192.0.2.1", "wires": ["syn"], "backend": "ebpf"})
    new = Host("h2", "192.0.2.2", key="0f1e")
    assert not old.differs_in_key(new)
    assert not new.differs_in_key(old)
    assert new.differs_in_key(Host("h3", "192.0.2.3", key="0f1f"))


class Odd:
    def __repr__(self):
        return "<odd>"


def test_a_host_of_a_later_version():
    """What this version has no word for is no reason to lose it: they talk by what both know."""
    host = Host("h1", "192.0.2.1", {Wire.SYN}, features={Feature.SERVICES})
    later = records.encode(host) | {
        "wires": ["syn/1", "quantum/1"],
        "features": ["services", "flight"],
        "colour": "blue",
    }
    assert records.host(later) == host
    for torn in ({"wires": 5}, {"wires": [5]}, {"features": 5}, {"name": 5}):
        with pytest.raises(InvalidValue):
            records.load("hosts/h1", json.dumps(later | torn).encode(), records.host)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (Odd(), "value"),
        ({"a": [1, Odd()]}, "a.1"),
        ({1: {Direction.EGRESS: Odd()}}, "1.egress"),
        ({"a": {Odd()}}, "a"),
        ({Odd(): 1}, "value"),
        ({"a": {(1, 2): 3}}, "a"),
        ({"a": 3j}, "a"),
        ({"a": iter([])}, "a"),
    ],
)
def test_what_no_record_holds_is_refused_by_its_place(value, where):
    with pytest.raises(TypeError) as refused:
        records.encode(value)
    wanted = f"{where}: wanted what a record can hold, got "
    assert str(refused.value).startswith(wanted)
    with pytest.raises(TypeError):
        records.dump(value)


def test_fields_of_a_value_are_named_too():
    status = Status(generation=1, endpoints=frozenset(), detail={"odd": Odd()})
    with pytest.raises(TypeError, match=r"^status.detail.odd: wanted .* got Odd <odd>$"):
        records.encode({"status": status})


def test_keys_are_text():
    found = records.encode({Direction.EGRESS: 1, 7: 2, IPAddress("10.0.0.1"): 3})
    assert found == {"egress": 1, "7": 2, "10.0.0.1": 3}


def test_status_in_words():
    status = Status(3, frozenset({2, 1}), {Reason.SYN_TAG: 5})
    encoded = json.loads(records.dump(status))
    assert encoded["endpoints"] == [1, 2]
    assert encoded["counters"] == {"syn_tag": 5}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'"text"',
        b"{}",
        b'{"name": "prod", "vni": 0, "cidrs": ["10.0.0.0/8"]}',
        b'{"name": "prod", "vni": 1, "cidrs": ["x"]}',
        b'{"name": "prod", "vni": 1, "cidrs": ["10.0.0.0/8"], "more": 1}',
    ],
)
def test_unreadable(data):
    with pytest.raises(InvalidValue, match="store key networks/prod"):
        records.load("networks/prod", data, records.network)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidValue("network.vni", "a VNI", 0), 400),
        (PolicyError("file.yaml:3: spec", "a table", None), 400),
        (NotFound("no such network"), 404),
        (Conflict("again"), 409),
        (CapabilityMissing("root only"), 403),
        (SlimnetError("whatever"), 500),
    ],
)
def test_errors_travel(error, status):
    """The same class with the same message; and JSON in between."""
    again = failure.from_json(json.loads(json.dumps(failure.to_json(error))))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert failure.http_status(error) == status


def test_errors_of_another_version():
    """A class that this side does not know is a SlimnetError with the message."""
    for name in ("SomethingNew", "annotations", "__doc__", None):
        again = failure.from_json({"error": name, "message": "text", "arguments": ["text"]})
        assert type(again) is SlimnetError
        assert str(again) == "text"


def test_error_whose_arguments_do_not_fit():
    again = failure.from_json({"error": "InvalidValue", "message": "text", "arguments": []})
    assert type(again) is SlimnetError
    assert str(again) == "text"


def test_os_errors_keep_their_errno():
    again = failure.from_json(failure.to_json(AgentUnreachable(111, "refused")))
    assert again.errno == 111
