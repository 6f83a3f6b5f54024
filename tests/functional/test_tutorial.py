# SPDX-License-Identifier: Apache-2.0
"""The commands of pages print what the pages say, but for numbers."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from slimnet.plugins import probe
from slimnet.testbed import Testbed

pytestmark = [pytest.mark.root, pytest.mark.slow]

DOCS = Path(__file__).parents[2] / "docs"
NAME = f"slt-tutorial-{os.getpid()}"
SLIMNET = Path(sys.executable).parent / "slimnet"


#: What the servers of the pages listen on.
PORTS = {"cache": 6379, "web-1": 8080, "web-2": 8080}


def blocks(kind, page="tutorial"):
    """A page's code blocks of one language, without their indentation."""
    text = (DOCS / f"{page}.rst").read_text()
    found = re.findall(rf"^\.\. code-block:: {kind}\n\n((?:   .*\n|\n)+)", text, re.MULTILINE)
    return [re.sub(r"^   ", "", block, flags=re.MULTILINE) for block in found]


def steps(page):
    """Pairs of a command and what it prints; a block without one is what the command
    in the background printed in the end."""
    for block in blocks("console", page):
        command, printed = "", []
        for line in block.replace("\\\n", "").strip().splitlines():
            if line.startswith("# "):
                if command or printed:
                    yield command, printed
                command, printed = line[2:], []
            else:
                printed.append(line)
        yield command, printed


def shape(text):
    """Without what is another time another."""
    for was, becomes in (
        (rf" --name {NAME}", ""),
        (NAME, "default"),
        (r"ping-[0-9a-f]+", "ping-N"),
        (r"[0-9.]+", "N"),
        (r"\s+", " "),
    ):
        text = re.sub(was, becomes, text)
    return text.strip()


class Terminal:
    """Where the reader types; background jobs print into files."""

    def __init__(self, directory):
        self.directory = directory
        self.jobs = []
        path = f"{SLIMNET.parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        self.environment = {**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": "200"}

    def run(self, command):
        name = re.search(r" run .*--name (\S+) ", command)
        for job, _, its in self.jobs:
            # Nobody is there twice, and what a policy is checked against has settled.
            if (name and its == name[1]) or (
                command.endswith("policy apply cache.yaml") and its not in PORTS
            ):
                job.wait(30)
        return subprocess.run(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=60, cwd=self.directory, env=self.environment,
        ).stdout  # fmt: skip

    def start(self, command):
        file = self.directory / f"job{len(self.jobs)}"
        with file.open("w") as out:
            job = subprocess.Popen(
                ["bash", "-c", command.rstrip("& ")],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                cwd=self.directory, env=self.environment,
            )  # fmt: skip
        name = re.search(r" run .*--name (\S+) ", command)[1]
        self.jobs.append((job, file, name))
        return name

    def ask(self, host, *words):
        command = ["slimnet", "testbed", "exec", "--name", NAME, host, "--", "slimnet", *words]
        printed = self.run(" ".join([*command, "-o", "json", "2>/dev/null"]))
        return json.loads(printed) if printed.strip() else None

    def await_(self, what, holds):
        end = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < end, f"{what}: not within 30 s"
            time.sleep(0.1)

    def settle(self, command, name):
        """Wait until a command in the background has got where the next one wants it."""
        self.await_(name, lambda: name in {e["name"] for e in self.ask("h1", "endpoint", "ls")})
        if name in PORTS:
            target = f"{name}:{PORTS[name]}"
            self.await_(target, lambda: self.ask("h1", "ping", target)["error"] is None)
        elif "(sleep" in command:
            self.await_("its connection", lambda: self.ask("h2", "connections"))


@pytest.fixture
def terminal():
    tmp_path = Path(tempfile.mkdtemp(prefix="slt-tutorial-"))
    tmp_path.chmod(0o755)  # redis has to get there
    for example in (DOCS / "examples").iterdir():
        shutil.copy(example, tmp_path)
    right = (tmp_path / "cache.yaml").read_text().splitlines()
    wrong = [*right[:6], right[6].replace("podSelector: {", "podSelectr: {"), *right[7:]]
    (tmp_path / "wrong.yaml").write_text("\n".join(wrong))
    (tmp_path / "names.py").write_text(blocks("python")[0])
    terminal = Terminal(tmp_path)
    yield terminal
    Testbed(NAME).down()
    for job, *_ in terminal.jobs:
        job.wait(30)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(("page", "least"), [("tutorial", 16), ("howto/services", 12)])
def test_page(terminal, page, least):
    if not probe("ebpf"):
        pytest.skip(f"backend ebpf: {probe('ebpf').reason}")
    compared = 0
    for command, printed in steps(page):
        if command.startswith(("slimnet check", "slimnet policy", "export")) or (
            printed and printed[0][0] == "$"
        ):
            continue  # the set-up, and what depends on the machine
        expected = shape("\n".join(printed))
        command = re.sub(r"\bslimnet testbed (\w+)", rf"slimnet testbed \1 --name {NAME}", command)  # noqa: PLW2901
        if not command:
            job, file, _ = terminal.jobs[-1]
            job.wait(30)
            assert shape(file.read_text()) == expected
        elif command.endswith("&"):
            terminal.settle(command, terminal.start(command))
        else:
            if command.startswith("kill"):
                command = f"kill -9 {terminal.ask('h1', 'status')['pid']}"  # noqa: PLW2901
            answer = shape(terminal.run(command))
            assert answer == expected, command
            compared += 1
    assert compared >= least
