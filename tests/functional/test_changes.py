# SPDX-License-Identifier: Apache-2.0
"""Tables change under load: connections that stay allowed never notice.

Two clients dial two servers on two hosts as fast as they can, under policies that let
them; meanwhile 200 other states come into force, each compiled and installed with what
differs, as an agent does.
"""

from __future__ import annotations

import itertools
import random
import socket
import time
from typing import Any

import pytest
from attrs import evolve
from lab import Can, Compiled

from slimnet.model import Endpoint, Host, Namespace, Network, Reason
from slimnet.policy import Policy, State, parse

CHANGES = 200
ALLOWED = {Reason.RULE_ALLOW, Reason.DEFAULT_ALLOW, Reason.SELF}
# The kernel looks connections up without a lock: a FIN that comes while a socket gives its place
# to its TIME_WAIT may find neither, and is looked up as if it were for a listener. That is one in
# millions, and no connection notices; one whose SYN is shielded fails, and says so.
NEVER_SYN = {Reason.SHIELD}
NETWORK = Network("default", 1, "10.1.0.0/16")


def policy(name: str, namespace: str, **spec: Any) -> Policy:
    manifest = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
    return parse([{"manifest": manifest}])[0]


def app(name: str) -> dict[str, Any]:
    return {"matchLabels": {"app": name}}


def shop() -> State:
    """Clients may reach servers on port 80, and nobody anything else."""
    names = (("client", "h1"), ("client", "h2"), ("server", "h1"), ("server", "h2"))
    return State(
        [NETWORK],
        [Host("h1", "192.0.2.1"), Host("h2", "192.0.2.2")],
        [],
        [
            Endpoint(
                "default",
                f"{what}-{host}",
                f"10.1.0.{number}",
                host,
                namespace="shop",
                id=number,
                labels={"app": what},
                identity=256 + (what == "server"),
            )
            for number, (what, host) in enumerate(names, 1)
        ],
        [
            policy("nothing", "shop", podSelector={}, policyTypes=["Ingress", "Egress"]),
            policy(
                "in",
                "shop",
                podSelector=app("server"),
                ingress=[{"from": [{"podSelector": app("client")}], "ports": [{"port": 80}]}],
            ),
            policy(
                "out",
                "shop",
                podSelector=app("client"),
                policyTypes=["Egress"],
                egress=[{"to": [{"podSelector": app("server")}], "ports": [{"port": 80}]}],
            ),
        ],
    )


