# SPDX-License-Identifier: Apache-2.0
"""The command line without an agent: words, errors, formats, what is imported."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import click
import pytest
import yaml
from click.testing import CliRunner
from netaddr import IPAddress

from slimnet import records
from slimnet.cli import slimnet
from slimnet.cli.node import age, is_named, labels_of, none_named, ports_of, title
from slimnet.cli.observe import _detail
from slimnet.cli.output import show, show_one
from slimnet.cli.usage import size
from slimnet.exceptions import InvalidValue
from slimnet.linux import netns
from slimnet.model import (
    Answer,
    Capabilities,
    Direction,
    Endpoint,
    Event,
    EventKind,
    Network,
    Probe,
    Reason,
)
from slimnet.place import Part


def run(*argv, **environment):
    return subprocess.run(
        [sys.executable, "-m", "slimnet.cli", *argv],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def commands(group, path=()):
    """Every command with its words, groups too."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands(slimnet))


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["run", "--help"], ["nonsense"]])
def test_starts_without_what_it_does_not_need(argv):
    """Not one heavy import on the way to a help text; pyroute2 alone is 130 ms."""
    code = (
        "import sys, slimnet.cli\n"
        f"sys.argv = ['slimnet', *{argv!r}]\n"
        "try: slimnet.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'pyroute2', 'attr', 'netaddr', 'yaml', 'stevedore', 'rich', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_talking_to_an_agent_needs_no_pyroute2():
    code = (
        "import sys, slimnet.cli\n"
        "sys.argv = ['slimnet', '--agent', '/nowhere', 'network', 'ls']\n"
        "try: slimnet.cli.main()\n"
        "except SystemExit as end: print('END', end.code)\n"
        "print('HEAVY', sorted({'pyroute2', 'yaml', 'rich', 'sqlite3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["END 2", "HEAVY []"]


def test_the_child_of_run_imports_the_standard_library_only():
    """What stands between the caller and the command starts in 10 ms, not 60."""
    from slimnet import sandbox

    boot = sandbox._BOOT.format(
        slimnet=os.path.dirname(os.path.dirname(sandbox.__file__)),
        sandbox=os.path.dirname(sandbox.__file__),
        order=0,
        report=0,
    ).replace("main(0, 0)", "print(*sys.modules)")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", boot], capture_output=True, text=True, check=True
    )
    modules = done.stdout.split()
    ours = {name for name in modules if name.startswith("slimnet")}
    assert "slimnet.sandbox.inside" in ours
    linux = {f"slimnet.linux.{name}" for name in ("libc", "mounts", "resolvers")}
    others = ours - linux - {"slimnet", "slimnet.linux"}
    assert [name for name in others if not name.startswith("slimnet.sandbox")] == []
    assert not {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {
        "slimnet", "__main__", "_distutils_hack",
    }  # fmt: skip
    assert not {"subprocess", "logging", "pathlib", "json", "typing"} & set(modules) - {"typing"}


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_explains_itself(words):
    """A summary that fits, and for every option what it is for."""
    command = ALL[words]
    summary = command.get_short_help_str(limit=200)
    assert summary.endswith(".")
    assert len(summary) <= 60, summary
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help or parameter.metavar or parameter.show_default, parameter.name
    done = CliRunner().invoke(slimnet, [*words, "--help"])
    assert done.exit_code == 0
    assert summary.rstrip(".") in " ".join(done.output.split())


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("exec",),
        ("endpoint", "label"),
        ("network", "create"),
        ("policy", "explain"),
        ("policy", "check"),
        ("policy", "rm"),
        ("testbed", "up"),
        ("ping",),
        ("usage",),
    ],
)
def test_help_teaches_by_examples(words):
    help_text = CliRunner().invoke(slimnet, [*words, "--help"]).output
    assert f"slimnet {' '.join(words)} " in help_text.split("Example", 1)[1]


