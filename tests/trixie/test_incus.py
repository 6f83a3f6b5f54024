# SPDX-License-Identifier: Apache-2.0
"""Incus of Debian 13: containers of two hosts in one network, by the hooks that LXC has."""

from __future__ import annotations

import contextlib
import subprocess

import pytest
from attrs import frozen
from debian13 import PATH, inside
from lab.engines import (
    SLIMNET,
    TAKING,
    Words,
    closed,
    endpoints,
    gone,
    left,
    root_file_system,
    served,
    two_hosts,
)
from lab.paths import require

from slimnet.testbed.host import TestbedHost

pytestmark = [pytest.mark.root, pytest.mark.slow]

PREPARE = """
mount -t tmpfs tmpfs var/lib/incus
# Containers' users, which root gives them.
echo root:1000000:1000000000 | tee etc/subuid >etc/subgid
cat >usr/bin/slimnet <<END
#!/bin/sh
exec chroot /machine $SLIMNET "\\$@"
END
chmod 755 usr/bin/slimnet
"""
INIT = """::sysinit:/bin/ip link set lo up
::respawn:/bin/httpd -f -p 80 -h /etc
"""
HOOKS = """lxc.hook.start-host = /usr/bin/slimnet hook lxc --agent {agent} {words}
lxc.hook.post-stop = /usr/bin/slimnet hook lxc --agent {agent}
"""


@frozen
class Incus(Words):
    """One host's, in a Debian of its own."""

    host: TestbedHost
    process: int

    def start(self, *words, **how):
        """Its client, in the host's network."""
        command = ["nsenter", f"--target={self.process}", "--mount", f"--net={self.host.netns}"]
        return subprocess.Popen(
            [*command, *map(str, words)],
            env={"PATH": PATH, "HOME": "/root"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            **how,
        )  # fmt: skip

    def init(self, name, words="-n prod"):
        """A container that is not started; of the network by its configuration alone."""
        hooks = HOOKS.format(agent=self.host.agent, words=words)
        self("incus", "init", "test", name, "-c", f"raw.lxc={hooks}")

    def inside(self, name, *words):
        return ("incus", "exec", name, "--", *words)


@contextlib.contextmanager
def incus(host, copy, image):
    with inside(copy, PREPARE, SLIMNET=str(SLIMNET)) as process, contextlib.ExitStack() as undo:
        made = Incus(host, process)
        daemon = undo.enter_context(made.start("/usr/libexec/incus/incusd"))
        undo.callback(daemon.wait, 30)
        undo.callback(daemon.terminate)
        made("incus", "admin", "waitready", "--timeout=30")
        made("incus", "storage", "create", "default", "dir")
        made("incus", "profile", "device", "add", "default", "root", "disk", "path=/",
             "pool=default")  # fmt: skip
        made("incus", "image", "import", f"/machine{image}", "--alias=test")
        yield made
        made("incus", "delete", "--force", *made("incus", "list", "--format=csv", "-cn").split())


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """With an init, as a system's containers have."""
    directory = tmp_path_factory.mktemp("incus")
    root = root_file_system(directory / "rootfs")
    (root / "sbin").mkdir(exist_ok=True)
    (root / "sbin/init").symlink_to("/bin/init")
    (root / "etc/inittab").write_text(INIT)
    (directory / "metadata.yaml").write_text("architecture: x86_64\ncreation_date: 1700000000\n")
    packed = directory / "image.tar.gz"
    command = ["tar", "-C", directory, "-czf", packed, "metadata.yaml", "rootfs"]
    subprocess.run(command, check=True)
    return packed


@pytest.fixture(scope="module", params=TAKING)
def hosts(request, debian, image, tmp_path_factory):
    require(request.param)
    with two_hosts(request.param, "incus") as hosts, contextlib.ExitStack() as undo:
        yield tuple(
            undo.enter_context(incus(each, tmp_path_factory.mktemp(each.name), image))
            for each in hosts
        )
        undo.close()
        assert left("lxc", *hosts) == []


def test_two_containers_talk(hosts):
    """By name, each with users of its own, with the words of its configuration, until policy says
    no; and it is who it was when it is started again."""
    first, second = hosts
    first.init("web", "-n prod -l app=web --ip 10.1.0.77")
    second.init("client")
    first("incus", "start", "web")
    second("incus", "start", "client")
    (made,) = endpoints(first.host).values()
    assert (str(made.address), dict(made.labels)) == ("10.1.0.77", {"app": "web"})
    assert first(*first.inside("web", "cat", "/proc/self/uid_map")).split()[1] == "1000000"
    fetch = second.inside("client", "timeout", "5", "wget", "-qO-", "http://web/passwd")
    assert served(second, *fetch) == "root:x:0:0::/:/bin/sh\n"
    with closed(first.host):
        words = ("sh", "-c", "! timeout 2 wget -qO- http://10.1.0.77/passwd")
        second(*second.inside("client", *words))
    first("incus", "restart", "--force", "web")
    assert served(second, *fetch) == "root:x:0:0::/:/bin/sh\n"
    first("incus", "stop", "--force", "web")
    gone(first.host, "web")
    first("incus", "start", "web")
    assert served(second, *fetch) == "root:x:0:0::/:/bin/sh\n"


def test_one_that_is_refused_does_not_start(hosts):
    """And the next try works."""
    first = hosts[0]
    first.init("wrong", "-n nowhere")
    first("incus", "start", "wrong", status=1)
    log = first("incus", "info", "--show-log", "wrong")
    assert "network 'nowhere': there is none" in log
    assert "wrong" not in endpoints(first.host)
    hooks = HOOKS.format(agent=first.host.agent, words="-n prod")
    # Until Incus has cleared it away.
    served(first, "incus", "config", "set", "wrong", f"raw.lxc={hooks}")
    first("incus", "start", "wrong")
    assert "wrong" in endpoints(first.host)
