# SPDX-License-Identifier: Apache-2.0
"""Endpoints: attached, detached, and what goes with them."""

import errno
import socket
import sys

import pytest
from machine import NETWORK, endpoint, run, wait_for
from pinned import pinned

from slimnet import BackendError, InUse, InvalidValue, contract
from slimnet.linux import cgroup as cgroups
from slimnet.linux.netns import enter
from slimnet_ebpf import contract as private
from slimnet_ebpf import endpoints
from slimnet_ebpf.sockets import SocketDiagnosis

pytestmark = pytest.mark.root

NEVER_BOUND = """
import socket, sys
s = socket.socket()
print("ready", flush=True)
sys.stdin.readline()
"""

TRIES = """
import errno, socket, sys
tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
sys.stdin.readline()
print(tcp.connect_ex(("127.0.0.1", 8080)))
for call, address in ((udp.connect, ("127.0.0.1", 53)), (tcp.bind, ("0.0.0.0", 0))):
    try:
        call(address)
    except OSError as error:
        print(error.errno)
"""

LISTEN = """
import socket, sys
s = socket.socket()
s.bind(("0.0.0.0", 0))
s.listen()
print("ready", flush=True)
try:
    s.accept()
except OSError as error:
    print(error.errno, flush=True)
sys.stdin.read()
"""


def programs_on(cgroup):
    return run(f"bpftool cgroup show {cgroup}").count("slim_")


def local(backend, cgroup):
    """What a cgroup knows of itself."""
    key = cgroups.number(cgroup).to_bytes(8, sys.byteorder)
    storage = pinned(backend, "slim_cgroup").get(key)
    return private.slim_local.from_buffer_copy(storage)


def test_every_program_is_on_the_cgroup_and_it_knows_who_it_is(machine):
    backend = machine.start()
    attachment = backend.attach(endpoint(1), NETWORK)
    assert attachment.netns is None
    assert machine.context.cgroup / "prod.default.e1" == attachment.cgroup
    assert programs_on(attachment.cgroup) >= 15
    found = local(backend, attachment.cgroup)
    assert (found.endpoint, found.index, found.vni) == (101, 1, 7)
    assert bytes(found.address)[12:] == bytes([10, 1, 0, 1])


def test_attaching_twice_is_one_attachment(machine):
    backend = machine.start()
    first = backend.attach(endpoint(1), NETWORK)
    left = machine.left()
    assert backend.attach(endpoint(1), NETWORK) == first
    assert left == machine.left()


def test_detaching_what_is_not_attached_is_no_error(machine):
    backend = machine.start()
    before = machine.left()
    backend.detach(4711)
    assert before == machine.left()


def test_detach_removes_what_attach_made(machine):
    backend = machine.start()
    backend.attach(endpoint(2), NETWORK)
    before = machine.left()
    attachment = backend.attach(endpoint(1), NETWORK)
    (attachment.cgroup / "below").mkdir()
    backend.detach(101)
    assert before == machine.left()
    assert backend.status().endpoints == {102}


def test_a_cgroup_of_somebody_elses_stays(machine):
    theirs = machine.cgroup / "theirs"
    theirs.mkdir()
    backend = machine.start()
    attachment = backend.attach(endpoint(1, cgroup=str(theirs)), NETWORK)
    assert attachment.cgroup == theirs
    backend.detach(101)
    assert theirs.exists()
    # Its sockets may be anywhere, and are to meet them still.
    assert programs_on(theirs) >= 15
    assert local(backend, theirs).endpoint == 0
    assert backend.status().endpoints == frozenset()
    backend.teardown()
    assert programs_on(theirs) >= 15
    another = machine.start()
    with pytest.raises(BackendError, match=f"{theirs} was another endpoint's"):
        another.attach(endpoint(1, cgroup=str(theirs)), NETWORK)
    theirs.rmdir()
    theirs.mkdir()
    another.attach(endpoint(1, cgroup=str(theirs)), NETWORK)


