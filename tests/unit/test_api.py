# SPDX-License-Identifier: Apache-2.0
"""The agent's API against whatever may come: a real agent behind its socket, without a kernel."""

import contextlib
import itertools
import json
import logging
import os
import random
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from urllib.parse import quote

import attrs
import pytest
from click.testing import CliRunner

from slimnet import directories, records
from slimnet.agent import agent as agents
from slimnet.agent import fields as kinds
from slimnet.agent.client import Client
from slimnet.agent.fields import fields
from slimnet.agent.inquiry import Inquiries
from slimnet.agent.member import Terms, invite
from slimnet.agent.requests import Nothing
from slimnet.agent.routes import ROUTES, Route, Routes
from slimnet.agent.server import Server
from slimnet.agent.site import Site, read_keys
from slimnet.cli import slimnet
from slimnet.cluster import Cluster
from slimnet.cluster.keyring import Keyring
from slimnet.cluster.keys import KEYRING, KEYS
from slimnet.cluster.progress import want
from slimnet.config import Config
from slimnet.exceptions import (
    AlreadyExists,
    BackendError,
    InvalidValue,
    NotFollowed,
    NotFound,
    PolicyError,
    SlimnetError,
    StoreUnreachable,
)
from slimnet.model import Host
from slimnet.node import open_node
from slimnet.plugins import Choice
from slimnet.policy import load
from slimnet.policy.language import manifest
from slimnet.store.sqlite import SqliteStore
from slimnet.testing import MemoryBackend

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the agent answers to root only")

#: Seconds that the random requests may take.
PATIENCE = float(os.environ.get("SLIMNET_API_SECONDS", "2"))
SEED = int(os.environ.get("SLIMNET_API_SEED", "1"))


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """An agent with a network; it follows its store before each answer only."""
    host = Host("h1", "192.0.2.1", {"vxlan"}, "memory")
    site = Site(host, "eth0", tmp_path / "cgroups", (bytes(16),))
    monkeypatch.setattr(directories, "run", lambda: tmp_path / "run")
    monkeypatch.setattr(agents.instance, "running", lambda _: {})
    monkeypatch.setattr(
        agents.instance,
        "choose",
        lambda *_: Choice(MemoryBackend, "for a test", MemoryBackend.probe().capabilities),
    )
    monkeypatch.setattr(agents, "survey", lambda *_: site)
    monkeypatch.setattr(agents, "ranges", tuple)
    monkeypatch.setattr(agents, "taken", dict)
    name = f"api-{os.getpid()}"
    config = Config(instance=name, host="h1", store=f"sqlite://{tmp_path}/store.db", lease=60)
    agent = agents.Agent(config)
    agent.start()
    agent.cluster.create_network("prod", "10.1.0.0/24")
    server = Server(config.socket, Routes(agent), tuple)
    server.start()
    try:
        yield agent
    finally:
        server.close()
        agent.close()
        MemoryBackend.running.pop(name, None)


@pytest.fixture
def path(agent):
    """Its socket."""
    return agent.config.socket


@pytest.fixture
def running(agent):
    """Its socket, once it follows by itself."""
    loop = threading.Thread(target=agent.run)
    loop.start()
    yield agent.config.socket
    agent.stop()
    loop.join()


