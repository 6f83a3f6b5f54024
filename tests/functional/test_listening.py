# SPDX-License-Identifier: Apache-2.0
"""Which ports a host listens on itself, asked of the kernel in a namespace of its own."""

import json
import os
import subprocess
import sys

import pytest

from slimnet.linux.cgroup import mount as cgroup_mount
from slimnet.testing import Underlay

pytestmark = pytest.mark.root

# Listens as it is told to in argv[2:], and says which of them stand in the way of a port
# that is published on all addresses, and on one that nobody listens on by name.
_ASK = """
import json, socket, sys
from pathlib import Path
from netaddr import IPAddress
from slimnet.agent.listening import listener

cgroups, answers = [Path(each) for each in json.loads(sys.argv[1])], {}
for form in sys.argv[2:]:
    address, _, only = form.partition(" ")
    # Closed before the next one, which the kernel may give the same port where the two
    # addresses are not in each other's way.
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        if ":" in address:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only == "only")
        sock.bind((address, 0))
        port = sock.getsockname()[1]
        before = listener(None, port, cgroups)
        sock.listen()
        other = listener(IPAddress("192.0.2.77"), port, cgroups)
        answers[form] = [before, listener(None, port, cgroups), other]
print(json.dumps(answers))
"""


# The same of UDP: bound and open to anybody, and connected to somebody.
_ASK_DATAGRAMS = """
import json, socket
from slimnet.agent.listening import listener
from slimnet.model import Protocol

with socket.socket(type=socket.SOCK_DGRAM) as sock, socket.socket(type=socket.SOCK_DGRAM) as peer:
    sock.bind(("127.0.0.1", 0))
    peer.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    answers = [listener(None, port, [], protocol=each) for each in (Protocol.TCP, Protocol.UDP)]
    sock.connect(peer.getsockname())
    answers.append(listener(None, port, [], protocol=Protocol.UDP))
print(json.dumps(answers))
"""


@pytest.fixture
def netns():
    with Underlay(hosts=1) as underlay:
        yield underlay.hosts[0]


@pytest.fixture
def cgroup():
    place = cgroup_mount() / f"slt-listening-{os.getpid()}"
    place.mkdir()
    (place / "below").mkdir()
    yield place
    (place / "below").rmdir()
    place.rmdir()


def ask(where, cgroups, *forms, inside=None):
    program = [sys.executable, "-c", _ASK, json.dumps([str(each) for each in cgroups]), *forms]
    if inside is not None:
        program = ["sh", "-c", f'echo $$ > {inside}/cgroup.procs; exec "$@"', "sh", *program]
    done = subprocess.run(
        ["nsenter", f"--net={where.netns}", *program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_the_host_listens_on(netns, cgroup):
    """Bound is not listening, and IPv6 alone is not in the way."""
    own = str(netns.address)
    found = ask(
        netns, [cgroup], "0.0.0.0", own, "::", ":: only", "127.0.0.1", "::1", f"::ffff:{own}"
    )
    assert found == {
        "0.0.0.0": [None, "0.0.0.0", "0.0.0.0"],
        own: [None, own, None],
        "::": [None, "::", "::"],
        ":: only": [None, None, None],
        "127.0.0.1": [None, "127.0.0.1", None],
        "::1": [None, None, None],
        f"::ffff:{own}": [None, own, None],
    }


@pytest.mark.parametrize("inside", ["", "below"])
def test_what_endpoints_listen_on_is_not_the_hosts(netns, cgroup, inside):
    found = ask(netns, [cgroup], "0.0.0.0", "::", inside=cgroup / inside)
    assert found == {"0.0.0.0": [None] * 3, "::": [None] * 3}
    assert ask(netns, [], "0.0.0.0", inside=cgroup / inside)["0.0.0.0"][1] == "0.0.0.0"


def test_who_takes_datagrams(netns):
    done = subprocess.run(
        ["nsenter", f"--net={netns.netns}", sys.executable, "-c", _ASK_DATAGRAMS],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == [None, "127.0.0.1", None]
