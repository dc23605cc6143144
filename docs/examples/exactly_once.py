"""Each event takes effect exactly once: the position is saved in the transaction of the effect."""

import sqlite3

import trio

from changefeed import SqliteCursor, open_subscription

connection = sqlite3.connect("rules.db", isolation_level=None)
connection.execute("CREATE TABLE IF NOT EXISTS applied (seq INTEGER PRIMARY KEY, id TEXT)")


async def main() -> None:
    cursor = SqliteCursor(connection, "firewaller", "fwapi")
    async with open_subscription("fwapi", cursor=cursor, start="beginning") as subscription:
        async for group in subscription.groups():
            connection.execute("BEGIN IMMEDIATE")
            try:
                for event in group:
                    connection.execute("INSERT INTO applied VALUES (?, ?)", (event.seq, event.id))
                cursor.save(group[-1].position)  # compare-and-set, in the same transaction
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise


trio.run(main)
