"""One PostgreSQL server for the tests of this folder; each test has databases of its own on it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from changefeed.log.postgresql.connections import Server
from changefeed.log.postgresql.layout import lay_out
from changefeed.testing.postgresql_server import PostgresqlServer

# Tests are imported by path, not as a package: this lets them share outbox_hand.py.
sys.path.insert(0, str(Path(__file__).parent))

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresqlServer]:
    """A server of this run. Its database `laid_out` holds empty tables: others are copied from it."""
    with PostgresqlServer.starting() as running:
        running.execute("CREATE DATABASE laid_out")
        lay_out(Server(running.url("laid_out"), 5.0))
        yield running


@pytest.fixture
def database(server: PostgresqlServer) -> str:
    """The URL of an empty log in a database of its own."""
    name = f"test_{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE laid_out")
    return server.url(name)
