# SPDX-License-Identifier: Apache-2.0
"""CPython's own tests of sockets on loopback, with the shim and without it: what differs.

    sudo .venv/bin/python tests/preload/cpython.py [TEST_MODULE...] [--python PYTHON]

The Python needs the package ``test`` (pyenv's have it, Debian's libpython3-testsuite). Exits
with 1 where something differs that :data:`DIFFERENT` does not know, or does not any more.
"""

import argparse
import re
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from bench import Bench, bench, make

MODULES = ("test_select", "test_selectors", "test_socket", "test_ssl", "test_asyncio")

#: By a pattern of ``module.class.test``: why the shim's answer is another one.
DIFFERENT: dict[str, str] = {}


def read(report: Path) -> dict[str, str]:
    found = {}
    for case in ET.parse(report).iter("testcase"):
        name = case.get("name", "")
        said = "ok"
        for kind in ("skipped", "failure", "error"):
            for child in case.findall(kind):
                lines = (child.text or child.get("message") or "").strip().splitlines()
                said = "skipped" if kind == "skipped" else (lines or [kind])[-1]
        found[name] = said
    return found


def run(made: Bench, python: str, module: str, shim: bool, directory: Path) -> dict[str, str]:
    report = directory / f"{module}.{shim}.xml"
    words = [python, "-m", "test", "--timeout", "300", "--junit-xml", str(report), module]
    process = made.popen(1 if shim else None, words, host=made.hosts[0])
    process.communicate()
    return read(report)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    unknown, used = 0, set()
    with tempfile.TemporaryDirectory(prefix="slt-") as name:
        directory = Path(name)
        with bench(directory, make(directory / "programs"), 1, 4) as made:
            for module in options.modules:
                without = run(made, options.python, module, False, directory)
                under = run(made, options.python, module, True, directory)
                passed = [test for test, said in without.items() if said == "ok"]
                other = [test for test in passed if under.get(test) != "ok"]
                print(f"{module}: {len(passed)} pass without the shim, {len(other)} not under it")
                for test in sorted(other):
                    known = [each for each in DIFFERENT if re.search(each, test)]
                    used.update(known[:1])
                    why = DIFFERENT[known[0]] if known else "UNKNOWN"
                    unknown += not known
                    print(f"  {test}: {under.get(test, 'not run')}\n    {why}")
    if tuple(options.modules) == MODULES:
        for each in DIFFERENT.keys() - used:
            unknown += 1
            print(f"nothing differs any more for {each}")
    return int(unknown > 0)


if __name__ == "__main__":
    sys.exit(main())
