# SPDX-License-Identifier: Apache-2.0
"""Where nothing may be missing a skip is a failure; a run that is ended cleans up."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from generate_contract import ROOT

CASES = {
    "skipped": "def test_it():\n    pytest.skip('no such thing')\n",
    "marked": "@pytest.mark.skip(reason='no such thing')\ndef test_it():\n    pass\n",
    "fixture": (
        "@pytest.fixture\ndef thing():\n    pytest.skip('no such thing')\n"
        "def test_it(thing):\n    pass\n"
    ),
    "module": "pytest.skip('no such thing', allow_module_level=True)\n",
}


def environment(directory, **more):
    """Of a run by itself, which is no process of this one."""
    not_its_own = ("PYTEST_", "SLIMNET_CASES_OF")
    own = {name: value for name, value in os.environ.items() if not name.startswith(not_its_own)}
    return {**own, "SLIMNET_FAILURES": str(directory / "failed"), **more}


def outcome(directory, body, required, **more):
    shutil.copy(ROOT / "tests/conftest.py", directory)
    (directory / "test_it.py").write_text(f"import pytest\n{body}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", directory],
        env=environment(directory, SLIMNET_REQUIRE_ALL=required, **more),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("case", CASES)
def test_a_skip_says_what_is_missing(case, tmp_path):
    """And passes, where things may be missing."""
    code, output = outcome(tmp_path, CASES[case], "")
    assert code in (0, 5), output  # 5: pytest collected nothing
    assert "1 skipped" in output
    assert "no such thing" in output


@pytest.mark.parametrize("case", CASES)
def test_a_skip_fails_where_nothing_may_be_missing(case, tmp_path):
    """And still says what is missing."""
    code, output = outcome(tmp_path, CASES[case], "1")
    assert code in (1, 2), output
    assert "no such thing" in output


@pytest.mark.parametrize("required", ["", "1"])
def test_what_needs_the_kernel_module_is_left_out_without_it(required, tmp_path):
    """And the run's first lines say so; nothing fails, wherever nothing may be missing."""
    if Path("/sys/module/slimnet").exists():
        pytest.skip("needs a machine on which the module slimnet is not loaded")
    body = "@pytest.mark.module\ndef test_it():\n    assert False\n"
    body += "def test_other():\n    pass\n"
    code, output = outcome(tmp_path, body, required)
    assert code == 0, output
    assert "1 passed, 1 deselected" in output
    assert "left out: what needs the kernel module slimnet" in output


def test_of_a_commit_only_what_it_had_tests_for(tmp_path):
    body = "def test_old(): pass\ndef test_older(): pass\n"
    (tmp_path / "test_it.py").write_text(body)
    git = ["git", "-C", tmp_path, "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "test_it.py"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    code, output = outcome(tmp_path, f"{body}def test_new(): pass\n", "1", SLIMNET_CASES_OF="HEAD")
    assert code == 0, output
    assert "2 passed, 1 deselected" in output


def test_an_expected_failure_is_not_a_skip(tmp_path):
    """It ran."""
    body = "@pytest.mark.xfail\ndef test_it():\n    assert False\n"
    code, output = outcome(tmp_path, body, "1")
    assert code == 0, output
    assert "1 xfailed" in output


FAILING = """
@pytest.fixture
def broken():
    raise RuntimeError("no such thing")

def test_it():
    assert 1 == 2

def test_other(broken):
    pass

def test_good():
    pass
"""


def test_what_failed_is_said_once_more(tmp_path):
    """In the file that SLIMNET_FAILURES names, each once, with what was wrong."""
    code, _ = outcome(tmp_path, FAILING, "1")
    assert code == pytest.ExitCode.TESTS_FAILED
    said = (tmp_path / "failed").read_text()
    assert [line for line in said.splitlines() if line.startswith("-- ")] == [
        "-- test_it.py::test_it",
        "-- test_it.py::test_other",
    ]
    assert "assert 1 == 2" in said
    assert "no such thing" in said


ENDED = """
@pytest.fixture(scope="session")
def outer(tmp_path_factory):
    yield
    print("outer is gone", flush=True)

@pytest.fixture
def inner(outer):
    yield
    print("inner is gone", flush=True)

def test_it(inner):
    import time
    print("begun", flush=True)
    time.sleep(60)
"""


def test_a_run_that_is_ended_removes_what_it_made(tmp_path):
    """SIGTERM, as of ``timeout`` or of CI: every fixture ends as after Ctrl-C."""
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(f"import pytest\n{ENDED}")
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-s", tmp_path],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        said = iter(process.stdout)
        assert any("begun" in line for line in said)
        process.send_signal(signal.SIGTERM)
        rest = "".join(said)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert rest.index("inner is gone") < rest.index("outer is gone")
