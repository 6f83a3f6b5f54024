# SPDX-License-Identifier: Apache-2.0
"""The cluster's key is followed by another one, host by host, while connections are made."""

from __future__ import annotations

import pytest
from lab import Can
from lab.cluster import KEY

pytestmark = pytest.mark.needs(Can.DIRECT)

NEW = bytes(reversed(KEY))


def test_connections_while_the_key_changes(lab, ends):
    client, server = ends
    listener = server.listen(80)
    kept = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    hosts = (client.host, server.host)

    def connects():
        opened = client.connect(server.address, 80)
        assert opened, opened.text
        found, peer = listener.accept()
        assert peer == opened.getsockname()
        found.close()
        opened.close()

    try:
        for keys in ((KEY, NEW), (NEW, KEY), (NEW, None)):
            for host in hosts:
                host.backend.rekey(*keys)
                connects()
                host.backend.rekey(*keys)  # again changes nothing
        kept.send(b"still")
        assert accepted.recv(5) == b"still"
    finally:
        for keys in ((NEW, KEY), (KEY, NEW), (KEY, None)):
            for host in hosts:
                host.backend.rekey(*keys)
    connects()
