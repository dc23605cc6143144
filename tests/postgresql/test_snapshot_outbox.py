"""On a feed that keeps a snapshot: what changefeed.publish() refuses, and that what was committed is folded."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from outbox_hand import FEED, feed_log, ids, take_all

from changefeed.change import FeedSettings
from changefeed.leader import folding
from changefeed.log import FeedLog, Latest
from changefeed.log.postgresql import capture
from changefeed.log.postgresql.capture import Capture
from changefeed.log.postgresql.connections import Server
from changefeed.testing.log_scribe import Scribe
from changefeed.testing.log_suite_snapshot import listed
from changefeed.wire.changes import decode_change

pytestmark = pytest.mark.postgresql

PUBLISH = "SELECT changefeed.publish(%s, %s, %s, %s, body => %s::jsonb, version => %s)"


def put(
    connection: psycopg.Connection[Any], op: str, id: str, body: str | None = None, version: int | None = None
) -> None:
    connection.execute(PUBLISH, (FEED, "vm", id, op, body, version))


def refused(connection: psycopg.Connection[Any], says: str, *change: Any) -> None:
    """In a savepoint, so that the transaction goes on."""
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=says), connection.transaction():
        put(connection, *change)


async def fold_all(log: FeedLog, scribe: Scribe) -> list[Latest]:
    """Fold what is not folded, as a leader does; the list then."""
    look = await log.look()
    after = look.floor.seq if look.folded is None else look.folded
    entries = await log.read(after, 2**23)
    stretch = folding.Stretch(after)
    for entry in entries:
        stretch.add(entry)
    done = stretch.fold(await log.latest(list(stretch.objects)))
    await log.fold(1, scribe.term, look.folded, stretch.to, done.rows, done.gone, versioned=done.versioned)
    return await listed(log)


def bodies(rows: list[Latest]) -> dict[str, Any]:
    return {row.id: decode_change(row.payload).body for row in rows if row.payload is not None}


async def test_a_create_or_update_without_body_is_refused_in_the_statement(database: str) -> None:
    """Only there, and only while the feed keeps a snapshot; a delete and an application's own op need none. A JSON null
    is no body. A savepoint before the statement saves the rest."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with psycopg.connect(database) as application:
            put(application, "create", "before")
        stored = await log.set_settings(FeedSettings(snapshot=True))
        with psycopg.connect(database) as application:
            put(application, "create", "a", '{"n": 1}')
            refused(
                application, "body-missing: the create of vm 'b' has no body.*publish the whole object", "create", "b"
            )
            refused(application, "body-missing: the update of vm 'a'", "update", "a")
            refused(application, "body-missing: the update of vm 'a'", "update", "a", "null")
            put(application, "update", "a", "false")
            put(application, "delete", "gone")
            put(application, "rebooted", "a")
        assert ids(await take_all(log, scribe)) == [["before"], ["a", "a", "gone", "a"]]
        assert bodies(await fold_all(log, scribe)) == {"before": None, "a": False}
        await log.set_settings(FeedSettings(version=stored.version))
        with psycopg.connect(database) as application:
            put(application, "update", "a")
        assert ids(await take_all(log, scribe)) == [["a"]]


async def test_a_change_without_version_of_an_object_that_has_one_is_refused_in_the_statement(database: str) -> None:
    """By what the snapshot holds, a tombstone too; also a delete. Objects without versions, and changes with one, are
    not held up. What was published and is not folded yet is not seen: it is moved as it is."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        await log.set_settings(FeedSettings(snapshot=True))
        with psycopg.connect(database) as application:
            for id in ("a", "dead", "ä\U00010000"):
                put(application, "create", id, '{"n": 1}', 5)
            put(application, "delete", "dead", None, 6)
            put(application, "create", "free", '{"n": 1}')
            put(application, "update", "a", '{"n": "not folded yet"}')
        await take_all(log, scribe)
        assert len(await fold_all(log, scribe)) == 4
        with psycopg.connect(database) as application:
            says = r"version-missing: the change of vm '{}' has no version, but .* carry one \({} stands\)"
            refused(application, says.format("a", 5), "update", "a", "1")
            refused(application, says.format("a", 5), "delete", "a")
            refused(application, says.format("dead", 6), "create", "dead", "1")
            refused(application, says.format("ä\U00010000", 5), "update", "ä\U00010000", "1")
            put(application, "update", "a", '{"n": 2}', 7)
            put(application, "update", "dead", '{"n": "late"}', 4)
            put(application, "update", "free", '{"n": 2}')
            put(application, "create", "new", '{"n": 2}')
        with psycopg.connect(database) as application:
            put(application, "update", "a", '{"n": 3}', 8)
        await take_all(log, scribe)
        assert bodies(await fold_all(log, scribe)) == {
            "a": {"n": 3},
            "free": {"n": 2},
            "new": {"n": 2},
            "ä\U00010000": {"n": 1},
        }
        await log.set_settings(FeedSettings(version=1))
        with psycopg.connect(database) as application:
            put(application, "update", "a", '{"n": 4}')
        assert ids(await take_all(log, scribe)) == [["a"]]


async def test_captured_tables_are_asked_nothing(database: str) -> None:
    """A captured row of an object that has a version is written without one and takes its place; one whose body has no
    form takes its place too, and says so."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        await log.set_settings(FeedSettings(snapshot=True))
        with psycopg.connect(database, autocommit=True) as application:
            application.execute("CREATE TABLE vms (uuid text PRIMARY KEY, n numeric)")
            capture.add(Server(database, 5.0), Capture(FEED, "vms", "vm", ("uuid",)), lambda rows: None)
            put(application, "create", "a", '{"n": 0}', 5)
            await take_all(log, scribe)
            await fold_all(log, scribe)
            application.execute("INSERT INTO vms VALUES ('a', 1), ('b', 1), ('c', 1)")
            application.execute("UPDATE vms SET n = 100000000000000000000000 WHERE uuid = 'b'")
            application.execute("DELETE FROM vms WHERE uuid = 'c'")
        await take_all(log, scribe)
        rows = await fold_all(log, scribe)
        assert bodies(rows) == {"a": {"uuid": "a", "n": 1}, "b": None}
        told = decode_change(rows[1].payload or b"")
        assert told.op == "update" and "body-left-out" in (told.meta or {})
        assert rows[0].version == 5