LISTING = [
    words for words, command in ALL.items()
    if not isinstance(command, click.Group) and words not in {
        ("agent",), ("completion",), ("run",), ("exec",), ("testbed", "exec"),
        ("hook", "lxc"), ("hook", "oci"), ("docker-plugin",),
    }
]  # fmt: skip


@pytest.mark.parametrize("words", LISTING, ids=" ".join)
def test_every_answer_has_three_formats(words):
    options = {each.name: each for each in ALL[words].params}
    assert list(options["output"].type.choices) == ["table", "json", "yaml"]


@pytest.mark.parametrize(
    "words",
    sorted({w[0] for w in LISTING} - {"check", "backends", "cluster", "store", "testbed"}),
)
def test_every_command_that_talks_to_an_agent_says_which(words):
    for path, command in ALL.items():
        if (
            path[0] == words
            and not isinstance(command, click.Group)
            and path != ("policy", "check")
        ):
            assert any("--agent" in each.opts for each in command.params), path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["netwrk"], "no such command 'netwrk'; did you mean 'network'?"),
        (["network", "create"], "Missing argument 'NAME'."),
        (["exec", "web", "-n", "prod", "--", "true"], "Option '-n' has to stand before ENDPOINT"),
        (["network", "ls", "-o", "xml"], "'xml' is not one of"),
        (["--agent", "/no/agent", "network", "ls"], "no agent on /no/agent"),
        (["network", "ls", "--agent", "/no/other"], "no agent on /no/other"),
        (["agent", "--config", "/no/such.toml"], "/no/such.toml"),
        (["policy", "check", "/no/such.yaml"], "/no/such.yaml"),
        (["testbed", "exec", "--name", "no-such-bed", "h1", "true"], "testbed 'no-such-bed'"),
        (["testbed", "up", "--name", "Bad_Name"], "name: wanted lower-case letters"),
        (["testbed", "up", "--hosts", "0", "--name", "slt-none"], "hosts: wanted 1 to 250, got 0"),
    ],
)
def test_errors_are_one_line_and_status_2(argv, message):
    done = run(*argv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("slimnet: ")
    assert message in done.stderr


def test_a_wrong_policy_file_is_one_line_with_its_place(tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text(
        "apiVersion: networking.k8s.io/v1\n"
        "kind: NetworkPolicy\nmetadata: {name: web}\nspec: {podSelektor: {}}\n"
    )
    done = run("policy", "check", str(file))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "policy.yaml:4" in done.stderr
    assert "podSelektor" in done.stderr


@pytest.mark.root
@pytest.mark.parametrize(
    "argv", [["testbed", "up"], ["testbed", "down"], ["agent"], ["run", "--name", "a", "true"]]
)
def test_without_root_it_is_one_line_too(argv):
    # One capability, to read: Python itself may be in a home directory.
    nobody = ["setpriv", "--reuid=65534", "--clear-groups"]
    nobody += [f"--{each}-caps=-all,+dac_read_search" for each in ("inh", "ambient")]
    done = subprocess.run(
        [*nobody, sys.executable, "-m", "slimnet.cli", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_the_agent_comes_from_the_environment():
    assert "no agent on /from/env" in run("status", SLIMNET_AGENT="/from/env").stderr
    done = run("--agent", "/from/option", "status", SLIMNET_AGENT="/from/env")
    assert "no agent on /from/option" in done.stderr


def test_backends_in_three_formats():
    as_json = json.loads(run("backends", "-o", "json").stdout)
    as_yaml = yaml.safe_load(run("backends", "-o", "yaml").stdout)
    table = run("backends").stdout.splitlines()
    assert as_json == as_yaml
    assert {"ebpf", "noop"} <= {each["backend"] for each in as_json}
    assert table[0].split()[:2] == ["BACKEND", "WORKS"]
    assert len(table) == 1 + len(as_json)


def test_check_answers_for_every_backend_and_the_machine():
    answer = json.loads(run("check", "-o", "json").stdout)[0]
    assert {each["answer"] for each in answer["backends"]} <= {"yes", "no", "unknown"}
    for each in answer["backends"]:
        assert each["reason"]
        assert each["answer"] == "yes" or each["remedy"], each
    found = {each["subject"]: each for each in answer["machine"]}
    assert {"root", "cgroup v2", "low ports", "abstract Unix sockets"} <= set(found)
    for each in answer["machine"]:
        assert each["answer"] == "yes" or each["remedy"], each


def test_check_warns_of_low_ports(monkeypatch):
    from slimnet.cli import machine

    monkeypatch.setattr(machine, "_read", lambda path: "80")
    low = next(each for each in machine.findings() if each.subject == "low ports")
    assert low.answer == "warning"
    assert "473" in low.reason
    assert low.remedy == "sysctl net.ipv4.ip_unprivileged_port_start=1024"


@pytest.mark.root
@pytest.mark.parametrize("first", [4790, 6000])
def test_check_warns_of_services_that_would_be_cut_off(tmp_path, monkeypatch, first):
    from slimnet.cli import machine

    config = tmp_path / "slimnet.toml"
    config.write_text("" if first == 4790 else f"[backend.ebpf]\nwire_ports = {first}\n")
    monkeypatch.setenv("SLIMNET_CONFIG", str(config))
    found = []

    def look():
        (each,) = (one for one in machine.findings() if one.subject == "ports of ebpf")
        found.append(each)

    def scene():
        with netns.netlink() as route:
            route.link("set", index=1, state="up")
        with socket.create_server(("127.0.0.1", first)):
            look()  # what is for the host alone is not cut off
        with socket.create_server(("0.0.0.0", first + 95)):
            look()
        with socket.create_server(("::", first + 96), family=socket.AF_INET6):
            look()

    netns.apart(scene)
    assert [each.answer for each in found] == ["yes", "warning", "yes"]
    assert found[0].reason == f"nothing listens on TCP ports {first} to {first + 95}"
    assert re.fullmatch(
        rf"nothing from outside would reach {first + 95} of \S+ \(process {os.getpid()}\): ebpf has"
        rf" TCP ports {first} to {first + 95} for itself",
        found[1].reason,
    )
    assert "backend.ebpf.wire_ports on every host" in found[1].remedy


def test_check_warns_without_landlock(monkeypatch):
    from slimnet.cli import machine

    monkeypatch.setattr(machine.landlock, "scopes", lambda: False)
    found = next(each for each in machine.findings() if "abstract" in each.subject)
    assert found.answer == "warning"
    assert "not enforced" in found.reason


def test_check_warns_of_packet_sockets():
    """No hook sees them: what stops them is that run takes the capability away."""
    from slimnet.cli import machine

    found = next(each for each in machine.findings() if "packet" in each.subject)
    assert found.answer == "warning"
    assert "`slimnet run` takes CAP_NET_RAW away; not enforced" in found.reason
    assert found.remedy == "drop CAP_NET_RAW in the container runtime"


@pytest.mark.parametrize(
    ("takes", "answer"), [({"closed", "netns"}, "yes"), ({"netns"}, "warning")]
)
def test_check_says_whether_containers_are_closed(monkeypatch, takes, answer):
    """By what a backend states of this machine, which it has tried."""
    from slimnet.cli import machine

    class Stated:
        @staticmethod
        def look():
            able = Capabilities(takes=frozenset(map(Part, takes)))
            return Probe(Answer.YES, "", capabilities=able)

    monkeypatch.setattr(machine, "backend_names", lambda: ["one"])
    monkeypatch.setattr(machine, "backend_class", lambda _: Stated)
    found = next(each for each in machine.findings() if "--network host" in each.subject)
    assert found.answer == answer
    assert ("lsm=...,bpf" in found.remedy) == (answer == "warning")


@pytest.mark.parametrize(("there", "answer"), [("1", "warning"), ("", "yes")])
def test_check_warns_of_32_bit_system_calls(monkeypatch, there, answer):
    from slimnet.cli import machine

    monkeypatch.setattr(machine.os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    monkeypatch.setattr(machine, "_read", lambda path: there if "abi" in path else "1024")
    found = next(each for each in machine.findings() if "32-bit" in each.subject)
    assert found.answer == answer


def on_terminal(*argv, **environment):
    """Standard output of the command when that is a terminal."""
    master, slave = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "slimnet.cli", *argv],
        stdout=slave,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )
    os.close(slave)
    seen = b""
    try:
        while chunk := os.read(master, 4096):
            seen += chunk
    except OSError:  # EIO: the other end is closed
        pass
    os.close(master)
    assert done.wait() == 0
    return seen.decode()


def test_colours_on_a_terminal_only():
    assert "\x1b[" not in run("backends").stdout
    assert "\x1b[" in on_terminal("backends")
    assert "\x1b[" not in on_terminal("backends", NO_COLOR="1")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell):
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_SLIMNET_COMPLETE" in done.stdout


def complete(line):
    words = line.split(" ")
    done = run(_SLIMNET_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    return [each.partition(",")[2] for each in done.stdout.split()]


def test_completion_of_commands_and_options():
    assert complete("slimnet net") == ["network"]
    assert complete("slimnet testbed ") == ["down", "exec", "ls", "up"]
    assert complete("slimnet network ls -o j") == ["json"]
    assert complete("slimnet --agent /no/agent network rm ") == []  # nobody answers: no names


def test_the_bash_script_is_one():
    script = run("completion", "bash").stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_labels():
    assert labels_of(("app=web", "tier=")) == {"app": "web", "tier": ""}
    for wrong, said in (
        ("app", "--label: wanted key=value, got 'app'"),
        ("a b=c", "--label: wanted key and value of a Kubernetes label, got 'a b=c'"),
        ("app=c d", "--label: wanted key and value of a Kubernetes label, got 'app=c d'"),
        ("app=db", "--label: wanted one value for app, got 'web and db'"),
    ):
        with pytest.raises(InvalidValue) as caught:
            labels_of(("app=web", wrong))
        assert str(caught.value) == said


def test_ports():
    assert ports_of(("http=80", "dns=53/udp")) == {"http": ("tcp", 80), "dns": ("udp", 53)}
    with pytest.raises(InvalidValue, match="--port: wanted one port for http, got '80 and 81'"):
        ports_of(("http=80", "http=81"))
    with pytest.raises(InvalidValue, match="--port: wanted protocol tcp, udp or sctp, got 'a=1/tp"):
        ports_of(("a=1/tpc",))


@pytest.mark.parametrize(
    "pair", ["80", "=80", "http=", "http=x", "http=\u00b2", "http=99999", "http=0", "http=-1",
             "HTTP=80", "h t=80", "80=80", "a--b=80", "sixteen-letters-x=80"],
)  # fmt: skip
def test_ports_that_are_none(pair):
    """A name that no manifest can have is none (RFC 6335, section 5.1)."""
    with pytest.raises(InvalidValue, match=r"--port: wanted name=number or .*RFC 6335"):
        ports_of((pair,))


def test_force_is_for_teardown():
    """Said before anything is looked at."""
    done = CliRunner().invoke(slimnet, ["agent", "--config", "/nowhere", "--force"])
    assert done.exit_code == 2
    assert done.output.splitlines()[-1] == "Error: --force goes with --teardown or --upgrade"
    done = CliRunner().invoke(slimnet, ["agent", "--teardown", "--upgrade"])
    assert done.exit_code == 2
    assert done.output.splitlines()[-1] == "Error: --teardown or --upgrade, not both"


@pytest.mark.parametrize("target", ["web:abc", "web:", "web:99999", "web:80:81", "web:\u00b2"])
def test_targets_that_are_none(target):
    for words, field in (
        (["ping", target], "ENDPOINT[:PORT]"),
        (["policy", "explain", "--from", "a", "--to", target], "--to"),
    ):
        if (field, target) == ("--to", "web:80:81"):  # for the agent to look up
            continue
        done = CliRunner().invoke(slimnet, words)
        assert isinstance(done.exception, InvalidValue), done.output
        assert str(done.exception).startswith(f"{field}: wanted ")
        assert str(done.exception).endswith(f"got {target!r}")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("web", {"web in default", "web in shop"}),
        ("prod/web", {"web in default"}),
        ("shop/web", {"web in shop"}),
        ("default/web", {"web in default"}),
        ("prod/shop/web", {"web in shop"}),
        ("eb", set()),
        ("/web", set()),
        ("", set()),
        ("other/web", set()),
    ],
)
def test_whom_a_filter_means(text, names):
    there = [endpoint("web"), endpoint("web", "shop"), endpoint("webs")]
    meant = {f"{each.name} in {each.namespace}" for each in there if is_named(each, text)}
    assert meant == names
    error = none_named(there, text)
    assert (error is None) == bool(names)
    if error is not None:
        assert str(error).endswith("there is none; there are: prod/web, prod/shop/web, prod/webs")


def test_what_is_not_said_is_nothing():
    assert str(InvalidValue("--network", "a name", None)) == "--network: wanted a name, got nothing"


def endpoint(name, namespace="default", network="prod", address="10.1.0.1"):
    return Endpoint(network=network, name=name, namespace=namespace, address=address, host="h1")


def test_titles():
    assert title(endpoint("web")) == "prod/web"
    assert title(endpoint("web", "shop")) == "prod/shop/web"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59, "59s"), (61, "1m"), (7300, "2h"), (200000, "2d")]
)
def test_age(seconds, text):
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_300_000, "1.2 MiB"), (2**63, "8.0 EiB")],
)
def test_sizes(number, text):
    assert size(number) == text


