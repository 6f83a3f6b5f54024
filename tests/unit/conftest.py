# SPDX-License-Identifier: Apache-2.0
"""Fixtures of several files here."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable

import pytest

from slimnet.store.sqlite import SqliteStore


@pytest.fixture
def run_out(store: SqliteStore) -> Callable[[], None]:
    """Ends the time of all leases there are, whatever the machine does beside."""

    def end():
        with contextlib.closing(sqlite3.connect(store.path, timeout=30)) as connection, connection:
            connection.execute("UPDATE lease SET expires=0")

    return end
