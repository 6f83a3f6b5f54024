# SPDX-License-Identifier: Apache-2.0
"""What users install: each wheel holds what it needs, and no compiler is needed after."""

import configparser
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest
from generate_contract import ROOT

DISTRIBUTIONS = {
    "slimnet": ROOT,
    "slimnet-ebpf": ROOT / "backends/ebpf",
    "slimnet-noop": ROOT / "backends/noop",
}


def build(directory, target, out):
    """The file that hatchling builds."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return next(out.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Distribution to the file of its wheel."""
    directory = tmp_path_factory.mktemp("wheels")
    return {name: build(path, "wheel", directory / name) for name, path in DISTRIBUTIONS.items()}


@pytest.fixture(scope="module")
def wheels(built):
    """Distribution to its wheel, opened."""
    return {name: zipfile.ZipFile(path) for name, path in built.items()}


def entry_points(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(name).decode())
    return {section: dict(parser[section]) for section in parser.sections()}


def test_the_core_has_its_command_and_its_stores(wheels):
    """And every module below src/slimnet, none from elsewhere."""
    wheel = wheels["slimnet"]
    assert entry_points(wheel) == {
        "console_scripts": {"slimnet": "slimnet.cli:main"},
        "slimnet.stores": {"sqlite": "slimnet.store.sqlite:SqliteStore"},
    }
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT / "src")) for path in ROOT.glob("src/slimnet/**/*.py")}
    assert modules <= files
    assert {name.split("/")[0] for name in files} == {"slimnet"}
    assert "slimnet/py.typed" in files


def test_the_ebpf_wheel_carries_its_objects(wheels):
    """One for every source, as BPF, without the source."""
    wheel = wheels["slimnet-ebpf"]
    assert entry_points(wheel) == {"slimnet.backends": {"ebpf": "slimnet_ebpf:EbpfBackend"}}
    sources = {path.name for path in ROOT.glob("backends/ebpf/bpf/*.bpf.c")}
    assert sources, "backends/ebpf/bpf holds no *.bpf.c"
    objects = {name for name in wheel.namelist() if name.endswith(".o")}
    assert objects == {f"slimnet_ebpf/{name.removesuffix('.c')}.o" for name in sources}
    for name in objects:
        header = wheel.read(name)[:20]
        assert header.startswith(b"\x7fELF")
        assert int.from_bytes(header[18:20], "little") == 247, "EM_BPF"
    assert not [name for name in wheel.namelist() if name.endswith((".c", ".d", ".new"))]


def test_the_noop_wheel(wheels):
    """Is pure Python."""
    wheel = wheels["slimnet-noop"]
    assert entry_points(wheel) == {"slimnet.backends": {"noop": "slimnet_noop:NoopBackend"}}
    assert "slimnet_noop/__init__.py" in wheel.namelist()


def test_licences_travel(wheels):
    """The core's wheel holds their texts."""
    names = {name.split("/")[-1] for name in wheels["slimnet"].namelist()}
    assert {path.name for path in (ROOT / "LICENSES").iterdir()} <= names


def test_a_source_distribution_of_ebpf_builds_by_itself(wheels, tmp_path):
    """It brings the contract along, and its wheel has the same files."""
    packed = build(ROOT / "backends/ebpf", "sdist", tmp_path / "sdist")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path)  # 3.11.2 has no filter
    source = tmp_path / packed.name.removesuffix(".tar.gz")
    assert not list(source.glob("**/*.o")), "objects are built, not shipped as source"
    wheel = zipfile.ZipFile(build(source, "wheel", tmp_path / "wheel"))
    assert sorted(wheel.namelist()) == sorted(wheels["slimnet-ebpf"].namelist())


def test_a_missing_object_is_an_answer(wheels, tmp_path):
    """Without it the package imports, and its probe says no and which file."""
    for wheel in wheels.values():
        wheel.extractall(tmp_path)
    for path in tmp_path.glob("slimnet_ebpf/*.bpf.o"):
        path.unlink()
    script = (
        "import slimnet_ebpf\n"
        f"assert slimnet_ebpf.__file__.startswith({str(tmp_path)!r}), slimnet_ebpf.__file__\n"
        "probe = slimnet_ebpf.EbpfBackend.probe()\n"
        "print(probe.answer, probe.reason, probe.remedy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no ")
    assert ".bpf.o" in done.stdout


def test_the_wheels_are_all_that_a_user_installs(built, tmp_path):
    """In a fresh environment, with no compiler in sight, both backends answer."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    pip = [tmp_path / "env/bin/pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *built.values()], check=True)
    done = subprocess.run(
        [tmp_path / "env/bin/slimnet", "backends", "-o", "json"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "env/bin"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {row["backend"] for row in json.loads(done.stdout)} == {"ebpf", "noop"}
    assert ".bpf.o" not in done.stdout, "an object is missing"