def test_a_table_is_aligned(capsys):
    rows = [Network("prod", 1000, "10.1.0.0/16"), Network("a", 2, ("10.2.0.0/16", "10.3.0.0/24"))]
    show(rows, {"NETWORK": "name", "VNI": "vni", "RANGES": "cidrs"}, "table")
    assert capsys.readouterr().out == (
        "NETWORK  VNI   RANGES\n"
        "prod     1000  10.1.0.0/16\n"
        "a        2     10.2.0.0/16,10.3.0.0/24\n"
    )  # fmt: skip


def test_an_empty_table_is_its_heading(capsys):
    show([], {"NETWORK": "name"}, "table")
    assert capsys.readouterr().out == "NETWORK\n"


def test_json_has_every_field(capsys):
    show([Network("prod", 1000, "10.1.0.0/16")], {"NETWORK": "name"}, "json")
    assert json.loads(capsys.readouterr().out) == [
        {"name": "prod", "vni": 1000, "cidrs": ["10.1.0.0/16"]}
    ]


def test_one_value_as_lines(capsys):
    show_one({"name": "prod", "nothing": None, "works": True}, "table")
    assert capsys.readouterr().out == "name     prod\nworks    yes\n"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "rule deny"),
        ({"omitted": 311}, "rule deny (and 311 more)"),
        ({"kind": "closed", "sent": 3, "duration": 1.5}, "sent 3 received 0 in 1.500s"),
    ],
)
def test_what_observe_says_of_an_event(fields, text):
    address = (IPAddress("10.0.0.1"), 80)
    event = Event(
        EventKind.REFUSED, 0.0, 1, 2, address, address, 6, Direction.EGRESS, Reason.RULE_DENY
    )
    assert _detail(records.encode(event) | fields) == text


def test_what_run_hides_besides():
    from pathlib import Path
    from types import SimpleNamespace

    from slimnet import sandbox

    node = SimpleNamespace(
        agent=Path("/srv/agent.sock"),
        status=lambda: {"store": "sqlite:////srv/store.db", "key_file": "/srv/key"},
    )
    assert [str(path) for path in sandbox.secrets(node)] == [
        "/srv/agent.sock",
        "/srv/key",
        "/srv/store.db",
        "/srv/store.db-wal",
        "/srv/store.db-shm",
    ]
