# SPDX-License-Identifier: Apache-2.0
"""The systemd units, and what the agent tells the service manager."""

import configparser
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from slimnet.agent.notify import notify, watchdog_interval
from slimnet.config import Config

UNIT = Path(__file__).parents[2] / "packaging" / "slimnet-agent.service"


def service():
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(UNIT)
    return parser["Service"]


@pytest.mark.parametrize("path", sorted(UNIT.parent.glob("*.service")), ids=lambda each: each.stem)
def test_verify(tmp_path, path):
    """systemd-analyze finds nothing to say about it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (apt install systemd)")
    unit = tmp_path / path.name
    unit.write_text(path.read_text().replace("/usr/bin/slimnet", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    said = [line for line in done.stderr.splitlines() if path.name in line]
    assert (done.returncode, said) == (0, [])


def test_directories_are_the_defaults_of_the_configuration():
    """What the unit makes is where an agent without a configuration works."""
    config = Config()
    unit = service()
    assert config.store == f"sqlite:////var/lib/{unit['StateDirectory']}/store.db"
    assert config.run.parent == Path("/run") / unit["RuntimeDirectory"]
    assert config.key_file.parent == Path("/etc") / unit["ConfigurationDirectory"]
    assert unit["Type"] == "notify"
    # A configuration that is named has to be there, and `slimnet cluster init` writes only conf.d.
    assert unit["ExecStart"] == "/usr/bin/slimnet agent"


@pytest.fixture
def manager(tmp_path, monkeypatch):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield listener


def test_notify(manager):
    notify("READY=1", "STATUS=all is well")
    assert manager.recv(4096) == b"READY=1\nSTATUS=all is well"


def test_notify_on_an_abstract_socket(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("")
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + listener.getsockname()[1:].decode())
        notify("READY=1")
        assert listener.recv(4096) == b"READY=1"


def test_notify_nobody(monkeypatch, tmp_path):
    """Without a manager, or one that is gone, nothing happens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1") is None
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    assert notify("READY=1") is None


def test_watchdog_interval(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_interval() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval() is None
    monkeypatch.delenv("WATCHDOG_PID")
    monkeypatch.delenv("WATCHDOG_USEC")
    assert watchdog_interval() is None
