"""Captured tables: what is done to their rows is in the feed, in the transaction that did it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import trio
from outbox_hand import FEED, feed_log, ids, take, take_all

from changefeed.change import Change
from changefeed.errors import BadConfig, UnknownFeed
from changefeed.log.postgresql import capture
from changefeed.log.postgresql.capture import Capture
from changefeed.log.postgresql.connections import Server
from changefeed.testing.log_scribe import Scribe

pytestmark = pytest.mark.postgresql


@contextmanager
def table(database: str, columns: str = "uuid text PRIMARY KEY, state text, ram integer") -> Iterator[Any]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE vms ({columns})")
        yield connection


def add(database: str, id: tuple[str, ...] = ("uuid",), **options: Any) -> capture.Captured:
    return capture.add(Server(database, 5.0), Capture(FEED, "vms", "vm", id, **options), lambda rows: None)


class Mirror:
    """Rows rebuilt from the feed alone; of a table without a key, how many of each."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Any]] = {}

    def apply(self, change: Change) -> None:
        match change.op:
            case "create":
                self.rows.setdefault(change.id, []).append(change.body)
            case "update" | "present":
                held = self.rows.setdefault(change.id, [None])
                held[0] = change.body
            case "delete":
                # A row may go before it was told that it had been there.
                held = self.rows.pop(change.id, [])[1:]
                if held:
                    self.rows[change.id] = held
            case "truncate":
                self.rows.clear()

    def bodies(self) -> list[Any]:
        return sorted((body for bodies in self.rows.values() for body in bodies), key=repr)


def source(connection: Any) -> list[Any]:
    return sorted((row for (row,) in connection.execute("SELECT to_jsonb(v) FROM vms v")), key=repr)


async def test_each_kind_of_statement(database: str) -> None:
    """Creates, updates with the names of what changed, deletes, a changed key, truncate; nothing for nothing."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with table(database) as connection:
            assert not add(database).pending
            connection.execute("INSERT INTO vms VALUES ('a', 'on', 1), ('b', 'off', 2)")
            connection.execute("UPDATE vms SET state = 'on', ram = 2")
            connection.execute("UPDATE vms SET state = 'on'")
            connection.execute("UPDATE vms SET uuid = 'c' WHERE uuid = 'a'")
            connection.execute("DELETE FROM vms WHERE uuid = 'b'")
            connection.execute("TRUNCATE vms")
        taken = await take_all(log, scribe)
        told = [[(c.op, c.id, c.fields) for c in group] for group in taken]
        assert told == [
            [("create", "a", None), ("create", "b", None)],
            [("update", "a", ("ram",)), ("update", "b", ("state",))],
            [("delete", "a", None), ("create", "c", None)],
            [("delete", "b", None)],
            [("truncate", "*", None)],
        ]
        assert taken[1][0].body == {"uuid": "a", "state": "on", "ram": 2} and taken[3][0].body is None


async def test_a_transaction_over_statements_and_the_applications_own_publish_is_one_group(database: str) -> None:
    """In the order of its statements; rolled back: nothing."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with table(database) as connection:
            add(database)
            with connection.transaction():
                connection.execute("INSERT INTO vms VALUES ('a', 'on', 1)")
                connection.execute("SELECT changefeed.publish(%s, 'job', 'j1', 'create')", (FEED,))
                connection.execute("DELETE FROM vms")
            with pytest.raises(ZeroDivisionError), connection.transaction():
                connection.execute("INSERT INTO vms VALUES ('b', 'on', 1)")
                raise ZeroDivisionError
        assert ids(await take_all(log, scribe)) == [["a", "j1", "a"]]


