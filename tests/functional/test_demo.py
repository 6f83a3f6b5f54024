# SPDX-License-Identifier: Apache-2.0
"""The demo's harness: a very short run has a whole report, and leaves nothing behind.

Its numbers are not looked at: the machine is busy with other tests.
"""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from slimnet.demo.__main__ import main
from slimnet.demo.engine import ENGINES
from slimnet.demo.mode import MODES
from slimnet.demo.workloads import WORKLOADS
from slimnet.exceptions import BackendUnavailable

pytestmark = pytest.mark.root

MODE_NAMES = [mode.name for mode in MODES if mode.usual]
DEMO = [sys.executable, "-m", "slimnet.demo"]


def left_behind(pid):
    """Whatever still carries the name of a demo with that process id."""
    places = (
        "/tmp",
        "/run/netns",
        "/run/slimnet",
        "/run/slimnet-demo",
        "/run/slimnet-e",
        "/run/docker/plugins",
        "/sys/fs/cgroup",
        "/sys/fs/bpf/slimnet",
    )
    # Its status does not count: what others remove meanwhile is an error to find.
    return subprocess.run(
        ["find", *filter(os.path.exists, places), "-name", f"*demo{pid}-*"],
        check=False,
        capture_output=True,
        text=True,
    ).stdout.splitlines()


def running():
    """The command lines of all processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            yield path.read_bytes()


def demo(tmp_path, *arguments):
    """Run it to the end; its report and its standard error."""
    process = subprocess.Popen(
        [*DEMO, "--json", "--output", str(tmp_path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert left_behind(process.pid) == []
    return json.loads(out), errors


def works(mode):
    """Whether this machine has what it needs."""
    try:
        mode.check()
    except BackendUnavailable:
        return False
    return True


# What could make one mode's programs dearer than another's: the filter of their system calls,
# what they may, and how many namespaces they are in.
CONFINEMENT = r"""
grep -E '^(Seccomp|Seccomp_filters|NoNewPrivs|Cap.*|Uid):' /proc/self/status
for kind in cgroup ipc mnt pid uts user; do
    [ "$(readlink /proc/self/ns/$kind)" = "$1" ] && echo "$kind: the caller's"
    shift
