# SPDX-License-Identifier: Apache-2.0
"""Sockets that outlive their endpoint, in the hands of another one: they are nobody's,
so they may nothing; and what they keep is given back with the last of them."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import time
from pathlib import Path

import pytest
from lab.cluster import NETWORK
from lab.hands import Hands

from slimnet import contract, model
from slimnet.exceptions import BackendError

pytestmark = pytest.mark.fresh

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM

_numbers = itertools.count(1)


def record(lab, cgroup, **changes):
    """An endpoint of the first host, with that cgroup."""
    number = next(_numbers)
    fields = {
        "id": 5000 + number,
        "network": NETWORK.name,
        "name": f"given{number}",
        "address": f"10.77.200.{number}",
        "host": lab.hosts[0].name,
        "identity": contract.SLIM_IDENTITY_FIRST + 5000 + number,
        "cgroup": str(cgroup),
    }
    return model.Endpoint(**(fields | changes))


@pytest.fixture
def given(lab):
    """A cgroup that its maker keeps."""
    path = lab.hosts[0].cgroup / f"given{next(_numbers)}"
    path.mkdir()
    yield path
    if path.exists():
        path.rmdir()


def keep_house(host):
    host.driver.call(_keep_house, host.backend)


def _keep_house(backend):
    pace, backend.pace = backend.pace, 0
    backend.tend()
    backend.pace = pace


def held(host, endpoint):
    """How many indexes a detached endpoint keeps."""
    return host.driver.call(_held, host.backend, endpoint)


def _held(backend, endpoint):
    attached = endpoint in backend.status().endpoints
    entries = backend._endpoints._entries().values()
    return sum(each.endpoint == endpoint for each in entries) - attached


def until_given_back(host, endpoint):
    deadline = time.monotonic() + 5
    while held(host, endpoint):
        assert time.monotonic() < deadline, "the index is not given back"
        time.sleep(0.05)
        keep_house(host)


class Left:
    """The sockets of an endpoint that has ended, as its friend has them."""

    def __init__(self, lab, endpoint, *, end=None):
        self.lab = lab
        self.host = endpoint.host
        self.id = endpoint.id
        self.friend = lab.endpoint(0)
        self.outside = (lab.outside.address, lab.outside.root.serve(0).getsockname()[1])
        self.sockets = {
            "new": endpoint.socket(),
            "new, IPv6": endpoint.socket(socket.AF_INET6),
            "datagram": endpoint.socket(socket.AF_INET, UDP),
            "disconnected": endpoint.connect(*self.outside),
            "any port": endpoint.socket(),
            "bound": endpoint.socket(),
        }
        endpoint.disconnect(self.sockets["disconnected"])
        self.sockets["any port"].bind(("0.0.0.0", 0))
        self.sockets["bound"].bind(("0.0.0.0", 8080))
        for name, sock in self.sockets.items():
            self.sockets[name] = endpoint.give(sock, self.friend)
        (end or lab.remove)(endpoint)

    def close(self):
        for sock in self.sockets.values():
            sock.close()

    def check(self):
        """Nothing goes out, and nothing comes in."""
        lab, host = self.lab, self.host
        denied = lab.endpoint(1)
        denied.serve(80)
        service = host.root.listen(0, "127.0.0.1").getsockname()
        targets = [service, self.outside, (denied.address, 80), (host.address, 22)]
        for name in ("new", "disconnected", "bound"):
            for target in targets:
                assert refused(self.sockets[name], "connect", target) == errno.EACCES, name
        for target in ("::ffff:127.0.0.1", "::1"):
            sock = self.sockets["new, IPv6"]
            assert refused(sock, "connect", (target, service[1])) == errno.EACCES
        for name, address in (("new", "0.0.0.0"), ("new", host.address), ("new, IPv6", "::")):
            assert refused(self.sockets[name], "bind", (address, 8443)) == errno.EACCES
            assert refused(self.sockets[name], "bind", (address, 0)) == errno.EACCES
        self.check_datagrams()
        for name in ("new", "new, IPv6", "disconnected", "any port", "bound"):
            self.check_listening(name)

    def check_datagrams(self):
        sock = self.sockets["datagram"]
        listener = self.lab.outside.root.socket(socket.AF_INET, UDP)
        listener.bind(("0.0.0.0", 0))
        target = (self.lab.outside.address, listener.getsockname()[1])
        assert refused(sock, "bind", ("0.0.0.0", 0)) == errno.EACCES
        assert refused(sock, "connect", target) == errno.EACCES
        assert refused(sock, "sendto", b"x", target) == errno.EACCES
        # Which has given it a port of the host.
        port = sock.getsockname()[1]
        for hands in (self.lab.outside.root, self.host.root):
            hands.socket(socket.AF_INET, UDP).sendto(b"x", (self.host.address, port))
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(10)

    def check_listening(self, name):
        """listen(2) cannot be refused; but nobody gets there."""
        sock = self.sockets[name]
        family = socket.AF_INET6 if "IPv6" in name else socket.AF_INET
        sock.listen()
        port = self.friend.call(_kernels_port, sock)
        for hands, address in (
            (self.host.root, "127.0.0.1"),
            (self.host.root, self.host.address),
            (self.lab.outside.root, self.host.address),
        ):
            dialled = hands.socket()
            dialled.settimeout(0.2)
            with pytest.raises((ConnectionRefusedError, TimeoutError)):
                dialled.connect((address, port))
        sock.setblocking(False)
        with pytest.raises(OSError) as caught:
            sock.accept()
        # The driver may have destroyed it.
        assert caught.value.errno in (errno.EAGAIN, errno.EINVAL), family

    def check_given_back(self):
        """Once the last of them is closed, and not before."""
        keep_house(self.host)
        assert held(self.host, self.id) == 1
        self.close()
        until_given_back(self.host, self.id)


def refused(sock, call, *arguments):
    """The error number of a call."""
    with pytest.raises(OSError) as caught:
        getattr(sock, call)(*arguments)
    return caught.value.errno


def _kernels_port(sock):
    """What getsockname(2) says is virtual: /proc/net/tcp knows where it listens."""
    inode = os.fstat(sock.fileno()).st_ino
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[9]) == inode:
                return int(fields[1].rpartition(":")[2], 16)
    return sock.getsockname()[1]


def test_sockets_of_a_removed_endpoint(lab):
    left = Left(lab, lab.endpoint(0))
    left.check()
    left.check_given_back()


def test_sockets_of_an_endpoint_whose_cgroup_stays(lab, given):
    """The kernel cannot say that it is gone; and it is no other endpoint's."""
    one = record(lab, given)
    left = Left(lab, lab.attach(lab.hosts[0], one, NETWORK))
    left.check()
    left.close()
    keep_house(left.host)
    assert held(left.host, one.id) == 1
    with pytest.raises(BackendError, match=f"{given} was another endpoint's: remove the dir"):
        left.host.backend.attach(record(lab, given), NETWORK)
    with pytest.raises(BackendError, match="was another endpoint's"):
        left.host.backend.attach(record(lab, given, id=one.id), NETWORK)
    given.rmdir()
    given.mkdir()
    other = lab.attach(left.host, record(lab, given), NETWORK)
    lab.install()
    other.connect(*left.outside)
    lab.remove(other)


