"""A position in the application's own PostgreSQL database, saved in the transaction of its effect.

cursor = PostgresqlCursor(connection, "billing", "vmapi")
async with open_subscription("vmapi", cursor=cursor) as subscription:
    async for group in subscription.groups():
        with connection.transaction():              # psycopg; Django: transaction.atomic()
            ...                                     # the effect
            cursor.save(group[-1].position)         # compare-and-set on the position before
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import trio

from changefeed.change import Position
from changefeed.errors import BadPosition, CursorDamaged, CursorError, CursorMoved, CursorOfOtherFeed, UsageError

TABLE: Final = "changefeed_cursors"


class Connection(Protocol):
    """What of a database connection is used: psycopg's, psycopg2's and Django's do."""

    def cursor(self) -> Any: ...


class PostgresqlCursor:
    """Keeps the position in a table of the application's database, saved in the application's own transaction.

    connection: used in the thread that calls. name: of the cursor; one row per name. feed: that it is for. The table
    `changefeed_cursors` is made, in the schema that the search path names first, by `create` or by the first `load`
    that finds none. Nothing here commits or rolls back. At READ COMMITTED two processes on one cursor wait for each
    other, and the second gets CursorMoved; at higher levels PostgreSQL may refuse it first (40001).
    """

    by_caller = True

    def __init__(self, connection: Connection, name: str, feed: str) -> None:
        self.name = name
        self.feed = feed
        self.position: Position | None = None
        self._connection = connection
        self._loaded = False

    def _execute(self, what: str, statement: str, *parameters: Any) -> tuple[int, list[Any]]:
        """(rows touched, rows). Errors of the driver are CursorError, with the driver's own as the cause."""
        try:
            cursor = self._connection.cursor()
            cursor.execute(statement, parameters)
            found = cursor.fetchall() if cursor.description is not None else []
            touched = int(cursor.rowcount)
            cursor.close()
        except Exception as error:
            raise CursorError(f"the cursor {self.name!r} cannot be {what}: {error}") from error
        return touched, found

    def create(self) -> None:
        """Make the table where it is missing. Needs CREATE on the schema; `load` and `save` need none."""
        self._execute(
            "made",
            f"CREATE TABLE IF NOT EXISTS {TABLE} (name text PRIMARY KEY, feed text NOT NULL, position text NOT NULL)",
        )

    def load(self) -> Position | None:
        """Read the saved position; None if there is none. Raises CursorOfOtherFeed, CursorDamaged, CursorError."""
        if self._execute("read", "SELECT to_regclass(%s) IS NULL", TABLE)[1][0][0]:
            self.create()
        _, rows = self._execute("read", f"SELECT feed, position FROM {TABLE} WHERE name = %s", self.name)
        position = None
        if rows:
            feed, text = rows[0]
            if feed != self.feed:
                raise CursorOfOtherFeed(f"the cursor {self.name!r} is of feed {feed!r}, not of {self.feed!r}")
            try:
                position = Position.parse(text)
            except BadPosition as error:
                raise CursorDamaged(f"the cursor {self.name!r} in table {TABLE} was edited: {error}") from None
        self.position = position
        self._loaded = True
        return position

    def save(self, position: Position) -> None:
        """Write `position` inside the caller's transaction, if the row still holds what was last read or saved here.

        Raises CursorMoved if it does not (another process works on it, or an earlier transaction was rolled back): roll
        back. Raises UsageError if it was not loaded, CursorError if the database fails.
        """
        if not self._loaded:
            raise UsageError("load() the cursor, or open a subscription with it, before saving")
        old = self.position
        if old is None:
            touched, _ = self._execute(
                "saved",
                f"INSERT INTO {TABLE} (name, feed, position) VALUES (%s, %s, %s) ON CONFLICT (name) DO NOTHING",
                self.name, self.feed, str(position),
            )  # fmt: skip
        else:
            touched, _ = self._execute(
                "saved",
                f"UPDATE {TABLE} SET position = %s WHERE name = %s AND feed = %s AND position = %s",
                str(position), self.name, self.feed, str(old),
            )  # fmt: skip
        if touched != 1:
            raise CursorMoved(
                f"the cursor {self.name!r} does not hold {old or 'nothing'} any more: another process moved it, or an "
                "earlier transaction was rolled back. Roll back, and open the subscription again"
            )
        self.position = position

    def reset(self, position: Position | None) -> None:
        """Write `position` (None: no row) inside the caller's transaction, whatever the row holds."""
        self._execute("reset", f"DELETE FROM {TABLE} WHERE name = %s", self.name)
        if position is not None:
            self._execute(
                "reset",
                f"INSERT INTO {TABLE} (name, feed, position) VALUES (%s, %s, %s)",
                self.name, self.feed, str(position),
            )  # fmt: skip
        self.position = position

    async def open(self, feed: str) -> Position | None:
        await trio.lowlevel.checkpoint()
        if feed != self.feed:
            raise CursorOfOtherFeed(f"the cursor {self.name!r} is of feed {self.feed!r}, not of {feed!r}")
        return self.load()

    async def store(self, position: Position, *, sync: bool = True) -> None:
        raise UsageError(
            "a PostgresqlCursor is saved by its caller, in the transaction of the effect: cursor.save(position)"
        )

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