@pytest.mark.parametrize("given", [False, True])
def test_an_index_is_given_back_by_the_kernel(machine, monkeypatch, given):
    """When the cgroup's last socket has gone, wherever it was."""
    monkeypatch.setattr(contract, "SLIM_INDEX_MAX", 1)
    monkeypatch.setattr(endpoints, "_QUARANTINE", 0)
    backend = machine.start()
    theirs = machine.cgroup / "theirs"
    one = endpoint(1, cgroup=str(theirs)) if given else endpoint(1)
    if given:
        theirs.mkdir()
    attachment = backend.attach(one, NETWORK)
    process = machine.process(attachment.cgroup, NEVER_BOUND)
    assert process.stdout.readline() == "ready\n"
    (machine.cgroup / "cgroup.procs").write_text(str(process.pid))
    backend.detach(101)
    for _ in range(2):
        with pytest.raises(BackendError, match="all 1 endpoints of a host are taken"):
            backend.attach(endpoint(2), NETWORK)
    process.communicate("close\n", timeout=10)
    if given:
        with pytest.raises(BackendError, match="all 1 endpoints"):
            backend.attach(endpoint(2), NETWORK)
        theirs.rmdir()
    wait_for(lambda: attaches(backend, endpoint(2)))
    assert backend.status().detail["indexes"] == {102: 1}


def attaches(backend, one):
    try:
        return backend.attach(one, NETWORK)
    except BackendError:
        return None


@pytest.mark.parametrize("where", ["itself", "above"])
def test_the_directory_of_endpoints_is_no_endpoints(machine, where):
    backend = machine.start()
    left = machine.left()
    path = machine.context.cgroup if where == "itself" else machine.context.cgroup.parent
    with pytest.raises(BackendError, match=f"{path} holds the cgroups of endpoints"):
        backend.attach(endpoint(1, cgroup=str(path)), NETWORK)
    assert left == machine.left()


def test_a_socket_from_before_is_refused_below(machine):
    """Of a process that was there before the data path: nobody's either."""
    nobodys = machine.context.cgroup / "nobodys"
    nobodys.mkdir(parents=True)
    process = machine.process(nobodys, TRIES)
    machine.start()
    answers, _ = process.communicate("\n", timeout=10)
    assert answers.split() == [str(errno.EACCES)] * 3
    wait_for(lambda: not cgroups.populated(nobodys))
    nobodys.rmdir()


def test_what_is_no_endpoints_is_refused_while_the_data_path_is_there(machine):
    """A start makes it so, also where the directory was there or came anew."""
    machine.context.cgroup.mkdir(parents=True)
    backend = machine.start()
    assert programs_on(machine.context.cgroup) >= 15
    machine.context.cgroup.rmdir()
    backend.attach(endpoint(1), NETWORK)
    assert programs_on(machine.context.cgroup) >= 15
    somebodys = machine.context.cgroup / "somebodys"
    somebodys.mkdir()
    backend.teardown()
    assert programs_on(machine.context.cgroup) == 0
    assert somebodys.exists()


def test_a_cgroup_with_processes_stays_policed(machine):
    backend = machine.start()
    attachment = backend.attach(endpoint(1), NETWORK)
    below = attachment.cgroup / "below"
    below.mkdir()
    machine.process(below)
    before = programs_on(attachment.cgroup)
    with pytest.raises(InUse, match="101.*has processes"):
        backend.detach(101)
    assert before == programs_on(attachment.cgroup)
    assert backend.status().endpoints == {101}


@pytest.mark.parametrize("inner", [True, False])
def test_endpoints_may_not_overlap(machine, inner):
    outer = machine.cgroup / "outer"
    (outer / "inner").mkdir(parents=True)
    first, second = (outer, outer / "inner") if inner else (outer / "inner", outer)
    backend = machine.start()
    backend.attach(endpoint(1, cgroup=str(first)), NETWORK)
    left = machine.left()
    with pytest.raises(BackendError, match="overlaps"):
        backend.attach(endpoint(2, cgroup=str(second)), NETWORK)
    assert left == machine.left()


def test_what_cannot_be_attached(machine, tmp_path):
    backend = machine.start()
    left = machine.left()
    with pytest.raises(InvalidValue, match="endpoint.id"):
        backend.attach(endpoint(1, id=0), NETWORK)
    with pytest.raises(InvalidValue, match="endpoint.address.*IPv4"):
        backend.attach(endpoint(1, address="fd00::1"), NETWORK)
    for path in (tmp_path, tmp_path / "below"):
        with pytest.raises(BackendError, match="no directory of cgroup v2"):
            backend.attach(endpoint(1, cgroup=str(path)), NETWORK)
    assert list(tmp_path.iterdir()) == []
    assert left == machine.left()