async def test_columns_come_go_and_are_renamed(database: str) -> None:
    """ALTER TABLE under capture goes on: ids and what is left out are columns, not names."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with table(database) as connection:
            add(database, exclude=("ram",))
            connection.execute("INSERT INTO vms VALUES ('a', 'on', 1)")
            connection.execute("ALTER TABLE vms RENAME COLUMN uuid TO id")
            connection.execute("ALTER TABLE vms RENAME COLUMN ram TO memory")
            connection.execute("ALTER TABLE vms ADD COLUMN host text DEFAULT 'h'")
            connection.execute("UPDATE vms SET state = 'off'")
            connection.execute("UPDATE vms SET memory = 5")
            connection.execute("ALTER TABLE vms DROP COLUMN state")
            connection.execute("UPDATE vms SET host = 'i'")
        changes = [group[0] for group in await take_all(log, scribe)]
        assert [change.body for change in changes] == [
            {"uuid": "a", "state": "on"},
            {"id": "a", "state": "off", "host": "h"},
            {"id": "a", "host": "i"},
        ]
        assert [change.fields for change in changes] == [None, ("state",), ("host",)]


async def test_before_fields_and_remove(database: str) -> None:
    """--before tells the row before, --fields only these columns; after remove nothing is told."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with table(database) as connection:
            add(database, before=True, fields=("uuid", "state"))
            connection.execute("INSERT INTO vms VALUES ('a', 'on', 1)")
            connection.execute("UPDATE vms SET state = 'off'")
            connection.execute("DELETE FROM vms")
            (only,) = capture.captures(Server(database, 5.0))
            assert (only.table, only.id, only.fields, only.before, only.locks) == (
                "vms", ("uuid",), ("uuid", "state"), True, False,
            )  # fmt: skip
            capture.remove(Server(database, 5.0), "vms")
            connection.execute("INSERT INTO vms VALUES ('z', 'on', 1)")
            assert capture.captures(Server(database, 5.0)) == []
        created, updated, deleted = [group[0] for group in await take_all(log, scribe)]
        assert created.body == {"uuid": "a", "state": "on"}
        assert updated.meta == {"before": {"uuid": "a", "state": "on"}}
        assert deleted.body == {"uuid": "a", "state": "off"}


async def test_what_was_there_before_stands_in_order_with_what_is_written_meanwhile(database: str) -> None:
    """Rows put in chunks while others write to them: the mirror equals the table."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with table(database, "uuid integer PRIMARY KEY, n integer") as connection:
            connection.execute("INSERT INTO vms SELECT i, 0 FROM generate_series(1, 3500) i")
            done = threading.Event()

            def write() -> None:
                chance = random.Random(1)
                with psycopg.connect(database, autocommit=True) as writer:
                    while not done.is_set():
                        at = chance.randint(1, 3600)
                        writer.execute("UPDATE vms SET n = n + 1 WHERE uuid BETWEEN %s AND %s", (at, at + 5))
                        writer.execute("DELETE FROM vms WHERE uuid = %s", (chance.randint(1, 3600),))
                        new = chance.randint(1, 5000)
                        writer.execute("INSERT INTO vms VALUES (%s, -1) ON CONFLICT DO NOTHING", (new,))
                        old, new = chance.randint(1, 3600), chance.randint(5001, 9999)
                        with writer.transaction():
                            writer.execute("DELETE FROM vms WHERE uuid = %s", (new,))
                            writer.execute("UPDATE vms SET uuid = %s WHERE uuid = %s", (new, old))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, write)
                found = await trio.to_thread.run_sync(add, database)
                done.set()
            assert not found.pending
            mirror = Mirror()
            for group in await take_all(log, scribe):
                for change in group:
                    mirror.apply(change)
            assert mirror.bodies() == source(connection)


async def test_filling_in_goes_on_where_it_was_left(database: str) -> None:
    """A command that was killed is run again: no chunk twice, none missed."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with table(database, "uuid integer PRIMARY KEY, n integer") as connection:
            connection.execute("INSERT INTO vms SELECT i, 0 FROM generate_series(1, 2500) i")

            class Killed(Exception):
                pass

            def kill(rows: int) -> None:
                raise Killed

            for _ in range(2):
                with pytest.raises(Killed):
                    capture.add(Server(database, 5.0), Capture(FEED, "vms", "vm", ("uuid",)), kill)
            assert capture.captures(Server(database, 5.0))[0].pending
            assert not add(database).pending
        told = [change.id for group in await take_all(log, scribe) for change in group]
        assert told == [str(number) for number in range(1, 2501)]


