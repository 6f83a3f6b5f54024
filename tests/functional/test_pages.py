# SPDX-License-Identifier: Apache-2.0
"""Every block of the pages runs as it stands, pasted at once and in order, and prints what the
page says.

A page's console blocks go to one shell, its Python blocks to one Python; one that starts with its
imports is pasted twice. A Python block that starts with ``# NAME.py``, and an example that the page
includes, is a file that the reader saves. A block
that is not for every machine says so in a comment before it (``..`` in reStructuredText, ``<!--``
in Markdown): ``not run: REASON``, or ``not compared: REASON`` where it runs and prints something
else on every machine.
"""

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab.paths import require

from slimnet.cli import slimnet as cli
from slimnet.testbed import Testbed

pytestmark = [pytest.mark.root, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NAME = f"slt-pages-{os.getpid()}"
MARK = f"-- {NAME} --"
#: What only a failure takes.
PATIENCE = 300

PAGES = sorted(
    path
    for path in (*DOCS.glob("**/*.rst"), *ROOT.glob("*.md"), *ROOT.glob("changelog.d/README.md"))
    if "_build" not in path.parts
)


@dataclass
class Block:
    """What a reader types (``console``, ``python``) or saves (``file``)."""

    kind: str
    text: str
    where: str
    verdict: str = "run"
    reason: str = ""
    name: str = ""


_COMMENT = r"(?:\.\. |<!-- )(not run|not compared): ((?:.|\n(?! *\n))*?)(?: -->)?"
_RST = re.compile(
    rf"^( *)(?:{_COMMENT}\n\s*\n\1)?\.\. code-block:: (console|python)\n((?: *:.*\n)*)\n"
    r"((?:\1   .*\n|\n)+)"
    r"|^()()()\.\. literalinclude:: (\S*examples/\S+)()$",
    re.MULTILINE,
)
_MD = re.compile(
    rf"^()(?:{_COMMENT}\n)?```(console|python)()\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(path, root=ROOT):
    """A page's blocks, in order."""
    text = path.read_text()
    for match in (_RST if path.suffix == ".rst" else _MD).finditer(text):
        indent, verdict, reason, kind, _, body, *included = match.groups()
        where = f"{path.relative_to(root)}:{text[: match.start()].count(chr(10)) + 1}"
        if included and included[3]:
            example = (path.parent / included[3]).resolve()
            yield Block("file", example.read_text(), where, name=example.name)
            continue
        if path.suffix == ".rst":
            body = re.sub(rf"^{indent}   ", "", body, flags=re.MULTILINE)
        body = body.strip("\n") + "\n"
        saved = re.match(r"# (\S+\.py)\n", body) if kind == "python" else None
        if saved and not verdict:
            yield Block("file", body, where, name=saved[1])
        else:
            why = " ".join((reason or "").split())
            yield Block(kind, body, where, verdict or "run", why)


def unfinished(command):
    """Whether the shell waits for another line."""
    try:
        shlex.split(command, comments=True)
    except ValueError:  # an open quote, or nothing behind the backslash
        return True
    return False


def commands(block):
    """Pairs of a command of a console block and what it prints."""
    command, printed, more = "", [], False
    for line in block.text.splitlines():
        if more or line[:2] in ("# ", "$ "):
            if not more and command:
                yield command, printed
                command, printed = "", []
            command += line if more else line[2:]
            more = unfinished(command)
            command += "\n" if more else ""
        else:
            assert command, f"{block.where}: starts with what no command prints"
            printed.append(line)
    yield command, printed


def shape(text):
    """Without what is another time another."""
    for was, becomes in (
        (rf" --name {NAME}\b", ""),
        (rf"{NAME}-(?=[ab]\b)", ""),
        (NAME, "default"),
        (r"\bping-[0-9a-f]{8}", "ping-N"),
        (r"\bprocess \d+", "process N"),
        (r"\d\d:\d\d:\d\d(\.\d+)?", "TIME"),
        (r"\b\d+\.\d{3}\b", "N.N"),
        (r"\b\d+[smhd]\b", "AGE"),
        (r"\b[0-9.]+ ?(s|ms)\b", r"N \1"),
        (r"\b[0-9a-f]{16}\b", "KEY"),
        (r"\b(generation|revision) +\d+", r"\1 N"),
        (r"\b\d{6,10}\b", "ID"),
        (r"\b(3[2-9]\d{3}|[4-6]\d{4})\b", "PORT"),
        (r"\b(479\d|48[0-8]\d)\b", "WIRE"),
        (r"\bLinux \S+", "Linux N"),
        (r"\s+", " "),
    ):
        text = re.sub(was, becomes, text)
    return text.strip()


class Terminal:
    """Where the reader types, as root in a checkout.

    The shell reads a pipe, so that nothing is echoed. What is pasted goes there at once; only what
    says where a command's output ends is typed between the lines.
    """

    def __init__(self, directory):
        self.shells = ["bash"]
        self.here = directory
        self._stage()
        path = f"{directory}/bin:{directory}/.venv/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
        kept = {name: value for name, value in os.environ.items() if name[:7] != "SLIMNET"}
        kept |= {"PATH": path, "HOME": str(directory), "NO_COLOR": "1", "COLUMNS": "200"}
        kept |= {"PYTHONSTARTUP": f"{directory}/startup.py", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=directory, env=kept, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _stage(self):
        """A checkout whose testbeds are this test's own, and what a terminal's owner has."""
        programs = {
            # Two runs of this test do not meet.
            ".venv/bin/slimnet": f"""
                program={Path(sys.executable).parent}/slimnet
                [ "$1" = testbed ] || exec $program "$@"
                if [ "$3" = --name ]; then exec $program testbed "$2" --name "{NAME}-$4" "${{@:5}}"
                else exec $program testbed "$2" --name {NAME} "${{@:3}}"; fi""",
            # A pipe is no terminal: it has to be told that somebody types.
            ".venv/bin/python3": f"""
                [ $# = 0 ] && set -- -q -i
                exec {sys.executable} "$@" """,
            "bin/sudo": """
                [ "$1" = -s ] && exec bash --noprofile --norc
                exec "$@" """,
            "testbed/setup": f'exec {ROOT}/testbed/setup "$@"',
        }
        for name, text in programs.items():
            file = self.here / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"#!/bin/bash\n{text}\n")
            file.chmod(0o755)
        for name in ("docs", "packaging"):
            (self.here / name).symlink_to(ROOT / name)
        (self.here / "startup.py").write_text("import sys\nsys.ps1 = sys.ps2 = ''\n")

    def save(self, block):
        """Where the reader is now."""
        ask = "pwd" if self.shells[-1] == "bash" else "__import__('os').getcwd()"
        ((_, where),) = self._type([(ask, self.shells[-1])])
        (Path(where.strip("'")) / block.name).write_text(block.text)

    def console(self, block):
        """Triples of a command, its exit status and its output."""
        if self.shells[-1] == "python3":
            self.shells.pop()
            self._type([("exit()", self.shells[-1])])
        typed = []
        for command, _ in commands(block):
            word = command.split("#")[0].split()[-1]
            if word in ("bash", "python3", "-s"):
                self.shells.append("python3" if word == "python3" else "bash")
            elif word == "exit":
                self.shells.pop()
            typed.append((own(command), self.shells[-1]))
        return self._type(typed)

    def python(self, block):
        """What it prints."""
        if self.shells[-1] == "bash":
            self.shells.append("python3")
            self._type([("python3", "python3")])
        ((_, printed),) = self._type([(own(block.text), "python3")])
        return printed

    def _type(self, typed):
        ends = {"bash": f"printf '\\n{MARK} %s\\n' $?\n", "python3": f"\nprint('\\n{MARK} 0')\n"}
        self.process.stdin.write("".join(f"{each}\n{ends[by]}" for each, by in typed).encode())
        self.process.stdin.flush()
        end, data = time.monotonic() + PATIENCE, b""
        while len(found := re.split(rf"\n{MARK} (\d+)\n", data.decode())) <= 2 * len(typed):
            left = end - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(left, 0))
            more = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            if not more:
                command, _ = typed[len(found) // 2]
                state = "ended" if ready else f"has not answered within {PATIENCE} s"
                logs = "".join(
                    f"\n{each}:\n{each.read_text()[-2000:]}" for each in self.here.rglob("*.log")
                )
                pytest.fail(f"{command}\nthe shell {state}; before: {data.decode()}{logs}")
            data += more
        return [(int(found[i + 1]), found[i].strip("\n")) for i in range(0, len(found) - 1, 2)]

    def close(self):
        for bed in Testbed.all():
            if bed.name.startswith(NAME):
                bed.down()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def own(text):
    """With names of this test's own where they are machine-wide."""
    return text.replace("default-h", f"{NAME}-h").replace('Testbed("', f'Testbed("{NAME}-')


@pytest.fixture
def terminal():
    directory = Path(tempfile.mkdtemp(prefix="slt-pages-"))
    directory.chmod(0o755)  # redis has to get there
    terminal = Terminal(directory)
    yield terminal
    terminal.close()
    shutil.rmtree(directory)


def faults(terminal, found):
    """What does not come as the page says: where it is said, and what came."""
    for block in found:
        if block.kind == "file":
            terminal.save(block)
        elif block.verdict == "not run":
            assert block.reason
        elif block.kind == "python":
            # One that imports is whole: it leaves nothing that would be in the way of a second run.
            twice = block.text.startswith(("import ", "from "))
            printed = "".join(terminal.python(block) for _ in range(1 + twice))
            if re.search(r"^(Traceback|\w*Error\b)", printed, re.MULTILINE):
                yield f"{block.where}: {printed}"
        else:
            said = list(commands(block))
            for (command, expected), (status, printed) in zip(
                said, terminal.console(block), strict=True
            ):
                right = shape("\n".join(expected))
                if not right:
                    wrong = status != 0
                else:
                    wrong = block.verdict == "run" and shape(printed) != right
                if wrong:
                    yield f"{block.where}: {command}\nstatus {status}\n{printed}"


@pytest.mark.parametrize(
    "path",
    [path for path in PAGES if any(blocks(path))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_page(terminal, path, record_property):
    """Its commands succeed or print why not; where the page says what they print, that comes."""
    found = list(blocks(path))
    for block in found:
        if block.verdict != "run":
            record_property("left out", f"{block.where}: {block.verdict}: {block.reason}")
    if any(block.verdict != "not run" for block in found):
        require("ebpf")
    wrong = list(faults(terminal, found))
    assert wrong == [], "\n\n".join(wrong)


def test_first_steps(terminal):
    """Those of ``slimnet --help``: what nginx serves comes."""
    require("ebpf")
    steps = [re.split(r" {3,}", line[2:])[0] for line in cli.epilog.splitlines() if line[:1] == " "]
    text = "".join(f"# {step}\n" for step in ["export PATH=$PWD/.venv/bin:$PATH", *steps])
    block = Block("console", text, "slimnet --help")
    assert list(faults(terminal, [block])) == []


def test_what_is_wrong_would_be_noticed(terminal):
    """A command that fails or prints something else, and Python that fails, also the second time
    only; a block that is passed over says why."""
    page = terminal.here / "page.rst"
    page.write_text(
        """
.. code-block:: console

   # false
   # echo 1 2 \\
         3
   1 2 4
   # echo right
   right

.. code-block:: python

   import os
   os.mkdir("once")

.. code-block:: python

   with open("once/more", "w") as file:
       print("right", file=file)

.. not run: of a reason
   that is long

.. code-block:: console

   # false
"""
    )
    found = list(blocks(page, terminal.here))
    assert [block.verdict for block in found] == ["run", "run", "run", "not run"]
    assert found[-1].reason == "of a reason that is long"
    wrong = list(faults(terminal, found))
    assert [each.splitlines()[0] for each in wrong[:2]] == [
        "page.rst:2: false", "page.rst:2: echo 1 2 \\",
    ]  # fmt: skip
    assert "FileExistsError" in wrong[2]
    assert len(wrong) == 3


def test_every_block_is_seen():
    """None is passed over by how it is written."""
    for path in PAGES:
        text = path.read_text()
        written = re.findall(r"(?:code-block:: |```)(?:console|python|bash|shell|sh|py)\b", text)
        written += re.findall(r"literalinclude:: \S*examples/", text)
        assert len(list(blocks(path))) == len(written), path
