# SPDX-License-Identifier: Apache-2.0
"""How would a connection be carried, and how long does one take?"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs

from slimnet import names, policy, records, wires
from slimnet.agent.requests import Explain, Ping
from slimnet.exceptions import (
    AgentUnreachable,
    NotFollowed,
    NotFound,
    SlimnetError,
    StoreUnreachable,
)
from slimnet.linux import netns
from slimnet.model import Decision, Endpoint, Flow
from slimnet.tables import Tables

if TYPE_CHECKING:
    from slimnet.agent.agent import Agent

__all__ = ["explain", "ping"]

# Runs inside the source endpoint: started in its network namespace and with its environment,
# it enters its cgroup before it makes a socket, so that the connection is the endpoint's own.
# Isolated (-I): nothing of the caller's environment is imported.
_CONNECT = """
import errno, json, socket, sys, time
cgroup, address, port, timeout, count = sys.argv[1:]
if cgroup:
    with open(cgroup + "/cgroup.procs", "w") as procs:
        procs.write("0")
times, error = [], None
for _ in range(int(count)):
    with socket.socket() as s:
        s.settimeout(float(timeout))
        begin = time.perf_counter()
        try:
            s.connect((address, int(port)))
        except OSError as failed:
            if not times or failed.errno != errno.ECONNREFUSED:
                error = errno.errorcode.get(failed.errno, str(failed))
            if isinstance(failed, TimeoutError):
                error = "ETIMEDOUT"
            took = time.perf_counter() - begin
            if error == "ECONNREFUSED":
                times.append(took)
            break
        times.append(time.perf_counter() - begin)