done
:
"""


def test_every_mode_has_the_same_sandbox():
    """Or what is compared with host mode would be the sandbox, not the data path."""
    kinds = ("cgroup", "ipc", "mnt", "pid", "uts", "user")
    ours = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    argv = ["sh", "-c", CONFINEMENT, "sh", *ours]
    seen = {}
    here = [mode for mode in MODES if works(mode)]
    assert {mode.name for mode in here} >= set(MODE_NAMES)
    for mode in here:
        with mode.pair() as pair:
            for name, side in (("client", pair.client), ("server", pair.server)):
                seen[mode.name, name] = side.finish(side.start(argv), argv, timeout=30)
    assert len(seen) == 2 * len(here)
    assert len(set(seen.values())) == 1, seen
    assert "Seccomp:\t2\nSeccomp_filters:\t1\n" in next(iter(seen.values()))


@pytest.mark.slow
def test_report(tmp_path, monkeypatch):
    """Two workloads in every mode, the soak and the churn: everything is in the report; over
    etcd, as the environment says."""
    monkeypatch.setenv("SLIMNET_TESTBED_STORE", "etcd")
    arguments = "--rounds 1 --seconds 1 --soak 300 --churn 1 --only redis,connect,soak,churn"
    report, errors = demo(tmp_path, "--quick", *arguments.split())

    assert list(report["modes"]) == MODE_NAMES
    assert [row["workload"] for row in report["results"]] == ["connect", "redis"]
    for row in report["results"]:
        assert sorted(row["values"]) == sorted(MODE_NAMES)
        assert all(value["median"] > 0 for value in row["values"].values())
        assert sorted(row["ratios"]) == sorted(set(MODE_NAMES) - {"host"})
        assert all(1 < cpu["median"] < 1e5 for cpu in row["cpu_us_per_operation"].values())
    assert len(report["targets"]) == 2 + 1 + 2  # ratios, processor time of redis, VXLAN
    assert [soak["connections"] for soak in report["soak"]] == [300, 300]
    assert all(soak["syn_retransmissions"] == 0 for soak in report["soak"])
    assert [(one["workload"], one["mode"]) for one in report["churn"]] == [
        (f"churn-{first}", mode) for first in ("client", "server") for mode in MODE_NAMES
    ]
    assert all(one["detail"]["timeline"][0]["done"] > 0 for one in report["churn"])
    assert not any(sample["error"] for sample in report["samples"])
    assert "[ 1/14] round 1: connect(), median, host: " in errors
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "churn.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert json.loads((tmp_path / "report.json").read_text()) == report


@pytest.mark.slow
def test_every_workload_runs(tmp_path):
    """Each server and each client, once, in host mode."""
    names = ",".join(workload.name for workload in WORKLOADS if not workload.group)
    report, _ = demo(tmp_path, "--quick", "--rounds", "1", "--modes", "host", "--only", names)
    assert [row["workload"] for row in report["results"]] == names.split(",")
    assert all(row["values"]["host"]["median"] > 0 for row in report["results"])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_in_containers(tmp_path, engine):
    """A server and its client in containers: of the hosts' network, over the engine's own bridge
    and VXLAN, and over slimnet."""
    report, _ = demo(tmp_path, "--quick", "--rounds", "1", "--only", "redis", "--engine", engine)
    assert (report["setting"]["engine"], list(report["modes"].values())) == (
        engine,
        ["host network", "bridge, VXLAN", "slimnet"],
    )
    (row,) = report["results"]
    assert all(value["median"] > 0 for value in row["values"].values())
    assert set(row["ratios"]) == {"vxlan", "netns"}
    # What runs in a container is counted as the container's, and as nobody else's.
    assert all(1 < cpu["median"] < 1e5 for cpu in row["cpu_us_per_operation"].values())


@pytest.mark.slow
@pytest.mark.long
def test_containers_of_a_killed_demo_are_removed(tmp_path):
    """By the next one, with the engine's daemons."""
    with subprocess.Popen(
        [*DEMO, "--engine", "docker", "--seconds", "60", "--only", "redis"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path,
    ) as first:  # fmt: skip
        directory = Path("/run/slimnet-e")
        until = time.monotonic() + 120
        while not list(directory.glob(f"demo{first.pid}-*-dockerhost/s/d.sock")):
            assert time.monotonic() < until
            assert first.poll() is None
            time.sleep(0.1)
        first.kill()
    assert left_behind(first.pid) != []
    demo(tmp_path, *["--quick", "--rounds", "1", "--modes", "host", "--only", "connect"])
    assert left_behind(first.pid) == []
    assert not any(f"demo{first.pid}-".encode() in line for line in running())


@pytest.mark.parametrize("option", ["--modes", "--placement"])
def test_an_engine_has_modes_of_its_own(option):
    done = CliRunner().invoke(main, ["--engine", "podman", option, "host"])
    assert done.exit_code == 2
    assert f"--engine has modes of its own: leave {option} out" in done.output


@pytest.mark.slow
@pytest.mark.long
def test_kafka_runs_when_it_is_named(tmp_path):
    """Its jars are fetched, its broker tells its clients the endpoint's address."""
    narrow = ["--rounds", "1", "--modes", "slimnet", "--only", "kafka"]
    report, _ = demo(tmp_path, "--quick", *narrow)
    assert {row["workload"]: row["unit"] for row in report["results"]} == {
        "kafka-produce": "records/s",
        "kafka-latency": "ms",
        "kafka-consume": "records/s",
    }
    assert all(row["values"]["slimnet"]["median"] > 0 for row in report["results"])


@pytest.mark.slow
def test_profile(tmp_path):
    """What the BPF programs take: connect4 runs once per connection."""
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    narrow = ["--rounds", "1", "--modes", "slimnet", "--only", "connect"]
    report, _ = demo(tmp_path, "--quick", "--profile", *narrow)
    runs = {cost["program"]: cost["runs"] for cost in report["costs"]}
    assert runs["slim_connect4"] == pytest.approx(1, rel=0.01)
    assert switch.read_text() == before


@pytest.mark.slow
def test_a_placement_stands_for_the_other(tmp_path):
    """`--placement netns`: backend ebpf with endpoints in namespaces of their own."""
    narrow = ["--rounds", "1", "--modes", "slimnet", "--only", "connect", "--placement", "netns"]
    report, _ = demo(tmp_path, "--quick", *narrow)
    assert list(report["modes"]) == ["netns"]
    (row,) = report["results"]
    assert row["values"]["netns"]["median"] > 0


def test_interrupted(tmp_path):
    """Ctrl-C in the middle of a measurement: a word, and nothing is left."""
    pid, terminal = pty.fork()
    if pid == 0:
        arguments = ["--output", str(tmp_path / "out"), "--only", "request-response"]
        os.execv(DEMO[0], [*DEMO, "--modes", "host", "--seconds", "60", *arguments])
    said = b""
    deadline = time.monotonic() + 60
    while b"request and response" not in said and time.monotonic() < deadline:
        said += os.read(terminal, 4096)
    time.sleep(1)
    os.write(terminal, b"\x03")
    with contextlib.suppress(OSError):  # EIO: the other end is gone
        while chunk := os.read(terminal, 4096):
            said += chunk
    _, status = os.waitpid(pid, 0)
    os.close(terminal)

    assert os.waitstatus_to_exitcode(status) == 1
    assert b"Aborted!" in said
    assert b"Traceback" not in said
    assert left_behind(pid) == []
    assert not (tmp_path / "out").exists()


def test_killed(tmp_path):
    """What kill -9 leaves, the next run removes; its programs are gone at once."""
    process = subprocess.Popen(
        [*DEMO, "--modes", "host", "--seconds", "60", "--only", "request-response"],
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 60
    while not populated(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert left_behind(process.pid)

    demo(tmp_path, *["--quick", "--rounds", "1", "--modes", "host", "--only", "connect"])

    assert left_behind(process.pid) == []


def populated(pid):
    """Whether a program of that demo runs."""
    files = [Path(path) / "cgroup.events" for path in left_behind(pid) if "/cgroup/" in path]
    return any("populated 1" in file.read_text() for file in files if file.exists())


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--only", "redis,memcachd"], "'memcachd'"),
        (["--modes", "host,flannel"], "'flannel'"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_refused(arguments, wanted):
    """A wrong option: one line that names it, status 2, nothing made."""
    process = subprocess.run([*DEMO, *arguments], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert wanted in process.stderr.splitlines()[-1]


def test_missing_program(tmp_path):
    """A program that is not there: its Debian package, status 2."""
    process = subprocess.run(
        [*DEMO, "--only", "nginx", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": "/nonexistent"},
    )
    assert process.returncode == 2
    assert process.stderr.strip().startswith("Error: ")
    assert "apt install" in process.stderr


@pytest.mark.slow
def test_what_cannot_be_fetched(tmp_path):
    """No Maven Central: what mvn says, in one line, status 2, nothing left."""
    settings = tmp_path / ".m2" / "settings.xml"
    settings.parent.mkdir()
    mirror = "<id>none</id><mirrorOf>*</mirrorOf><url>http://127.0.0.1:9/</url>"
    settings.write_text(f"<settings><mirrors><mirror>{mirror}</mirror></mirrors></settings>")
    arguments = ["--modes", "host", "--only", "kafka", "--output", str(tmp_path / "out")]
    with subprocess.Popen(
        [*DEMO, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MAVEN_OPTS": f"-Duser.home={tmp_path}"},
    ) as process:
        said = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == 2
    assert said[-1].startswith("Error: kafka: mvn: [ERROR] ")
    assert "http://127.0.0.1:9/" in said[-1]
    assert not any("Traceback" in line for line in said)
    assert left_behind(process.pid) == []
    assert not (tmp_path / "out").exists()
