"""changefeed.publish(): what applications commit is moved into the feed once, in order, in whole groups."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import trio
from outbox_hand import FEED, feed_log, ids, take

from changefeed.change import FeedSettings, Resource
from changefeed.errors import TailMoved
from changefeed.instance import Instance, open_instance
from changefeed.log import OUTBOX
from changefeed.settings import Settings
from changefeed.testing.log_scribe import Scribe, everything
from changefeed.testing.postgresql_server import PostgresqlServer

pytestmark = pytest.mark.postgresql

PUBLISH = "SELECT changefeed.publish(%s, %s, %s, %s, %s, %s::jsonb, version => %s, meta => %s::jsonb)"


def connect(database: str) -> psycopg.Connection[Any]:
    return psycopg.connect(database)


def put(connection: psycopg.Connection[Any], id: str, op: str = "update", body: str | None = None, **more: Any) -> None:
    values = (FEED, "vm", id, op, more.get("fields"), body, more.get("version"), more.get("meta"))
    connection.execute(PUBLISH, values)


async def test_a_transaction_is_one_group_with_all_that_was_said(database: str) -> None:
    """Every part of a change arrives; a transaction's changes are one group; rolled back means never."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        assert await take(log, scribe) == []
        with connect(database) as application:
            put(application, "v1", "create", '{"a": [1, 2.5, null, "x"], "big": 9007199254740993}', fields=["state"])
            put(application, "v2", version=7, meta='{"trace": "t"}')
        with connect(database) as application:
            put(application, "never")
            application.rollback()
        (group,) = await take(log, scribe)
        first, second = group
        assert (first.resource, first.id, first.op, first.fields) == ("vm", "v1", "create", ("state",))
        assert first.body == {"a": [1, 2.5, None, "x"], "big": 9007199254740993}
        assert (second.id, second.version, second.meta, second.body) == ("v2", 7, {"trace": "t"}, None)
        assert await take(log, scribe) == []
        assert len(await everything(log)) == 1


