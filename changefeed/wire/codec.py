"""Messages <-> msgpack or JSON text, with every check of what a peer may send. Pure.

msgpack: one map with text keys, `type` first. JSON: one object. Between instances (PEER): msgpack, entries as arrays.
Whatever a peer sends, `decode` returns a message or raises one of these, and allocates no more than a fixed multiple
of the data: BadMessage (what was wrong, and in which part), FrameTooLarge, and for a Publish also InvalidChange,
ChangeTooLarge, GroupTooLarge: then `answer_of(error)` is the Answer that refuses it, and the connection may go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import UnionType
from typing import Any, Final, Protocol

import msgpack

from changefeed.errors import BadMessage, ChangefeedError, ChangeTooLarge, FrameTooLarge, GroupTooLarge, InvalidChange
from changefeed.settings import Settings
from changefeed.wire import JSON, PEER
from changefeed.wire.changes import (
    check_heads,
    dumps,
    ends_of,
    json_texts,
    loads,
    raw_heads,
)
from changefeed.wire.kinds import (
    Wrong,
    shown,
)
from changefeed.wire.messages import (
    Answer,
    AnyMessage,
    Events,
    Listed,
    Publish,
)
from changefeed.wire.tables import POSITIVE, SIZES, TABLES
from changefeed.wire.values import whole

JSON_FACTOR: Final = 8
"""How many times as long as its msgpack form a message's JSON text may be."""


#: A message that says what a connection is for, and what a subscriber says later. JSON: in characters.
FIRST_BYTES_MAX: Final = 2**20
SUBSCRIBER_BYTES_MAX: Final = 4096
#: Of any part of a publisher's message other than its payload.
STRUCTURE_BYTES_MAX: Final = 2**20
_PAYLOAD_KEY: Final = msgpack.packb("payload")
_BINARIES: Final = frozenset({b"\xc4", b"\xc5", b"\xc6"})


class Bounds(Protocol):
    """Settings, or the Limits that a server announced."""

    @property
    def change_bytes_max(self) -> int: ...
    @property
    def group_bytes_max(self) -> int: ...
    @property
    def frame_bytes_max(self) -> int: ...


_DEFAULT_BOUNDS: Final = Settings()


#: Within text it would have its quotation marks escaped.
_NO_CHANGES: Final = '"changes":[]'

_pack: Final[Callable[[Any], bytes]] = msgpack.Packer(use_bin_type=True).pack


def encode(message: AnyMessage, subprotocol: str) -> bytes | str:
    """The message as it travels: text for JSON, else bytes. Its values are trusted; only their lengths may differ."""
    if subprotocol != JSON:
        return _pack(TABLES[subprotocol][message.TYPE].write(message))
    if isinstance(message, Events | Listed):
        return _text_of_runs(message)
    return dumps(TABLES[JSON][message.TYPE].write(message))


def _text_of_runs(message: Events | Listed) -> str:
    """A message in JSON, with the changes of its runs written some at a time into the places that were left empty for
    them."""
    bare = replace(message, runs=tuple(replace(run, payload=b"") for run in message.runs))
    head, *rest = dumps(TABLES[JSON][message.TYPE].write(bare)).split(_NO_CHANGES)
    parts = [head]
    for run, after in zip(message.runs, rest, strict=True):
        parts += ('"changes":[', ",".join(json_texts(run.payload)), "]", after)
    return "".join(parts)


def decode(
    data: bytes | str,
    subprotocol: str,
    expect: type[Any] | UnionType | tuple[type[Any], ...] | None = None,
    bounds: Bounds = _DEFAULT_BOUNDS,
    *,
    skip_unknown: bool = False,
) -> Any:
    """The message in `data`, which must be one of the types in `expect` (None: any that the sub-protocol has).

    skip_unknown: clients ignore messages whose type a later release may have added: None is returned for them.
    Raises BadMessage, FrameTooLarge; for a Publish also InvalidChange, ChangeTooLarge, GroupTooLarge (see the module).
    """
    plain = _plain_of(data, subprotocol, bounds)
    table = TABLES[subprotocol]
    if type(plain) is not dict:
        raise BadMessage(f"a message must be a map, got {shown(plain)}")
    kind = plain.get("type")
    record = table.get(kind) if type(kind) is str else None
    if record is None:
        if skip_unknown and type(kind) is str:
            return None
        wanted = "" if expect is None else f"; expected {_expected(expect)}"
        what = f"unknown message type {shown(kind)}" if "type" in plain else 'the message has no "type"'
        raise BadMessage(what + wanted)
    if expect is not None and not issubclass(record.cls, expect):
        raise BadMessage(f"a message of type {kind} cannot come now; expected {_expected(expect)}")
    try:
        message = record.read(plain)
    except Wrong as wrong:
        raise BadMessage(f"{kind}{'.' * bool(wrong.path)}{wrong.path}: {wrong.sentence}") from None
    except InvalidChange as error:
        raise _refusing(error, plain) from None
    if type(message) is Publish and subprotocol != PEER:
        try:
            check_publish(message, bounds, checked=subprotocol == JSON)
        except (InvalidChange, ChangeTooLarge, GroupTooLarge) as error:
            raise _refusing(error, plain) from None
    return message