def test_an_endpoint_comes_back_to_its_cgroup(lab, given):
    """It is the same one, and so are its sockets."""
    one = record(lab, given)
    left = Left(lab, lab.attach(lab.hosts[0], one, NETWORK))
    assert refused(left.sockets["new"], "connect", left.outside) == errno.EACCES
    again = lab.attach(left.host, one, NETWORK)
    lab.install()
    left.sockets["new"].connect(left.outside)
    again.serve(80)
    left.friend.connect(again.address, 80)
    lab.remove(again)
    assert refused(left.sockets["disconnected"], "connect", (again.address, 80)) == errno.EACCES
    given.rmdir()
    left.check_given_back()


def test_sockets_of_an_endpoint_whose_cgroup_somebody_removed(lab, given):
    """Before the backend heard of it: it can still refuse, but not drop packets."""

    def end(endpoint):
        endpoint.close()
        given.rmdir()
        keep_house(endpoint.host)
        assert endpoint.id not in endpoint.host.backend.status().endpoints
        del lab.endpoints[endpoint.id]
        lab.install()

    left = Left(lab, lab.attach(lab.hosts[0], record(lab, given), NETWORK), end=end)
    lab.hosts[0].driver.call(_keep_house, lab.hosts[0].backend)
    for name in ("new", "disconnected"):
        assert refused(left.sockets[name], "bind", ("0.0.0.0", 0)) == errno.EACCES
        assert refused(left.sockets[name], "connect", left.outside) == errno.EACCES
    for name in ("new", "new, IPv6", "any port", "bound"):
        left.check_listening(name)
    left.check_given_back()


