# SPDX-License-Identifier: Apache-2.0
"""What an engine leaves a container, by the configuration that it hands its runtime."""

import pytest

from slimnet.engines.confined import leaks
from slimnet.linux import mounts

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
APART = [{"type": "mount"}, {"type": "cgroup"}]
DROPPED = {"process": {"capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]}}}


def rule(action, *conditions, names=("socket",)):
    args = [{"index": index, "value": value, "op": op} for index, op, value in conditions]
    return {"names": list(names), "action": action, "args": args}


def refusing(*families, default=ALLOW):
    rules = [rule(ERRNO, (0, "SCMP_CMP_EQ", family)) for family in families]
    return {"defaultAction": default, "syscalls": rules}


SECCOMP = {
    "none": (None, "AF_VSOCK and AF_SMC"),
    "empty": ({"defaultAction": ALLOW}, "AF_VSOCK and AF_SMC"),
    "one refused": (refusing(40), "AF_SMC"),
    "both refused": (refusing(40, 43), ""),
    "refused for one type only": (
        {"defaultAction": ALLOW, "syscalls": [
            rule(ERRNO, (0, "SCMP_CMP_GE", 40), (1, "SCMP_CMP_EQ", 1)),
        ]},
        "AF_VSOCK and AF_SMC",
    ),
    "all but one allowed": (
        {"defaultAction": ERRNO, "syscalls": [rule(ALLOW, (0, "SCMP_CMP_NE", 40))]},
        "AF_SMC",
    ),
    "few allowed": (
        {"defaultAction": ERRNO, "syscalls": [rule(ALLOW, (0, "SCMP_CMP_LE", 16))]},
        "",
    ),
    "another call is allowed": (
        {"defaultAction": ERRNO, "syscalls": [rule(ALLOW, names=["bind"])]},
        "",
    ),
    "refused and allowed": (
        {"defaultAction": ERRNO, "syscalls": [
            rule(ERRNO, (0, "SCMP_CMP_EQ", 40)), rule(ALLOW, (2, "SCMP_CMP_EQ", 0)),
        ]},
        "AF_VSOCK and AF_SMC",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SECCOMP)
def test_socket_families(what):
    profile, left = SECCOMP[what]
    expected = [f"a seccomp profile that refuses socket(2) for {left}"] if left else []
    assert leaks(DROPPED | {"linux": {"seccomp": profile, "namespaces": APART}}) == expected


LINUX = {"seccomp": refusing(40, 43), "namespaces": APART}


@pytest.mark.parametrize("namespaces", [[], APART[:1], [{"type": "cgroup", "path": "/proc/1/x"}]])
def test_cgroups_above_its_own(namespaces):
    config = DROPPED | {"linux": LINUX | {"namespaces": namespaces}}
    assert leaks(config) == ["--cgroupns private"]


@pytest.mark.parametrize("kind", ["bounding", "effective", "ambient"])
def test_capabilities(kind):
    held = ["CAP_CHOWN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_BPF"]
    config = {"process": {"capabilities": {kind: held}}}
    config["linux"] = LINUX
    assert leaks(config) == ["--cap-drop NET_RAW,BPF,SYS_ADMIN"]


def mount(source, kind="bind", *options):
    return {"destination": "/there", "source": source, "type": kind, "options": list(options)}


def test_file_systems(tmp_path):
    """A host's directory beside those of the kernel's is no matter, one with them in it is."""
    point = mounts.table("cgroup2")[0].point
    config = DROPPED | {"linux": LINUX}
    leading_out = (
        mount("cgroup", "cgroup2"),
        mount(point, "bind", "rbind"),
        mount(f"{point}/x", "none", "bind"),
        mount("/", "bind", "rbind", "rw"),
    )
    for each in leading_out:
        assert leaks(config | {"mounts": [each]}) == ["no /there, or that read-only"], each
        each["options"].append("ro")
        assert leaks(config | {"mounts": [each]}) == []
    harmless = [mount(str(tmp_path), "bind", "rbind"), mount("proc", "proc"), mount("x", "tmpfs")]
    assert leaks(config | {"mounts": harmless}) == []
