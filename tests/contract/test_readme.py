# SPDX-License-Identifier: Apache-2.0
"""What the first page says is there: commands, the code that it links to (that
its blocks run is ``tests/functional/test_pages.py``)."""

import os
import re
import shlex
import subprocess
from configparser import ConfigParser

import click
import pytest
from generate_contract import ROOT

from slimnet.cli import slimnet as cli

README = (ROOT / "README.md").read_text()
LINKS = re.findall(r"\[([^\]]+)\]\(([^)#\s]+)[^)]*\)", README)
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def test_links_lead_somewhere():
    files = [target for _, target in LINKS if "://" not in target]
    assert files
    assert [target for target in files if not (ROOT / target).exists()] == []


def test_linked_code_is_where_the_link_says():
    """A link whose text is a name of C leads to the file that defines it."""
    names = [(text.strip("`"), target) for text, target in LINKS if text.startswith("`slim_")]
    assert len(names) > 5
    definition = r"^(?!\t|\*| ).*\b{}\(|^\w+\(.*\b{}\b|SEC\(.*\n.*\b{}\("
    lost = [
        (name, target)
        for name, target in names
        if not re.search(
            definition.format(name, name, name), (ROOT / target).read_text(), re.MULTILINE
        )
    ]
    assert lost == []


def lines(prompts):
    """Commands of the console blocks, without prompt and comment."""
    for kind, text in BLOCKS:
        for line in text.splitlines() if kind == "console" else ():
            if line[:2] in prompts:
                yield shlex.split(line[2:], comments=True)


def test_scripts_are_there():
    """The two commands, and what CI calls."""
    sudo = [words[1] for words in lines("$ ") if words[:1] == ["sudo"] and "/" in words[1]]
    assert sudo == ["./testbed/demo", "./testbed/test"]
    for script in (*sudo, ".ci/run"):
        assert os.access(ROOT / script, os.X_OK), script
    assert "/testbed/test" in (ROOT / ".ci/run").read_text()
    for script in ("testbed/demo", "testbed/test"):
        assert '"$root/testbed/setup"' in (ROOT / script).read_text()


def parse(words):
    """The words as the command line takes them; ends at what ``exec`` and ``run`` start."""
    group, words = cli, words[1:]
    while isinstance(group, click.Group):
        context = group.make_context("slimnet", list(words), resilient_parsing=False)
        words = [*context._protected_args, *context.args]
        _, group, words = group.resolve_command(context, words)
    context = group.make_context(group.name, list(words))
    inner = [value for value in context.params.values() if isinstance(value, tuple)]
    for each in inner:
        if each[:1] == ("slimnet",):
            parse(each)


def test_commands_are_taken():
    """Each line of the quick start has commands, options and arguments that exist."""
    found = [words for words in lines("# ") if words[:1] == ["slimnet"]]
    assert len(found) > 5
    for words in found:
        parse([word for word in words if word != "&"])


def examples(group=cli):
    """Command lines of the help's examples, without what is said beside them."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from examples(command)
        for line in (command.epilog or "").splitlines():
            if line.startswith("  slimnet "):
                yield re.split(r" {3,}| [&|]", line.strip())[0].replace("*.yaml", "README.md")


@pytest.mark.parametrize("line", list(examples()))
def test_the_helps_examples_are_taken(line):
    parse(shlex.split(line))


def test_a_command_that_is_not_there_would_be_noticed():
    for wrong in ("slimnet testbd up", "slimnet testbed up --host 2"):
        with pytest.raises(click.UsageError):
            parse(wrong.split())


def test_what_a_program_sees_is_said_once():
    """The table of the first page is that of the reference (which tests/functional/test_seen.py
    holds to)."""
    mine = README.partition("### What a program sees\n\n")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in mine.splitlines() if "---" not in line]
    page = (ROOT / "docs/reference/placements.rst").read_text()
    table = page.partition(".. _shows:")[2].partition("\n\n   * - ")[2].partition("\n\n")[0]
    cells = [
        [" ".join(cell.split()).replace("``", "`") for cell in re.split(r"\n     - ", row)]
        for row in re.split(r"\n   \* - ", table)
    ]
    assert cells == rows


def test_every_question_has_its_environment():
    """What ``tox`` runs without arguments."""
    tox = ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    listed = set(tox["tox"]["env_list"].split())
    assert {"lint", "generated", "suites", "docs"} <= listed
    (unit,) = [name for name in listed if name.startswith("unit-")]
    supported = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert f"py{{3{supported[1]}," in unit
    directories = {path.name for path in ROOT.glob("tests/*/") if path.name[0] not in "_."}
    run = set()
    for name in listed:
        section = f"testenv:{name}"
        commands = tox[section if section in tox else "testenv"]["commands"]
        run |= set(re.findall(r"tests/(\w+)", commands.replace("{envname}", name)))
    assert directories == run


def test_the_version_is_one():
    done = subprocess.run(
        [ROOT / ".venv/bin/slimnet", "--version"], capture_output=True, text=True, check=True
    )
    versions = {
        re.search(r'^version = "(.+)"', path.read_text(), re.MULTILINE)[1]
        for path in (ROOT / "pyproject.toml", *ROOT.glob("*s/*/pyproject.toml"))
    }
    assert len(versions) == 1
    assert done.stdout.split()[-1] in versions
