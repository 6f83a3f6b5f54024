# SPDX-License-Identifier: Apache-2.0
"""Events, connections, counters: one endpoint that talks to itself."""

import threading
import time

import pytest
from machine import NETWORK, endpoint, wait_for
from netaddr import IPAddress, IPNetwork
from pinned import pinned

from slimnet import BackendError, contract
from slimnet.encoding import u32
from slimnet.layout import Layout
from slimnet.model import Direction, EventKind, Reason, Wire
from slimnet.tables import CidrRecord, EndpointRecord, Tables
from slimnet_ebpf import contract as private
from slimnet_ebpf.libbpf import BpfError

pytestmark = pytest.mark.root

OWN = IPAddress("10.1.0.1")

# On a line of input: connects; sends; closes. Says what it sees.
TALK = """
import socket, sys
server = socket.socket()
server.bind(("10.1.0.1", 80))
server.listen()
print("listening", flush=True)
sys.stdin.readline()
client = socket.socket()
client.connect(("10.1.0.1", 80))
child, _ = server.accept()
print(client.getsockname()[1], flush=True)
sys.stdin.readline()
child.settimeout(5)
try:
    child.sendall(b"hello")
    client.sendall(b"you")
    print("fine", flush=True)
except OSError as error:
    print(type(error).__name__, flush=True)
client.close()
child.close()
sys.stdin.read()
"""

FLOW = Layout(private.slim_flow)
USAGE = Layout(private.slim_usage)
TUPLE = Layout(contract.slim_tuple)
BOUND = Layout(private.slim_bound)


@pytest.fixture
def backend(machine):
    backend = machine.start()
    backend.install(
        Tables(
            1,
            addresses={(7, OWN): 101, (7, IPAddress("10.1.0.9")): 109},
            endpoints={
                101: EndpointRecord(OWN, IPAddress("192.0.2.1"), 7, 257, True, Wire.SYN),
            },
            cidrs={(7, IPNetwork("10.1.0.0/16")): CidrRecord(1, overlay=True)},
        )
    )
    return backend


class Talk:
    def __init__(self, machine, backend):
        self.process = machine.process(backend.attach(endpoint(1), NETWORK).cgroup, TALK)
        assert self.read() == "listening"

    def read(self):
        return self.process.stdout.readline().strip()

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()


def all_events(backend, count, kind=None):
    found = []

    def enough():
        found.extend(one for one in backend.events(0.1) if kind in (None, one.kind))
        return len(found) >= count

    wait_for(enough)
    return found


def test_connections_are_seen_from_both_ends(machine, backend):
    talk = Talk(machine, backend)
    assert list(backend.connections()) == []
    port = int(talk.go())
    both = sorted(backend.connections(), key=lambda one: one.direction)
    assert [one.direction for one in both] == [Direction.INGRESS, Direction.EGRESS]
    accepted, opened = both
    assert ((OWN, 80), (OWN, port)) == (accepted.local, accepted.peer)
    assert ((OWN, port), (OWN, 80)) == (opened.local, opened.peer)
    for one in both:
        assert (one.endpoint, one.peer_endpoint, one.wire, one.state) == (101, 101, None, "ESTAB")
        assert abs(one.opened - time.time()) < 5
        assert one.cookie
    talk.go()
    wait_for(lambda: not list(backend.connections()))


def test_opened_and_closed_are_told_only_when_observed(machine, backend):
    talk = Talk(machine, backend)
    backend.observe(enabled=True)
    port = int(talk.go())
    opened = all_events(backend, 2)
    assert {EventKind.OPENED} == {one.kind for one in opened}
    for one in opened:
        assert ((OWN, port), (OWN, 80)) == (one.source, one.destination)
        assert (one.endpoint, one.peer_endpoint, one.protocol) == (101, 101, 6)
        assert abs(one.time - time.time()) < 5
    talk.go()
    closed = all_events(backend, 2)
    assert {EventKind.CLOSED} == {one.kind for one in closed}
    assert all(0 < one.duration < 10 for one in closed)
    backend.observe(enabled=False)
    control = pinned(backend, "slim_control").get(bytes(4))
    assert private.slim_control.from_buffer_copy(control).observe == 0


def test_refusals_are_always_told_and_counted(machine, backend):
    cgroup = backend.attach(endpoint(1), NETWORK).cgroup
    machine.process(
        cgroup,
        "import socket, time\n"
        "s = socket.socket(); s.settimeout(1); s.connect_ex(('10.1.0.77', 80))\n"
        "time.sleep(600)",
    )
    (event,) = all_events(backend, 1)
    assert (event.kind, event.reason) == (EventKind.REFUSED, Reason.NO_ENDPOINT)
    assert (IPAddress("10.1.0.77"), 80) == event.destination
    assert event.endpoint == 101
    assert backend.status().counters[Reason.NO_ENDPOINT] == 1


# Listens twice on ports of the host; ends when the second listener does.
LISTEN = """
import socket
one, other = socket.socket(), socket.socket()
one.listen()
other.listen()
print("listening", flush=True)
try:
    other.accept()
except OSError as error:
    print(type(error).__name__, flush=True)
"""