class Line:
    """One connection to the agent; opened anew where the agent closes it."""

    def __init__(self, path):
        self._path = path
        self._socket = None

    def send(self, data):
        """What is answered: status and JSON; ``None`` where nothing comes."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(10)
            self._socket.connect(str(self._path))
        try:
            self._socket.sendall(data)
            return self._read()
        except BrokenPipeError:
            return self._read()

    def _read(self):
        with self._socket.makefile("rb") as answer:
            first = answer.readline()
            if not first:
                self.close()
                return None
            status = int(first.split()[1])
            headers = {}
            while line := answer.readline().strip():
                key, _, value = line.decode("latin-1").partition(":")
                headers[key.lower()] = value.strip()
            body = answer.read(int(headers["content-length"]))
        if headers.get("connection") == "close" or first.startswith(b"HTTP/1.0"):
            self.close()
        return status, body

    def close(self):
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def request(method, target, body=b""):
    if isinstance(target, str):
        target = target.encode("latin-1", "replace")
    head = b"%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    return head % (method.encode(), target, len(body)) + body


#: By kind, what no field, or only another one, can be.
NASTY = [
    *(None, True, False, 0, -1, 1, 7, 80, 65536, 2**31, 2**32, 2**63, 2**64, 10**40, 1.5, 1e308),
    *(float("nan"), float("inf"), "", " ", "x", "prod", "default", "web", "h1", "X", "a" * 64),
    *("a" * 70000, "prod/default/web", "../../x", "a/b", "a.b", "x\x00y", "\x00", "x\ny", "\ud800"),
    *(
        "é",
        "\U0001d4b3",
        "10.1.0.5",
        "10.1.0.0/24",
        "10.2.0.0/16",
        "999.1.1.1",
        "1.2",
        "::",
        "::/0",
        "-1",
    ),
    *("0.0.0.0/0", "10.3.0.0/255.255.255.0", "10.3.0.0/0.0.0.255", "10.3.0.0/99", "tcp", "TCP"),
    *("icmp", "/", "/proc/self", "0x7f", "1e3", "٣", "{}", "%00", "%s", "null"),
    *([], [[]], [None], [0], ["x"], ["10.4.0.0/16"], ["10.5.0.0/16", 3], [{}], [{"kind": 3}]),
    *({}, {"": ""}, {"a": "b"}, {"a": 1}, {"a": None}, {"a": []}, {"a": {}}, {"a": "b\x00"}),
    *({"a": ["tcp", 80]}, {"a": ["tcp"]}, {"a": ["tcp", "80"]}, {"a": [[], 80]}, {"a": ["x", 2.5]}),
    *({"a": ["tcp", 10**30]}, {"a": ["tcp", 80, 1]}, {"a": {"tcp": 80}}, {"\ud800": "x"}),
    *({"a/b/c": "x"}, {"a" * 300: "x"}, {"a": "x" * 300}, {"http": ["TCP", 80], "": []}),
]

NETWORK_POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "p", "namespace": "default"},
    "spec": {
        "podSelector": {
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a"]}],
        },
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80, "endPort": 90}]}],
        "egress": [{"to": [{"ipBlock": {"cidr": "8.0.0.0/8", "except": ["8.8.0.0/16"]}}]}],
    },
}
CLUSTER_POLICY = {
    "apiVersion": "policy.networking.k8s.io/v1alpha2",
    "kind": "ClusterNetworkPolicy",
    "metadata": {"name": "c"},
    "spec": {
        "tier": "Admin",
        "priority": 1,
        "subject": {"namespaces": {}},
        "egress": [
            {
                "action": "Accept",
                "to": [{"networks": ["9.0.0.0/8"]}, {"nodes": {"matchLabels": {"a": "b"}}}],
                "protocols": [{"tcp": {"destinationPort": {"range": {"start": 1, "end": 9}}}}],
            }
        ],
    },
}

OTHERS = [
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "namespace": "default"},
        "spec": {
            "selector": {"app": "web"},
            "clusterIP": "10.1.0.77",
            "ports": [{"port": 80, "targetPort": "http", "protocol": "TCP"}],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}},
            "weights": [{"selector": {"matchLabels": {"app": "web"}}, "weight": 2}],
        },
    },
    {
        "apiVersion": "slimnet.io/v1alpha1",
        "kind": "PublishedPort",
        "metadata": {"name": "o", "namespace": "default"},
        "spec": {"endpoint": "none", "port": 8080, "targetPort": 80, "address": "192.0.2.1"},
    },
    {
        "apiVersion": "slimnet.io/v1alpha1",
        "kind": "EgressLimit",
        "metadata": {"name": "l", "namespace": "default"},
        "spec": {"podSelector": {}, "rate": "1M", "connectionRate": "1M"},
    },
]
#: As the API has them, with the lines that Document.to_json gives.
DOCUMENTS = [
    {"manifest": manifest, "file": "a.yaml", "lines": {"spec": 3, "ingress[0]": 4, "egress[0]": 5}}
    for manifest in (NETWORK_POLICY, CLUSTER_POLICY, *OTHERS)
]

#: Route to the fields that it takes, as a client sends them.
BODIES = {
    "POST /v1/networks": {"name": "n", "cidrs": ["10.6.0.0/24"], "vni": 5000},
    "PUT /v1/namespaces/prod/other": {"labels": {"a": "b"}},
    "POST /v1/endpoints": {
        "network": "prod",
        "namespace": "default",
        "name": "e",
        "address": "10.1.0.9",
        "labels": {"app": "e"},
        "ports": {"http": ["tcp", 80]},
        "cgroup": None,
        "ephemeral": False,
    },
    "PATCH /v1/endpoints/prod/default/e": {"labels": {"app": "f", "a": None}, "overwrite": True},
    "DELETE /v1/endpoints/prod/default/e": {"kill": False},
    "POST /v1/policies": {"policies": [], "network": "prod"},
    "POST /v1/check": {
        "policies": [],
        "network": "prod",
        "applied": ["policies/prod/default/p", "services/prod/default/none"],
    },
    "POST /v1/explain": {
        "network": "prod",
        "source": "web",
        "destination": "10.1.0.2",
        "port": 80,
        "protocol": "tcp",
    },
    "POST /v1/ping": {
        "target": "none",
        "source": "web",
        "network": "prod",
        "port": 80,
        "timeout": 0,
        "count": 1,
    },
    "POST /v1/wait": {"revision": 1, "timeout": 0},
}
FIELDS = sorted({name for route in ROUTES for name in fields(route.request)})
BODIES_OF_OTHERS = [b"", b"", b"{}", b'{"kill": false}', b'{"labels": {}}', b'{"name": "x"}']


def places(value, path=()):
    """Where in a JSON value anything could be something else."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def with_other(value, path, other):
    """A copy with something else at one place."""
    if not path:
        return other
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = with_other(value[path[0]], path[1:], other)
    return copied


def dump(value):
    return json.dumps(value).encode("utf-8", "replace")


def cases(chance):
    """Requests without end: route, field and value, or a document, wrong at one place."""
    routes = list(BODIES)
    while True:
        route = chance.choice(routes)
        body = BODIES[route]
        if "policies" in body and chance.random() < 0.9:
            document = chance.choice(DOCUMENTS)
            path = chance.choice(list(places(document)))
            yield route, {"policies": [with_other(document, path, chance.choice(NASTY))]}
            continue
        body = {key: value for key, value in body.items() if chance.random() < 0.95}
        if "timeout" in BODIES[route]:
            body["timeout"] = 0
        for _ in range(chance.choice((1, 1, 1, 2))):
            field = chance.choice(list(BODIES[route] if chance.random() < 0.9 else FIELDS))
            value = chance.choice(NASTY)
            if field == "kill" and value is True:
                continue  # no cgroup here has processes, nor the file to kill them by
            if field in ("timeout", "count") and (value is None or type(value) in (int, float)):
                continue  # seconds, and processes
            body[field] = value
        yield route, body


def check(line, data, caplog):
    """Send one request; neither an answer of the agent's own failure nor a traceback."""
    caplog.clear()
    answer = line.send(data)
    logged = [repr(each.exc_info[1]) for each in caplog.records if each.exc_info]
    assert not logged, f"{logged} for {data[-500:]!r}"
    assert answer is not None, f"no answer for {data[-500:]!r}"
    status, body = answer
    value = json.loads(body)
    if status >= 400:
        message = value["message"]
        # That others are late is neither side's fault.
        assert status < 500 or "not everywhere at revision" in message, f"{data[-500:]!r}"
        assert message, data[-500:]
        assert "\n" not in message, data[-500:]
    return status, value


