# SPDX-License-Identifier: Apache-2.0
"""Names and datagrams as the libraries of languages have them, each with habits of its own:
which options they set, what they connect to and whose errors they give back."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.container

PROGRAMS = Path(__file__).parent / "programs"
PATH = "/usr/local/go/bin:/usr/local/bin:/usr/bin:/bin"
PORT = 5354

#: What each needs of the machine, and how many answers to a name and to a datagram it prints.
LANGUAGES = {
    "musl": ("musl-gcc", 1, 1),  # asks by a connect of a UDP socket whether there is IPv4
    "glibc": ("gcc", 1, 1),
    "go": ("go", 1, 2),  # sets SO_BROADCAST on each, and gives the error back
    "node": ("node", 2, 2),
    "java": ("javac", 1, 2),
    "python": ("python3", 1, 2),
}


def _answer_names(sock):
    """A name server that knows one IPv4 address, of every name."""
    while True:
        try:
            query, client = sock.recvfrom(512)
        except OSError:
            return
        end = query.index(b"\0", 12) + 5
        found = query[end - 4 : end - 2] == b"\0\1"
        head = query[:2] + b"\x81\x80\0\1" + bytes([0, found]) + b"\0\0\0\0"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton("192.0.2.99")
        sock.sendto(head + query[12:end] + (record if found else b""), client)


def _answer(sock):
    while True:
        try:
            data, client = sock.recvfrom(512)
        except OSError:
            return
        sock.sendto(b"answer" if data == b"question" else b"what?", client)


@pytest.fixture
def outside(lab):
    """A name server and somebody who answers, outside of every overlay."""
    socks = []
    for port, how in ((53, _answer_names), (PORT, _answer)):
        sock = lab.outside.root.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", port))
        lab.outside.root.start(how, sock)
        socks.append(sock)
    yield lab.outside.address
    for sock in socks:
        sock.close()


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_and_datagrams(lab, built, outside, tmp_path, language):
    """The resolver that a static Go program brings along, musl's with AI_ADDRCONFIG, c-ares:
    all have their answer from a name server outside, and so has a datagram of theirs."""
    tool, names, datagrams = LANGUAGES[language]
    if shutil.which(tool, path=PATH) is None:
        pytest.skip(f"needs {tool}: run testbed/setup")
    endpoint = lab.endpoint()
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(f"nameserver {outside}\noptions timeout:2 attempts:2\n")
    program = [sys.executable, PROGRAMS / "names.py"]
    if language != "python":
        program = built(f"names of {language}")
    # A mount namespace of its own, for its own name server.
    script = 'mount --bind "$0" "$(realpath /etc/resolv.conf)" && exec "$@"'
    output = endpoint.run(
        ["unshare", "--mount", "sh", "-c", script, resolv]
        + [*program, "where.example.test", outside, PORT]
    )
    assert ["192.0.2.99"] * names + ["answer"] * datagrams == output.split("\n")[:-1]
