# SPDX-License-Identifier: Apache-2.0
"""What the kernel module makes of requests that are wrong: it names what is, and nothing
changed. Needs the module, as in the machines of ``tests/vm``."""

import contextlib
import errno
import os
import random
import struct

import pytest
from netaddr import IPAddress

from slimnet import contract
from slimnet.answers import FlowQuestion
from slimnet.layout import Layout, to_bytes16
from slimnet.linux import libc, netns
from slimnet.model import Direction
from slimnet_kmod import contract as private
from slimnet_kmod import messages, module

pytestmark = [pytest.mark.root, pytest.mark.module]

ADDRESS = IPAddress("10.9.0.1")
RECORD = Layout(contract.slim_address_key).pack(vni=7, address=to_bytes16(ADDRESS))
RECORD += (11).to_bytes(4, "little")
COMMANDS = {
    name.removeprefix("SLIM_CMD_").lower(): number
    for name, number in vars(private).items()
    if name.startswith("SLIM_CMD_") and name not in ("SLIM_CMD_UNSPEC", "SLIM_CMD_EVENT")
}
DUMPS = {"endpoints", "connections", "accounts"}
CLONE_NEWUSER = 0x10000000
STRANGER = "COUNTERS"  # an attribute that no request has


def valid(command, place=0):
    """Attributes of a request that is right."""
    return {
        "start": {
            "ABI_VERSION": contract.SLIM_ABI_VERSION,
            "FINGERPRINT": contract.FINGERPRINT,
            "INSTANCE": "fuzz",
            "UNDERLAY": to_bytes16(IPAddress("198.18.0.1")),
            "WIRE_PORT": 4790,
            "RANGE": bytes([240, 0, 0, 0]),
            "KEY": bytes(16),
        },
        "observe": {"OBSERVE": 3},
        "tables_begin": {"GENERATION": 5},
        "tables_put": {"TABLE": private.SLIM_NL_ADDRESSES, "RECORDS": RECORD},
        "tables_commit": {"GENERATION": 5},
        "attach": {"ENDPOINT": 11, "NETNS_FD": place, "VNI": 7, "ADDRESS": to_bytes16(ADDRESS)},
        "detach": {"ENDPOINT": 11},
        "ask": {"QUESTION": FlowQuestion(7, Direction.EGRESS, ADDRESS, ADDRESS, 6, 80).pack()},
    }.get(command, {})


EACH = [(command, name) for command in COMMANDS for name in valid(command)]


class Host:
    """A namespace with a data path, who holds it, and a namespace for an endpoint."""

    def __init__(self, undo):
        self.paths = [netns.DIRECTORY / f"slt-{os.getpid()}-{name}" for name in ("host", "place")]
        for path in self.paths:
            netns.create(path)
            undo.callback(netns.remove, path)
        with netns.enter(self.paths[0]):
            self.holder = undo.enter_context(contextlib.closing(module.Module()))
            self.other = undo.enter_context(contextlib.closing(module.Module()))
        self.place = undo.enter_context(self.paths[1].open())
        self.start()
        undo.callback(self.holder.request, private.SLIM_CMD_TEARDOWN, FORCE=True)

    def start(self):
        self.holder.request(private.SLIM_CMD_START, **self.valid("start"))

    def valid(self, command):
        return valid(command, self.place.fileno())

    def state(self):
        """What a request that is refused must leave."""
        info = self.other.request(private.SLIM_CMD_INFO)
        info.pop("COUNTERS", None)
        return info, self.other.dump(private.SLIM_CMD_ENDPOINTS)

    def send(self, command, attributes, by=None, raw=b""):
        """A request with bytes behind its attributes; how it was refused, or ``None``."""
        by = by or self.holder
        flags = 1 | (0x300 if command in DUMPS else 4)
        data = messages.encode(by._number, COMMANDS[command], flags, 1 << 20, attributes)
        return exchange(by, struct.pack("=I", len(data) + len(raw)) + data[4:] + raw)


def exchange(by, data):
    by._socket.send(data)
    by._socket.settimeout(20)
    while True:
        for kind, flags, _, answer in module._messages(by._socket.recv(1 << 18)):
            if kind in (2, 3):
                return module._refusal(answer, flags, data)


def attribute(name, payload):
    number = getattr(private, f"SLIM_ATTR_{name}")
    return struct.pack("=HH", 4 + len(payload), number) + payload + bytes(-len(payload) % 4)


@pytest.fixture
def host(kernel_faults):
    with contextlib.ExitStack() as undo:
        yield Host(undo)
    assert kernel_faults() == []


@pytest.mark.parametrize("command", COMMANDS)
def test_an_attribute_that_is_not_the_commands(host, command):
    before = host.state()
    for raw in (attribute(STRANGER, bytes(8)), struct.pack("=HHI", 8, 999, 0)):
        refusal = host.send(command, host.valid(command), raw=raw)
        assert refusal is not None, raw
        assert refusal.errno in (errno.EINVAL, errno.ERANGE), refusal
        assert host.state() == before