async def test_a_table_without_a_key(database: str) -> None:
    """Rows that are told by all their columns are counted; each change takes a lock."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with table(database, "a integer, b text") as connection:
            connection.execute("INSERT INTO vms VALUES (1, 'x'), (1, 'x'), (2, NULL)")
            assert add(database, id=("a", "b"), initial=False).locks
            connection.execute("INSERT INTO vms VALUES (3, 'y'), (3, 'y'), (3, 'y,z')")
            connection.execute("DELETE FROM vms WHERE ctid = (SELECT max(ctid) FROM vms WHERE a = 3 AND b = 'y')")
            connection.execute("UPDATE vms SET b = 'w' WHERE a = 3")
            mirror = Mirror()
            for group in await take_all(log, scribe):
                for change in group:
                    mirror.apply(change)
            assert mirror.bodies() == [row for row in source(connection) if row["a"] == 3]


async def test_a_transaction_above_the_group_limit_goes_out_in_marked_parts(database: str) -> None:
    """One after the other, whatever is committed meanwhile; the last one says that it is the last."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with table(database) as connection:
            add(database)
            connection.execute("INSERT INTO vms SELECT i::text, repeat('x', 1000), 1 FROM generate_series(1, 300) i")
            parts = await take(log, scribe, 100_000)
            connection.execute("INSERT INTO vms VALUES ('later', 'on', 1)")
            parts += await take_all(log, scribe, 100_000)
        assert parts.pop()[0].id == "later"
        marks = [{str(change.meta["split"]) for change in part if change.meta} for part in parts]
        assert all(len(mark) == 1 for mark in marks) and len(parts) > 2
        told = [part[0].meta["split"] for part in parts if part[0].meta]
        assert [mark["part"] for mark in told] == list(range(len(parts)))
        assert [mark["more"] for mark in told] == [True] * (len(parts) - 1) + [False]
        assert [change.id for part in parts for change in part] == [str(number) for number in range(1, 301)]


async def test_a_capture_may_refuse_what_is_too_large(database: str) -> None:
    """In the application's own statement."""
    async with feed_log(database):
        with table(database) as connection:
            add(database, split=False)
            with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="group-too-large"):
                connection.execute("INSERT INTO vms SELECT i::text, 'x', 1 FROM generate_series(1, 50001) i")


async def test_what_cannot_be_captured_is_said(database: str) -> None:
    """Typos are named with what is near; a second capture of another shape is refused."""
    async with feed_log(database):
        with table(database):
            server = Server(database, 5.0)

            def refused(kind: type[Exception], says: str, **change: Any) -> None:
                values = {"feed": FEED, "table": "vms", "resource": "vm", "id": ("uuid",), **change}
                with pytest.raises(kind, match=says):
                    capture.add(server, Capture(**values), lambda rows: None)

            refused(BadConfig, "no table 'vm'; did you mean 'vms'", table="vm")
            refused(BadConfig, "no column 'uid'; did you mean 'uuid'", id=("uid",))
            refused(BadConfig, "vms needs --id", id=())
            refused(BadConfig, "--exclude: vms has no column", exclude=("x",))
            refused(UnknownFeed, "no feed 'vmap' in .*; did you mean 'vmapi'", feed="vmap")
            add(database)
            refused(
                BadConfig, r"captured already, in another way .feed vmapi, resource vm, id uuid.", resource="machine"
            )
            with pytest.raises(BadConfig, match="there is no table 'nics'"):
                capture.remove(server, "nics")


