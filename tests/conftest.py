# SPDX-License-Identifier: Apache-2.0
"""What every test directory shares: markers, and what a skip means.

A skip says what is missing. Where the machine should have everything (CI), the
environment variable ``SLIMNET_REQUIRE_ALL=1`` turns every skip into a failure.

What needs the kernel module slimnet (``@pytest.mark.module``) is left out, skips and all, where
it is not loaded: most machines cannot, and the machines of ``tests/vm`` do. So is what needs netkit
devices (``@pytest.mark.netkit``) where the kernel has none.

A run that is ended by SIGTERM removes what its tests made, as after Ctrl-C.

``SLIMNET_FAILURES`` names a file that gets what failed, for a reader of many runs' last lines.

``SLIMNET_CASES_OF`` names a commit: what it had no test for is left out, so that two commits'
times can be compared.
"""

import os
import re
import signal
import subprocess
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

#: Files whose tests take longest together: first, so that no process is alone with one at
#: the end (a file is one process's).
LONG = (
    "test_store.py",
    "test_demo.py",
    "test_agent.py",
    "test_crash.py",
    "test_kernel.py",
    "test_fuzz_sockets.py",
    "test_testbed_cli.py",
    "test_bind.py",
    "test_policy_cases.py",
    "test_churn.py",
    "test_docker.py",
    "test_podman.py",
    "test_cni.py",
    "test_lxc.py",
    "test_netavark.py",
    "test_containerd.py",
    "test_files.py",
    "test_changes.py",
    "test_shield.py",
    "test_policy.py",
    "test_styles.py",
    "test_ended.py",
    "test_attach.py",
    "test_pages.py",
    "test_testbed.py",
    "test_scale.py",
    "test_oracle.py",
    "test_fuzz_compiler.py",
)

#: Files whose tests share nothing: each runs wherever a process is free.
APART = ("test_pages.py", "test_scale.py", "test_testbed.py")

#: There while the kernel module is loaded.
MODULE = Path("/sys/module/slimnet")

#: Of each failure in SLIMNET_FAILURES; the rest is where the run printed it.
FAILURE_LINES = 25

REQUIRE_ALL = os.environ.get("SLIMNET_REQUIRE_ALL", "") not in ("", "0")
# How long one generated example takes says how busy the machine is, not what is wrong.
hypothesis.settings.register_profile("slimnet", deadline=None)
hypothesis.settings.load_profile("slimnet")


def pytest_configure(config):
    config.addinivalue_line("markers", "root: needs root; skipped without")
    config.addinivalue_line("markers", "slow: takes more than ten seconds")
    config.addinivalue_line("markers", "module: needs the kernel module; left out without")
    config.addinivalue_line(
        "markers", "lsm: needs a kernel that closes endpoints; left out without"
    )
    config.addinivalue_line("markers", "netkit: needs a kernel with netkit; left out without")
    signal.signal(signal.SIGTERM, end)
    # A background job ignores SIGINT, one under nohup SIGHUP too. Ignoring is inherited, and a
    # shell traps nothing that was ignored when it started; a handler is not inherited.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_report_header():
    left = [] if MODULE.exists() else [f"the kernel module {MODULE.name}"]
    left += [] if closes() else ["a kernel that takes programs of the BPF LSM"]
    left += [] if has_netkit() else ["a kernel with netkit"]
    return f"left out: what needs {' or '.join(left)} (tests/vm has it)" if left else None


def closes():
    """Whether endpoints can be closed here."""
    try:
        from slimnet_ebpf import closing  # not for who tests nothing of it
    except ImportError:
        return False
    return os.geteuid() == 0 and closing.closes()


def has_netkit():
    """Whether containers get netkit devices here."""
    try:
        from slimnet.fallback import DevicePair  # not for who tests nothing of it
    except ImportError:
        return False
    return os.geteuid() == 0 and DevicePair.NETKIT.is_known()


def functions(commit):
    """The names of the tests that a commit has, wherever they are today."""
    words = ["git", "-C", Path(__file__).parent, "grep", "-hoE", r"def test_\w+", commit, "--", "."]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\w+$", found, re.MULTILINE))


def pytest_collection_modifyitems(config, items):
    if commit := os.environ.get("SLIMNET_CASES_OF"):
        wanted = functions(commit)
        newer = [item for item in items if item.originalname not in wanted]
        config.hook.pytest_deselected(items=newer)
        items[:] = [item for item in items if item.originalname in wanted]
    for name, there in (
        ("module", MODULE.exists),
        ("lsm", closes),
        ("netkit", has_netkit),
    ):
        without = [item for item in items if item.get_closest_marker(name)]
        if without and not there():
            config.hook.pytest_deselected(items=without)
            items[:] = [item for item in items if item not in without]
    places = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


class Files(LoadFileScheduling):
    """A file is one process's, but for those of :data:`APART`."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return nodeid if os.path.basename(file) in APART else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return Files(config, log) if config.getoption("dist") == "loadfile" else None


def end(_number, _frame):
    raise KeyboardInterrupt


def pytest_runtest_setup(item):
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


def fail_instead_of_skip(report):
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"SLIMNET_REQUIRE_ALL=1, but this was to be skipped: {reason}"
    return report


def pytest_terminal_summary(terminalreporter):
    path = os.environ.get("SLIMNET_FAILURES")
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # It reports to the process that prints all.
    failed = [
        report for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, ())
    ]
    if path and failed:
        with open(path, "a") as file:
            for report in failed:
                lines = report.longreprtext.splitlines()
                print(f"\n-- {report.nodeid}", *lines[-FAILURE_LINES:], sep="\n", file=file)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return fail_instead_of_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return fail_instead_of_skip((yield))