def test_a_destroy_that_failed_is_tried_again(machine, backend):
    """A listener over the limit, and a kernel that refuses the first time."""
    backend._write_control(held_limit=1)
    destroy, failures = backend._sockets.destroy, [BpfError(16, "destroy a socket")]

    def failing(victims):
        victims = list(victims)
        if victims and failures:
            raise failures.pop()
        return destroy(victims)

    backend._sockets.destroy = failing
    process = machine.process(backend.attach(endpoint(1), NETWORK).cgroup, LISTEN)
    assert process.stdout.readline().strip() == "listening"
    (event,) = all_events(backend, 1)
    assert (event.kind, event.reason) == (EventKind.REFUSED, Reason.PORT_LIMIT)
    wait_for(lambda: backend.tend() or not failures)
    assert process.poll() is None
    time.sleep(1.1)
    backend.tend()
    assert backend.events(0) == []
    assert process.stdout.readline().strip() in ("ConnectionAbortedError", "OSError")


def test_old_records_are_swept_and_young_ones_stay(backend):
    """Also those that were written while the sweep looked: younger than its clock."""
    now = time.monotonic_ns()
    old, new = now - (private.SLIM_ANSWER_SECONDS + 1) * 10**9, now + 10 * 10**9
    flows = pinned(backend, "slim_flow")
    bound = pinned(backend, "slim_bound")
    for port, when in ((1, old), (2, now), (3, new)):
        flows.set(TUPLE.pack(source_port=port), FLOW.pack(time=when))
    for port, when in ((1, now - 61 * 10**9), (2, now - 10**9), (3, 0), (4, new)):
        bound.set(TUPLE.pack(source_port=port), BOUND.pack(closed=when))
    backend.tend()
    assert len(list(flows.items())) == 3  # not at every call
    backend.pace = 0
    backend.tend()
    keys = [TUPLE.pack(source_port=port) for port in range(5)]
    assert dict(flows.items()).keys() == set(keys[2:4])
    assert dict(bound.items()).keys() == set(keys[2:])


@pytest.mark.parametrize("table", ["flow", "bound"])
def test_a_table_of_which_nobody_holds_a_record_is_looked_at_seldom(backend, table):
    """By the counts; one that was lost is put right by the next whole sweep."""
    records = pinned(backend, f"slim_{table}")
    usage = pinned(backend, "slim_local")
    counted = {"flow": "flows", "bound": "bound"}[table]
    old = {"flow": FLOW.pack(time=1), "bound": BOUND.pack(closed=1)}[table]
    backend.pace = 10**6
    for count, left in ((0, 1), (1, 0)):
        records.set(TUPLE.pack(source_port=1), old)
        usage.set(u32(0), USAGE.pack(waiting=b"", **{counted: count}))
        backend._swept = 0
        backend.tend()
        assert len(list(records.items())) == left
    records.set(TUPLE.pack(source_port=1), old)
    backend.pace = 0
    backend.tend()
    assert list(records.items()) == []
    assert USAGE.unpack(usage.get(u32(0)))[counted] == 0


def test_new_tables_look_at_every_handshake(backend):
    """Whatever the counts say; at what no table decides of they look as seldom as before."""
    flows, bound = (pinned(backend, name) for name in ("slim_flow", "slim_bound"))
    flows.set(TUPLE.pack(source_port=1), FLOW.pack(time=1))
    bound.set(TUPLE.pack(source_port=1), BOUND.pack(closed=1))
    backend.pace = 10**6
    backend.install(Tables(2))
    assert list(flows.items()) == []
    assert len(list(bound.items())) == 1
    backend.pace = backend._swept = 0
    backend.tend()
    assert list(bound.items()) == []


def test_waiting_takes_as_long_as_it_was_told(backend):
    start = time.monotonic()
    assert backend.events(0.3) == []
    assert 0.25 < time.monotonic() - start < 2
    assert backend.events(0) == []


@pytest.mark.parametrize("how", ["close", "teardown"])
def test_closing_ends_the_waiting(backend, how):
    ended = []

    def wait():
        try:
            ended.append(backend.events(30))
        except BackendError as error:
            ended.append(error)

    reader = threading.Thread(target=wait)
    reader.start()
    time.sleep(0.2)
    getattr(backend, how)()
    reader.join(5)
    assert not reader.is_alive()
    assert ended == [[]]


def test_one_machine_full_of_callers(machine, backend):
    """Housekeeping, readers of events, status, attach and install at the same time."""
    stop = threading.Event()
    errors = []

    def repeat(call):
        while not stop.is_set():
            try:
                call()
            except Exception as error:  # noqa: BLE001
                errors.append(error)
                return

    backend.pace = 0
    calls = (
        lambda: backend.events(0.01),
        backend.tend,
        backend.status,
        lambda: list(backend.connections()),
    )
    threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for number in range(1, 20):
        backend.attach(endpoint(number), NETWORK)
        backend.install(Tables(1 + number))
        backend.detach(100 + number)
    stop.set()
    for thread in threads:
        thread.join(5)
    assert errors == []
