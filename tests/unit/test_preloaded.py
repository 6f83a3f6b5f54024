# SPDX-License-Identifier: Apache-2.0
"""Which programs take in a preloaded library, and what is said of the others."""

import errno
import os
import shutil
import subprocess

import pytest

from slimnet import CapabilityMissing
from slimnet.sandbox import preloaded

SOURCE = "int main(void) { return 0; }\n"


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compiles the program (or the library) with these flags."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc (apt install gcc)")
    directory = tmp_path_factory.mktemp("built")
    (directory / "program.c").write_text(SOURCE)

    def run(name, *flags):
        argv = ["gcc", *flags, directory / "program.c", "-o", directory / name]
        subprocess.run(argv, check=True)
        return directory / name

    return run


@pytest.fixture
def environment(build):
    library = build("library.so", "-shared", "-fPIC")
    return {"PATH": str(library.parent), "LD_PRELOAD": str(library)}


def refused(command, environment, **options):
    with pytest.raises(CapabilityMissing) as raised:
        preloaded.check(str(command), environment, **options)
    said = str(raised.value)
    assert "\n" not in said
    assert said.endswith(
        "take a program that is linked dynamically, or a backend that preloads nothing"
    )
    return said


def test_a_dynamic_program_is_taken(build, environment):
    program = build("dynamic")
    preloaded.check(str(program), environment)
    preloaded.check("dynamic", environment)
    preloaded.check("./dynamic", environment, directory=program.parent)


@pytest.mark.parametrize("flag", ["-static", "-static-pie"])
def test_a_static_one_is_refused(build, environment, flag):
    said = refused(build("static", flag), environment)
    assert "/static as an endpoint: it is linked statically, and takes in no library" in said
    assert "it is linked statically" in refused("static", environment)


def test_a_script_is_what_its_interpreter_is(build, environment, tmp_path):
    script = tmp_path / "script"
    script.write_text(f"#!{build('static', '-static')} -x\n")
    assert f"cannot run {build('static', '-static')} as" in refused(script, environment)
    script.write_text(f"#!{build('dynamic')}\n")
    preloaded.check(str(script), environment)


def test_a_go_program_is_refused(build, environment, tmp_path):
    """Also one that is linked dynamically. The section is what `go version` looks for."""
    program, data = tmp_path / "gopher", tmp_path / "data"
    data.write_bytes(b"\xff Go buildinf:")
    subprocess.run(
        ["objcopy", "--add-section", f".go.buildinfo={data}", build("dynamic"), program], check=True
    )
    assert "it is a Go program, which makes system calls past" in refused(program, environment)


def test_one_of_another_machine_is_refused(build, environment, tmp_path):
    program = tmp_path / "other"
    text = bytearray(build("dynamic").read_bytes())
    text[18] ^= 1  # e_machine (elf(5))
    program.write_bytes(text)
    assert "it is for another machine than the library" in refused(program, environment)


@pytest.mark.root
def test_one_that_gains_privilege_is_refused(build, environment, tmp_path):
    program = shutil.copy(build("dynamic"), tmp_path / "changer")
    os.chmod(program, 0o4755)
    preloaded.check(str(program), environment)  # root's own, run by root, gains nothing
    assert "it is set-user-ID, and takes in no" in refused(program, environment, user=64321)
    os.chmod(program, 0o2755)
    assert "it is set-group-ID, and takes in no" in refused(program, environment, user=64321)
    os.chmod(program, 0o755)
    preloaded.check(str(program), environment, user=64321)
    # That is CAP_NET_BIND_SERVICE, of version 2 (linux/capability.h).
    os.setxattr(program, "security.capability", bytes.fromhex("0000000200040000" + "00" * 12))
    assert "it has file capabilities" in refused(program, environment, user=64321)


@pytest.mark.root
def test_one_of_a_file_system_without_attributes_is_refused(
    build, environment, tmp_path, monkeypatch
):
    """As virtiofs and others that ask a daemon may be."""

    def refuse(_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "listxattr", refuse)
    program = shutil.copyfile(build("dynamic"), tmp_path / "changer")
    os.chmod(program, 0o4755)
    assert "it is set-user-ID, and takes in no" in refused(program, environment, user=64321)


def test_what_is_no_program_is_for_others_to_tell(environment, tmp_path):
    preloaded.check("no-such-command", environment)
    (tmp_path / "text").write_text("hello")
    preloaded.check(str(tmp_path / "text"), environment)
    (tmp_path / "cut").write_bytes(b"\x7fELF\x02\x01" + bytes(30))
    preloaded.check(str(tmp_path / "cut"), environment)


def test_libraries_of_both_are_preloaded():
    place = {"LD_PRELOAD": "/place.so", "SLIMNET_SOCKET": "/s"}
    assert preloaded.joined({"LD_PRELOAD": "/own.so"}, place)["LD_PRELOAD"] == "/place.so:/own.so"
    assert preloaded.joined({"A": "1"}, place) == {"A": "1", **place}
    assert preloaded.joined({"LD_PRELOAD": "/own.so"}, {}) == {"LD_PRELOAD": "/own.so"}
