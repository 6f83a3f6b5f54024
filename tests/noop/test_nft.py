# SPDX-License-Identifier: Apache-2.0
"""nftables by libnftables, in this process."""

import os
import re
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from netaddr import IPAddress

from slimnet.exceptions import BackendError
from slimnet.fallback import Outside, nft, probe
from slimnet.fallback.door import Door
from slimnet.linux import netns
from slimnet.model import Answer, Protocol

pytestmark = pytest.mark.root


@pytest.fixture
def spaces():
    """The paths of eight network namespaces."""
    made = []
    try:
        for number in range(8):
            made.append(netns.DIRECTORY / f"slt-nft{os.getpid()}-{number}")
            netns.create(made[-1])
        yield made
    finally:
        for path in made:
            netns.remove(path)


def test_each_thread_works_where_it_says(spaces):
    """Whatever other threads do meanwhile, in other namespaces."""

    def work(path):
        name = path.name.replace("-", "_")
        for number in range(50):
            nft.apply(f"table ip {name} {{ counter c{number} {{ packets 0 bytes 0; }}; }}", path)
        return name, nft.listing("ruleset", path)

    with ThreadPoolExecutor(len(spaces)) as pool:
        for name, found in pool.map(work, spaces):
            assert {value.get("table", value["name"]) for _, value in found} == {name}
            assert sum(kind == "counter" for kind, _ in found) == 50


def test_what_is_refused_changes_nothing(spaces):
    """And is said in one line."""
    with pytest.raises(BackendError, match=r"^nft: Error: [^\n]+$"):
        nft.apply("add table ip one; add rule ip two three drop", spaces[0])
    assert nft.listing("ruleset", spaces[0]) == []


def test_what_is_not_there_has_no_objects(spaces):
    assert nft.listing("table ip none", spaces[0]) == []


def test_what_is_published_already_is_not_written_again(spaces):
    """A generation with the same published ports costs the host no transaction."""
    outside = Outside("slt-nft", spaces[0], "lo", IPAddress("192.0.2.1"), 4789)
    where = {"vni": 77, "endpoint": IPAddress("10.1.0.5"), "address": None}
    with netns.enter(spaces[0]):
        for some in ([Door(Protocol.UDP, port=5353, entry=5353, target=53, **where)], []):
            outside.publish(some)
            before = nft.changes()
            outside.publish(list(some))
            assert nft.changes() == before


def test_without_a_descriptor(spaces):
    """An error as any other; the process goes on."""
    nft.apply("", spaces[0])  # the library is loaded
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with netns.enter(spaces[0]):
        free = os.open("/dev/null", os.O_RDONLY)
        os.close(free)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
            with pytest.raises(BackendError, match=r"^nft: .*Too many open files$"):
                nft.apply("add table ip one")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        nft.apply("add table ip one")


def test_without_a_descriptor_for_the_library():
    """That it could not be opened is not that it is not there."""
    done = subprocess.run(
        [sys.executable, "-c", _STARVED], capture_output=True, text=True, check=False
    )
    assert re.match("nft: .*Too many open files$", done.stdout), done


_STARVED = """
import os, resource
from slimnet.exceptions import BackendError
from slimnet.fallback import nft
free = os.open("/dev/null", os.O_RDONLY)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
try:
    nft.apply("add table ip one")
except BackendError as error:
    print(error)
"""


def test_without_the_library(monkeypatch):
    """What needs it says what to install; a probe says no."""
    nft._library.cache_clear()
    monkeypatch.setattr(nft, "_SONAME", "libnftables.so.0")
    with pytest.raises(BackendError, match=r"^libnftables\.so\.0: .*Debian package nftables"):
        nft.apply("add table ip one")
    found = probe()
    assert (found.answer, found.reason) == (Answer.NO, "no libnftables")
