# SPDX-License-Identifier: Apache-2.0
"""Random programs of socket calls, run in endpoints and in plain containers at
the same time: every call has the same result and every name is the same.

Three processes, two of them on one host, each with a few sockets that are
bound, connected, listened on, disconnected and closed in any order. Ports that
the kernel chose are compared by where they appear again.

``SLIMNET_PROGRAMS=500`` runs more of them, from ``SLIMNET_SEED`` on.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import struct

import pytest
from lab import Lab

INET, INET6 = socket.AF_INET, socket.AF_INET6
PORTS = (80, 81, 5000)
STEPS = 30
PROGRAMS = int(os.environ.get("SLIMNET_PROGRAMS", "12"))
SEED = int(os.environ.get("SLIMNET_SEED", "1"))

#: From a loopback address to elsewhere: the family decides which of them.
ALIKE = {"ENETUNREACH": "EINVAL"}


class World:
    """One side of the comparison: a lab, its endpoints, its sockets."""

    def __init__(self, lab):
        self.lab = lab
        self.endpoints = [lab.endpoint(0), lab.endpoint(0), lab.endpoint(1)]
        self.sockets = {}
        self.owners = {}
        self.symbols = {}

    def words(self, value, owner):
        """A result without what may differ: addresses by owner, ports by appearance.

        Of a container each, for two of them may get the same one from the kernel.
        """
        if isinstance(value, tuple) and len(value) >= 2 and isinstance(value[0], str):
            address, port = value[:2]
            for number, endpoint in enumerate(self.endpoints):
                address = address.replace(endpoint.address, f"<{number}>")
                if address in (f"<{number}>", f"::ffff:<{number}>"):
                    owner = number
                    break
            if port and port not in PORTS:
                port = self.symbols.setdefault((owner, port), f"port {len(self.symbols)}")
            return address, port
        return value

    def real(self, target):
        """Address and port for a call, from (owner, form, port)."""
        owner, form, port = target
        address = {
            "own": self.endpoints[owner].address,
            "any": "0.0.0.0",
            "loopback": "127.0.0.1",
        }.get(form)
        if form == "any6":
            address = "::"
        elif form == "loopback6":
            address = "::1"
        if isinstance(port, str):  # the port of that socket
            name = self.sockets[int(port)].getsockname()
            port = name[1]
        return address, port

    def step(self, operation):
        """Do it; its result or errno."""
        what, *rest = operation
        try:
            result = getattr(self, what)(*rest)
            return self.words(result, self.owners[rest[0]])
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, repr(error))
            return ALIKE.get(name, name)

    def new(self, number, owner, family, reuse):
        sock = self.endpoints[owner].socket(family)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, reuse, 1)
        self.sockets[number], self.owners[number] = sock, owner

    def bind(self, number, family, target):
        address, port = self.real(target)
        if family == INET6 and ":" not in address:
            address = f"::ffff:{address}"
        self.sockets[number].bind((address, port))

    def listen(self, number):
        self.sockets[number].listen(16)

    def connect(self, number, family, target):
        address, port = self.real(target)
        if family == INET6 and ":" not in address:
            address = f"::ffff:{address}"
        self.sockets[number].connect((address, port))

    def accept(self, number, child):
        sock = self.sockets[number]
        sock.settimeout(0.2)
        try:
            self.sockets[child], peer = sock.accept()
            self.owners[child] = self.owners[number]
        except TimeoutError:
            return "nobody"
        finally:
            sock.settimeout(None)
        return peer

    def unspec(self, number, owner):
        return self.endpoints[owner].disconnect(self.sockets[number])

    def shutdown(self, number):
        self.sockets[number].shutdown(socket.SHUT_RDWR)

    def reset(self, number):
        sock = self.sockets.pop(number)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def own(self, number):
        return self.sockets[number].getsockname()

    def peer(self, number):
        return self.sockets[number].getpeername()


def program(chance):
    """Operations one by one; it is told what came of each."""
    sockets = {}  # number -> owner, family
    places = {}  # number -> the form of address that it was bound to
    ports = {}  # number -> the port that it was bound to
    # A connect failed, or the socket was disconnected: what getsockname() says
    # then, and whether bind() works again, differs (an endpoint's socket may
    # keep the name that it had).
    vague = set()
    count = 0
    for _ in range(STEPS):
        if len(sockets) < 3 or (len(sockets) < 8 and chance.random() < 0.2):
            owner, family = chance.randrange(3), chance.choice((INET, INET, INET6))
            reuse = chance.choice((0, *[socket.SO_REUSEADDR] * 2, socket.SO_REUSEPORT))
            sockets[count] = (owner, family)
            yield "new", count, owner, family, reuse
            count += 1
            continue
        number = chance.choice(list(sockets))
        owner, family = sockets[number]
        what = chance.choice(OPERATIONS)
        if what == "bind":
            if number in vague:
                continue
            forms = ["own", "any", "loopback"]
            if family == INET6:
                forms = ["own", "loopback", "any6", "loopback6"]
            form = chance.choice(forms)
            target = (owner, form, chance.choice((0, *PORTS)))
            if (yield what, number, family, target) is None:
                places[number], ports[number] = form, target[2]
        elif what == "connect":
            to = chance.choice(list(sockets))
            port = str(to) if chance.random() < 0.8 else chance.choice(PORTS)
            if sockets[to][0] == owner and (
                to == number or ports.get(to, port) == ports.get(number)
            ):
                continue  # TCP's simultaneous open with itself, of no use to anybody
            if family == INET6 and number in vague:
                continue  # the kernel keeps the source address that it had chosen
            forms = ["own"] * 3
            if sockets[to][0] == owner:
                forms.append("loopback")
                if family == INET6 and places.get(number, "any6").endswith("6"):
                    forms.append("loopback6")
            form = chance.choice(forms)
            if places.get(number) == "loopback6" and form != "loopback6":
                continue  # the error depends on the kernel's order of questions
            result = yield what, number, family, (sockets[to][0], form, port)
            if result is None:
                vague.discard(number)
            elif result not in ("EISCONN", "EALREADY"):
                vague.add(number)
        elif what == "accept":
            if isinstance((yield what, number, count), tuple):
                sockets[count] = (owner, family)
                count += 1
        elif what == "unspec":
            yield what, number, owner
            vague.add(number)
        else:
            yield what, number
            if what == "shutdown":
                vague.add(number)
            if what == "reset":
                del sockets[number]
                continue
        if number not in vague:
            yield "own", number
        yield "peer", number


OPERATIONS = (
    *["bind"] * 4,
    *["listen"] * 4,
    *["connect"] * 8,
    *["accept"] * 6,
    *["unspec"] * 2,
    "shutdown",
    "reset",
)


@pytest.fixture(scope="module")
def labs():
    made = [Lab("plain", hosts=2), Lab("ebpf", hosts=2)]
    yield made
    for lab in made:
        lab.close()


@pytest.mark.parametrize("seed", range(SEED, SEED + PROGRAMS))
def test_random_program(labs, seed):
    plain, ebpf = labs
    chance = random.Random(seed)
    with plain.test(), ebpf.test():
        worlds = World(plain), World(ebpf)
        steps = program(chance)
        done = []
        result = None
        while True:
            try:
                operation = steps.send(result)
            except StopIteration:
                break
            wanted, got = (world.step(operation) for world in worlds)
            done.append(f"{operation} -> {wanted}")
            assert wanted == got, "\n".join(["", *done, f"but the endpoint: {got}"])
            result = wanted
