# SPDX-License-Identifier: Apache-2.0
"""What is said to the kernel module, without one: bytes as its header has them."""

import errno
import re
import struct
from pathlib import Path

import pytest
from attrs import evolve
from netaddr import IPAddress

from slimnet import contract
from slimnet.encoding import encodings
from slimnet.exceptions import ConfigError
from slimnet.fallback import carried
from slimnet.model import Decision, Reason, Verdict, Way, WayKind, Wire, WireFormat
from slimnet.tables import EndpointRecord, HostRecord, ServiceKey, ServiceRecord, Tables
from slimnet_kmod import contract as private
from slimnet_kmod import messages, module, requirements
from slimnet_kmod.options import KmodOptions
from slimnet_kmod.tables import parts as parts_of

HEADER = (Path(__file__).parents[2] / "kernel/uapi/slimnet/netlink.h").read_text()
SAID = dict(re.findall(r"SLIM_ATTR_(\w+) = \d+,\s*/\* ([\w\[]+)", HEADER))
WIDTHS = {"u16": "uint16", "u32": "uint32", "u64": "uint64", "string": "asciiz", "flag": "flag"}
VALUES = {"uint16": 0xF00D, "uint32": 0xF00DFEED, "uint64": 1 << 63 | 7, "asciiz": "lab-h0"}
VALUES |= {"cdata": bytes(range(1, 17)), "flag": True}


def attributes(data):
    """Number to bytes, out of the message, as netlink(7) has it."""
    found, data = {}, data[20:]
    while data:
        length, number = struct.unpack_from("=HH", data)
        found[number] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def test_names_are_the_headers():
    defined = dict(re.findall(r'#define (SLIM_NL_\w+) "(\w+)"', HEADER))
    assert defined == {"SLIM_NL_FAMILY": messages.FAMILY, "SLIM_NL_GROUP_EVENTS": messages.GROUP}


def test_every_attribute_is_of_the_kind_that_the_header_says():
    kinds = {name: kind for _, name, kind in messages.Message.nla_map}
    assert len(kinds) == private.SLIM_ATTR_COUNT
    for name, said in SAID.items():
        assert kinds[f"SLIM_ATTR_{name}"] == WIDTHS.get(said, "cdata"), name


@pytest.mark.parametrize("name", SAID)
def test_an_attribute_goes_there_and_back(name):
    """Its number, length and bytes are what the kernel's policy checks."""
    number = getattr(private, f"SLIM_ATTR_{name}")
    kind = {each: kind for each, _, kind in messages.Message.nla_map}[number]
    value = VALUES[kind]
    data = messages.encode(33, 9, 5, 7, {name: None if kind == "flag" else value})
    assert struct.unpack_from("=IHHI", data) == (len(data), 33, 5, 7)
    assert data[16:20] == bytes([9, private.SLIM_NL_VERSION, 0, 0])
    raw = {
        "flag": b"",
        "asciiz": b"lab-h0\0",
        "cdata": value,
        "uint16": struct.pack("=H", 0xF00D),
        "uint32": struct.pack("=I", 0xF00DFEED),
        "uint64": struct.pack("=Q", 1 << 63 | 7),
    }[kind]
    assert attributes(data) == {number: raw}
    assert dict(messages.decode(data)) == {name: value}


def test_what_a_newer_module_says_besides_is_passed_over():
    data = messages.encode(33, 1, 0, 0, {"GENERATION": 5})
    data += struct.pack("=HHI", 8, private.SLIM_ATTR_COUNT + 20, 1)
    data = struct.pack("=I", len(data)) + data[4:]
    assert dict(messages.decode(data)) == {"GENERATION": 5}


def service(number):
    key = ServiceKey(7, IPAddress("10.0.0.1"), 6, number)
    return key, ServiceRecord(number, 0, ((number, 80),) * contract.SLIM_SERVICE_SLOTS, 1)


def test_tables_are_sent_in_whole_records():
    """As many as an attribute has room for, in their order."""
    tables = Tables(1, services=dict(service(number) for number in range(1, 20)))
    (kind,) = [each for each in encodings({}) if each.table == "services"]
    records = list(kind.records(tables))
    parts = list(parts_of(records))
    assert b"".join(parts) == b"".join(records)
    assert [len(part) / len(records[0]) for part in parts] == [7, 7, 5]
    (data,) = {len(messages.encode(33, 6, 5, 7, {"RECORDS": parts[0]}))}
    assert data == 16 + 4 + 4 + len(parts[0])
    assert not list(parts_of([]))


def acknowledgement(number, **said):
    """As the kernel writes one that is capped (NETLINK_CAP_ACK)."""
    kinds = {"msg": 1, "offset": 2, "missing": 5}
    tlvs = b""
    for name, value in said.items():
        raw = value.encode() + b"\0" if isinstance(value, str) else struct.pack("=I", value)
        tlvs += struct.pack("=HH", 4 + len(raw), kinds[name]) + raw + bytes(-len(raw) % 4)
    return bytes(16) + struct.pack("=i16x", -number) + tlvs


def refused(request, number, **said):
    data = acknowledgement(number, **said)
    header = struct.pack("=IHHII", len(data), 2, 0x200, 7, 0)
    return module._refusal(header + data[16:], 0x200, request)