def test_wrong_values(path, caplog):
    """One field, or one place of a document, is what it cannot be."""
    caplog.set_level(logging.INFO)
    line, chance = Line(path), random.Random(SEED)
    end, answers = time.monotonic() + PATIENCE, Counter()
    for route, body in cases(chance):
        method, _, target = route.partition(" ")
        answers[check(line, request(method, target, dump(body)), caplog)[0]] += 1
        if time.monotonic() > end:
            break
    assert answers[400] > answers[200] > 0


def test_wrong_paths(path, caplog):
    """Every route with too few, too many and impossible names."""
    line, chance = Line(path), random.Random(SEED)
    end = time.monotonic() + PATIENCE / 2
    segments = [quote(text, errors="replace") for text in NASTY if isinstance(text, str)]
    segments += ["%", "%zz", "%ff", "%c3%28", "..", "%2e%2e", "a%2fb", "%0d%0aX:%20y", "?x=y", "#"]
    for route in itertools.cycle(ROUTES):
        kind = route.pattern.split("/")[2]
        some = [chance.choice(segments)[:500] for _ in range(chance.choice((0, 1, 2, 3, 3, 4)))]
        if kind == "events":
            continue  # answered for ever
        target = "/".join(["/v1", chance.choice((kind, kind, kind.upper())), *some])
        check(line, request(route.method, target, chance.choice(BODIES_OF_OTHERS)), caplog)
        if time.monotonic() > end:
            break


