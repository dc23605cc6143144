"""Review 34: a JSON publisher's change has the same bytes wherever it is accepted, so that a retry is known by them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given

from changefeed.batch import batch_digest
from changefeed.change import Change
from changefeed.testing.strategies import changes
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.changes import encode_change
from changefeed.wire.codec import decode, encode
from changefeed.wire.messages import Publish


def turned(value: Any) -> Any:
    """The same JSON with its maps in the other order."""
    if isinstance(value, dict):
        return {name: turned(value[name]) for name in reversed(value)}
    return [turned(item) for item in value] if isinstance(value, list) else value


@given(changes)
def test_a_retry_in_another_order_of_keys_has_the_same_digest(change: Change) -> None:
    """Two instances, two writers of JSON, and the msgpack sub-protocol: one payload."""
    payload = encode_change(change, 2**24)
    publish = Publish(0, 1, (1,), payload)
    text = encode(publish, JSON)
    assert isinstance(text, str)
    other = json.dumps(turned(json.loads(text)), indent=1)
    found = [decode(text, JSON), decode(other, JSON), decode(encode(publish, MSGPACK), MSGPACK)]
    assert {batch_digest(one.sizes, one.payload) for one in found} == {batch_digest((1,), payload)}
    assert {one.payload for one in found} == {payload}