@pytest.mark.parametrize("given", [False, True])
def test_an_attach_that_fails_leaves_nothing(machine, monkeypatch, given):
    theirs = machine.cgroup / "theirs"
    theirs.mkdir()
    backend = machine.start()
    backend.attach(endpoint(2), NETWORK)
    before = machine.left()
    keep, count = endpoints.links.keep, iter(range(100))

    def fail_later(*arguments):
        if next(count) == 5:
            raise BackendError("the kernel refused")
        keep(*arguments)

    monkeypatch.setattr(endpoints.links, "keep", fail_later)
    with pytest.raises(BackendError, match="the kernel refused"):
        backend.attach(endpoint(1, cgroup=str(theirs) if given else ""), NETWORK)
    assert before == machine.left()
    assert programs_on(theirs) == 0
    assert backend.status().endpoints == {102}


def test_an_index_is_not_used_again_at_once(machine):
    backend = machine.start()
    seen = []
    for _ in range(3):
        backend.attach(endpoint(1), NETWORK)
        seen.append(backend.status().detail["indexes"][101])
        backend.detach(101)
    assert seen == [1, 2, 3]


def test_an_index_is_used_again_after_a_minute(machine, monkeypatch):
    backend = machine.start()
    monkeypatch.setattr(contract, "SLIM_INDEX_MAX", 2)
    backend.attach(endpoint(1), NETWORK)
    backend.attach(endpoint(2), NETWORK)
    with pytest.raises(BackendError, match="taken"):
        backend.attach(endpoint(3), NETWORK)
    backend.detach(102)
    with pytest.raises(BackendError, match="a moment ago"):
        backend.attach(endpoint(3), NETWORK)
    monkeypatch.setattr(endpoints, "_QUARANTINE", 0)
    wait_for(lambda: attaches(backend, endpoint(3)))
    assert backend.status().detail["indexes"] == {101: 1, 103: 2}


def test_the_sockets_of_a_detached_endpoint_are_destroyed(machine):
    """Its listener lives on in a process that has left the cgroup."""
    theirs = machine.cgroup / "theirs"
    theirs.mkdir()
    backend = machine.start()
    backend.attach(endpoint(1, cgroup=str(theirs)), NETWORK)
    process = machine.process(theirs, LISTEN)
    assert process.stdout.readline() == "ready\n"
    before = sockets_of(machine, backend)
    assert len(before) == 1
    (machine.cgroup / "cgroup.procs").write_text(str(process.pid))
    backend.detach(101)
    assert sockets_of(machine, backend) == []
    assert process.stdout.readline() != ""


def sockets_of(machine, backend):
    with enter(machine.netns):
        storage = pinned(backend, "slim_socket")
        diagnosis = SocketDiagnosis(storage.fd)
    found = [one for one in diagnosis.sockets(socket.IPPROTO_TCP) if one.storage]
    diagnosis.close()
    return found


def test_an_endpoint_goes_with_its_cgroup(machine, monkeypatch):
    """Somebody removes the cgroup: whoever tends the data path tidies up."""
    theirs = machine.cgroup / "theirs"
    theirs.mkdir()
    backend = machine.start()
    before = machine.left()["pins"]
    backend.attach(endpoint(1, cgroup=str(theirs)), NETWORK)
    theirs.rmdir()
    backend.pace = 0
    backend.tend()
    assert backend.status().endpoints == frozenset()
    assert before == machine.left()["pins"]


def test_a_cgroup_that_came_again_is_a_new_one(machine):
    theirs = machine.cgroup / "theirs"
    theirs.mkdir()
    backend = machine.start()
    one = endpoint(1, cgroup=str(theirs))
    backend.attach(one, NETWORK)
    theirs.rmdir()
    theirs.mkdir()
    backend.attach(one, NETWORK)
    assert programs_on(theirs) >= 15
    assert backend.status().endpoints == {101}


def test_many_endpoints(machine):
    backend = machine.start()
    for number in range(1, 60):
        backend.attach(endpoint(number), NETWORK)
    assert backend.status().endpoints == set(range(101, 160))
    backend.teardown()
    assert not machine.context.cgroup.exists()


def test_everything_is_refused_before_the_first_tables(machine):
    backend = machine.start()
    attachment = backend.attach(endpoint(1), NETWORK)
    process = machine.process(
        attachment.cgroup,
        "import socket\n"
        "for address in ('10.1.0.2', '192.0.2.2', '127.0.0.1'):\n"
        "    s = socket.socket(); s.settimeout(1)\n"
        "    print(s.connect_ex((address, 80)))\n",
    )
    output, _ = process.communicate(timeout=10)
    wait_for(lambda: not cgroups.populated(attachment.cgroup))
    assert "0" not in output.split()
    assert len(output.split()) == 3
    assert backend.status().counters != {}