print(json.dumps({"times": times, "error": error}))
"""


#: What connect() says where a packet went, and none came back (tcp(7), icmp(7)).
_SILENT = ("ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH")


def explain(agent: Agent, asked: Explain) -> dict[str, Any]:
    """What the policy says of a flow, and why: :func:`slimnet.policy.explain`, on
    the tables that are in force here and those that belong in force elsewhere.

    The data path of each host that decides is asked as well. Another host answers
    when it has taken in all that the store held before the question; one that does
    not is named in ``unanswered``.
    """
    agent.known(agent.sync, str)
    state = agent.mirror.state(agent.site.host)
    installed = agent.installer.tables
    unanswered: dict[str, None] = {}

    def tables(host: str) -> Tables:
        if host == agent.site.host.name and installed is not None:
            return installed
        return policy.compile(state, host)

    def ask(host: str, flow: Flow) -> Decision | None:
        if host in unanswered:  # the next question would take as long
            return None
        try:
            answer = agent.inquiries.ask(host, "ask", flow=records.encode(flow))
        except (AgentUnreachable, StoreUnreachable):
            unanswered[host] = None
            return None
        return None if answer is None else records.decision(answer)

    explained = policy.explain(state, tables=cache(tables), ask=ask, **attrs.asdict(asked))
    return {**records.encode(explained), "unanswered": list(unanswered)}


def ping(agent: Agent, asked: Ping) -> dict[str, Any]:
    """Ask the policy, then connect for real.

    Returns:
        ``carried`` (``accelerated``, ``fallback``, ``denied`` or
        ``unreachable``), ``wire``, ``rule`` and ``reason`` of the verdict,
        ``milliseconds`` of each connect, ``error``, ``source``, ``destination``.
    """
    destination = _find(agent, asked.target, asked.network)
    if asked.source is not None:
        origin = _find(agent, asked.source, destination.network)
        return _from(agent, origin, destination, asked)
    name = f"ping-{secrets.token_hex(4)}"
    spec = {"network": destination.network, "namespace": "default", "name": name}
    agent.endpoints.attach(spec, None)
    try:
        _await(agent, destination.host, asked.timeout)
        origin = agent.cluster.endpoint(destination.network, "default", name)
        answer = _from(agent, origin, destination, asked)
        return {**answer, "temporary": True}
    finally:
        agent.endpoints.detach(destination.network, "default", name, kill=True)


def _await(agent: Agent, host: str, timeout: float) -> None:
    """Wait for the one host that has to know of a new endpoint too."""
    try:
        agent.wait(None, timeout, [host])
    except NotFound:
        return  # lost: that is the answer then
    except NotFollowed as error:
        raise AgentUnreachable(
            f"host {host} does not follow ({error}), and knows of no new endpoint:"
            " say --from with one of this host"
        ) from error


def _from(agent: Agent, source: Endpoint, destination: Endpoint, asked: Ping) -> dict[str, Any]:
    port = asked.port or 7
    flow = Explain(
        network=destination.network,
        source=str(source.address),
        destination=str(destination.address),
        port=port,
    )
    explained = explain(agent, flow)
    answer: dict[str, Any] = {
        "source": source.path,
        "destination": destination.path,
        "address": str(destination.address),
        "port": port,
        "milliseconds": [],
        "error": None,
        "temporary": False,
        **_carried(agent, source, destination),
        "explanation": explained,
    }
    if explained["refusal"] and answer["carried"] != "unreachable":
        answer |= {"carried": "unreachable", "wire": None, "why": explained["summary"]}
    elif not explained["allowed"] and not explained["refusal"]:
        answer["carried"] = "denied"
    if source.host != agent.config.host:
        answer["error"] = f"not tried: the source is on host {source.host}"
        return answer
    result = _connect(agent, source, destination, asked)
    answer["milliseconds"] = [1000 * seconds for seconds in result["times"]]
    reached = answer["carried"] in ("accelerated", "fallback")
    if result["error"] != "ECONNREFUSED" or asked.port is not None or not reached:
        answer["error"] = result["error"]
    silent = result["error"] in _SILENT and not result["times"]
    if reached and (silent or result["error"] == "ECONNREFUSED"):
        why = _in_the_way(agent, answer["wire"], source, destination)
        if not why and silent:
            why = _silence(answer["wire"], source, destination)
        if why:
            answer |= {"carried": "unreachable", "why": why, "error": result["error"]}
    return answer


def _in_the_way(agent: Agent, wire: str | None, source: Endpoint, destination: Endpoint) -> str:
    """What the two hosts find on themselves that keeps them apart; empty where that is nothing,
    or they do not say."""
    if wire is None:
        return ""
    addresses = {each.name: each.host.address for each in agent.hosts() if each.host}
    found = []
    for here, there in ((source.host, destination.host), (destination.host, source.host)):
        with contextlib.suppress(SlimnetError):  # of an older version, or silent
            named = agent.inquiries.ask(here, "obstacles", peer=str(addresses[there]), wire=wire)
            found += [f"{here}: {each}" for each in named]
    return "; ".join(found)


def _silence(wire: str | None, source: Endpoint, destination: Endpoint) -> str:
    """What to say where nothing came back, and nobody knows why."""
    if wire is None:
        return f"nothing came back from {destination.path} on this host: does it accept?"
    return (
        f"nothing came back by {wire}: does a firewall between {source.host} and"
        f" {destination.host} let it through?"
    )


def _carried(agent: Agent, source: Endpoint, destination: Endpoint) -> dict[str, Any]:
    hosts = {each.name: each.host for each in agent.hosts() if not each.lost}
    here, there = hosts.get(source.host), hosts.get(destination.host)
    if here is None or there is None:
        lost = source.host if here is None else destination.host
        return {"carried": "unreachable", "wire": None, "why": f"host {lost} is lost"}
    wire = wires.choose(here, there)
    fast = wire in wires.ACCELERATED
    if here == there:
        return {"carried": "accelerated" if fast else "fallback", "wire": None, "why": "same host"}
    if wires.refused(here, there):
        why = f"hosts {here.name} ({here.key}) and {there.name} ({there.key}) have different keys"
        return {"carried": "unreachable", "wire": None, "why": why}
    if wire is None:
        why = f"{wires.spoken(here)} and {wires.spoken(there)} have no wire in common"
        return {"carried": "unreachable", "wire": None, "why": why}
    if fast:
        why = f"{here.name} and {there.name} speak it"
        return {"carried": "accelerated", "wire": str(wire), "why": why}
    return {"carried": "fallback", "wire": str(wire), "why": "no other wire in common"}


def _connect(agent: Agent, source: Endpoint, destination: Endpoint, asked: Ping) -> dict[str, Any]:
    place = agent.endpoints.attached.get(source.id)
    if place is None:
        raise NotFound(f"endpoint {source.name} is not attached on this host")
    arguments = [
        str(place.cgroup or ""),
        str(destination.address),
        str(asked.port or 7),
        str(asked.timeout),
        str(asked.count),
    ]
    with contextlib.nullcontext() if place.netns is None else netns.enter(place.netns):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CONNECT, *arguments],
            capture_output=True,
            text=True,
            timeout=asked.timeout * asked.count + 10,
            check=False,
            env={**os.environ, **place.environment},
        )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise SlimnetError(f"ping from {source.name} failed: {last}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _find(agent: Agent, text: str, network: str | None) -> Endpoint:
    """The endpoint that ``text`` names.

    Raises:
        NotFound: none does, or there is no such network.
        InvalidValue: more than one does.
    """
    there = agent.known(agent.cluster.endpoints, agent.mirror.endpoints)
    found = names.find(there, text, network)
    if found is None:
        if network is not None:
            networks = agent.known(agent.cluster.networks, agent.mirror.networks)
            if network not in (known := [each.name for each in networks]):
                raise names.missing("network", network, known)
            there = [each for each in there if each.network == network]
        raise names.missing("endpoint", text, [each.path for each in there])
    return found