async def test_columns_of_every_type_have_a_form(database: str) -> None:
    """Types that JSON does not have are text, as PostgreSQL writes them; times are in UTC."""
    columns = (
        "uuid uuid PRIMARY KEY, bytes bytea, at timestamptz, day date, span interval, net inet, words text[], nested"
        " integer[][], r int4range, d double precision, never timestamptz, big bigint, money numeric, x xml, p point"
    )
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with table(database, columns) as connection:
            add(database)
            connection.execute("SET TimeZone = 'Asia/Tokyo'")
            connection.execute(
                "INSERT INTO vms VALUES ('46c10000-0000-0000-0000-000000000000', '\\x00ff', '2026-01-01 09:00+09',"
                " '2026-01-01', '1 day 2 hours', '10.0.0.0/8', '{a,NULL}', '{{1,2},{3,4}}', '[1,5)', 'NaN', 'infinity',"
                " 9223372036854775807, 1.50, '<a/>', '(1,2)')"
            )
        ((change,),) = await take_all(log, scribe)
    assert change.id == "46c10000-0000-0000-0000-000000000000"
    assert change.body == {
        "uuid": change.id, "bytes": "\\x00ff", "at": "2026-01-01T00:00:00+00:00", "day": "2026-01-01",
        "span": "1 day 02:00:00", "net": "10.0.0.0/8", "words": ["a", None], "nested": [[1, 2], [3, 4]], "r": "[1,5)",
        "d": "NaN", "never": "infinity", "big": 9223372036854775807, "money": 1.5, "x": "<a/>", "p": "(1,2)",
    }  # fmt: skip


async def test_what_has_no_form_stops_nothing(database: str) -> None:
    """An integer beyond 64 bits: the change without its body, and why; what comes behind it is moved."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with table(database, "uuid text PRIMARY KEY, n numeric") as connection:
            add(database)
            connection.execute("INSERT INTO vms VALUES ('a', 100000000000000000000000), ('b', 1)")
            connection.execute("INSERT INTO vms VALUES ('c', 2)")
        taken = await take_all(log, scribe)
    assert ids(taken) == [["a", "b"], ["c"]]
    assert taken[0][0].body is None and "body-left-out" in (taken[0][0].meta or {})
    assert taken[0][1].body == {"uuid": "b", "n": 1}


async def test_a_value_that_jsonb_refuses_is_refused_in_the_applications_statement(database: str) -> None:
    """A `json` column may hold \\u0000, which jsonb has no form for: PostgreSQL says so, and nothing is written."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with table(database, "uuid text PRIMARY KEY, doc json") as connection:
            add(database)
            with pytest.raises(psycopg.errors.UntranslatableCharacter, match="unsupported Unicode escape sequence"):
                connection.execute("""INSERT INTO vms VALUES ('a', '{"x": "\\u0000"}')""")
            connection.execute("INSERT INTO vms VALUES ('b', '{}')")
        assert ids(await take_all(log, scribe)) == [["b"]]


async def test_a_row_that_has_no_form_stops_nothing(database: str) -> None:
    """A column's name that is no field's, a value that is nested too deeply: what can be told of it is told, and what
    comes behind it is moved."""
    async with feed_log(database) as log:
        scribe = await Scribe.fencing(log, 1)
        with table(database, 'uuid text PRIMARY KEY, "first name" text, deep json') as connection:
            add(database)
            connection.execute("INSERT INTO vms VALUES ('a', 'x', NULL)")
            connection.execute("""UPDATE vms SET "first name" = 'y'""")
            connection.execute("UPDATE vms SET deep = %s::json", ("[" * 1500 + "]" * 1500,))
            connection.execute("DELETE FROM vms")
        created, renamed, deep, deleted = [group[0] for group in await take_all(log, scribe)]
        assert (created.op, deleted.op) == ("create", "delete")
        assert (renamed.fields, renamed.body["first name"]) == (None, "y")
        assert "first name" in renamed.meta["fields-left-out"]
        assert deep.body is None and "body-left-out" in deep.meta
