# SPDX-License-Identifier: Apache-2.0
"""Two machines with kernels, disks and network cards of their own, on which slimnet is installed
from its package alone, form a cluster as the documentation says. ``tox run -e machines``.
"""

import contextlib
import json
import re
import time

import pytest

pytestmark = [pytest.mark.root, pytest.mark.slow]

ADDRESSES = {"first": "10.0.0.1", "second": "10.0.0.2"}
NETWORK = """
echo {name} >/etc/hostname
hostname {name}
cat >/etc/systemd/network/eth0.network <<'END'
[Match]
Name=eth0
[Network]
Address={address}/24
Gateway=10.0.0.254
END
systemctl restart systemd-networkd
/lib/systemd/systemd-networkd-wait-online -i eth0
"""
#: An endpoint that comes back with its machine.
UNIT = """cat >/etc/systemd/system/{name}.service <<'END'
[Unit]
Wants=slimnet-agent.service
After=slimnet-agent.service
[Service]
ExecStart=/usr/bin/slimnet run -n prod --name {name} -l app={name} -- {command}
StandardOutput=append:/var/log/{name}.log
Restart=always
RestartSec=2
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable --now {name}
"""
POLICY = """slimnet policy apply - <<'END'
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: cache}}
spec:
  podSelector: {{matchLabels: {{app: cache}}}}
  ingress:
  - from: [{{podSelector: {{matchLabels: {{app: {client}}}}}}}]
    ports: [{{port: 11211}}]
END
"""
#: One connection to memcached, and in a file how often it was answered.
COUNT = """cat >/root/count.py <<'END'
import socket, time
with socket.create_connection(("cache", 11211), 60) as connection:
    connection.settimeout(60)
    connection.sendall(b"set count 0 0 1\\r\\n0\\r\\n")
    assert connection.recv(99) == b"STORED\\r\\n"
    while True:
        connection.sendall(b"incr count 1\\r\\n")
        print(int(connection.recv(99)), flush=True)
        time.sleep(0.2)
END
setsid slimnet exec web -- python3 /root/count.py 2>&1 | cat >/root/counted &
"""
GET_PAGE = "slimnet exec cache -- curl -sS --max-time 20 http://{}/"
GET_VALUE = "slimnet exec web -- timeout 30 memccat --servers={}:11211 value"


@contextlib.contextmanager
def step(what):
    start = time.monotonic()
    yield
    print(f"  {time.monotonic() - start:6.1f} s  {what}", flush=True)


def together(machines, script):
    """What a script printed that runs on all of them at once."""
    sent = [(machine, machine.send(script)) for machine in machines]
    return [machine.result(number) for machine, number in sent]


def addresses(machine):
    rows = json.loads(machine.run("slimnet endpoint ls -o json"))
    return {row["name"]: row["address"] for row in rows}


def counted(machine):
    return int(machine.until("tail -n 1 /root/counted | grep -x '[0-9]*'", 120)[0])


