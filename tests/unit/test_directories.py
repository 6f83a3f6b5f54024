# SPDX-License-Identifier: Apache-2.0
"""Where slimnet's files are: the machine's for root, an ordinary user's own for that user."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slimnet import directories
from slimnet.config import Config

USER = 64321  # of no account


def asked(environment, names="configuration state logs run"):
    """What an ordinary user's Python says."""
    program = (
        "import json, sys\n"
        "from slimnet import directories\n"
        f"print(json.dumps([str(getattr(directories, n)()) for n in {names.split()}]))\n"
    )
    # One capability, to read: Python itself may be in a home directory.
    argv = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    argv += [f"--{each}-caps=-all,+dac_read_search" for each in ("inh", "ambient")]
    done = subprocess.run(
        [*argv, sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


@pytest.mark.root
def test_of_root_they_are_the_machines(monkeypatch):
    for name in ("CONFIG_HOME", "STATE_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{name}", "/elsewhere")
    assert list(map(str, (directories.configuration(), directories.state()))) == [
        "/etc/slimnet",
        "/var/lib/slimnet",
    ]
    assert list(map(str, (directories.logs(), directories.run()))) == [
        "/var/log/slimnet",
        "/run/slimnet",
    ]
    assert Config().store == "sqlite:////var/lib/slimnet/store.db"
    assert Config().key_file == Path("/etc/slimnet/key")


@pytest.mark.root
def test_of_a_user_they_are_where_the_user_says():
    xdg = {"XDG_CONFIG_HOME": "/u/c", "XDG_STATE_HOME": "/u/s", "XDG_RUNTIME_DIR": "/u/r"}
    assert asked(xdg) == ["/u/c/slimnet", "/u/s/slimnet", "/u/s/slimnet/log", "/u/r/slimnet"]


@pytest.mark.root
def test_of_a_user_who_says_nothing_they_are_at_home():
    home = {"HOME": "/home/u"}
    wanted = [
        "/home/u/.config/slimnet",
        "/home/u/.local/state/slimnet",
        "/home/u/.local/state/slimnet/log",
        f"/tmp/user-{USER}/slimnet",
    ]
    assert asked(home) == wanted
    # A relative path is to be ignored, as the specification says.
    relative = {f"XDG_{name}": "here" for name in ("CONFIG_HOME", "STATE_HOME", "RUNTIME_DIR")}
    assert asked(home | relative) == wanted


@pytest.mark.root
def test_a_user_without_a_home_is_told_so():
    said = asked({}, "state")
    assert f"ConfigError: HOME: wanted the home directory of user {USER}, got nothing" in said
    assert asked({"XDG_STATE_HOME": "/u/s"}, "state") == ["/u/s/slimnet"]
