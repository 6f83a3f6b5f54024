# SPDX-License-Identifier: Apache-2.0
"""The backend's two halves, the module and the fallback overlay, as one. Needs the module."""

import socket

import pytest
from attrs import evolve

from slimnet.exceptions import BackendError, ConfigError
from slimnet.linux import netns
from slimnet.model import Direction, Reason
from slimnet.place import Part
from slimnet.tables import PolicyKey, PolicyRecord
from slimnet.testing._stage import ALLOWED, CAST, NETWORK, Stage
from slimnet_kmod import KmodBackend

pytestmark = [pytest.mark.root, pytest.mark.module]


@pytest.fixture
def stage(kernel_faults):
    with Stage(KmodBackend, {}, None) as stage:
        yield stage
    assert kernel_faults() == []


def another(stage, options=None):
    with stage.on(0):
        return KmodBackend(stage.context(0, options))


def test_a_second_agent_is_told_and_changes_nothing(stage):
    """Until the first has let go, which it does when it ends, however."""
    first = stage.open(0)
    stage.attach("client")
    stage.install(1)
    before = first.status()
    with pytest.raises(BackendError, match=r"another process drives the data path of instance slt"):
        another(stage)
    assert first.status() == before
    first.attach(CAST["client"], NETWORK)
    first.close()
    with another(stage) as second:
        assert second.status().generation == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [({"wire_ports": 5000}, "backend.kmod.wire_ports"), ({"inner_range": "224.0.0.0/4"}, "range")],
)
def test_what_runs_keeps_its_ports_and_its_range(stage, options, named):
    stage.open(0).close()
    with pytest.raises(ConfigError, match=named):
        another(stage, options)
    with another(stage) as again:
        assert again.status().generation == 0


@pytest.mark.parametrize("again", ["tended", "restarted"])
def test_what_only_the_module_has_is_detached(stage, again):
    """A process that was killed between the two left it."""
    backend = stage.open(0)
    stage.attach("stranger")
    given = stage.given("client", Part.NETNS)  # the module lets go of one that is gone
    stage.attach_as(given)
    backend.backend._fallback.detach(CAST["client"].id)
    assert backend.status().endpoints == {CAST["stranger"].id}
    assert backend.backend._attached() == {CAST["client"].id, CAST["stranger"].id}
    if again == "tended":
        backend.backend.pace = 0
        backend.tend()
    else:
        backend.close()
        backend = stage.open(0)
    assert backend.backend._attached() == {CAST["stranger"].id}
    stage.attach_as(given)
    assert backend.status().endpoints == {CAST["client"].id, CAST["stranger"].id}
    backend.detach(CAST["client"].id)
    stage.take_back()


def test_an_attach_that_the_module_refuses_leaves_nothing(stage):
    backend = stage.open(0)
    before = stage.snapshot()
    request = backend.backend._module.request

    def refuse(command, **attributes):
        return request(command, **(attributes | ({"VNI": 1 << 24} if "VNI" in attributes else {})))

    backend.backend._module.request = refuse
    with pytest.raises(BackendError, match="module slimnet: vni: "):
        backend.attach(CAST["client"], NETWORK)
    backend.backend._module.request = request
    assert stage.snapshot() == before
    assert not backend.status().endpoints


def test_datagrams_take_the_fallback_overlay(stage):
    """Between two hosts, policed, while TCP of the same endpoints is the host's."""
    for host in (0, 1):
        stage.open(host)
    stage.attach("client", "server")
    stage.serve("server", ALLOWED)
    allow = {
        PolicyKey(
            CAST["server"].identity, CAST["client"].identity, Direction.INGRESS, 17
        ): PolicyRecord(True, Reason["RULE_ALLOW"], 9)
    }
    with netns.enter(stage.places["server"].netns):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("0.0.0.0", 5000))
        server.settimeout(1)
    with netns.enter(stage.places["client"].netns):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        for generation, rules in ((1, {}), (2, allow)):
            for host, backend in stage.backends.items():
                tables = stage.tables(host, generation)
                backend.install(evolve(tables, policy={**tables.policy, **rules}))
            client.sendto(b"hello", (str(CAST["server"].address), 5000))
            if rules:
                assert server.recv(100) == b"hello"
            else:
                with pytest.raises(TimeoutError):
                    server.recv(100)
    stage.resident("client").hold("live", str(CAST["server"].address), ALLOWED)
    (live,) = [each for each in stage.backends[0].connections() if each.state == "ESTAB"]
    assert live.wire is not None
    assert live.wire.value == "syn"
