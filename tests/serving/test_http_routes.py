"""The plain GET routes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from changefeed.serving.http import Routes
from changefeed.transport import Request

STATUS = {
    "instance": "i1",
    "feeds": {
        "vmapi": {"leader": "i1", "epoch": 3, "head": "x", "seq": 7, "subscribers": []},
        "napi": {"leader": "", "epoch": 0, "head": None, "seq": 0, "problem": "damaged"},
    },
}


def routes(ready: bool = True, reasons: list[str] | None = None) -> Routes:
    return Routes(lambda: STATUS, lambda: (ready, reasons or []))


async def get(path: str, made: Routes | None = None) -> tuple[int, Any]:
    response = await (made or routes()).respond(Request(path))
    is_json = response.content_type == "application/json"
    return response.status, json.loads(response.body) if is_json else response.body.decode()


async def test_healthz_is_ok_while_the_process_lives() -> None:
    assert await get("/healthz", routes(ready=False)) == (200, {"ok": True})


async def test_readyz_names_what_is_missing() -> None:
    assert await get("/readyz") == (200, {"ready": True, "reasons": []})
    made = routes(False, ["feed vmapi: no leader is known"])
    assert await get("/readyz", made) == (503, {"ready": False, "reasons": ["feed vmapi: no leader is known"]})


async def test_feeds_and_status() -> None:
    """Each feed in short, with its problem if it is not served; and everything."""
    assert await get("/feeds") == (
        200,
        {
            "feeds": {
                "vmapi": {"leader": "i1", "epoch": 3, "head": "x", "seq": 7},
                "napi": {"leader": "", "epoch": 0, "head": None, "seq": 0, "problem": "damaged"},
            }
        },
    )
    assert await get("/status") == (200, STATUS)
    assert await get("/status/") == (200, STATUS)


@pytest.mark.parametrize(
    ("path", "status"), [("/", 200), ("", 200), ("/metrics", 404), ("/v1", 404), ("/x\udcff", 404)]
)
async def test_other_paths_say_what_there_is(path: str, status: int) -> None:
    found, text = await get(path)
    assert found == status
    assert all(route in text for route in ("/healthz", "/readyz", "/feeds", "/status"))
