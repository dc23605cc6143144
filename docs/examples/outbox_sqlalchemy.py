"""A change that is published in the transaction that makes it: SQLAlchemy 2. Tested in tests/postgresql."""

from __future__ import annotations

import json

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

PUBLISH = text("SELECT changefeed.publish('vmapi', 'vm', :id, 'update', ARRAY['state'], CAST(:body AS jsonb))")


def set_state(engine: Engine, uuid: str, state: str) -> None:
    with Session(engine) as session, session.begin():
        session.execute(text("UPDATE vms SET state = :state WHERE uuid = :id"), {"state": state, "id": uuid})
        session.execute(PUBLISH, {"id": uuid, "body": json.dumps({"uuid": uuid, "state": state})})
