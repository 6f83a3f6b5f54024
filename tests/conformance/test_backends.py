# SPDX-License-Identifier: Apache-2.0
"""Every backend keeps every clause of slimnet.abc.Backend."""

import contextlib
import functools
import importlib
import os

import pytest
from attrs import evolve

from slimnet.model import Answer
from slimnet.testing import BACKEND_CLAUSES, MemoryBackend, check_backend
from slimnet.testing._stage import probed


@contextlib.contextmanager
def memory_mismatch(context):
    path = MemoryBackend.running[context.instance]
    path.abi += 1
    try:
        yield
    finally:
        path.abi -= 1


@contextlib.contextmanager
def noop_mismatch(context):
    """The host's table says that another version made it."""
    from slimnet.fallback import Outside, Stamp
    from slimnet.linux import netns

    outside = Outside(context.instance, netns.own(), context.interface, context.host.address, 4789)
    stamp = outside.stamp()
    outside.write(Stamp(stamp.abi + 1, stamp.generation))
    try:
        yield
    finally:
        outside.write(stamp)


@contextlib.contextmanager
def ebpf_mismatch(context):
    """The record that is pinned beside the maps says another fingerprint."""
    from slimnet_ebpf.pins import Pins

    pins = Pins(context.instance)
    fingerprint = pins.record()["fingerprint"]
    pins.write_record(fingerprint=fingerprint ^ 1)
    try:
        yield
    finally:
        pins.write_record(fingerprint=fingerprint)


@contextlib.contextmanager
def kmod_mismatch(context):
    """The module is what it is, so its driver is the one that is of another contract."""
    from slimnet import contract

    fingerprint = contract.FINGERPRINT
    contract.FINGERPRINT ^= 1
    try:
        yield
    finally:
        contract.FINGERPRINT = fingerprint


@contextlib.contextmanager
def preload_mismatch(context):
    """The instance's record says another ABI."""
    from slimnet_preload.record import InstanceRecord

    record = InstanceRecord.read(context.state)
    evolve(record, abi="0").write(context.state)
    try:
        yield
    finally:
        record.write(context.state)


@functools.cache  # a probe loads the data path, which takes its time on a slow machine
def needs(module, name):
    """The backend, or a skip that says what is missing."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        backend = getattr(importlib.import_module(module), name)
    except ImportError as error:
        pytest.skip(f"{module} cannot be imported: {error}")
    found = probed(backend)
    if found.answer is not Answer.YES:
        pytest.skip(f"{backend.name}: {found.reason}")
    return backend


@pytest.mark.parametrize("clause", BACKEND_CLAUSES)
def test_memory(clause):
    check_backend(
        MemoryBackend, mismatch=memory_mismatch, reach=MemoryBackend.reach, clauses=[clause]
    )
    assert not MemoryBackend.running


@pytest.mark.parametrize("clause", BACKEND_CLAUSES)
def test_noop(clause):
    check_backend(needs("slimnet_noop", "NoopBackend"), mismatch=noop_mismatch, clauses=[clause])


@pytest.mark.module
@pytest.mark.parametrize("clause", BACKEND_CLAUSES)
def test_kmod(clause):
    check_backend(needs("slimnet_kmod", "KmodBackend"), mismatch=kmod_mismatch, clauses=[clause])


@pytest.mark.parametrize("clause", BACKEND_CLAUSES)
def test_ebpf_netns(clause):
    """Where endpoints have network namespaces of their own."""
    check_backend(
        needs("slimnet_ebpf", "EbpfBackend"),
        options={"placement": "netns"},
        mismatch=ebpf_mismatch,
        clauses=[clause],
    )


@pytest.mark.parametrize("clause", BACKEND_CLAUSES)
def test_ebpf(clause):
    check_backend(needs("slimnet_ebpf", "EbpfBackend"), mismatch=ebpf_mismatch, clauses=[clause])


@pytest.mark.parametrize("clause", BACKEND_CLAUSES)
def test_preload(clause):
    check_backend(
        needs("slimnet_preload", "PreloadBackend"), mismatch=preload_mismatch, clauses=[clause]
    )