def _plain_of(data: bytes | str, subprotocol: str, bounds: Bounds) -> Any:
    as_text = subprotocol == JSON
    if as_text is not isinstance(data, str):
        raise BadMessage(f"{subprotocol} needs {'text' if as_text else 'binary'} messages, got the other kind")
    limit = bounds.frame_bytes_max * (JSON_FACTOR if as_text else 1)
    if len(data) > limit:
        raise FrameTooLarge(
            f"a message of {len(data)} bytes; the limit is {limit} (frame_bytes_max): send less at once"
        )
    if isinstance(data, str):
        return loads(data)
    whole(data)
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise BadMessage(f"not a msgpack message: {error or type(error).__name__}") from None


def check_size(data: bytes | str, limit: int, what: str) -> None:
    """Raise FrameTooLarge for a message that is larger than its kind can be: decoded it may take seventy times as much.

    what: e.g. "a first message"; the limit is checked in characters for JSON.
    """
    if len(data) > limit:
        raise FrameTooLarge(f"{what} of {len(data)} bytes; the limit is {limit}: name less in it")


def check_structure(data: bytes | str) -> None:
    """Raise BadMessage if a publisher's msgpack message holds more than `STRUCTURE_BYTES_MAX` outside of its payload.

    A payload is one value, whatever it holds; anything else large could only be a nest that takes seventy times as much
    memory once it is decoded. Allocates a copy of the data. Whatever else is wrong is left to `decode`.
    """
    if isinstance(data, str) or len(data) <= STRUCTURE_BYTES_MAX:
        return
    walker = msgpack.Unpacker(raw=False, max_buffer_size=len(data))
    walker.feed(data)
    try:
        for _ in range(walker.read_map_header()):
            begin = walker.tell()
            walker.skip()
            key = walker.tell()
            walker.skip()
            size = walker.tell() - begin
            is_payload = data[begin:key] == _PAYLOAD_KEY and data[key : key + 1] in _BINARIES
            if size > STRUCTURE_BYTES_MAX and not is_payload:
                raise BadMessage(
                    f"a part of {size} bytes; only the payload of a publish may be larger than {STRUCTURE_BYTES_MAX}"
                )
    except (ValueError, msgpack.UnpackException):
        return


def _expected(expect: Any) -> str:
    types = expect if isinstance(expect, tuple) else getattr(expect, "__args__", (expect,))
    return " or ".join(cls.TYPE for cls in types)


def check_publish(publish: Publish, bounds: Bounds, *, checked: bool = False) -> None:
    """Check what a publisher sent beyond its shape.

    checked: the changes were just encoded here. Raises BadMessage (sizes do not fit the changes, malformed changes),
    InvalidChange (a name breaks a rule), ChangeTooLarge, GroupTooLarge.
    """
    payload, sizes = publish.payload, publish.sizes
    ends = ends_of(payload)
    count = sum(sizes)
    if len(ends) != count:
        raise BadMessage(f"publish: holds {len(ends)} changes, but sizes add up to {count}")
    if len(payload) > bounds.group_bytes_max:
        raise GroupTooLarge(
            f"a batch of {len(payload)} bytes; group_bytes_max is {bounds.group_bytes_max}, for a group and for all "
            "groups of one publish: publish fewer changes together"
        )
    if len(payload) > bounds.change_bytes_max:
        start = 0
        for index, end in enumerate(ends):
            if end - start > bounds.change_bytes_max:
                raise ChangeTooLarge(
                    f"change {index} is {end - start} bytes encoded; change_bytes_max is {bounds.change_bytes_max}: "
                    "send a smaller body, or a reference to where the whole object can be read"
                )
            start = end
    if not checked:
        check_heads(raw_heads(payload, count))


def _refusing(error: ChangefeedError, plain: dict[str, Any]) -> ChangefeedError:
    number, sizes = plain.get("number"), plain.get("sizes")
    try:
        answer = Answer(
            POSITIVE.read(number),
            sum(SIZES.read(sizes)),
            code=error.code,
            message=str(error),
            details=error.details(),
        )
    except Wrong:
        return error
    error.refusal = answer  # type: ignore[attr-defined]
    return error


def answer_of(error: BaseException) -> Answer | None:
    """The Answer to a Publish that `decode` refused with this error; None if the connection must end instead."""
    answer = getattr(error, "refusal", None)
    return answer if isinstance(answer, Answer) else None
