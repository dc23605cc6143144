"""A cursor in the subscriber's own transaction: each event takes effect once, whoever else works on the cursor."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import trio

from changefeed import PostgresqlCursor
from changefeed.change import Position
from changefeed.errors import CursorDamaged, CursorError, CursorMoved, CursorOfOtherFeed, UsageError

pytestmark = pytest.mark.postgresql


def at(seq: int) -> Position:
    return Position("0123456789abcdef", 1, "0badcafe", seq)


def connect(database: str) -> psycopg.Connection[Any]:
    return psycopg.connect(database, autocommit=True)


def test_a_position_is_saved_with_the_effect_or_not_at_all(database: str) -> None:
    """Rolled back, it does not hold; what is read next time is what was committed."""
    with connect(database) as connection:
        cursor = PostgresqlCursor(connection, "dns", "vmapi")
        with pytest.raises(UsageError, match=r"load\(\) the cursor"):
            cursor.save(at(1))
        assert cursor.load() is None
        with connection.transaction():
            cursor.save(at(1))
        with connection.transaction():
            cursor.save(at(2))
        with pytest.raises(ZeroDivisionError), connection.transaction():
            cursor.save(at(3))
            raise ZeroDivisionError
        with pytest.raises(CursorMoved, match=r"does not hold .*\.3 any more"):
            cursor.save(at(4))
        assert PostgresqlCursor(connection, "dns", "vmapi").load() == at(2)
        cursor.reset(None)
        assert cursor.load() is None


async def test_of_two_processes_on_one_cursor_the_second_is_told(database: str) -> None:
    """It waits for the first one's transaction, and rolls its own effect back."""
    with connect(database) as one, connect(database) as two:
        one.execute("CREATE TABLE effects (seq integer)")
        first, second = PostgresqlCursor(one, "dns", "vmapi"), PostgresqlCursor(two, "dns", "vmapi")
        for position in (None, at(1)):
            assert first.load() == second.load() == position
            seq = 1 if position is None else 2

            def apply(connection: Any = two, cursor: PostgresqlCursor = second, seq: int = seq) -> None:
                with connection.transaction():
                    connection.execute("INSERT INTO effects VALUES (%s)", (seq,))
                    cursor.save(at(seq))

            async with trio.open_nursery() as nursery:
                with one.transaction():
                    one.execute("INSERT INTO effects VALUES (%s)", (seq,))
                    first.save(at(seq))
                    failed: list[CursorMoved] = []

                    async def late(apply: Any = apply, failed: list[CursorMoved] = failed) -> None:
                        try:
                            await trio.to_thread.run_sync(apply)
                        except CursorMoved as error:
                            failed.append(error)

                    nursery.start_soon(late)
                    with connect(database) as watcher:
                        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
                        while watcher.execute(waiting).fetchone() != (1,):  # noqa: ASYNC110  # another process
                            await trio.sleep(0.01)
            assert len(failed) == 1
        assert one.execute("SELECT array_agg(seq ORDER BY seq) FROM effects").fetchone() == ([1, 2],)


def test_what_is_not_a_cursor_of_this_feed_is_said(database: str) -> None:
    """Another feed's, an edited one, a database that does not answer."""
    with connect(database) as connection:
        cursor = PostgresqlCursor(connection, "dns", "vmapi")
        cursor.load()
        cursor.save(at(1))
        with pytest.raises(CursorOfOtherFeed, match="is of feed 'vmapi', not of 'napi'"):
            PostgresqlCursor(connection, "dns", "napi").load()
        connection.execute("UPDATE changefeed_cursors SET position = 'x'")
        with pytest.raises(CursorDamaged, match="was edited"):
            cursor.load()
    with pytest.raises(CursorError, match="cannot be read: the connection is closed"):
        cursor.load()
