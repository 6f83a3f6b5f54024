# SPDX-License-Identifier: Apache-2.0
"""Plugins by name, as distributions that are really installed somewhere on sys.path."""

import importlib
import sys

import pytest

from slimnet.exceptions import BackendUnavailable, ConfigError
from slimnet.model import Answer
from slimnet.plugins import (
    backend_class,
    backend_names,
    choose_backend,
    open_store,
    probe,
    suggest,
)

BACKEND = """
from slimnet.abc import Backend
from slimnet.model import Answer, Probe
from slimnet.testing import MemoryBackend

class {name}(MemoryBackend):
    name = "{name}"
    preference = {preference}

    @classmethod
    def probe(cls):
        {probe}
"""
YES = 'return Probe(Answer.YES, "all is there")'
NO = 'return Probe(Answer.NO, "no such kernel", "take another")'


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution with one backend on the path, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    # stevedore keeps what it found, by sys.path and the time of its entries.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def install(name, probe=YES, preference=50, text=None, number=1):
        module = f"slt_{name}_{number}"
        (tmp_path / f"{module}.py").write_text(
            text or BACKEND.format(name=name, probe=probe, preference=preference)
        )
        info = tmp_path / f"{module}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[slimnet.backends]\n{name} = {module}:{name}\n")
        importlib.invalidate_caches()
        _forget()

    yield install
    for module in [each for each in sys.modules if each.startswith("slt_")]:
        del sys.modules[module]
    _forget()


def _forget():
    from stevedore import _cache, extension

    extension.ExtensionManager.ENTRY_POINT_CACHE.clear()
    _cache._c._internal.clear()


def test_a_third_party_backend_is_found(install):
    install("other")
    assert "other" in backend_names()
    assert backend_class("other").name == "other"
    assert probe("other").reason == "all is there"
    choice = choose_backend("other")
    assert choice.kind.name == "other"
    assert choice.why == "other: named in the configuration; all is there"


def test_unknown_backend():
    with pytest.raises(ConfigError, match="backend: wanted one of: auto, .*'noop'.*got 'nop'"):
        backend_class("nop")


def test_auto_takes_the_best_and_says_why(install):
    install("good", preference=1000)
    install("better", preference=2000)
    install("best", NO, preference=3000)
    install("broken", "raise RuntimeError('oops')", preference=4000)
    choice = choose_backend("auto")
    assert choice.kind.name == "better"
    assert choice.why.startswith("better: all is there; ")
    assert "best: no such kernel" in choice.why
    assert "good: lower preference" in choice.why
    assert "broken: the probe failed: RuntimeError: oops" in choice.why


def test_three_answers(install):
    install("yes")
    install("no", NO)
    install("unknown", "raise RuntimeError('oops')")
    answers = {name: probe(name).answer for name in ("yes", "no", "unknown")}
    assert answers == {"yes": Answer.YES, "no": Answer.NO, "unknown": Answer.UNKNOWN}
    assert [bool(probe(name)) for name in ("yes", "no", "unknown")] == [True, False, False]


def test_named_backend_that_cannot_run(install):
    install("no", NO)
    with pytest.raises(BackendUnavailable, match=r"'no': no such kernel \(take another\)"):
        choose_backend("no")
    install("unknown", "raise RuntimeError('oops')")
    assert choose_backend("unknown").kind.name == "unknown"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import not_there_at_all", "not_there_at_all"),
        ("raise ValueError('oops')", "oops"),
        ("", "cannot be imported"),
        ("broken = 3", "is no slimnet.abc.Backend but 3"),
    ],
)
def test_backend_that_cannot_be_imported(install, text, said):
    """That is an answer of its probe, and not an ImportError."""
    install("broken", text=text or "# nothing in it")
    assert probe("broken").answer is Answer.NO
    assert said in probe("broken").reason
    with pytest.raises(BackendUnavailable, match=said):
        backend_class("broken")


def test_two_of_one_name_are_refused(install):
    """Which of the two would it be? stevedore's manager of many took one silently."""
    install("twin", number=1)
    install("twin", number=2)
    with pytest.raises(BackendUnavailable, match="'twin'"):
        backend_class("twin")
    assert probe("twin").answer is Answer.NO


def test_suggest():
    assert suggest("epbf", ["ebpf", "noop"]) == "one of: ebpf, noop; did you mean 'ebpf'?"
    assert suggest("zzz", ["ebpf"]) == "one of: ebpf"
    assert suggest("x", []) == "one of: nothing (none is installed)"


@pytest.mark.parametrize("url", ["consul://h", "sqlit:///x", "", "/var/lib"])
def test_unknown_store(url):
    with pytest.raises(ConfigError, match="store: wanted one of: .*sqlite://"):
        open_store(url)