def test_a_refusal_says_which_attribute():
    """By the offset of the one that is wrong, or by the number of the one that is missing."""
    request = messages.encode(33, 8, 5, 7, {"ENDPOINT": 4, "VNI": 1 << 30})
    at = request.index(struct.pack("=HH", 8, private.SLIM_ATTR_VNI))
    for said in ("out of range", "SLIM_ATTR_VNI: out of range"):
        error = refused(request, errno.ERANGE, msg=said, offset=at)
        assert (error.errno, error.attribute) == (errno.ERANGE, "vni")
        assert str(error) == "module slimnet: vni: out of range"
    error = refused(request, errno.EINVAL, missing=private.SLIM_ATTR_ADDRESS)
    assert str(error) == "module slimnet: address: Invalid argument"
    assert refused(request, 0) is None


VXLAN, SYN = (frozenset({WireFormat(wire)}) for wire in (Wire.VXLAN, Wire.SYN))


@pytest.mark.parametrize(
    ("reason", "wires", "local", "refused"),
    [
        ("UNREACHABLE", VXLAN, False, False),
        ("UNREACHABLE", SYN, False, True),
        ("DATAGRAM", VXLAN, False, False),
        ("DATAGRAM", SYN, False, True),
        ("DATAGRAM", SYN, True, False),
        ("RULE_DENY", VXLAN, False, True),
        ("FAMILY", VXLAN, False, True),
    ],
)
def test_what_the_fallback_overlay_carries_is_not_refused(reason, wires, local, refused):
    """What explain says of a connect is what becomes of it, whichever of the two carries it."""
    there, host = IPAddress("10.0.0.2"), IPAddress("192.0.2.2")
    tables = Tables(
        1,
        endpoints={5: EndpointRecord(there, host, 7, 300, local=local, wire=None)},
        hosts={host: HostRecord("h2", wires)},
    )
    answer = Decision(
        verdict=Verdict(True, Reason["DEFAULT_ALLOW"]),
        generation=1,
        subject=300,
        peer=300,
        endpoint=5,
        service=0,
        target=(there, 80),
        host=host,
        way=Way(WayKind.REFUSED, Reason[reason], errno.EHOSTUNREACH),
    )
    assert (carried(answer, tables).way is not None) is refused
    assert carried(answer, None) == answer
    assert carried(evolve(answer, endpoint=0), tables) == evolve(answer, endpoint=0)


def test_a_kernel_without_the_module_says_so():
    """This machine's, where it is one."""
    if Path("/sys/module/slimnet").exists():
        module.Module().close()
        return
    with pytest.raises(module.RequestRefused) as raised:
        module.Module()
    assert raised.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"wire_port": 4790}, "backend.kmod.wire_port: wanted one of inner_range, wire_ports,"),
        ({"wire_ports": 80}, "backend.kmod.wire_ports: wanted a number from 1024 to 65440, got 80"),
        ({"wire_ports": True}, "backend.kmod.wire_ports: wanted a number"),
        ({"vxlan_port": 0}, "backend.kmod.vxlan_port: wanted a number from 1 to 65535, got 0"),
        ({"inner_range": "240.0.0.0/8"}, "backend.kmod.inner_range: wanted an IPv4 /4 such as"),
        ({"inner_range": "241.0.0.0/4"}, "backend.kmod.inner_range: wanted an IPv4 /4 such as"),
    ],
)
def test_a_wrong_option_is_named(table, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        KmodOptions.parse(table)


def test_the_option_that_a_kernel_lacks_is_named():
    names = [names[0] for names in requirements._OPTIONS]
    whole = "".join(f"CONFIG_{name}=y\n" for name in names)
    assert requirements._lacking(whole) == ""
    assert requirements._lacking("") == "", "of a kernel that does not say, nothing is known"
    for name in names:
        assert requirements._lacking(whole.replace(f"CONFIG_{name}=y\n", "")) == name
    other = whole.replace("_WITH_REGS=y", "_WITH_ARGS=y")
    assert requirements._lacking(other) == ""


@pytest.mark.parametrize(
    ("present", "reason", "remedy"),
    [
        ((), "loads no modules: it is built without CONFIG_MODULES", "use another kernel"),
        (("modules", "disabled"), "kernel.modules_disabled", "it ends with the next boot"),
        (("modules",), "no module slimnet for Linux 6.1-x", "dkms install"),
        (("modules", "filename", "locked"), "signed modules only (lockdown)", "mokutil --import"),
        (("modules", "filename", "locked", "signer"), "does not load", "modprobe slimnet"),
        (("modules", "filename"), "is installed and does not load", "dmesg"),
    ],
)
def test_an_absent_module_is_explained(monkeypatch, present, reason, remedy):
    """What is missing, and what to do: the first thing that stands in the way."""

    class Machine(type(Path())):
        def exists(self):
            return "modules" in present if str(self) == "/proc/modules" else False

    monkeypatch.setattr(requirements, "Path", Machine)
    monkeypatch.setattr(requirements, "_installed", lambda _, field: field in present)
    monkeypatch.setattr(requirements, "_signed_only", lambda: "locked" in present)
    monkeypatch.setattr(requirements.sysctl, "exists", lambda _: "disabled" in present)
    monkeypatch.setattr(requirements.sysctl, "read", lambda _: "1")
    found = requirements.absence("6.1-x")
    assert reason in found[0]
    assert remedy in found[1]