class Bystanders:
    """What else there is in the state: comes, changes and goes, and touches no
    connection of the shop."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._chance = random.Random(4)
        self._numbers = itertools.count(100)
        self.endpoints: dict[int, Endpoint] = {}
        self._policies: dict[str, Policy] = {}
        self._namespaces: dict[str, Namespace] = {}

    def turn(self) -> State:
        """Another state."""
        chance, number = self._chance, next(self._numbers)
        space = f"other{chance.randrange(3)}"
        kinds = ["policy", "allows", "range", "endpoint", "labels", "namespace", "gone"]
        match chance.choice(kinds):
            case "policy":  # new, or changed
                name = f"p{chance.randrange(8)}"
                rule = {"from": [{"namespaceSelector": app("a")}], "ports": [{"port": number}]}
                self._policies[name] = policy(name, space, podSelector={}, ingress=[rule])
            case "allows":  # one more thing that the shop's servers may
                rule = {"from": [{"namespaceSelector": {}}], "ports": [{"port": number}]}
                self._policies["more"] = policy(
                    "more", "shop", podSelector=app("server"), ingress=[rule]
                )
            case "range":  # one that holds the shop's own addresses, for another namespace
                block = {"cidr": f"10.1.0.0/{chance.randrange(16, 30)}"}
                self._policies["range"] = policy(
                    "range",
                    space,
                    podSelector={},
                    policyTypes=["Egress"],
                    egress=[{"to": [{"ipBlock": block}]}],
                )
            case "endpoint":
                self._set(number, space, "a")
            case "labels" if self.endpoints:
                other = chance.choice(list(self.endpoints))
                self._set(other, self.endpoints[other].namespace, f"app{number}")
            case "namespace":
                self._namespaces[space] = Namespace("default", space, {"app": f"a{number % 2}"})
            case _ if self.endpoints:
                del self.endpoints[chance.choice(list(self.endpoints))]
                self._policies.pop(next(iter(self._policies), ""), None)
        return self.state()

    def _set(self, number: int, space: str, label: str) -> None:
        self.endpoints[number] = Endpoint(
            "default",
            f"e{number}",
            f"10.1.1.{number % 250 + 1}",
            f"h{1 + number % 2}",
            namespace=space,
            id=number,
            labels={"app": label},
            # Each label set a number of its own.
            identity=1000 + 1000 * int(label[3:] or 0) + int(space[-1]),
        )

    def state(self) -> State:
        return evolve(
            self._state,
            namespaces=self._namespaces.values(),
            endpoints=(*self._state.endpoints, *self.endpoints.values()),
            policies=(*self._state.policies, *self._policies.values()),
        )


def _answer(port):
    """One byte back to each, until it closes."""
    import threading

    listener = socket.create_server(("0.0.0.0", port), backlog=1024)

    def talk(sock):
        with sock:
            while byte := sock.recv(1):
                sock.sendall(byte)

    def serve():
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=talk, args=(sock,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()


def _dial(targets):
    """Until told to stop: connect and talk, and talk on connections that stay. How many
    there were, the longest connect in seconds, and what went wrong."""
    global stopped
    stopped = False
    lasting = [socket.create_connection(target) for target in map(tuple, targets)]
    count, longest, failures = 0, 0.0, []
    while not stopped:
        for target, old in zip(map(tuple, targets), lasting, strict=True):
            started, which = time.monotonic(), "connecting"
            try:
                with socket.socket() as sock:
                    sock.connect(target)
                    longest = max(longest, time.monotonic() - started)
                    for each in (sock, old):
                        which = "new" if each is sock else "lasting"
                        each.settimeout(5)
                        each.sendall(b"x")
                        assert each.recv(1) == b"x"
            except (OSError, AssertionError) as error:
                passed = time.monotonic() - started
                failures.append(f"{which} one to {target}, in {passed:.1f} s: {error!r}")
            count += 1
    for sock in lasting:
        sock.close()
    return count, longest, failures


def _stop():
    global stopped
    stopped = True


def visit(lab, others):
    """An endpoint with a process comes to one of the hosts, and goes."""
    state = others.turn()
    record = evolve(
        state.endpoints[0],
        name="guest",
        id=99,
        address="10.1.2.1",
        namespace="guests",
        identity=999,
    )
    lab.follow(evolve(state, endpoints=(*state.endpoints, record)))
    guest = lab.attach(lab.host(record.host), record, NETWORK)
    guest.serve(80)
    before = refusals(lab)
    try:
        sock = guest.connect(guest.address, 80)
        # Accepted as well: the listener does not ask about it once the guest is gone.
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    except OSError as error:
        error.add_note(f"refused {before} before, now {refusals(lab)}; records {records(lab)}")
        raise
    lab.remove(guest)


def records(lab):
    """Of handshakes, left on all hosts."""
    return sum(lab.path.records(host.instance) for host in lab.hosts)


def refusals(lab, *, but=frozenset()):
    passed = ALLOWED | but
    return [
        {reason: count for reason, count in host.counters().items() if reason not in passed}
        for host in lab.hosts
    ]


@pytest.mark.slow
def test_connections_that_stay_allowed_never_notice(mode):
    lab = Compiled(shop(), mode)
    try:
        clients, servers = (
            [lab.called("shop", f"{what}-{host}") for host in ("h1", "h2")]
            for what in ("client", "server")
        )
        for server in servers:
            server.call(_answer, 80)
        assert records(lab) == 0
        refused = refusals(lab, but=NEVER_SYN)
        again = [host.statistic("TcpExtTCPSynRetrans") for host in lab.hosts]
        targets = [(server.address, 80) for server in servers]
        dialling = [client.start(_dial, targets) for client in clients]
        others = Bystanders(shop())
        # Whole tables every time take ten times as long.
        changes = CHANGES if lab.can(Can.WRITES_CHANGES) else CHANGES // 10
        for turn in range(changes):
            lab.follow(others.turn())
            if turn % 20 == 0:
                visit(lab, others)
        for client in clients:
            client.call(_stop)
        for future in dialling:
            count, longest, failures = future.result(30)
            assert failures == []
            assert longest < 1  # a SYN that is lost is sent again after a second
            assert count > changes
        assert refusals(lab, but=NEVER_SYN) == refused
        assert [host.statistic("TcpExtTCPSynRetrans") for host in lab.hosts] == again
        assert records(lab) == 0
        # It was policy that let them: what it does not allow is refused still.
        for client in clients:
            with pytest.raises(OSError) as caught:
                client.connect(servers[0].address, 81)
            assert caught.value.errno == lab.denied
    finally:
        lab.close()
