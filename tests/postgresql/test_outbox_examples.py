"""The examples of the outbox page: psycopg, SQLAlchemy and Django, each in its own transaction, on a real server."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import trio

from changefeed import open_instance

DOCS = Path(__file__).resolve().parents[2] / "docs"
LIMIT_S = 60
DRIVERS = ("psycopg", "sqlalchemy", "django")

SetState = Callable[[str, str], None]


def example(driver: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"outbox_{driver}", DOCS / "examples" / f"outbox_{driver}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def connected(driver: str, url: str) -> Iterator[SetState]:
    """The example's set_state, with its connection where it takes one."""
    pytest.importorskip(driver)
    if driver == "psycopg":
        with psycopg.connect(url, autocommit=True) as connection:
            yield lambda uuid, state: example(driver).set_state(connection, uuid, state)
    elif driver == "sqlalchemy":
        import sqlalchemy

        engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        try:
            yield lambda uuid, state: example(driver).set_state(engine, uuid, state)
        finally:
            engine.dispose()
    else:
        yield on_django(url)


def on_django(url: str) -> SetState:
    """Django keeps a connection per thread: it is closed in the one that used it."""
    import django
    from django.conf import settings
    from django.db import connection

    parts = urlsplit(url)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path[1:],
        "HOST": parts.hostname,
        "PORT": parts.port,
        "USER": parts.username,
        "PASSWORD": parts.password or "",
    }
    settings.configure(DATABASES={"default": database})
    django.setup()

    def set_state(uuid: str, state: str) -> None:
        try:
            example("django").set_state(uuid, state)
        finally:
            connection.close()

    return set_state


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_change_and_its_publishing_are_one_transaction(driver: str, database: str) -> None:
    """What commits is in the feed, with what it changed; what fails in the transaction is in neither."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE vms (uuid text PRIMARY KEY, state text NOT NULL CHECK (state <> ''))")
        connection.execute("INSERT INTO vms VALUES ('a', 'new')")
    with connected(driver, database) as set_state, trio.fail_after(LIMIT_S):
        async with open_instance(["vmapi"], log=database, coordinator="memory:", listen="127.0.0.1:0") as instance:
            await instance.wait_ready()
            await trio.to_thread.run_sync(set_state, "a", "running")
            # Every driver has an error of its own for a broken rule.
            with pytest.raises(Exception, match=r"vms_state_check"):
                await trio.to_thread.run_sync(set_state, "a", "")
            await trio.to_thread.run_sync(set_state, "a", "stopped")
            async with instance.subscribe("vmapi", start="beginning") as subscription:
                told = [await anext(subscription), await anext(subscription)]
    assert [(event.id, event.op, event.fields, event.body["state"]) for event in told] == [
        ("a", "update", ("state",), "running"),
        ("a", "update", ("state",), "stopped"),
    ]
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT state FROM vms").fetchall() == [("stopped",)]


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_page_shows_the_example(driver: str) -> None:
    """Each function stands on the page, line by line."""
    page = (DOCS / "how-to" / "outbox.md").read_text()
    source = (DOCS / "examples" / f"outbox_{driver}.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert any(block.strip() and block.strip() in source for block in blocks)
    assert f"examples/outbox_{driver}.py" in page
