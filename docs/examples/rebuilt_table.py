"""A table of all objects: rebuilt from a list of them, then kept right by the stream. Each change takes effect once."""

import json
import sqlite3

import trio

from changefeed import CannotResume, Event, SqliteCursor, open_subscription

connection = sqlite3.connect("vms.db", isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("PRAGMA synchronous=NORMAL")  # what a loss of power takes, it takes with its position
connection.execute("CREATE TABLE IF NOT EXISTS vms (id TEXT PRIMARY KEY, version INTEGER, body TEXT)")
cursor = SqliteCursor(connection, "vms", "vmapi")

PUT = """INSERT INTO vms VALUES (?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET version = excluded.version, body = excluded.body
         WHERE vms.version IS NULL OR excluded.version IS NULL OR excluded.version >= vms.version"""


def put(event: Event) -> None:
    """A listed event, or a change: of two versions the higher one stays. A deleted object keeps its version, without a
    body, so that an update that comes late does not bring it back."""
    if event.op == "delete" and event.version is None:
        connection.execute("DELETE FROM vms WHERE id = ?", (event.id,))
    elif event.op == "delete" or event.body is not None:  # another op without a body says nothing of the object
        body = None if event.op == "delete" else json.dumps(event.body)
        connection.execute(PUT, (event.id, event.version, body))


async def follow() -> None:
    held = cursor.load()
    if held is None or held.is_listing:  # a list begins: what is here may be wrong in either direction
        connection.execute("DELETE FROM vms")
    async with open_subscription("vmapi", cursor=cursor, start="snapshot", resources=["vm"]) as subscription:
        async for group in subscription.groups():
            connection.execute("BEGIN IMMEDIATE")
            try:
                for event in group:
                    put(event)
                cursor.save(group[-1].position)  # until the list is over, and caught up with: "begin the list again"
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise


async def main() -> None:
    while True:
        try:
            await follow()
        except CannotResume:  # too old, or the log was lost, restored or replaced
            cursor.reset(None)


trio.run(main)
