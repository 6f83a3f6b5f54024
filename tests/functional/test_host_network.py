# SPDX-License-Identifier: Apache-2.0
"""``podman run --network host``: a container in the host's network namespace, whose cgroup is an
endpoint. Where the kernel takes programs of the BPF LSM it is closed; else its engine has to
take away what leads out of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.engines import (
    SHARING,
    SLIMNET,
    closed,
    endpoints,
    left,
    root_file_system,
    served,
    two_hosts,
)
from lab.paths import require
from lab.podman import Podman

from slimnet_ebpf import closing

pytestmark = pytest.mark.root

ATTACKS = Path(__file__).parents[1] / "ebpf" / "attacks.py"
#: Refuses the socket families that need no capability.
FAMILIES = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 97,
            "args": [{"index": 0, "value": family, "op": "SCMP_CMP_EQ"}],
        }
        for family in (40, 43)
    ],
}


@contextlib.contextmanager
def podmans_on(backend, factory, count) -> Iterator[tuple[Podman, ...]]:
    """As many hosts, each with a Podman that runs the hook; nothing is left of containers."""
    require(backend)
    if shutil.which("podman") is None:
        pytest.skip("needs podman: run testbed/setup")
    image = root_file_system(factory.mktemp("image"), "memcached")
    (image / "usr/lib").mkdir(exist_ok=True)
    with two_hosts(backend, "hn", count=count) as hosts, contextlib.ExitStack() as undo:
        made = []
        for host in hosts:
            made.append(Podman.on(host, factory.mktemp(host.name), image, "host"))
            undo.callback(made[-1].end)
            with_hook(made[-1])
        yield tuple(made)


def with_hook(podman):
    """Its configuration names the hook, as docs/howto/podman.rst does."""
    hook = {
        "version": "1.0.0",
        "hook": {
            "path": str(SLIMNET),
            "args": ["slimnet", "--agent", str(podman.host.agent), "hook", "oci"],
        },
        "when": {"annotations": {"^slimnet\\.io/network$": "."}},
        "stages": ["createRuntime", "poststop"],
    }
    (podman.directory / "hooks").mkdir()
    (podman.directory / "hooks/slimnet.json").write_text(json.dumps(hook))
    (podman.directory / "families.json").write_text(json.dumps(FAMILIES))
    conf = podman.directory / "containers.conf"
    where = f'[engine]\nhooks_dir = ["{podman.directory}/hooks"]'
    conf.write_text(conf.read_text().replace("[engine]", where))


@pytest.fixture(scope="module", params=SHARING)
def two(request, tmp_path_factory):
    with podmans_on(request.param, tmp_path_factory, 2) as made:
        yield made


@pytest.fixture
def podmans(two):
    yield two
    for podman in two:
        podman("rm", "--all", "--force", "--time=0")
    assert left("oci", *(each.host for each in two)) == []


def run(podman, *words, dropped=True, status=0, **asked):
    """A container that asks for network ``prod``; its options, ``--``, its command."""
    options = [f"--annotation=slimnet.io/{key}={value}" for key, value in asked.items()]
    if dropped:
        options += ["--cap-drop=NET_RAW", "--cgroupns=private"]
        options += [f"--security-opt=seccomp={podman.directory}/families.json"]
    return podman.run(*options, "--annotation=slimnet.io/network=prod", *words, status=status)


VERSION = "printf 'version\\r\\nquit\\r\\n' | timeout 5 nc mem.default.prod.slimnet 11211"


def test_memcached_on_two_hosts(podmans):
    """By name, in the host's network namespace, and policy holds."""
    first, second = podmans
    asked = {"labels": "app=web", "name": "mem", "address": "10.1.0.77"}
    run(first, "-d", "--name=mem", "--", "memcached", "-u", "root", **asked)
    run(second, "-d", "--name=client", "--", "sleep", "1000", name="client")
    assert served(second, "exec", "client", "sh", "-c", VERSION).startswith("VERSION 1.")
    there = endpoints(first.host)["mem"]
    assert (str(there.address), there.netns, there.closed) == ("10.1.0.77", "", closing.closes())
    inside = first("inspect", "--format={{.State.Pid}}", "mem").strip()
    assert Path(f"/proc/{inside}/ns/net").samefile(first.host.netns)
    with closed(first.host), second.start("exec", "client", "sh", "-c", VERSION) as process:
        assert process.stdout.read() == ""
    assert served(second, "exec", "client", "sh", "-c", VERSION).startswith("VERSION 1.")
    # Again, in a cgroup of the same name.
    first("restart", "--time=0", "mem")
    assert served(second, "exec", "client", "sh", "-c", VERSION).startswith("VERSION 1.")
    first("stop", "--time=0", "mem")
    assert endpoints(first.host) == {}


def test_what_is_to_be_dropped(podmans):
    """Is said in one line, and the container does not start, where the kernel cannot close."""
    if closing.closes():
        run(podmans[0], "--cap-add=all", "--", "true", dropped=False)
        return
    for words, dropped, parts in (
        (["--cap-add=SYS_ADMIN"], True, ["--cap-drop SYS_ADMIN"]),
        (
            [],
            False,
            [
                "--cap-drop NET_RAW;",
                "a seccomp profile that refuses socket(2) for AF_VSOCK and AF_SMC;",
                "--cgroupns private;",
            ],
        ),
        (["--volume=/sys/fs/bpf:/pins"], True, ["no /pins, or that read-only"]),
    ):
        errors = run(podmans[0], *words, "--", "true", dropped=dropped, status=126)
        (line,) = [each for each in errors.splitlines() if "slimnet: " in each]
        assert all(part in line for part in ["cannot close it", *parts]), line
        assert left("oci", podmans[0].host) == []
    run(podmans[0], "--", "true")


def test_no_cgroup_of_its_own(podmans, tmp_path):
    """What a runtime starts beside itself (crun does, runc does not) is refused: the endpoint
    would be the engine, and what else is in its cgroup."""
    host = podmans[0].host
    inside = ["nsenter", f"--net={host.netns}"]
    (tmp_path / "config.json").write_text(json.dumps({"root": {"path": "rootfs"}}))
    with subprocess.Popen([*inside, "sleep", "60"]) as process:
        state = {"id": "beside", "status": "creating", "pid": process.pid, "bundle": str(tmp_path)}
        state["annotations"] = {"slimnet.io/network": "prod"}
        try:
            done = subprocess.run(
                [*inside, SLIMNET, "--agent", host.agent, "hook", "oci"],
                input=json.dumps(state), capture_output=True, text=True, check=False,
            )  # fmt: skip
        finally:
            process.kill()
    assert done.returncode == 2
    assert "cgroup: wanted one that is the container's alone" in done.stderr
