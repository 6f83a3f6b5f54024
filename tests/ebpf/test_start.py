# SPDX-License-Identifier: Apache-2.0
"""Starting, adopting, refusing, tearing down."""

import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve
from machine import NETWORK, endpoint

from slimnet import (
    AbiMismatch,
    BackendError,
    BackendUnavailable,
    ConfigError,
    InUse,
    contract,
    model,
)
from slimnet.linux import mounts, sysctl
from slimnet.linux.netns import enter
from slimnet.tables import Tables
from slimnet_ebpf import EbpfBackend, filters, libbpf, requirements
from slimnet_ebpf import backend as backend_module
from slimnet_ebpf import contract as private

pytestmark = pytest.mark.root


def test_probe_says_yes_and_leaves_nothing(machine):
    before = machine.left()
    answer = EbpfBackend.probe()
    assert answer.answer is model.Answer.YES, answer
    assert before == machine.left()


def test_probe_names_a_missing_object(monkeypatch, tmp_path):
    monkeypatch.setattr(EbpfBackend, "object_path", tmp_path / "slimnet.bpf.o")
    answer = EbpfBackend.probe()
    assert answer.answer is model.Answer.NO
    assert answer.reason.endswith("slimnet.bpf.o is missing")
    assert "make" in answer.remedy


def test_probe_names_an_object_of_another_contract(monkeypatch):
    monkeypatch.setattr(contract, "FINGERPRINT", contract.FINGERPRINT ^ 1)
    answer = EbpfBackend.probe()
    assert answer.answer is model.Answer.NO
    assert "was built from contract" in answer.reason


def test_probe_of_a_file_that_is_no_object(monkeypatch, tmp_path):
    (tmp_path / "slimnet.bpf.o").write_bytes(b"no ELF")
    monkeypatch.setattr(EbpfBackend, "object_path", tmp_path / "slimnet.bpf.o")
    answer = EbpfBackend.probe()
    assert answer.answer is model.Answer.NO
    assert "slimnet.bpf.o" in answer.reason


def test_a_kernel_that_does_not_take_the_data_path(machine, monkeypatch, tmp_path):
    """A start finds it out by itself: it is not loaded twice. What it says is what the probe
    says, and nothing is left."""
    before = machine.left()
    sections = subprocess.run(
        ["readelf", "-SW", requirements.OBJECT], capture_output=True, text=True, check=True
    ).stdout
    (offset,) = re.findall(r" cgroup/connect4 +PROGBITS +\S+ (\S+) ", sections)
    spoilt = bytearray(requirements.OBJECT.read_bytes())
    spoilt[int(offset, 16)] = 0xFF  # an instruction that there is not
    (tmp_path / "slimnet.bpf.o").write_bytes(spoilt)
    monkeypatch.setattr(EbpfBackend, "object_path", tmp_path / "slimnet.bpf.o")
    assert EbpfBackend.look().answer is model.Answer.YES
    answer = EbpfBackend.probe()
    assert answer.answer is model.Answer.NO
    assert "does not take the data path: load slimnet.bpf.o: Invalid argument" in answer.reason
    with pytest.raises(BackendUnavailable) as said:
        machine.start()
    assert str(said.value) == f"{answer.reason} ({answer.remedy})"
    assert machine.left() == before


def test_probe_warns_of_a_port_that_anybody_can_take(machine):
    machine.set_sysctl("net.ipv4.ip_unprivileged_port_start", 0)
    with enter(machine.netns):
        answer = EbpfBackend.probe()
    assert answer.answer is model.Answer.YES
    assert "473" in answer.reason
    assert "ip_unprivileged_port_start=474" in answer.remedy


def test_probe_says_what_this_kernel_leaves_open(machine):
    """Each gap with what closes it; where there is none it says nothing."""
    with enter(machine.netns):
        answer = EbpfBackend.probe()
        gaps = requirements.gaps()
        there = sysctl.exists(requirements.TSTAMP)
    assert answer.answer is model.Answer.YES
    assert ("IP_PKTINFO" in answer.reason) != requirements.knows(requirements.CASTS)
    assert ("tstamp_allow_data=0" in answer.remedy) != there
    assert answer.remedy == "; ".join(gap.remedy for gap in gaps)
    assert all(f"; but {gap.what}" in answer.reason for gap in gaps)


