# SPDX-License-Identifier: Apache-2.0
"""Tables that are replaced: every packet meets one generation, whole."""

import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess

import pytest
from netaddr import IPAddress
from noop_stage import router, staged

from slimnet.fallback import nft, ruleset
from slimnet.linux import netns
from slimnet.model import Direction, Endpoint, Network, Protocol, Reason
from slimnet.tables import EndpointRecord, PolicyKey, PolicyRecord, Tables
from slimnet.testing._stage import CAST, NETWORK

#: Without what this file is about, one generation in ten let such a packet through.
GENERATIONS = 50


@pytest.fixture
def stage():
    with staged("client", "stranger") as stage:
        yield stage


@contextlib.contextmanager
def sending(stage, source, to, port):
    """A process in an endpoint sends datagrams, one after the other."""
    child = os.fork()
    if child == 0:
        try:
            with (
                netns.enter(stage.places[source].netns),
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plug,
            ):
                while True:
                    plug.sendto(b"x", (str(CAST[to].address), port))
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.root
@pytest.mark.no_cover
def test_what_every_generation_forbids_is_never_allowed(stage):
    """Some hundred thousand packets, of which the egress policy lets none leave."""
    with netns.enter(stage.places["client"].netns):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver:
        receiver.bind(("0.0.0.0", 9090))
        with sending(stage, "stranger", "client", 9090):
            for generation in range(2, GENERATIONS):
                stage.backends[0].install(stage.tables(0, generation))
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(1)


def names(router):
    """Of the chains, maps and sets that a router's tables are made of."""
    return {
        value["name"]
        for kind, value in nft.listing(f"table ip {ruleset.TABLE}", router)
        if kind in ("chain", "map", "set") and "hook" not in value and value["name"] != "refused"
    }


@pytest.mark.root
def test_only_the_generation_in_force_is_there(stage):
    """Also where a process was killed before it switched, and where what is in force was
    written by a slimnet that had no sides."""
    path = router(stage)
    a, b = ({f"{side}{name[2:]}" for name in names(path)} for side in ruleset.SIDES)
    assert names(path) == b
    stage.backends[0].install(stage.tables(0, 2))
    assert names(path) == a
    killed = ruleset.render(stage.tables(0, 3), NETWORK.vni, "b_", 4789)
    nft.apply(killed + f"add set ip {ruleset.TABLE} b_other {{ type ipv4_addr; }}", path)
    assert names(path) == a | b | {"b_other"}
    stage.backends[0].install(stage.tables(0, 4))
    assert names(path) == b
    older = f"""
        table ip {ruleset.TABLE} {{
            chain allow_1 {{ accept; }}
            map e_7_any {{ type mark : verdict; elements = {{ 1 : goto allow_1 }}; }}
            chain e_7 {{ meta mark vmap @e_7_any; }}
        }}
        flush chain ip {ruleset.TABLE} forward
        table ip {ruleset.TABLE} {{
            chain forward {{
                ct mark vmap {{ 4 : accept }} comment "generation 4"
                jump e_7
            }}
        }}
        """
    nft.apply(older, path)
    assert stage.backends[0].status().generation == 4
    stage.backends[0].install(stage.tables(0, 6))
    assert names(path) == a


@pytest.mark.root
def test_what_stays_in_the_hosts_sets_is_not_touched(stage):
    """They say whose VXLAN is let in, and whose packets are masqueraded: new tables and one
    more network take away nothing, and give again nothing that is there."""
    other = Network("other", 100, NETWORK.cidrs)
    guest = Endpoint("other", "guest", CAST["client"].address, "h1", id=10, identity=300)
    table = f"ip slimnet-{stage.context(0).instance}"
    changes = []
    generations = itertools.count(2)
    with (
        stage.on(0),
        subprocess.Popen(["nft", "monitor"], stdout=subprocess.PIPE, text=True) as monitor,
    ):
        while not select.select([monitor.stdout], [], [], 0.1)[0]:  # it is not listening yet
            stage.backends[0].install(stage.tables(0, next(generations)))
        stage.backends[0].attach(guest, other)
        while not changes or "sl000064" not in changes[-1]:
            changes.append(monitor.stdout.readline())
        monitor.terminate()
    stage.backends[0].detach(guest.id)
    assert [line.strip() for line in changes if "element" in line] == [
        f"add element {table} near {{ 0.0.0.100 }}",
        f'add element {table} ours {{ "sl000064" }}',
    ]


def test_the_transaction_that_switches_changes_no_set():
    """Sets are looked into as they are, rules as they were when the packet came."""
    for side in ruleset.SIDES:
        script = ruleset.switch(side, 7)
        assert not {"map", "set", "element", "{ 7"} & set(script.split())
        assert f"goto {side}forward" in script


def test_what_the_tables_of_a_policed_subject_do_not_answer_is_dropped():
    """The last rule of its chain is no allowance: the map before it holds every port."""
    deny = PolicyRecord(False, Reason["DEFAULT_DENY"])
    here = IPAddress("10.1.0.5")
    tables = Tables(
        7,
        addresses={(1, here): 1},
        endpoints={1: EndpointRecord(here, here, 1, 300, local=True, wire=None)},
        policy={PolicyKey(300, 0, Direction.EGRESS, Protocol.TCP): deny},
    )
    script = ruleset.render(tables, 1, "a_", 4789).splitlines()
    policed = script[script.index("chain a_e_300 {") :]
    assert policed[policed.index("}") - 1] == "drop"
    everything = next(line for line in script if line.startswith("map a_e_300_any"))
    assert "17 . 0-65535 : goto a_allow_" in everything
