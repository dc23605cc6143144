"""A change that is published in the transaction that makes it: Django. Tested in tests/postgresql."""

from __future__ import annotations

import json

from django.db import connection, transaction


def set_state(uuid: str, state: str) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE vms SET state = %s WHERE uuid = %s", [state, uuid])
        cursor.execute(
            "SELECT changefeed.publish('vmapi', 'vm', %s, 'update', %s, %s::jsonb)",
            [uuid, ["state"], json.dumps({"uuid": uuid, "state": state})],
        )