def test_a_kernel_that_leaves_everything_open(machine, monkeypatch):
    """As Linux 6.1: it starts, does without, and leaves nothing behind."""
    knows, exists = requirements.knows, sysctl.exists
    monkeypatch.setattr(
        requirements, "knows", lambda name: name != requirements.CASTS and knows(name)
    )
    monkeypatch.setattr(sysctl, "exists", lambda name: name != requirements.TSTAMP and exists(name))
    with enter(machine.netns):
        assert len(requirements.gaps()) == 2
    before = machine.left()
    backend = machine.start()
    assert machine.tstamp_allow_data() is None
    backend.teardown()
    assert machine.left() == before


def test_probe_without_privilege():
    found = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable]
        + ["-c", "from slimnet_ebpf import EbpfBackend; print(EbpfBackend.probe())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Answer.NO" in found.stdout
    assert "CAP_BPF and CAP_NET_ADMIN" in found.stdout


def test_probe_without_libbpf(monkeypatch):
    monkeypatch.setattr(libbpf, "SONAME", "libnosuchbpf.so.1")
    libbpf.library.cache_clear()
    try:
        answer = EbpfBackend.probe()
    finally:
        libbpf.library.cache_clear()
    assert answer.answer is model.Answer.NO
    assert answer.reason.startswith("libnosuchbpf.so.1")
    assert "libbpf1" in answer.remedy


def test_probe_names_the_capabilities_that_are_missing(monkeypatch):
    read = Path.read_text
    none = "CapEff:\t0000000000000000\n"
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path, *rest: none if str(path) == "/proc/self/status" else read(path, *rest),
    )
    answer = EbpfBackend.probe()
    assert answer.answer is model.Answer.NO
    assert "CAP_BPF and CAP_NET_ADMIN" in answer.reason
    assert answer.remedy


