# SPDX-License-Identifier: Apache-2.0
"""What of two snapshots of a machine a backend has left behind."""

from slimnet.testing._snapshot import differences

BEFORE = frozenset({"sysctl /proc/sys/net/ipv4/ip_forward 0", "device 1: lo"})


def test_a_setting_that_changed_and_a_device_that_stayed():
    after = {"sysctl /proc/sys/net/ipv4/ip_forward 1", "device 1: lo", "device 2: left"}
    assert differences(BEFORE, frozenset(after)).splitlines() == [
        "left behind: device 2: left",
        "left behind: sysctl /proc/sys/net/ipv4/ip_forward 1",
        "gone: sysctl /proc/sys/net/ipv4/ip_forward 0",
    ]


def test_settings_of_a_module_that_the_kernel_loaded_meanwhile():
    """``nft`` loads conntrack where nobody has used it since the boot."""
    loaded = {"sysctl /proc/sys/net/netfilter/nf_conntrack_max 65536"}
    assert differences(BEFORE, BEFORE | loaded) == ""
