"""What the stack tier must meet now and then, beside what the cluster tier does. Counted in each run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

from changefeed.simulation.cluster.sightings import Sightings
from changefeed.transport import websocket
from changefeed.wire import JSON

#: Each must be met in at least 1 % of the seeds.
WANTED: Final = (
    "a stream that ended within a frame",
    "a stream that ended within the handshake",
    "a frame that went out in two parts",
    "a write that waited for room",
    "a close over unread bytes",
    "a send that was given up",
    "a status told",
    "JSON spoken",
    "msgpack spoken",
    "a batch known already",
    "a position resumed",
    "a position inside a group resumed",
    "an append fenced",
    "an append of unknown outcome",
    "elected: process-gone",
    "elected: silent",
    "elected: handover",
    "frozen while leading",
    "killed while leading",
    "power lost",
    "a failed sync",
    "start failed: port-in-use",
)


class StackSightings(Sightings):
    """See cluster.sightings.Sightings."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(super().watching())
            for target, name, judge in (
                (vars(websocket)["WsConnection"], "_abort_web_socket", _ended),
                (websocket.WebsocketConnection, "abort", _given_up),
                (websocket, "run_handler", _spoken),
            ):
                stack.enter_context(patch.object(target, name, self._counting(getattr(target, name), judge)))
            yield


def _ended(ws: Any) -> str:
    """A stream ended without a close frame: within the bytes of something?"""
    connection = ws._wsproto.connection
    if connection is None or not ws._open_handshake.is_set():
        return "a stream that ended within the handshake"
    decoder = connection._proto._frame_decoder
    return "a stream that ended within a frame" if decoder.header is not None or len(decoder.buffer) else ""


def _given_up(connection: Any) -> str:
    return "a send that was given up" if connection._sending._busy else ""


def _spoken(handle: Any, connection: Any, request: Any) -> str:
    return "JSON spoken" if connection.subprotocol == JSON else "msgpack spoken"