@pytest.mark.parametrize(("command", "name"), EACH)
def test_an_attribute_that_is_missing_or_of_a_wrong_length(host, command, name):
    """It is the one that is named."""
    if command in ("tables_put", "tables_commit"):
        assert host.send("tables_begin", host.valid("tables_begin")) is None
    before = host.state()
    given = host.valid(command)
    others = {each: value for each, value in given.items() if each != name}
    refusal = host.send(command, others)
    if name != "RECORDS":
        assert refusal is not None
        assert (refusal.errno, refusal.attribute) == (errno.EINVAL, name.lower()), refusal
        assert host.state() == before
    data = messages.encode(0, 0, 0, 0, {name: given[name]})
    whole = data[24 : 20 + int.from_bytes(data[20:22], "little")]
    for payload in (b"", whole[:-1], whole + b"\xff", whole * 300):
        # Behind a string's zero byte there may be anything; records may be none, or many.
        fine = {"INSTANCE": (whole[:-1], whole + b"\xff"), "RECORDS": (b"", whole * 300)}
        if payload in fine.get(name, ()):
            continue
        refusal = host.send(command, others, raw=attribute(name, payload))
        assert refusal is not None, len(payload)
        assert refusal.errno in (errno.EINVAL, errno.ERANGE), refusal
        assert refusal.attribute in (name.lower(), ""), refusal
        assert host.state() == before


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - DUMPS - {"info", "ask"}))
def test_who_does_not_hold_the_data_path_changes_nothing(host, command):
    before = host.state()
    refusal = host.send(command, host.valid(command), by=host.other)
    assert refusal is not None
    assert refusal.errno == errno.EBUSY, refusal
    assert host.state() == before


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unprivileged_user_may_nothing(host, command):
    """Nor root of another user namespace: the machine's own is asked for."""
    for apart in (False, True):
        assert in_child(lambda apart=apart: ask_as_nobody(host, command, apart)) == errno.EPERM


def in_child(action):
    pid = os.fork()
    if not pid:
        try:
            os._exit(action())
        except BaseException:  # noqa: BLE001  # the child ends here in any case
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ask_as_nobody(host, command, apart):
    libc.setns(str(host.paths[0]), libc.CLONE_NEWNET)
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    if apart:
        libc.unshare(CLONE_NEWUSER)
    refusal = host.send(command, host.valid(command), by=module.Module())
    return refusal.errno if refusal else 0


WRONG = [
    ("start", {"ABI_VERSION": 1}, errno.EPROTONOSUPPORT),
    ("start", {"FINGERPRINT": 1}, errno.EPROTONOSUPPORT),
    ("start", {"INSTANCE": "another"}, errno.EEXIST),
    ("start", {"WIRE_PORT": 5000}, errno.EEXIST),
    ("start", {"UNDERLAY": bytes(16)}, errno.EINVAL),
    ("start", {"RANGE": bytes([241, 0, 0, 0])}, errno.EINVAL),
    ("observe", {"OBSERVE": 64}, errno.EINVAL),
    ("tables_begin", {"GENERATION": 0}, errno.EINVAL),
    ("tables_begin", {"BASE": 77}, errno.ESTALE),
    ("tables_commit", {"GENERATION": 5}, errno.ENOENT),
    ("tables_put", {}, errno.ENOENT),
    ("attach", {"ENDPOINT": 0}, errno.EINVAL),
    ("attach", {"VNI": 1 << 24}, errno.EINVAL),
    ("attach", {"NETNS_FD": 9999}, errno.EBADF),
    ("ask", {}, errno.ENOENT),
]


@pytest.mark.parametrize(("command", "wrong", "number"), WRONG)
def test_a_value_that_will_not_do(host, command, wrong, number):
    before = host.state()
    refusal = host.send(command, host.valid(command) | wrong)
    assert refusal is not None
    assert refusal.errno in ((number, errno.ERANGE) if number == errno.EINVAL else (number,))
    if wrong and number in (errno.EINVAL, errno.EEXIST, errno.EBADF):
        assert refusal.attribute == next(iter(wrong)).lower(), refusal
    assert str(refusal).count("\n") == 0
    assert host.state() == before


@pytest.mark.parametrize("table", range(private.SLIM_NL_TABLES + 1))
@pytest.mark.parametrize("name", ["RECORDS", "GONE"])
def test_records_that_are_cut_off(host, table, name):
    """Of each table, and of one that there is not."""
    assert host.send("tables_begin", host.valid("tables_begin")) is None
    for size in (1, 3, 7, 13, 8207, 60001):
        refusal = host.send("tables_put", {"TABLE": table, name: bytes(size)})
        assert refusal is not None, size
        assert refusal.errno in (errno.EINVAL, errno.ERANGE), refusal
    assert "GENERATION" not in host.state()[0] or not host.state()[0]["GENERATION"]


def test_messages_of_nothing_but_noise(host):
    """Random attributes of random lengths, in every command, by who holds and who does not;
    then everything works as before."""
    rng = random.Random(20261128)
    counts = dict.fromkeys(COMMANDS, 0)
    for _ in range(int(os.environ.get("SLIMNET_NOISE", "3000"))):
        command = rng.choice([*COMMANDS])
        counts[command] += 1
        given = [each for each in host.valid(command).items() if rng.random() < 0.7]
        raw = b""
        for _ in range(rng.randrange(4)):
            size = rng.choice([0, 1, 2, 4, 7, 8, 16, 64, 200, 4000])
            body = rng.randbytes(size)
            length = 4 + size if rng.random() < 0.8 else rng.randrange(1 << 16)
            number = rng.randrange(64) if rng.random() < 0.9 else rng.randrange(1 << 16)
            raw += struct.pack("=HH", length, number) + body + bytes(-size % 4)
        rng.shuffle(given)
        host.send(command, dict(given), by=rng.choice([host.holder, host.other]), raw=raw)
    assert all(counts.values())
    with contextlib.suppress(module.RequestRefused):
        host.holder.request(private.SLIM_CMD_TEARDOWN, FORCE=True)
    with contextlib.suppress(module.RequestRefused):
        host.other.request(private.SLIM_CMD_TEARDOWN, FORCE=True)
    host.start()
    assert host.send("attach", host.valid("attach")) is None
    assert [record["ENDPOINT"] for record in host.state()[1]] == [11]
    assert host.send("detach", host.valid("detach")) is None
