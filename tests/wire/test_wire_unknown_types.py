"""Clients ignore what a later release may add; everything that this release knows is still checked."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest

from changefeed.errors import BadMessage
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.codec import decode
from changefeed.wire.messages import Beat, ServerMessage


def data(plain: Any, subprotocol: str) -> Any:
    return json.dumps(plain) if subprotocol == JSON else msgpack.packb(plain)


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
def test_an_unknown_type_is_skipped_only_where_that_is_asked_for(subprotocol: str) -> None:
    """None for a client; BadMessage for a server, whose clients must not say what it would lose."""
    later = data({"type": "from-a-later-release", "to": [1]}, subprotocol)

    assert decode(later, subprotocol, ServerMessage, skip_unknown=True) is None
    with pytest.raises(BadMessage, match="unknown message type"):
        decode(later, subprotocol, ServerMessage)


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
@pytest.mark.parametrize("plain", [{"type": "beat", "head": -1}, {"type": "subscribe"}, {"type": 5}, {}, []])
def test_skipping_forgives_nothing_else(subprotocol: str, plain: Any) -> None:
    """A known message with a fault, one that does not come from servers, and one without a type are refused."""
    with pytest.raises(BadMessage):
        decode(data(plain, subprotocol), subprotocol, ServerMessage, skip_unknown=True)


def test_unknown_parts_of_a_known_message_are_ignored() -> None:
    """The rest of the message counts."""
    assert decode('{"type": "beat", "head": 3, "weather": {"sky": null}}', JSON, ServerMessage) == Beat(0, 3, 0.0)
