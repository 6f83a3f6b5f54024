# SPDX-License-Identifier: Apache-2.0
"""Runs one of CPython's own test modules, or some of its tests, in that CPython:
``cpython.py MODULE HOST FILE [TEST...]``.

Each test that begins or ends is a line of FILE; those that it names already are left out, so
that one that hangs is passed over by whoever starts this again.
"""

import faulthandler
import sys
import unittest
from pathlib import Path

from test import support
from test.support import socket_helper


class Told(unittest.TestResult):
    """Tests' outcomes, as they come."""

    def __init__(self, file):
        super().__init__()
        self.file = file
        self.worst = ""

    def say(self, outcome, test):
        self.file.write(f"{outcome}\t{test.id()}\n")
        self.file.flush()

    def startTest(self, test):  # noqa: N802
        self.worst = "passes"
        self.say("begins", test)

    def stopTest(self, test):  # noqa: N802
        self.say(self.worst, test)

    def addSuccess(self, test):  # noqa: N802
        """What a subtest said before stands."""

    def tell(self, outcome, test, error):
        self.worst = outcome
        print(test.id(), "".join(self._exc_info_to_string(error, test)), sep="\n", flush=True)

    def addError(self, test, err):  # noqa: N802
        # Of a class or a module that could not be set up, too: each has a name of its own.
        self.tell("fails", test, err)
        if not isinstance(test, unittest.TestCase):
            self.say("fails", test)

    def addFailure(self, test, err):  # noqa: N802
        self.tell("fails", test, err)

    def addSubTest(self, test, subtest, err):  # noqa: N802
        if err is not None:
            self.tell("fails", test, err)

    def addSkip(self, test, reason):  # noqa: N802
        del reason
        self.worst = "skipped"
        if not isinstance(test, unittest.TestCase):
            self.say("skipped", test)

    def addExpectedFailure(self, test, err):  # noqa: N802
        """As good as a success."""

    def addUnexpectedSuccess(self, test):  # noqa: N802
        del test
        self.worst = "fails"


def flat(suite, without):
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from flat(each, without)
        elif not any(word in each.id() for word in without):
            yield each


def main():
    module, host, path, *only = sys.argv[1:]
    faulthandler.enable()
    # What needs the Internet, gigabytes or a sound card is the same with and without.
    support.use_resources = ["cpu", "subprocess", "walltime"]
    socket_helper.HOST = socket_helper.HOSTv4 = host
    socket_helper.bind_port.__defaults__ = (host,)
    done = {line.split("\t")[1] for line in Path(path).read_text().splitlines()}
    # vsock(7) knows no network namespaces: two runs would meet there.
    without = ["VSOCKSocketStream"]
    if host != "localhost":
        without.append("UDP")  # refused at sendto(2), for which its server waits for ever
    tests = unittest.defaultTestLoader.loadTestsFromName(module)
    suite = unittest.TestSuite(
        each
        for each in flat(tests, without)
        if each.id() not in done and (not only or each.id() in only)
    )
    with open(path, "a") as file:
        suite.run(Told(file))


main()
