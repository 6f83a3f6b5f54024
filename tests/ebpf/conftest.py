# SPDX-License-Identifier: Apache-2.0
"""A host for each test that asks for one."""

import os

import pytest

from slimnet_ebpf import requirements


@pytest.fixture
def machine():
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not requirements.OBJECT.exists():
        pytest.skip(f"needs {requirements.OBJECT.name}: make -C backends/ebpf")
    from machine import Machine

    machine = Machine()
    try:
        yield machine
    finally:
        machine.undo.close()
