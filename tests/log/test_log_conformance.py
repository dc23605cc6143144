"""Every store is held to the contract by the published suite, and runs beside the memory store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings

from changefeed.log.memory import MemoryLogStore, MemoryPlace
from changefeed.log.sqlite import SqliteLogStore
from changefeed.ports import World
from changefeed.settings import Settings
from changefeed.testing.log_lockstep import lockstep_machine
from changefeed.testing.log_restores import check_positions_over_restores
from changefeed.testing.log_scribe import MakeStore
from changefeed.testing.log_suite import LOG_CHECKS, Check, check_log_store

Copy = Callable[[str, str], Awaitable[None]]


def memory_kit() -> tuple[MakeStore, Copy]:
    places: dict[str, MemoryPlace] = {}

    def make_store(place: str, settings: Settings, world: World) -> MemoryLogStore:
        return MemoryLogStore(places.setdefault(place, MemoryPlace()), settings, world=world)

    async def copy(source: str, target: str) -> None:
        places[target] = places[source].copy()

    return make_store, copy


def sqlite_kit(directory: Path) -> tuple[MakeStore, Copy]:
    def make_store(place: str, settings: Settings, world: World) -> SqliteLogStore:
        return SqliteLogStore(f"sqlite:{directory / place}", str(directory / place), settings, world=world)

    async def copy(source: str, target: str) -> None:
        shutil.rmtree(directory / target, ignore_errors=True)
        shutil.copytree(directory / source, directory / target)

    return make_store, copy


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    return (memory_kit() if request.param == "memory" else sqlite_kit(tmp_path))[0]


@pytest.mark.parametrize("check", LOG_CHECKS, ids=lambda check: check.__name__)
async def test_store_keeps_the_contract(make_store: MakeStore, check: Check) -> None:
    """Each check of the published suite passes on each store."""
    await check(make_store)


async def test_suite_as_one_call_names_the_check_that_fails() -> None:
    """check_log_store runs all checks; a store that breaks a promise is named with the check that saw it."""

    class Forgetful(MemoryLogStore):
        async def feeds(self) -> list[str]:
            return []

    place = MemoryPlace()
    with pytest.raises(AssertionError, match="check_opening"):
        await check_log_store(lambda name, settings, world: Forgetful(place, settings, world=world))


async def test_no_foreign_position_over_restores_in_memory() -> None:
    """Every history of seven steps with restores: positions of undone histories are refused, held ones accepted."""
    make_store, copy = memory_kit()
    assert await check_positions_over_restores(make_store, copy, 5) > 3_000


async def test_no_foreign_position_over_restores_of_files(tmp_path: Path) -> None:
    """The same with real files, put back as a backup is."""
    make_store, copy = sqlite_kit(tmp_path)
    assert await check_positions_over_restores(make_store, copy, 2) > 0


async def test_restores_need_the_terms_random_id() -> None:
    """With equal ids for terms of one number the check finds a foreign position that is accepted (review 1)."""
    make_store, copy = memory_kit()
    with pytest.raises(AssertionError, match="meant"):
        await check_positions_over_restores(make_store, copy, 3, lambda number: "0badcafe")


@pytest.fixture(scope="module")
def lockstep_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_lockstep_with_the_memory_store(kind: str, lockstep_directory: Path) -> None:
    """Any sequence of steps gets the same answers from a store as from the memory store."""
    make_store = (sqlite_kit(lockstep_directory) if kind == "sqlite" else memory_kit())[0]
    case = lockstep_machine(make_store).TestCase
    case.settings = settings(
        max_examples=25,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    case().runTest()


def test_lockstep_sees_a_store_that_differs() -> None:
    """A candidate that trims one seq too far is caught."""

    class Eager(MemoryLogStore):
        async def open(self, feed: str, *, create: bool = True):  # type: ignore[no-untyped-def]
            log = await super().open(feed, create=create)
            trim = log.trim
            log.trim = lambda epoch, term, up_to: trim(epoch, term, up_to + 1)  # type: ignore[method-assign]
            return log

    places: dict[str, MemoryPlace] = {}
    machine = lockstep_machine(
        lambda place, settings, world: Eager(places.setdefault(place, MemoryPlace()), settings, world=world)
    )
    machine.TestCase.settings = settings(
        max_examples=200,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
    )
    with pytest.raises(AssertionError, match="candidate"):
        machine.TestCase().runTest()


def test_trio_is_not_needed_to_make_stores(tmp_path: Path) -> None:
    """Stores and URLs are made outside a trio run, and a store may serve several runs one after another."""
    store = SqliteLogStore("sqlite:x", str(tmp_path / "x"))

    async def use() -> str:
        log = await store.open("vmapi")
        await log.aclose()
        return log.lineage

    assert trio.run(use) == trio.run(use)
