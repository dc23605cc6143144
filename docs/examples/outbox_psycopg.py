"""A change that is published in the transaction that makes it: psycopg 3. Tested in tests/postgresql."""

from __future__ import annotations

import json

import psycopg


def set_state(connection: psycopg.Connection, uuid: str, state: str) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("UPDATE vms SET state = %s WHERE uuid = %s", (state, uuid))
        cursor.execute(
            "SELECT changefeed.publish('vmapi', 'vm', %s, 'update', %s, %s::jsonb)",
            (uuid, ["state"], json.dumps({"uuid": uuid, "state": state})),
        )