def test_a_cluster_of_two_machines(machines):
    """Endpoints of both reach each other by name and by address, a policy refuses and allows, an
    agent that is killed costs no connection, and a machine that boots again is as before."""
    first, second = machines
    print()
    for machine in machines:
        print(f"  {machine.name}: Linux {machine.release}")

    with step("both have booted"):
        for machine in machines:
            machine.ready(1)
    with step("both have a name and an address"):
        for machine in machines:
            address = ADDRESSES[machine.name]
            machine.run(NETWORK.format(name=machine.name, address=address))
            assert machine.run("uname -r").strip() == machine.release
    with step("nothing of slimnet runs by itself"):
        for machine in machines:
            assert machine.run("systemctl is-enabled slimnet-agent", status=1) == "disabled\n"
            assert machine.run("ls -A /etc/slimnet") == ""
    with step("slimnet check finds what is needed on both"):
        for printed in together(machines, "slimnet check -o json"):
            (said,) = json.loads(printed)
            answers = {row["backend"]: row["answer"] for row in said["backends"]}
            assert answers == {"ebpf": "yes", "kmod": "no", "noop": "yes", "preload": "yes"}

    with step("slimnet cluster init on the first, with an etcd of its own, by systemd"):
        printed = first.run("slimnet cluster init --store etcd")
        (token,) = re.findall(r"^slimnet cluster join (\S+)$", printed, re.MULTILINE)
        assert first.run("systemctl is-active slimnet-etcd") == "active\n"
    with step("slimnet cluster join on the second"):
        second.run(f"slimnet cluster join - <<<'{token}'")
    with step("agents run on both"):
        together(machines, "systemctl enable --now slimnet-agent")
        for machine in machines:
            rows = json.loads(machine.run("slimnet cluster ls -o json"))
            found = [(row["name"], row["lost"]) for row in rows]
            assert found == [("first", False), ("second", False)]

    with step("memcached is an endpoint on the first, nginx on the second"):
        first.run("slimnet network create prod 10.1.0.0/16")
        first.run(UNIT.format(name="cache", command="memcached -vv -u memcache -l 0.0.0.0"))
        second.run("echo a page of the second >/var/www/html/index.html")
        second.run(UNIT.format(name="web", command="nginx -g 'daemon off;'"))
        for machine, name, port in (first, "web", 80), (second, "cache", 11211):
            machine.until(f"slimnet ping {name}:{port}")
            said = json.loads(machine.run(f"slimnet ping {name}:{port} -o json"))
            assert said["carried"] == "accelerated", said
    with step("the first gets a page of the second, by name and by address"):
        where = addresses(first)
        for target in "web", where["web"]:
            assert first.run(GET_PAGE.format(target)) == "a page of the second\n"
    with step("the second gets a value of the first, by name and by address"):
        second.run("echo a value >/root/value")
        second.run("slimnet exec web -- memccp --servers=cache:11211 /root/value")
        for target in "cache", where["cache"]:
            assert second.run(GET_VALUE.format(target)).strip() == "a value"
        assert first.run("grep -c ' get value' /var/log/cache.log") == "2\n"

    with step("a policy that allows others refuses"):
        first.run(POLICY.format(client="nobody"))
        said = json.loads(second.run("slimnet ping cache:11211 --from web -o json", status=1))
        assert said["carried"] == "denied", said
        assert "a value" not in second.ask(GET_VALUE.format("cache"))[0]
    with step("the same that allows it allows"):
        first.run(POLICY.format(client="web"))
        second.until("slimnet ping cache:11211 --from web")
        assert second.run(GET_VALUE.format("cache")).strip() == "a value"
        assert first.run(GET_PAGE.format("web")) == "a page of the second\n"

    with step("the first's agent is killed, and systemd starts it again"):
        second.run(COUNT)
        before = counted(second)
        first.run("systemctl kill --signal=KILL slimnet-agent")
        first.until('test "$(systemctl show -P NRestarts slimnet-agent)" = 1 && slimnet status')
        first.run("systemctl is-active slimnet-agent cache")
    with step("the connection that was open goes on, and new ones are made"):
        # The program ends with its connection.
        second.run("pgrep -f '^python3 /root/count.py'")
        after = counted(second)
        assert after > before
        assert second.run(GET_VALUE.format("cache")).strip() == "a value"
        assert first.run(GET_PAGE.format("web")) == "a page of the second\n"

    with step("the second has booted again"):
        second.send("systemctl reboot")
        second.ready(2)
    with step("its endpoint serves pages again, and nobody typed anything there"):
        printed, _ = first.until(GET_PAGE.format("web"), 600)
        assert printed == "a page of the second\n"
        assert addresses(first)["web"] == where["web"]
    with step("and the first serves values to it, under the same policy"):
        assert second.run(GET_VALUE.format("cache")).strip() == "a value"
        said = json.loads(second.run("slimnet ping cache:11211 -o json", status=1))
        assert said["carried"] == "denied", said

    with step("the first, which has the store, has booted again"):
        first.send("systemctl reboot")
        first.ready(2)
    with step("its endpoint answers again, and nobody typed anything there"):
        second.until("slimnet ping cache:11211 --from web", 600)
        second.run("slimnet exec web -- memccp --servers=cache:11211 /root/value", seconds=600)
        assert second.run(GET_VALUE.format("cache")).strip() == "a value"
        assert addresses(second) == where
    with step("it gets pages, under the same policy, and no unit has failed"):
        assert first.until(GET_PAGE.format("web"), 600)[0] == "a page of the second\n"
        said = json.loads(first.run("slimnet ping cache:11211 -o json", status=1))
        assert said["carried"] == "denied", said
        for machine in machines:
            assert machine.run("systemctl --failed --no-legend") == ""
