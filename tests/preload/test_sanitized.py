# SPDX-License-Identifier: Apache-2.0
"""Router and shim under the sanitizers, and their parsers under libFuzzer."""

import subprocess

import pytest
from attrs import evolve
from bench import SOURCES, bench, compile_test, make
from test_carried import counts

from slimnet.model import Direction, Protocol
from slimnet.tables import PublishKey, PublishRecord

UAPI = SOURCES.parents[1] / "kernel" / "uapi"


def runtime(name: str) -> str:
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


@pytest.mark.root
@pytest.mark.parametrize(
    ("sanitizers", "library"), [("address,undefined", "libasan.so"), ("thread", "libtsan.so")]
)
def test_nothing_is_found(sanitizers, library, tmp_path, monkeypatch):
    """Connections, refusals, a change, threads, every odd call, and a published port."""
    options = "halt_on_error=1:exitcode=66:abort_on_error=0"
    monkeypatch.setenv("ASAN_OPTIONS", f"{options}:detect_leaks=0")
    monkeypatch.setenv("UBSAN_OPTIONS", "halt_on_error=1:print_stacktrace=1")
    monkeypatch.setenv("TSAN_OPTIONS", options)
    out = make(tmp_path / "programs", f"SANITIZE={sanitizers}", "CFLAGS=-O1 -g")
    program = {
        name: compile_test(name, out, f"-fsanitize={sanitizers}")
        for name in ("identity", "threads", "calls")
    }
    with bench(tmp_path, out, 2, 4) as made:
        made.before = [runtime(library)]
        made.serve(1, program["identity"], "server", "80", "2")
        for number, more in ((2, []), (3, ["-n"])):
            words = ["client", "10.1.0.1", "80", "100", f"10.1.0.{number}", *more]
            said = made.run(number, program["identity"], *words)
            assert counts(said) == (100, 0, 0)
        assert made.run(4, program["threads"], "100", timeout=60) == "right\n"
        if library == "libasan.so":
            # ThreadSanitizer's own threads and signals are not those that it counts on.
            assert made.run(2, program["calls"], timeout=60) == "right\n"
        published = {PublishKey(None, Protocol.TCP, 8080): PublishRecord(1, 80)}
        made.extra = evolve(made.extra, published=published)
        made.deny(1, 2, Direction.INGRESS)
        made.install()
        words = ["client", str(made.hosts[1].address), "8080", "100", str(made.hosts[0].address)]
        said = made.run(None, program["identity"], *words, host=made.hosts[0])
        assert counts(said) == (100, 0, 0)
        words = ["client", "10.1.0.1", "80", "5", "10.1.0.2"]
        assert counts(made.run(2, program["identity"], *words)) == (0, 0, 5)
        made.hosts[0].kill()
        made.hosts[0].start()
        words = ["client", "10.1.0.1", "80", "5", "10.1.0.4"]
        assert counts(made.run(4, program["identity"], *words)) == (5, 0, 0)
        # On their end routers' exit status says whether something was found.


@pytest.mark.parametrize("parser", ["shim", "announce", "tables"])
def test_no_bytes_break_a_parser(parser, tmp_path):
    """What a shim, another host, and the agent's file may send."""
    program = tmp_path / parser
    subprocess.run(
        [
            *("clang-19", "-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra"),
            *("-Werror", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"),
            "-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION",
            *(f"-I{SOURCES / 'protocol'}", f"-I{SOURCES / 'router'}", f"-I{UAPI}"),
            *(f"-DFUZZ_{parser}", "-o", program, SOURCES / "test" / "fuzz.c"),
            *(each for each in sorted((SOURCES / "router").glob("*.c")) if each.stem != "main"),
        ],
        check=True,
    )
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    done = subprocess.run(
        [program, "-max_total_time=10", "-timeout=5", "-max_len=4096", corpus],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
