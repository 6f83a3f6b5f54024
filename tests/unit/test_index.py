# SPDX-License-Identifier: Apache-2.0
"""``import slimnet``: an index, and a quick one."""

import ast
import subprocess
import sys
from pathlib import Path

import slimnet
from slimnet import exceptions

TREE = ast.parse(Path(slimnet.__file__).read_text())


def test_all_is_what_can_be_imported():
    assert sorted(slimnet.__all__) == slimnet.__all__
    assert {name: getattr(slimnet, name) for name in slimnet.__all__}
    assert dir(slimnet) == slimnet.__all__
    assert set(slimnet._MODULE) == set(slimnet.__all__)


def test_type_checkers_see_the_same():
    """What is imported lazily and what is imported for mypy do not drift apart."""
    seen = {
        (node.module, alias.name)
        for statement in TREE.body
        if isinstance(statement, ast.If)
        for node in ast.walk(statement)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {(module, name) for name, module in slimnet._MODULE.items()}


def test_every_exception_is_there():
    assert set(exceptions.__all__) <= set(slimnet.__all__)


def test_unknown_name():
    try:
        slimnet.nothing  # noqa: B018
    except AttributeError as error:
        assert "nothing" in str(error)
    else:
        raise AssertionError


def imported(statement):
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_import_costs_little():
    """pyroute2 alone takes 125 ms: not for who imports the library or is its client."""
    loaded = imported("import slimnet")
    assert not loaded & {"pyroute2", "netaddr", "stevedore", "yaml", "slimnet.model"}
    loaded = imported("import slimnet; slimnet.Node")
    assert not loaded & {"pyroute2", "yaml", "http.server", "sqlite3"}


def test_an_agent_asks_every_backend_for_little():
    """What runs here it asks each that is installed; the one that makes devices imports what
    makes them when it does."""
    loaded = imported("import slimnet.agent, slimnet_ebpf, slimnet_noop")
    assert not loaded & {"pyroute2", "asyncio"}