RAW = [
    # Not JSON, or JSON that says what nothing here can hold.
    (request("POST", "/v1/networks", b"\xff\xfe{}"), 400, "body: wanted JSON"),
    (request("POST", "/v1/networks", b'{"name": "\xc3\x28"}'), 400, "body: wanted JSON"),
    (request("POST", "/v1/networks", b'{"vni": NaN}'), 400, "NaN is no number"),
    (request("POST", "/v1/networks", b"[" * 100_000), 400, "body: wanted JSON"),
    (request("POST", "/v1/check", b'{"policies": ' + b'[{"a":' * 400 + b"1" + b"}]" * 400 + b"}"),
     400, "policies: wanted at most 40 levels"),
    (request("POST", "/v1/networks", b'{"name": "\\ud800"}'), 400, "name: wanted text of whole"),
    (request("POST", "/v1/networks", b'{"vni": ' + b"9" * 5000 + b"}"), 400, "body: wanted JSON"),
    (request("POST", "/v1/explain", b'{"network": "prod", "source": "x", "destination": "y",'
             b' "target": "z"}'),
     400, "target: wanted one of: destination, network, port, protocol, source, got"),
    (request("POST", "/v1/ping", b'{"target": "x", "protocol": "tcp"}'),
     400, "protocol: wanted one of: count, network, port, source, target, timeout, got"),
    # Lengths.
    (b"GET /v1/status HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400, "Content-Length: wanted"),
    (b"GET /v1/status HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "Content-Length: wanted"),
    (b"GET /v1/status HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n", 400, "Content-Length: wanted"),
    (b"GET /v1/status HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
     400, "Content-Length: wanted"),
    (b"POST /v1/networks HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\n{}",
     400, "Content-Length: wanted"),
    (request("GET", "/v1/%ff"), 400, "path: wanted"),
    (request("GET", "http://[/v1/status"), 400, "path: wanted"),
    # Chunks would be taken for the next request.
    (b"POST /v1/networks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
     400, "Transfer-Encoding: wanted"),
]  # fmt: skip


#: Kind to a value of it, and to some that are none. Null is as good as no value.
VALUES = {
    kinds.TEXT: ("x", [3, 1.5, True, [], {}]),
    kinds.TEXTS: (["10.9.0.0/16"], ["10.9.0.0/16", 3, [3], [None], {}]),
    kinds.TRUTH: (False, [0, 1, "true", []]),
    kinds.TABLE: ({}, ["x", 3, [], [["a", "b"]]]),
    kinds.DOCUMENTS: ([], ["x", {}, [3], [[]], [None]]),
    kinds.INTEGER: (5000, ["5000", 1.5, True, 2**63 + 1]),
    kinds.COUNT: (1, [0, 1001, "1", True, 1.5]),
    kinds.PORT: (80, [-1, 65536, "80", True, 80.0]),
    kinds.REVISION: (1, [-1, "1", True, 2**63 + 1]),
    kinds.SECONDS: (1.5, [-1, 601, "1", True]),
}


def wrong_bodies(route):
    """Bodies that a route refuses, each with the field that is wrong and what is said of it."""
    named = route.match(route.method, route.pattern.split("/")[1:])
    known = {name: field for name, field in fields(route.request).items() if name not in named}
    right = {name: VALUES[field.kind][0] for name, field in known.items()}
    for name, field in known.items():
        if field.is_required:
            for absent in ({}, {name: None}):
                body = {key: value for key, value in right.items() if key != name} | absent
                wanted = f"{field.kind.wanted}, since this field is required"
                yield body, name, f"{name}: wanted {wanted}, got 'nothing'"
        for wrong in VALUES[field.kind][1]:
            said = f"{name}: wanted {field.kind.wanted}, got {wrong!r}"
            yield right | {name: wrong}, name, said
    # What the path says, or the agent knows, the body cannot say too.
    for name in ("no-such-field", "caller", *named):
        yield right | {name: "x"}, name, f"{name}: wanted "
    # A slip of the pen is told what it should have been.
    for name in known:
        yield right | {name + "x": "x"}, name + "x", f"did you mean {name!r}?"


def test_every_route_names_what_is_wrong(path, caplog):
    """A field that is missing, unknown or mistyped: 400, one line, nothing is changed."""
    line = Line(path)
    before = check(line, request("GET", "/v1/status"), caplog)[1]["revision"]
    for route in ROUTES:
        target = route.pattern.replace("<", "").replace(">", "")
        bodies = list(wrong_bodies(route))
        assert bodies, route
        for body, field, said in bodies:
            what = f"{route.method} {target} {body}"
            status, value = check(line, request(route.method, target, dump(body)), caplog)
            assert (status, value["error"]) == (400, "InvalidValue"), what
            assert value["message"].startswith(f"{field}: wanted "), what
            assert said in value["message"], what
            assert ", got " in value["message"], what
    assert check(line, request("GET", "/v1/status"), caplog)[1]["revision"] == before


def test_the_table_is_whole():
    """Every name of a pattern is a field, every field and every route has a meaning, and
    the requests above go to each route that takes a body."""
    for route in ROUTES:
        named = route.match(route.method, route.pattern.split("/")[1:])
        known = fields(route.request)
        assert named.keys() <= known.keys(), route
        assert all(known[name].is_required for name in named), route
        assert all(field.meaning.strip() for field in known.values()), route
        assert route.handle.__doc__.strip().endswith("."), route
    patterns = [(route.method, route.pattern) for route in ROUTES]
    assert len(set(patterns)) == len(patterns)
    sent = {name for route in BODIES for name in route_of(route)}
    wanted = {
        (route.method, route.pattern)
        for route in ROUTES
        if len(fields(route.request)) > route.pattern.count("<")
    }
    assert sent == wanted


def route_of(text):
    """The routes that a request of :data:`BODIES` goes to."""
    method, _, target = text.partition(" ")
    path = target.split("/")[1:]
    return [(each.method, each.pattern) for each in ROUTES if each.match(method, path) is not None]


def test_no_such_route(path, caplog):
    """What is near is said."""
    line = Line(path)
    status, value = check(line, request("PUT", "/v1/networks"), caplog)
    assert status == 404
    assert value["message"] == (
        "the agent knows no PUT /v1/networks; it knows GET /v1/networks,"
        " POST /v1/networks, DELETE /v1/networks/<name>"
    )
    for target in ("/v1/namespaces", "/v1/namespaces/a/b/c"):
        status, value = check(line, request("DELETE", target), caplog)
        assert status == 400
        wanted = "DELETE /v1/namespaces/<network>/<name>"
        assert value["message"] == f"path: wanted {wanted}, got 'DELETE {target}'"
    for target in ("/v1/tables", "/v2/status", "/", "/v1"):
        status, value = check(line, request("GET", target), caplog)
        assert (status, value["error"]) == (404, "NotFound"), target
        assert value["message"] == f"the agent knows no GET {target}"


def called_wrongly(agent, asked):
    """A bug that looks like a wrong request: a call without an argument."""
    return called_wrongly(agent)


def test_a_bug_is_no_wrong_request(tmp_path, caplog):
    """It is answered with 500, and its traceback is logged."""
    socket_path = tmp_path / "agent.sock"
    server = Server(socket_path, Routes(None, [Route("GET", "/x", Nothing, called_wrongly)]), tuple)
    server.start()
    try:
        status, body = Line(socket_path).send(request("GET", "/x"))
    finally:
        server.close()
    assert status == 500
    said = json.loads(body)["message"]
    assert said.startswith("the agent failed: TypeError: called_wrongly() missing 1 required")
    (logged,) = [each for each in caplog.records if each.exc_info]
    assert isinstance(logged.exc_info[1], TypeError)
    assert logged.getMessage() == "GET /x"


def test_wrong_requests(path, caplog):
    """What is no request of HTTP's, or no JSON."""
    line = Line(path)
    for data, status, said in RAW:
        got, value = check(line, data, caplog)
        assert got == status, data[-500:]
        assert said in value["message"]
        assert check(line, request("GET", "/v1/status"), caplog)[0] == 200


def test_a_body_that_does_not_come(path, caplog):
    """Whoever hangs up in the middle of it is not answered, and nobody else notices."""
    with socket.socket(socket.AF_UNIX) as half:
        half.connect(str(path))
        half.sendall(b'POST /v1/networks HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"name"')
    assert check(Line(path), request("GET", "/v1/networks"), caplog)[0] == 200
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


FILE = """\
apiVersion: v1
kind: List
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: p}
  spec:
    podSelector: {matchLabels: {app: nobody}}
    ingress:
    - from: [{podSelector: {}}]
- apiVersion: v1
  kind: Service
  metadata: {name: s}
  spec:
    selector: {app: nobody}
    ports: [{port: 80}]
"""


def test_one_apply_parses_each_manifest_once(path, tmp_path, monkeypatch):
    """Client, agent, store, mirror, answer and warnings, with one look at what is written;
    nobody who only reads what is in force looks at it at all."""
    parsed = []
    parse = manifest._document

    def spy(node, network):
        parsed.append((node.path, network))
        return parse(node, network)

    monkeypatch.setattr(manifest, "_document", spy)
    file = tmp_path / "web.yaml"
    file.write_text(FILE)
    done = CliRunner().invoke(slimnet, ["--agent", str(path), "policy", "apply", str(file)])
    assert done.exit_code == 0, done.output
    assert "in force: default/p, service:default/s (10.1.0." in done.output
    assert "web.yaml:4: default/p" in done.output
    assert parsed == [("items[0]", "prod"), ("items[1]", "prod")]
    with open_node(agent=path) as node:
        assert [each.title for each in node.policies()] == ["default/p", "service:default/s"]
        assert [each.source.at("ingress[0]") for each in node.policies()][:1] == ["web.yaml:10"]
    assert len(parsed) == 2


def test_the_agent_says_where_a_file_is_wrong(path):
    """As :func:`slimnet.policy.load` says it, whichever of them looks."""
    wrong = FILE.replace("podSelector: {}", "podSelector: {app: x}")
    with pytest.raises(PolicyError) as here:
        load(wrong)
    with open_node(agent=path) as node, pytest.raises(PolicyError) as there:
        node.apply_policy([FILE, wrong])
    assert str(there.value) == str(here.value)
    assert str(here.value).startswith("line 10: items[0].spec.ingress[0].from[0].podSelector.app:")
    with open_node(agent=path) as node:
        assert node.policies() == []


HELM = f"""\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
---
{FILE}---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {{name: old}}
"""


def command(path, *words, given=None):
    """What the command line answers: exit status, output, errors."""
    done = subprocess.run(
        [sys.executable, "-m", "slimnet.cli", "--agent", str(path), *words],
        input=given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["web.yaml", "-"])
def test_only_documents_of_slimnets_kinds(path, tmp_path, name):
    """What a chart holds beside them is passed over and said, where that is asked for; of a
    file, and of standard input."""
    file = tmp_path / "web.yaml"
    file.write_text(HELM)
    named, given = ("stdin", HELM) if name == "-" else (name, None)
    words = ["-" if name == "-" else str(file)]
    status, out, errors = command(path, "policy", "apply", *words, given=given)
    assert (status, out) == (2, "")
    assert errors.startswith(f"slimnet: {named}:2: kind: wanted one of NetworkPolicy")
    passed = f"slimnet: passed over: Deployment web ({named}:1), AdminNetworkPolicy old ({named}:"
    for verb in ("check", "apply"):
        status, out, errors = command(path, "policy", verb, "--ignore-unknown", *words, given=given)
        assert status == 0, errors
        assert errors.startswith(passed)
        assert "default" in out
    with open_node(agent=path) as node:
        assert [each.name for each in node.policies()] == ["p", "s"]
        node.remove_policy("p", "prod")
        assert [each.name for each in node.apply_policy(HELM, ignore_unknown=True)] == ["p", "s"]
        assert len(node.check_policy(HELM, ignore_unknown=True)) > 0
        for ask in (node.apply_policy, node.check_policy):
            with pytest.raises(PolicyError, match="kind: wanted one of"):
                ask(HELM)


@pytest.mark.parametrize(
    ("text", "options"),
    [("", []), ("# nothing\n---\n", []), ("kind: Pod\napiVersion: v1\n", ["--ignore-unknown"])],
)
def test_files_without_a_document(path, tmp_path, text, options):
    """Nothing is in force by them: an error, as kubectl says it."""
    file = tmp_path / "empty.yaml"
    file.write_text(text)
    wanted = f"slimnet: {file}: wanted a document of one of slimnet's kinds, got 'none'"
    for verb in ("apply", "check"):
        status, out, errors = command(path, "policy", verb, *options, str(file))
        assert (status, out, errors.splitlines()[-1]) == (2, "", wanted)
    with open_node(agent=path) as node:
        for ask in (node.apply_policy, node.check_policy):
            with pytest.raises(PolicyError, match="documents: wanted one of slimnet's kinds"):
                ask(file, ignore_unknown=bool(options))
            assert ask([]) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ping", "web", "--timeout", "inf"], "timeout: wanted a finite number, got inf"),
        (["ping", "web", "--timeout", "nan"], "timeout: wanted a finite number, got nan"),
        (["ping", "web", "--timeout", "1e300"], "timeout: wanted seconds, at most 600"),
        (["ping", "web", "--timeout", "-1e300"], "timeout: wanted seconds, at most 600"),
        (["status", "--wait", "--timeout", "inf"], "timeout: wanted a finite number, got inf"),
        (["endpoint", "ls", "-n", "nosuch"], "network 'nosuch': there is none; there are: prod"),
        (["namespace", "ls", "-n", "nosuch"], "network 'nosuch': there is none; there are: prod"),
        (["namespace", "rm", "x", "-n", "nosuch"], "network 'nosuch': there is none; there are"),
        (["policy", "rm", "x", "-n", "nosuch"], "network 'nosuch': there is none; there are"),
        (["usage", "--endpoint", "nosuch"], "endpoint 'nosuch': there is none; there are: none"),
        (["observe", "--last", "--endpoint", "x"], "endpoint 'x': there is none; there are: none"),
        (["endpoint", "add", "w", "--port", "HTTP=80"], "--port: wanted name=number"),
        (["endpoint", "add", "w", "-l", "a=1", "-l", "a=2"], "--label: wanted one value for a"),
        (["ping", "nosuch"], "endpoint 'nosuch': there is none; there are: none at all"),
        (["ping", "web", "-n", "nosuch"], "network 'nosuch': there is none; there are: prod"),
        (["network", "create", "x", "10.2.0.0"], "network.cidrs: wanted a range such as"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_wrong_words(path, words, said):
    """One line that names what is wrong, and status 2."""
    status, out, errors = command(path, *words)
    assert (status, out, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"slimnet: {said}")


def test_a_network_that_has_to_be_named(path):
    with open_node(agent=path) as node:
        node.create_network("more", "10.2.0.0/24")
        status, out, errors = command(path, "endpoint", "add", "web")
        assert (status, out) == (2, "")
        assert (
            errors == "slimnet: --network: wanted one of the networks (more, prod), got nothing\n"
        )
        for ask in (node.endpoints, node.namespaces):
            assert [each.name for each in ask("more")] in ([], ["default"])
            with pytest.raises(NotFound, match="network 'nosuch': there is none; there are: more"):
                ask("nosuch")
        with pytest.raises(InvalidValue, match=r"endpoint\.ports: wanted names of at most 15"):
            node.attach("prod", "web", ports={"HTTP": ("tcp", 80)})
        assert node.endpoints() == []


def test_a_policy_of_a_network_is_removed_and_no_clusters(path):
    """Whether the network is named or not: a cluster's is removed by its kind."""
    guard = """
        {apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy,
         metadata: {name: p}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}}
    """
    with open_node(agent=path) as node:
        node.apply_policy([FILE, guard])
        node.remove_policy("p")
        assert [each.title for each in node.policies()] == ["cluster:p", "service:default/s"]
        with pytest.raises(NotFound, match="NetworkPolicy 'p': there is none"):
            node.remove_policy("p")
        node.remove_policy("p", kind="ClusterNetworkPolicy")
        assert [each.title for each in node.policies()] == ["service:default/s"]
        node.create_network("more", "10.2.0.0/24")
        with pytest.raises(NotFound, match="network 'default': there is none; there are: more, p"):
            node.remove_policy("s", kind="Service")


def test_refusals_name_file_and_line(path, tmp_path):
    """Not only of what the parser sees."""
    file = tmp_path / "web.yaml"
    with open_node(agent=path) as node:
        for text, error, said in (
            (FILE, NotFound, "web.yaml:4: default/p: network 'lab': there is none"),
            (
                FILE.replace(
                    "app: nobody}\n    ports", "app: x}\n    clusterIP: 10.9.9.9\n    ports"
                ),
                InvalidValue,
                "web.yaml:11: service:default/s: spec.clusterIP: wanted an address in 10.1.0.0/24",
            ),
        ):
            file.write_text(text)
            network = "lab" if error is NotFound else "prod"
            with pytest.raises(error) as caught:
                node.apply_policy(file, network)
            assert str(caught.value).startswith(said)
        file.write_text(
            FILE.replace("app: nobody}\n    ports", "app: x}\n    clusterIP: 10.1.0.9\n    ports")
        )
        node.apply_policy(file)
        file.write_text(file.read_text().replace("{name: s}", "{name: other}"))
        with pytest.raises(AlreadyExists) as caught:
            node.apply_policy(file)
        said = "web.yaml:11: service:default/other: spec.clusterIP: address 10.1.0.9 is that of"
        assert str(caught.value).startswith(said)


def test_the_keys_of_the_store_are_those_of_the_reference(agent, path, tmp_path):
    """Whatever is written in an agent's life has a pattern, and every pattern is written."""
    node = Client(path)
    body = {"network": "prod", "namespace": "other", "name": "web", "labels": {"a.b/c": "d"}}
    node.request("POST", "endpoints", **body)
    node.request("POST", "policies", policies=DOCUMENTS, network="prod")
    url = f"sqlite://{tmp_path}/store.db"
    read_keys(tmp_path / "joined")  # makes it
    files = {"host": tmp_path / "conf.d/cluster.toml"}
    invite(Config(store=url, key_file=tmp_path / "joined", files=files), Terms())
    with SqliteStore.open(url) as store:
        answering = threading.Thread(target=agent.answer)
        answering.start()
        with pytest.raises(SlimnetError, match="does not know that question"):
            Inquiries(store, "h2", {}).ask("h1", "what?")
        agent.stop()
        answering.join()
        node.request("POST", "wait")
        ring = Keyring.prepare(*read_keys(tmp_path / "joined"), bytes(16))
        store.transact(put={KEYRING.at(): records.dump(ring)})
        told = [store.watch(prefix, after=0, timeout=0)[0] for prefix in ("", "~")]
        written = {each.key for each in itertools.chain(*told)}
    patterns = {
        # Names of labels may have a slash.
        key.pattern: re.sub("<[^>]*>", "[^/]+", key.pattern.replace("<labels>", ".*"))
        for key in KEYS
    }
    found = set()
    for key in written:
        (pattern,) = [text for text, form in patterns.items() if re.fullmatch(form, key)]
        found.add(pattern)
    assert found == patterns.keys() - {"format"}, "that is for a version to come"
    assert "identities/prod/other/a.b/c=d" in written


def test_status_says_which_hosts_are_out_of_reach(path, tmp_path):
    """A host that speaks another version, or another wire."""
    with SqliteStore.open(f"sqlite://{tmp_path}/store.db") as store:
        cluster = Cluster(store)
        cluster.set_host(Host("h2", "192.0.2.2", {"vxlan/2"}, "memory"), store.lease(60))
        cluster.set_host(Host("h3", "192.0.2.3", {"vxlan/1"}, "memory"), store.lease(60))
    node = Client(path)
    node.request("POST", "networks", name="other", cidrs=["10.9.0.0/24"])
    status = node.request("GET", "status")
    assert status["wires"] == ["vxlan/1"]
    assert not status["ready"]
    (trouble,) = status["trouble"]
    said = "h1 (memory: vxlan/1) has no wire in common with h2 (memory: vxlan/2): "
    assert trouble.startswith(said)


@pytest.fixture
def lost(path, tmp_path):
    """An agent that knew an endpoint, a policy, and a host that is lost; takes its store away,
    and puts what it is called with in its place."""
    node = Client(path)
    node.request("POST", "endpoints", network="prod", name="web")
    node.request("POST", "policies", policies=DOCUMENTS[:1], network="prod")
    file = tmp_path / "store.db"
    with SqliteStore.open(f"sqlite://{file}") as store:
        cluster = Cluster(store)
        h2 = Host("h2", "192.0.2.2", {"vxlan/1"}, "memory", version="9.8")
        cluster.set_installed(h2, 1, store.lease(60), 1)
        cluster.create_endpoint({"network": "prod", "name": "far", "host": "h2"})
    node.request("POST", "networks", name="other", cidrs=["10.9.0.0/24"])

    def lose(put):
        for each in tmp_path.glob("store.db*"):
            each.rename(each.with_name(f"was-{each.name}"))
        put(f"sqlite://{file}")

    return lose


def nothing(_url):
    pass


def another(url):
    SqliteStore.open(url).close()


READING = ("networks", "namespaces", "endpoints", "policies")


@pytest.mark.parametrize("put", [nothing, another])
def test_the_agent_answers_what_it_knows_when_the_store_is_gone(path, lost, put):
    node = Client(path)
    before = {each: node.request("GET", each) for each in READING}
    assert all(before.values())
    assert node.request("GET", "status")["stale"] == ""
    lost(put)
    status = node.request("GET", "status")
    assert (status["ready"], status["trouble"]) == (False, [status["stale"]])
    assert "store" in status["stale"]
    assert {each: node.request("GET", each) for each in READING} == before
    assert [each["name"] for each in node.request("GET", "hosts")] == ["h1"]
    for each in ("connections", "accounts", "rules", "refusals"):
        node.request("GET", each)
    explained = node.request(
        "POST", "explain", network="prod", source="web", destination="198.51.100.7", port=80
    )
    assert explained["stages"]
    with pytest.raises(StoreUnreachable):
        node.request("POST", "networks", name="third", cidrs=["10.8.0.0/24"])


SHOWN = {
    ("connections",): "ENDPOINT",
    ("usage",): "ENDPOINT",
    ("observe", "--last"): "TIME",
    ("endpoint", "ls"): "web",
    ("network", "ls"): "prod",
    ("namespace", "ls"): "default",
    ("policy", "ls"): "NetworkPolicy",
    ("host", "ls"): "h1",
}


def test_commands_show_what_the_agent_knows_and_say_that_the_store_is_gone(path, lost):
    for argv, shown in SHOWN.items():
        done = CliRunner().invoke(slimnet, ["--agent", str(path), *argv])
        assert (done.exit_code, shown in done.stdout, done.stderr) == (0, True, ""), argv
    lost(nothing)
    for argv, shown in SHOWN.items():
        done = CliRunner().invoke(slimnet, ["--agent", str(path), *argv])
        assert (done.exit_code, shown in done.stdout) == (0, True), (argv, done.output)
        (line,) = done.stderr.splitlines()
        assert line.startswith("warning: ")
        assert line.endswith("this is what the agent knew before")
    done = CliRunner().invoke(
        slimnet, ["--agent", str(path), "status", "--wait"], standalone_mode=False
    )
    assert done.return_value == 1
    assert "h1 (192.0.2.1 on eth0)" in done.stdout
    assert re.search(r"trouble +.*store", done.stdout)


def test_the_agent_follows_a_store_that_is_back(running, tmp_path):
    """And says that it was away until then."""
    node, file = Client(running), tmp_path / "store.db"
    until = time.monotonic() + 10
    file.rename(tmp_path / "away")
    while not node.request("GET", "status")["stale"]:
        assert time.monotonic() < until
    (tmp_path / "away").rename(file)
    while (status := node.request("GET", "status"))["stale"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not any("store" in each for each in status["trouble"])
    node.request("POST", "networks", name="other", cidrs=["10.9.0.0/24"])


def test_a_store_that_refuses_changes_is_not_read_all_the_time(
    running, agent, monkeypatch, tmp_path
):
    """As etcd does whose database is full: it has load enough."""

    def refuse(**_):
        raise StoreUnreachable("it is full")

    listed, asked = agent.store.list, []
    with monkeypatch.context() as patch:
        patch.setattr(agent.store, "transact", refuse)
        patch.setattr(agent.store, "list", lambda key: (asked.append(key), listed(key))[1])
        with SqliteStore.open(f"sqlite://{tmp_path}/store.db") as store:
            _, revision = Cluster(store).create_network("other", "10.9.0.0/16")
            want(store, revision)
        until = time.monotonic() + 10
        while agent.status()["stale"] != "it is full":
            assert time.monotonic() < until
        time.sleep(3)
        assert 1 <= asked.count("") <= 5  # after 0.25, 0.5, 1 and 2 seconds
    until = time.monotonic() + 10
    while agent.status()["stale"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert [each["name"] for each in Client(running).request("GET", "networks")] == [
        "other",
        "prod",
    ]


def test_a_lost_host_is_listed_and_its_endpoints_say_so(path, lost):
    def output(*argv):
        done = CliRunner().invoke(slimnet, ["--agent", str(path), *argv])
        assert done.exit_code == 0, done.output
        return done.stdout

    one, two = output("host", "ls").splitlines()[1:]
    assert one.split()[:5] == ["h1", "live", "now", "192.0.2.1", "memory"]
    assert re.match(r"h2 +lost +\d+s ago +192\.0\.2\.2 +9\.8 +memory ", two)
    assert re.search(r"^h2 +\d+s ago +192", output("status"), re.MULTILINE)
    hosts = json.loads(output("host", "ls", "-o", "json"))
    assert [(each["name"], each["lost"], each["endpoints"]) for each in hosts] == [
        ("h1", False, 1),
        ("h2", True, 1),
    ]
    assert re.search(r"far +10\.1\.0\.\d+ +h2 \(lost\)", output("endpoint", "ls"))
    assert re.search(r"web +10\.1\.0\.\d+ +h1 ", output("endpoint", "ls"))
    found = json.loads(output("endpoint", "ls", "-o", "json"))
    assert {each["name"]: each["lost"] for each in found} == {"web": False, "far": True}
    output("host", "rm", "h2")
    assert [each["name"] for each in json.loads(output("host", "ls", "-o", "json"))] == ["h1"]
    assert "far" not in output("endpoint", "ls")
    done = CliRunner().invoke(slimnet, ["--agent", str(path), "host", "rm", "h1"])
    assert "host h1 lives: stop its agent first" in str(done.exception)


def test_a_revision_that_is_in_force_is_told_from_one_that_is_known(path, monkeypatch):
    """``installed`` is behind ``revision`` as long as tables are not in force, and only then,
    whatever changed; ``generation`` counts changes of tables."""
    node = Client(path)
    node.request("PUT", "namespaces", "prod", "default", labels={})
    before = node.request("GET", "status")
    assert before["installed"] == before["revision"] > 0
    node.request("PUT", "namespaces", "prod", "other", labels={})
    empty = node.request("GET", "status")
    assert empty["installed"] == empty["revision"] > before["revision"]
    assert empty["generation"] == before["generation"]

    def refuse(*_):
        raise BackendError("no")

    monkeypatch.setattr(MemoryBackend, "install", refuse)
    with pytest.raises(SlimnetError, match="no"):
        node.request("POST", "policies", policies=DOCUMENTS, network="prod")
    late = node.request("GET", "status")
    assert (late["installed"], late["generation"]) == (empty["installed"], empty["generation"])
    assert late["installed"] < late["revision"]
    done = CliRunner().invoke(slimnet, ["--agent", str(path), "status"])
    assert f"{late['revision']}, of which {late['installed']} is in force" in done.stdout
    (host,) = node.request("GET", "hosts")
    assert (host["installed"], host["generation"]) == (late["installed"], late["generation"])
    assert host["installed"] < host["wanted"]
    done = CliRunner().invoke(slimnet, ["--agent", str(path), "host", "ls"])
    assert f"{host['installed']} of {host['wanted']}" in done.stdout


# Hosts that are silent


SILENT = (
    r"not everywhere at revision \d+: h2 says nothing"
    r" \(its agent, of slimnet 0\.0\.9, hangs or is too old for that\)\n?$"
)


@pytest.fixture
def silent(path, tmp_path):
    """A host whose agent does not answer, and whose lease has not run out."""
    with SqliteStore.open(f"sqlite://{tmp_path}/store.db") as store:
        host = Host("h2", "192.0.2.2", {"vxlan/1"}, "memory", version="0.0.9")
        Cluster(store).set_host(host, store.lease(60))
    Client(path).request("POST", "networks", name="other", cidrs=["10.9.0.0/24"])


def test_waiting_for_the_hosts_that_are_meant(path, silent):
    node = Client(path)
    assert list(node.request("POST", "wait", hosts=["h1"])["installed"]) == ["h1"]
    with pytest.raises(NotFollowed, match=SILENT):
        node.request("POST", "wait", timeout=0.2)
    with pytest.raises(NotFound, match="host 'h3': it does not live; there are: h1, h2"):
        node.request("POST", "wait", timeout=0.2, hosts=["h3"])


def test_status_is_shown_also_where_a_host_is_silent(path, silent):
    def status(*argv):
        return CliRunner().invoke(
            slimnet, ["--agent", str(path), "status", *argv], standalone_mode=False
        )

    done = status("--wait", "--timeout", "0.2")
    assert done.return_value == 1
    assert re.search(r"ready +no\n", done.stdout)
    assert re.search(rf"(?m)trouble +{SILENT}", done.stdout)
    done = status("--wait", "--timeout", "0.2", "--host", "h1")
    assert done.return_value == 0
    assert "not everywhere" not in done.stdout
    done = status("--host", "h1")
    assert str(done.exception) == "--host: wanted --wait beside it, got 'h1'"


def test_a_start_that_takes_longer_than_the_lease(agent, tmp_path):
    """What the data path then says of the host is told all the same, with another lease."""
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as connection, connection:
        connection.execute("UPDATE lease SET expires=0")
    assert agent.cluster.hosts() == []
    changed = attrs.evolve(agent.site.host, labels={"zone": "a"})
    agent._tell(changed)
    assert agent.cluster.hosts() == [changed]


def test_a_change_for_which_nobody_waits_is_written_by_nobody(running, agent, tmp_path):
    """A host says what it has in force once it is asked, and once for all who ask for as much; it
    asks the store for nothing but what it waits for."""
    node = Client(running)
    store = agent.store
    with (
        pytest.MonkeyPatch.context() as patch,
        SqliteStore.open(f"sqlite://{tmp_path}/store.db") as by,
    ):
        written, asked = [], []
        transact, watch = store.transact, store.watch
        # It looks for questions once, when it starts: not after it answered one.
        with pytest.raises(NotFound, match="does not know that question"):
            Inquiries(by, "h2", {}).ask("h1", "what")

        def write(**arguments):
            written.extend(sorted(arguments.get("put", ())))
            return transact(**arguments)

        def look(*prefixes, after, timeout):
            if not timeout:
                asked.append(prefixes)
            return watch(*prefixes, after=after, timeout=timeout)

        patch.setattr(store, "transact", write)
        patch.setattr(store, "watch", look)
        patch.setattr(store, "list", asked.append)
        _, first = Cluster(by).set_namespace("prod", "a")
        _, second = Cluster(by).set_namespace("prod", "b")
        until = time.monotonic() + 30
        while agent.mirror.followed < second:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(1)
        assert (written, asked) == ([], [])
        patch.undo()
        patch.setattr(store, "transact", write)
        assert node.request("POST", "wait", revision=second)["installed"] == {"h1": second}
        assert written == ["wanted", "~installed/h1", "~seen/h1"]
        assert node.request("POST", "wait", revision=first)["installed"] == {"h1": second}
        node.request("GET", "hosts")
        assert written == ["wanted", "~installed/h1", "~seen/h1"]


def test_a_revision_that_is_yet_to_come_hides_no_other(running, agent, tmp_path):
    """Whoever waits for too much waits in vain, and nobody else because of that."""
    node = Client(running)
    _, now = agent.cluster.set_namespace("prod", "a")
    with pytest.raises(NotFollowed, match=f"not everywhere at revision {now + 999}: h1 at"):
        node.request("POST", "wait", revision=now + 999, timeout=0.2)
    _, later = agent.cluster.set_namespace("prod", "b")
    assert node.request("POST", "wait", revision=later)["installed"] == {"h1": later}
