# SPDX-License-Identifier: Apache-2.0
"""What users install: each wheel holds what it needs, and no compiler is needed after."""

import configparser
import email
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
from generate_contract import ROOT

DISTRIBUTIONS = {
    "slimnet-overlay": ROOT,
    "slimnet-overlay-ebpf": ROOT / "backends/ebpf",
    "slimnet-overlay-etcd": ROOT / "stores/etcd",
    "slimnet-overlay-kmod": ROOT / "backends/kmod",
    "slimnet-overlay-noop": ROOT / "backends/noop",
    "slimnet-overlay-preload": ROOT / "backends/preload",
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


def metadata(wheel):
    """What pip reads of a wheel (PEP 566, 639)."""
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def entry_points(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(name).decode())
    return {section: dict(parser[section]) for section in parser.sections()}


def test_the_core_has_its_command_and_its_stores(wheels):
    """And every module below src/slimnet, none from elsewhere."""
    wheel = wheels["slimnet-overlay"]
    assert entry_points(wheel) == {
        "console_scripts": {
            "slimnet": "slimnet.cli:main",
            "slimnet-cni": "slimnet.engines.cni:main",
            "slimnet-netavark": "slimnet.engines.netavark:main",
        },
        "slimnet.stores": {"sqlite": "slimnet.store.sqlite:SqliteStore"},
    }
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT / "src")) for path in ROOT.glob("src/slimnet/**/*.py")}
    assert modules <= files
    assert {name.split("/")[0] for name in files} == {"slimnet"}
    assert "slimnet/py.typed" in files


def test_the_ebpf_wheel_carries_its_objects(wheels):
    """One for every source, as BPF, without the source."""
    wheel = wheels["slimnet-overlay-ebpf"]
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


@pytest.mark.parametrize("backend", ["kmod", "noop"])
def test_a_wheel_of_python_alone(wheels, backend):
    """The kernel module is built against the kernel that it runs in, and no part of a wheel."""
    wheel = wheels[f"slimnet-overlay-{backend}"]
    package = f"slimnet_{backend}"
    assert entry_points(wheel) == {
        "slimnet.backends": {backend: f"{package}:{backend.title()}Backend"}
    }
    files = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert f"{package}/__init__.py" in files
    assert {name.rpartition(".")[2] for name in files} == {"py", "typed"}


def test_the_preload_wheel_carries_its_programs(wheels, built):
    """For this machine, and any Python; without the source."""
    wheel = wheels["slimnet-overlay-preload"]
    assert entry_points(wheel) == {
        "slimnet.backends": {"preload": "slimnet_preload:PreloadBackend"}
    }
    for name in ("slimnet-router", "libslimnet-shim.so"):
        assert wheel.read(f"slimnet_preload/{name}").startswith(b"\x7fELF")
    assert wheel.getinfo("slimnet_preload/slimnet-router").external_attr >> 16 & 0o111
    assert not [name for name in wheel.namelist() if name.endswith((".c", ".h", ".o", ".d"))]
    assert re.search(r"-py3-none-linux_\w+\.whl$", built["slimnet-overlay-preload"].name)


def test_the_etcd_wheel(wheels):
    """Is pure Python, with nothing generated."""
    wheel = wheels["slimnet-overlay-etcd"]
    assert entry_points(wheel) == {"slimnet.stores": {"etcd": "slimnet_etcd:EtcdStore"}}
    assert "slimnet_etcd/_messages.py" in wheel.namelist()


def test_each_has_the_name_that_is_ours(wheels):
    """And one version; ``slimnet`` on the index is another project's, and nothing asks for it."""
    found = {name: metadata(wheel) for name, wheel in wheels.items()}
    assert {name: each["Name"] for name, each in found.items()} == {name: name for name in found}
    assert len({each["Version"] for each in found.values()}) == 1
    wanted = [line for each in found.values() for line in each.get_all("Requires-Dist")]
    assert [line for line in wanted if re.match(r"slimnet(?!-overlay\b)", line)] == []


def test_a_plugin_fits_its_core_and_no_other(wheels):
    """Each is pinned to the other; the core asks for a plugin by an extra of its name."""
    core = metadata(wheels["slimnet-overlay"])
    for plugin in ("ebpf", "etcd", "kmod", "noop", "preload"):
        name = f"slimnet-overlay-{plugin}"
        wanted = metadata(wheels[name]).get_all("Requires-Dist")
        assert f"slimnet-overlay=={core['Version']}" in wanted
        extra = f"{name}=={core['Version']}; extra == '{plugin}'"
        assert extra in core.get_all("Requires-Dist")
        assert plugin in core.get_all("Provides-Extra")


def test_licences_travel(wheels):
    """Every wheel holds the text of each licence that its expression names."""
    for name, wheel in wheels.items():
        (base,) = {each.split("/")[0] for each in wheel.namelist() if ".dist-info/" in each}
        texts = {path.name: path.read_bytes() for path in (ROOT / "LICENSES").iterdir()}
        expression = metadata(wheel)["License-Expression"]
        named = {f"{each}.txt" for each in re.findall(r"[\w.-]+\d[\w.-]*", expression)}
        assert named
        assert named <= texts.keys()
        listed = set(metadata(wheel).get_all("License-File", [])) - {"LICENSE"}
        assert listed == {f"LICENSES/{each}" for each in named}, name
        for each in listed:
            held = wheel.read(f"{base}/licenses/{each}")
            assert held == texts[each.removeprefix("LICENSES/")], name


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_source_distribution_builds_by_itself(wheels, tmp_path, name):
    """It brings contract and licences along, and its wheel has the same files."""
    packed = build(DISTRIBUTIONS[name], "sdist", tmp_path / "sdist")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path)  # 3.11.2 has no filter
    source = tmp_path / packed.name.removesuffix(".tar.gz")
    assert not list(source.glob("**/*.o")), "objects are built, not shipped as source"
    wheel = zipfile.ZipFile(build(source, "wheel", tmp_path / "wheel"))
    assert sorted(wheel.namelist()) == sorted(wheels[name].namelist())


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
    """By the core's name and its extras, in a fresh environment: with no compiler in sight every
    backend answers, the store is there, and the command says its version."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    pip = [tmp_path / "env/bin/pip", "install", "--quiet", "--disable-pip-version-check"]
    found = [f"--find-links={path.parent}" for path in built.values()]
    subprocess.run([*pip, *found, "slimnet-overlay[ebpf,etcd,kmod,noop]"], check=True)

    def answer(*words):
        done = subprocess.run(
            [tmp_path / "env/bin/slimnet", *words],
            cwd=tmp_path,
            env={"PATH": str(tmp_path / "env/bin"), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    backends = answer("backends", "-o", "json")
    assert {row["backend"] for row in json.loads(backends)} == {"ebpf", "kmod", "noop"}
    assert ".bpf.o" not in backends, "an object is missing"
    python = [tmp_path / "env/bin/python", "-c", "import slimnet_etcd; print('there')"]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "there\n", done.stderr
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert answer("--version").split() == ["slimnet", version[1]]
