"""The store in PostgreSQL is held to the contract by the published suite, and runs beside the memory store."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, settings

from changefeed.log.postgresql import PostgresqlLogStore
from changefeed.ports import World
from changefeed.settings import Settings
from changefeed.testing.log_lockstep import lockstep_machine
from changefeed.testing.log_restores import check_positions_over_restores
from changefeed.testing.log_scribe import MakeStore
from changefeed.testing.log_suite import LOG_CHECKS, Check
from changefeed.testing.postgresql_server import PostgresqlServer

pytestmark = pytest.mark.postgresql

Copy = Callable[[str, str], Awaitable[None]]
_numbers = itertools.count(1)


def kit(server: PostgresqlServer) -> tuple[MakeStore, Copy]:
    """Places are databases of the server."""
    names: dict[str, str] = {}

    def make_store(place: str, settings: Settings, world: World) -> PostgresqlLogStore:
        if place not in names:
            names[place] = f"place_{next(_numbers)}"
            server.execute(f"CREATE DATABASE {names[place]} TEMPLATE laid_out")
        return PostgresqlLogStore(server.url(names[place]), settings, world=world)

    async def copy(source: str, target: str) -> None:
        names[target] = f"place_{next(_numbers)}"
        server.execute(f"CREATE DATABASE {names[target]} TEMPLATE {names[source]}")

    return make_store, copy


@pytest.fixture
def make_store(server: PostgresqlServer) -> MakeStore:
    return kit(server)[0]


@pytest.mark.parametrize("check", LOG_CHECKS, ids=lambda check: check.__name__)
async def test_postgresql_keeps_the_contract(make_store: MakeStore, check: Check) -> None:
    """Each check of the published suite passes."""
    await check(make_store)


async def test_no_foreign_position_over_restored_databases(server: PostgresqlServer) -> None:
    """Databases put back as a backup is: positions of undone histories are refused, held ones accepted."""
    make_store, copy = kit(server)
    assert await check_positions_over_restores(make_store, copy, 0, histories=("wr", "rw", "arw", "wbrwr")) > 0


def test_postgresql_in_lockstep_with_the_memory_store(server: PostgresqlServer) -> None:
    """Any sequence of steps gets the same answers as from the memory store."""
    case = lockstep_machine(kit(server)[0]).TestCase
    case.settings = settings(
        max_examples=15,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    case().runTest()