@pytest.fixture
def restarted(lab):
    """A host whose driver a test may end, or its whole data path."""
    host = lab.hosts[0]
    yield host
    if host.backend is None or host.driver is None:
        host.start_backend()
        lab.install()


def test_the_driver_is_killed_and_started_again(lab, restarted):
    """kill -9 of the agent: after the endpoint's end, and before it."""
    host = restarted
    left = Left(lab, lab.endpoint(0))
    host.kill_backend()
    new = left.sockets["new"]
    assert refused(new, "connect", left.outside) == errno.EACCES
    host.start_backend()
    left.check()
    left.check_given_back()

    def end(endpoint):
        host.kill_backend()
        endpoint.close()
        host.start_backend()
        lab.remove(endpoint)

    left = Left(lab, lab.endpoint(0), end=end)
    assert refused(left.sockets["new"], "connect", left.outside) == errno.EACCES
    left.check_listening("disconnected")
    left.check_given_back()


def test_teardown_opens_nothing(lab, given, restarted):
    """The data path goes, all of its pins; what it refused to dead sockets it refuses."""
    host = restarted
    every = [
        Left(lab, lab.endpoint(0)),
        Left(lab, lab.attach(host, record(lab, given), NETWORK)),
    ]
    service = host.root.listen(0, "127.0.0.1").getsockname()
    # Into the hands of the host: no endpoint is there any more.
    user = host.hands(65534)
    kept = [
        left.friend.give(left.sockets[name], user)
        for left in every
        for name in ("new", "disconnected")
    ]
    for left in every:
        lab.remove(left.friend)
    host.backend.teardown()
    host.kill_backend()
    host.backend = None
    for sock in kept:
        assert refused(sock, "connect", service) == errno.EACCES
        assert refused(sock, "bind", ("0.0.0.0", 0)) == errno.EACCES
        sock.listen()
        port = user.call(_kernels_port, sock)
        dialled = host.root.socket()
        dialled.settimeout(0.2)
        with pytest.raises((ConnectionRefusedError, TimeoutError)):
            dialled.connect(("127.0.0.1", port))


def test_a_process_below_that_is_no_endpoints(lab):
    """Whatever made the directory: it gets no socket."""
    host = lab.hosts[0]
    cgroup = host.cgroup / "endpoints" / "nobodys"
    cgroup.mkdir()
    nobody = Hands("nobody", netns=host.netns.path, cgroup=cgroup)
    try:
        for family, kind in itertools.product((socket.AF_INET, socket.AF_INET6), (TCP, UDP)):
            with pytest.raises(PermissionError) as caught:
                nobody.socket(family, kind)
            assert caught.value.errno == errno.EACCES
    finally:
        nobody.close()
        cgroup.rmdir()


def test_a_socket_that_was_made_in_a_cgroup_below(lab):
    """It keeps the endpoint's cgroup as one of its own does."""
    endpoint, friend = lab.endpoint(0), lab.endpoint(0)
    below = endpoint.cgroup / "below"
    below.mkdir()
    nested = Hands("nested", netns=endpoint.netns.path, cgroup=below)
    service = endpoint.host.root.listen(0, "127.0.0.1").getsockname()
    sock = nested.give(nested.socket(), friend)
    nested.close()
    lab.remove(endpoint)
    assert refused(sock, "connect", service) == errno.EACCES
    keep_house(endpoint.host)
    assert held(endpoint.host, endpoint.id) == 1
    sock.close()
    until_given_back(endpoint.host, endpoint.id)