def test_probe_names_a_machine_without_cgroup_v2(monkeypatch, tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text("22 28 0:21 / /proc rw - proc proc rw\n")
    monkeypatch.setattr(mounts, "TABLE", str(table))
    answer = EbpfBackend.probe()
    assert answer.answer is model.Answer.NO
    assert answer.reason == "cgroup v2 is not mounted"
    assert answer.remedy.startswith("mount -t cgroup2")


def test_probe_names_a_kernel_without_btf(monkeypatch, tmp_path):
    monkeypatch.setattr(requirements, "_BTF", tmp_path / "vmlinux")
    answer = EbpfBackend.probe()
    assert answer.answer is model.Answer.NO
    assert answer.reason.endswith("vmlinux is missing")
    assert "CONFIG_DEBUG_INFO_BTF" in answer.remedy


def test_probe_names_an_old_kernel(monkeypatch):
    monkeypatch.setattr(requirements.platform, "release", lambda: "5.10.0-28-amd64")
    answer = EbpfBackend.probe()
    assert answer.answer is model.Answer.NO
    assert "5.10.0-28-amd64 is too old" in answer.reason


def test_without_ipv6(machine):
    machine.set_sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    before = machine.left()
    backend = machine.start()
    assert "local 240.0.0.0/4" in machine.left()["routes"]
    backend.teardown()
    assert before == machine.left()


def test_what_is_on_the_host_while_it_runs(machine):
    machine.start()
    left = machine.left()
    assert "local 240.0.0.0/4 dev lo" in left["routes"]
    assert any("fd73:6c69:6d6e:6574::/64" in line for line in left["routes6"])
    assert left["arp_announce"] == "2"
    assert left["tstamp_allow_data"] in ("0", None)
    if requirements.knows("tcx_prog_attach"):
        assert left["tcx"] == ["slim_tc_ingress", "slim_tc_egress"]
        assert "clsact" not in left["qdisc"]
    else:
        assert "slim_tc_ingress" in left["ingress"]
        assert "slim_tc_egress" in left["egress"]
    assert left["lookups"] == 1


@pytest.fixture
def without_tcx(monkeypatch):
    """As on Linux before 6.6: filters on a clsact qdisc."""
    monkeypatch.setattr(filters, "link", lambda *_: False)


@pytest.mark.usefixtures("without_tcx")
def test_without_tcx(machine):
    before = machine.left()
    backend = machine.start()
    left = machine.left()
    assert "clsact" in left["qdisc"]
    assert "slim_tc_ingress" in left["ingress"]
    assert "slim_tc_egress" in left["egress"]
    backend.close()
    machine.start().teardown()
    assert before == machine.left()


def test_a_start_needs_no_pyroute2(machine):
    """To import it takes longer than the rest of a start's Python."""
    if not requirements.knows("tcx_prog_attach"):
        pytest.skip("without tcx it makes the qdisc")
    code = (
        "import pickle, sys\n"
        "from slimnet_ebpf import EbpfBackend\n"
        "backend = EbpfBackend(pickle.load(sys.stdin.buffer))\n"
        "backend.tend()\n"
        "backend.teardown()\n"
        "print('pyroute2' in sys.modules)\n"
    )
    done = subprocess.run(
        ["nsenter", f"--net={machine.netns}", sys.executable, "-c", code],
        input=pickle.dumps(machine.context),
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"False\n"


def test_teardown_leaves_nothing(machine):
    before = machine.left()
    backend = machine.start()
    backend.attach(endpoint(1), NETWORK)
    backend.install(Tables(1))
    assert before != machine.left()
    backend.teardown()
    assert before == machine.left()
    assert not machine.pins.exists()


def test_what_the_host_had_is_kept(machine):
    """A clsact with somebody's filter, and a sysctl of the host's own."""
    machine.tc("qdisc add dev eth0 clsact")
    machine.tc("filter add dev eth0 ingress prio 7 u32 match u32 0 0 flowid 1:1")
    machine.set_sysctl("net.ipv4.conf.eth0.arp_announce", 1)
    before = machine.left()
    backend = machine.start()
    assert machine.sysctl("net.ipv4.conf.eth0.arp_announce") == "2"
    backend.teardown()
    assert before == machine.left()


@pytest.mark.usefixtures("without_tcx")
def test_a_filter_that_would_run_first_is_named(machine):
    """It may end the chain: then SYNs would pass the data path by."""
    machine.tc("qdisc add dev eth0 clsact")
    machine.tc("filter add dev eth0 ingress prio 1 u32 match u32 0 0 flowid 1:1")
    before = machine.left()
    with pytest.raises(BackendError, match="tc filter with priority 1"):
        machine.start()
    assert before == machine.left()


@pytest.mark.usefixtures("without_tcx")
def test_somebody_elses_filter_keeps_our_clsact(machine):
    backend = machine.start()
    machine.tc("filter add dev eth0 egress prio 7 u32 match u32 0 0 flowid 1:1")
    backend.teardown()
    assert "u32" in machine.left()["egress"]
    assert "slim" not in machine.left()["egress"]


def test_a_new_process_adopts(machine):
    first = machine.start()
    one = first.attach(endpoint(1), NETWORK)
    first.install(Tables(5))
    running = machine.left()
    first.close()
    assert running == machine.left()
    second = machine.start()
    assert running == machine.left()
    assert second.status().generation == 5
    assert second.status().endpoints == {101}
    assert second.attach(endpoint(1), NETWORK) == one


def test_two_processes_hold_one_data_path(machine):
    first, second = machine.start(), machine.start()
    first.install(Tables(2))
    assert second.status().generation == 2
    second.attach(endpoint(1), NETWORK)
    assert first.status().endpoints == {101}


def test_another_contract_is_refused_and_nothing_changed(machine, monkeypatch):
    backend = machine.start()
    backend.attach(endpoint(1), NETWORK)
    backend.install(Tables(5))
    backend.close()
    running = machine.left()
    for module, name, value in (
        (contract, "FINGERPRINT", 1),
        (contract, "SLIM_ABI_VERSION", 99),
        (private, "FINGERPRINT", 1),
    ):
        with monkeypatch.context() as other:
            other.setattr(module, name, value)
            with pytest.raises(AbiMismatch, match=machine.name):
                machine.start()
        assert running == machine.left()
    assert machine.start().status().generation == 5


def test_a_data_path_without_a_map_is_none(machine):
    with machine.start():
        pass
    (machine.pins / "maps" / "slim_policy").unlink()
    with pytest.raises(AbiMismatch, match="slim_policy is missing"):
        machine.start()


def test_an_object_of_another_contract_is_not_loaded(machine, monkeypatch):
    before = machine.left()
    monkeypatch.setattr(contract, "FINGERPRINT", 1)
    with pytest.raises(AbiMismatch, match="was built from contract"):
        machine.start()
    assert before == machine.left()


def test_the_data_path_says_what_it_was_built_from(machine):
    prints = f"{contract.FINGERPRINT_HEX}.{private.FINGERPRINT_HEX}"
    assert machine.start().status().abi == f"{contract.SLIM_ABI_VERSION}/{prints}"


def test_wrong_configurations_change_nothing(machine):
    before = machine.left()
    wrong = [
        {"interface": "eth7"},
        {"options": {"inner": 1}},
        {"instance": "a.b"},
        {"key": b"short"},
        {"host": evolve(machine.context.host, address="fd00::1")},
    ]
    for change in wrong:
        with pytest.raises(ConfigError):
            machine.start(**change)
        assert before == machine.left()


def test_a_start_that_fails_leaves_nothing(machine):
    """What it would have been without lo, nobody wants."""
    machine.ip("link set lo down")
    before = machine.left()
    with pytest.raises(BackendError, match="lo is down"):
        machine.start()
    assert before == machine.left()


def test_a_start_that_fails_before_it_touches_the_host(machine, monkeypatch):
    """While what was pinned is opened: the error is that one, and nothing is left."""

    def no(*_):
        raise OSError(24, "Too many open files")

    before = machine.left()
    monkeypatch.setattr(backend_module, "SocketDiagnosis", no)
    with pytest.raises(OSError, match="Too many open files"):
        machine.start()
    assert before == machine.left()
    assert not machine.pins.exists()


def test_options_of_a_running_data_path_stay(machine):
    machine.start().close()
    with pytest.raises(ConfigError, match="backend.ebpf.wire_ports"):
        machine.start(options={"wire_ports": 5000})
    with pytest.raises(ConfigError, match="backend.ebpf.inner_range"):
        machine.start(options={"inner_range": "224.0.0.0/4"})
    machine.start(options={"held_ports": 7})


def test_one_instance_serves_a_namespace(machine):
    machine.start()
    with pytest.raises(BackendError, match="another instance of slimnet serves"):
        machine.start(instance=f"{machine.name}-other")
    assert not machine.pins.with_name(f"{machine.name}-other").exists()


def test_an_instance_serves_one_namespace(machine):
    machine.start()
    with pytest.raises(BackendError, match="another network namespace"):
        EbpfBackend(evolve(machine.context, interface="lo"))


def test_a_new_interface_of_the_old_name(machine):
    """The interface went and came back: its programs are attached again."""
    machine.start().close()
    machine.ip("link del eth0")
    machine.ip("link add dummy9 type veth peer name eth0")
    machine.ip("address add 192.0.2.1/24 dev eth0")
    before = machine.left()
    backend = machine.start()
    assert "slim_tc_ingress" in machine.left()["tcx"]
    backend.teardown()
    after = machine.left()
    assert (before["qdisc"], before["arp_announce"]) == (after["qdisc"], after["arp_announce"])


def test_teardown_refuses_while_there_are_processes(machine):
    backend = machine.start()
    attachment = backend.attach(endpoint(1), NETWORK)
    backend.attach(endpoint(2), NETWORK)
    process = machine.process(attachment.cgroup)
    running = machine.left()
    with pytest.raises(InUse, match="101"):
        backend.teardown()
    assert running == machine.left()
    process.kill()
    process.wait()
    backend.teardown()
    assert not machine.pins.exists()


def test_closed_means_closed(machine):
    backend = machine.start()
    backend.close()
    backend.close()
    for call in (
        backend.status,
        backend.teardown,
        backend.connections,
        lambda: backend.events(0),
        backend.tend,
        lambda: backend.detach(1),
        lambda: backend.observe(enabled=True),
        lambda: backend.install(Tables(1)),
        lambda: backend.attach(endpoint(1), NETWORK),
    ):
        with pytest.raises(BackendError, match="closed"):
            call()


@pytest.mark.parametrize("held", ["", "7,4880-4900"])
def test_the_kernel_gives_wire_ports_to_nobody(machine, held):
    """Who binds to port 0 would hear nothing there; what others have reserved stays so."""
    reserved = "net.ipv4.ip_local_reserved_ports"
    machine.set_sysctl(reserved, f'"{held}"')
    # Even in number: of an odd number of ports the kernel leaves one out of its search.
    machine.set_sysctl("net.ipv4.ip_local_port_range", '"4790 4887"')
    backend = machine.start()
    assert machine.sysctl(reserved) == ("7,4790-4900" if held else "4790-4885")
    with enter(machine.netns), socket.socket() as sock:
        if held:
            with pytest.raises(OSError, match="Address already in use"):
                sock.bind(("0.0.0.0", 0))
        else:
            sock.bind(("0.0.0.0", 0))
            assert sock.getsockname()[1] in (4886, 4887)
    backend.close()
    backend = machine.start()  # adopted
    assert machine.sysctl(reserved) == ("7,4790-4900" if held else "4790-4885")
    backend.teardown()
    assert machine.sysctl(reserved) == held