async def test_transactions_leave_in_the_order_of_their_highest_row(database: str) -> None:
    """A transaction that began to write first and committed last comes last; nothing of it is seen before."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with connect(database) as slow, connect(database) as quick:
            put(slow, "a1")
            put(quick, "b1")
            quick.commit()
            assert ids(await take(log, scribe)) == [["b1"]]
            put(quick, "b2")
            quick.commit()
            put(slow, "a2")
            slow.commit()
            assert ids(await take(log, scribe)) == [["b2"], ["a1", "a2"]]


async def test_one_keys_changes_are_in_the_order_of_commits(database: str) -> None:
    """Whoever publishes a key that another transaction has published waits for its end, then draws a later row."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with connect(database) as first, connect(database) as second:
            put(second, "other")
            put(first, "shared", body="1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, put, second, "shared", "update", "2")
                with connect(database) as watcher:
                    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                    while watcher.execute(waiting).fetchone() != (1,):
                        watcher.rollback()
                        await trio.sleep(0.01)
                first.commit()
            second.commit()
        taken = await take(log, scribe)
        assert ids(taken) == [["shared"], ["other", "shared"]]
        assert [taken[0][0].body, taken[1][1].body] == [1, 2]


async def test_a_failed_append_takes_nothing_out(database: str) -> None:
    """Rows leave with the entries or not at all; rows that somebody else took are noticed."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with connect(database) as application:
            put(application, "v1")
        assert log.outbox is not None
        moved = await log.outbox.waiting(2**20)
        assert moved is not None
        with pytest.raises(TailMoved):
            await log.outbox.append(1, scribe.term, 5, [replace(Scribe(log, await log.look()).entry(), seq=6)], moved)
        assert ids(await take(log, scribe)) == [["v1"]]
        with pytest.raises(TailMoved, match="taken by somebody else"):
            await log.outbox.append(1, scribe.term, scribe.tail.seq, [scribe.entry()], moved)
        assert len(await everything(log)) == 1


@asynccontextmanager
async def instance_on(database: str) -> AsyncIterator[Instance]:
    """One instance of the feed on that log."""
    async with open_instance(
        [FEED], log=database, coordinator="memory:outbox", listen="127.0.0.1:0", settings=Settings()
    ) as instance:
        yield instance


async def test_subscribers_get_what_applications_commit(database: str) -> None:
    """The leader finds what was committed and moves it, beside what publishers send."""
    async with instance_on(database) as instance, instance.subscribe(FEED, start="beginning") as subscription:
        async with instance.publisher(FEED) as publisher:
            await publisher.publish("vm", "sent", "create")
            with connect(database) as application:
                for number in range(20):
                    put(application, f"v{number}")
            await publisher.publish("vm", "sent", "update")
        seen = []
        async for group in subscription.groups():
            seen.append(([event.id for event in group], group[0].publisher == OUTBOX))
            if len(seen) == 3:
                break
        moved = ([f"v{number}" for number in range(20)], True)
        assert sorted(seen) == sorted([(["sent"], False), (["sent"], False), moved])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("nope", "vm", "v1", "update", None, None), r"unknown-feed: there is no feed 'nope'.*there are: vmapi"),
        ((FEED, "v m", "v1", "update", None, None), r"invalid-change: resource 'v m' is not a word"),
        ((FEED, "vm", "", "update", None, None), r"invalid-change: id must be text of 1 to 512 bytes"),
        ((FEED, "vm", None, "update", None, None), r"invalid-change: id must be text of 1 to 512 bytes, got NULL"),
        ((FEED, "vm", "v1", "up date", None, None), r"invalid-change: op 'up date' is not a word"),
        ((FEED, "vm", "v1", "update", ["a,b"], None), r"invalid-change: field 'a,b' must be 1 to 64 characters"),
        ((FEED, "vm", "v1", "update", None, '{"n": 1e30}'), r"outside of \[-2\*\*63, 2\*\*64\); send it as text"),
        ((FEED, "vm", "v1", "update", None, "[" * 70 + "]" * 70), r"more than 64 lists and maps"),
        (
            (FEED, "vm", "v1", "update", None, '"' + "x" * 2**20 + '"'),
            r"change-too-large: .*change_bytes_max is 1048576",
        ),
    ],
)
async def test_what_cannot_be_a_change_is_refused_in_the_applications_statement(
    database: str, change: tuple[Any, ...], says: str
) -> None:
    """The sentence names what is wrong; the transaction is the application's to end."""
    async with feed_log(database):
        with connect(database) as application, pytest.raises(psycopg.Error, match=says):
            application.execute("SELECT changefeed.publish(%s, %s, %s, %s, %s, %s::jsonb)", change)


async def test_a_transaction_above_the_group_limit_is_refused(database: str) -> None:
    """In the statement that goes beyond it; a savepoint before it saves the rest."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with connect(database) as application:
            for number in range(8):
                put(application, f"v{number}", body='"' + "x" * 1_000_000 + '"')
            too_large = pytest.raises(psycopg.errors.ProgramLimitExceeded, match=r"group-too-large: .*use several")
            with too_large, application.transaction():
                put(application, "v8", body='"' + "x" * 1_000_000 + '"')
            put(application, "small")
        assert ids(await take(log, scribe)) == [[*(f"v{number}" for number in range(8)), "small"]]


async def test_declared_names_are_held_to(database: str) -> None:
    """As a publisher's are."""
    async with feed_log(database) as log:
        await log.set_settings(FeedSettings((Resource("vm", ("state", "ram")), Resource("nic"))))
        with connect(database) as application:
            put(application, "v1", fields=["state"])
            with pytest.raises(psycopg.Error, match="no field 'stat' of 'vm'; it declares ram, state"):
                put(application, "v1", fields=["stat"])
            application.rollback()
            with pytest.raises(psycopg.Error, match="no resource 'vmm'; it declares nic, vm"):
                application.execute("SELECT changefeed.publish(%s, 'vmm', 'x', 'update')", (FEED,))


async def test_an_application_needs_only_publish(database: str, server: PostgresqlServer) -> None:
    """A role with USAGE on the schema and EXECUTE on publish() publishes, and reads or writes nothing else."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        server.execute("CREATE ROLE shop LOGIN")
        with connect(database) as owner:
            owner.execute("GRANT USAGE ON SCHEMA changefeed TO shop")
        with connect(database.replace("postgres@", "shop@")) as application:
            put(application, "v1")
            application.commit()
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                application.execute("DELETE FROM changefeed.outbox")
        assert ids(await take(log, scribe)) == [["v1"]]
