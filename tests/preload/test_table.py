# SPDX-License-Identifier: Apache-2.0
"""The table ``[backend.preload]``."""

import pytest

from slimnet.exceptions import ConfigError
from slimnet_preload.options import PreloadOptions


def test_defaults():
    assert PreloadOptions.parse({}) == PreloadOptions(4789, "20000-31999")
    assert PreloadOptions.parse({}).range == range(20000, 32000)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"port": 80}, "backend.preload.port: wanted a port, 1024 to 65535, got 80"),
        ({"port": True}, "backend.preload.port: wanted a port"),
        ({"port": 25000}, "backend.preload.port: wanted one that is not in 20000-31999"),
        ({"ports": "20000"}, "backend.preload.ports: wanted FIRST-LAST, two ports from 1024 to"),
        ({"ports": "31999-20000"}, "backend.preload.ports: wanted FIRST-LAST"),
        ({"ports": "80-90"}, "backend.preload.ports: wanted FIRST-LAST"),
        ({"prot": 4789}, "backend.preload.prot: wanted one of port, ports (did you mean port?)"),
    ],
)
def test_what_will_not_do(table, said):
    with pytest.raises(ConfigError) as caught:
        PreloadOptions.parse(table)
    assert str(caught.value).startswith(said)
