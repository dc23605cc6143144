"""The few plain GET routes of an instance's port: /healthz, /readyz, /feeds, /status."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import trio

from changefeed.transport import Request, Response

#: (ready, why not)
Readiness = Callable[[], tuple[bool, list[str]]]
ROUTES: Final = {
    "/healthz": "200 while the process lives",
    "/readyz": "200 when every feed knows a leader and its log answers, else 503 with the reasons",
    "/feeds": "the feeds of this instance, each with its leader, epoch and head",
    "/status": "everything that this instance says of itself",
}


class Routes:
    """status: what /status shows, JSON-able. readiness: whether this instance can do its work, and why not."""

    def __init__(self, status: Callable[[], dict[str, Any]], readiness: Readiness) -> None:
        self._status = status
        self._readiness = readiness

    async def respond(self, request: Request) -> Response:
        """The response to a GET; 404 names the routes. Raises whatever `status` and `readiness` raise."""
        await trio.lowlevel.checkpoint()
        match request.path.rstrip("/"):
            case "":
                return _text(200, "changefeed: connect a websocket to /v1, or GET one of\n" + _routes())
            case "/healthz":
                return _json(200, {"ok": True})
            case "/readyz":
                ready, reasons = self._readiness()
                return _json(200 if ready else 503, {"ready": ready, "reasons": reasons})
            case "/feeds":
                feeds = self._status().get("feeds", {})
                shown = ("leader", "epoch", "head", "seq", "problem")
                return _json(
                    200,
                    {
                        "feeds": {
                            name: {part: feed[part] for part in shown if part in feed} for name, feed in feeds.items()
                        }
                    },
                )
            case "/status":
                return _json(200, self._status())
            case _:
                return _text(404, f"nothing is served at {request.path[:200]}; there are\n" + _routes())


def _routes() -> str:
    return "".join(f"  {route:<10} {what}\n" for route, what in ROUTES.items())


def _text(status: int, text: str) -> Response:
    return Response(status, text.encode(errors="replace"), "text/plain; charset=utf-8")


def _json(status: int, value: Any) -> Response:
    # What a person looks at with curl is a line per value; positions, tuples and the like are shown as text.
    return Response(status, json.dumps(value, indent=1, default=str).encode() + b"\n")
