"""One change <-> its canonical msgpack bytes; runs of changes; the JSON forms of changes and events. Pure.

A change is an array of 7: [resource, id, op, fields|nil, body|nil, version|nil, meta|nil]. body and meta are *bin* that
hold the canonical msgpack of the value (values.py), so that whoever filters or routes skips over them, and a subscriber
decodes them when it looks at them. A payload is a concatenation of such encodings, cut and joined but never re-encoded.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgpack

from changefeed.change import FIELD, FIELDS_MAX, ID_BYTES_MAX, WORD, Change, Event
from changefeed.errors import BadMessage, ChangeTooLarge, InvalidChange
from changefeed.wire.values import (
    check_values,
    decode_value,
    dumps,
    encode_value,
    loads,
    value_from_json,
    value_to_json,
)

__all__ = [
    "BATCH_CHANGES_MAX",
    "change_from_json",
    "change_to_json",
    "check_heads",
    "decode_change",
    "dumps",
    "encode_change",
    "event_to_json",
    "heads",
    "loads",
    "raw_heads",
    "split",
]

BATCH_CHANGES_MAX: Final = 50_000
"""Changes in one batch, and so in one group: the stamps of their events (a seq and a group each, 20 bytes at most)
then fit beside the largest payload into a frame."""

CHANGE_BYTES_MIN: Final = 11
PARTS: Final = ("resource", "id", "op", "fields", "body", "version", "meta")

#: [resource, id, op, fields, body, version, meta] as decoded: body and meta still encoded.
Head = tuple[str, str, str, tuple[str, ...] | None, bytes | None, int | None, bytes | None]

_pack: Final = msgpack.Packer(use_bin_type=True).pack
_NoneType: Final = type(None)

#: (resource, op, fields) that passed Change.check.
_checked: Final[set[tuple[str, str, tuple[str, ...] | None]]] = set()
_CHECKED_MAX: Final = 1000
TEXT_BYTES: Final = 64 * 1024


def encode_change(change: Change, limit: int) -> bytes:
    """The canonical encoding. Raises InvalidChange, and ChangeTooLarge if it is longer than `limit` bytes."""
    body, meta, fields, id, version = change.body, change.meta, change.fields, change.id, change.version
    try:
        known = (change.resource, change.op, fields) in _checked
    except TypeError:  # something in it is no name at all, or fields are a list
        known = False
    if not (
        type(id) is str
        and 0 < len(id) <= ID_BYTES_MAX
        and id.isascii()
        and (version is None or (type(version) is int and 0 <= version < 2**63))
        and (meta is None or type(meta) is dict)
        and known
    ):
        _check(change)
    encoded: bytes = _pack(
        (
            change.resource,
            id,
            change.op,
            None if fields is None else tuple(fields),
            None if body is None else encode_value(body, "body"),
            version,
            None if meta is None else encode_value(meta, "meta"),
        )
    )
    if len(encoded) > limit:
        raise ChangeTooLarge(
            f"the change of {change.resource} {change.id!r} is {len(encoded)} bytes encoded; change_bytes_max is "
            f"{limit}: send a smaller body, or a reference to where the whole object can be read"
        )
    return encoded


def _check(change: Change) -> None:
    """Change.check; remembers the names, which are few in any application, so that they are looked at once."""
    change.check()
    if change.fields is None or type(change.fields) is tuple:
        if len(_checked) >= _CHECKED_MAX:
            _checked.clear()
        _checked.add((change.resource, change.op, change.fields))


def decode_change(data: bytes) -> Change:
    """The change of one encoding; raises BadMessage, or InvalidChange for names that break the rules."""
    found = raw_heads(data)
    if len(found) != 1:
        raise BadMessage(f"expected the encoding of one change, found {len(found)}")
    check_heads(found)
    return change_of(found[0])


def change_of(head: Head) -> Change:
    """The change of a decoded head, with its body and meta decoded."""
    resource, id, op, fields, body, version, meta = head
    return Change(
        resource,
        id,
        op,
        fields,
        None if body is None else decode_value(body),
        version,
        None if meta is None else decode_value(meta),
    )


# ---- runs of changes


def _ends(payload: bytes) -> list[int]:
    """Where each change of a payload ends. Builds nothing; raises BadMessage unless the last ends with the payload."""
    walker = msgpack.Unpacker(max_buffer_size=len(payload) or 1)
    walker.feed(payload)
    skip, tell = walker.skip, walker.tell
    ends: list[int] = []
    add = ends.append
    # A payload of one-byte values would make a list many times its size.
    room = len(payload) // CHANGE_BYTES_MIN + 1
    try:
        for _ in range(room):
            skip()
            add(tell())
    except msgpack.OutOfData:
        pass
    except (ValueError, msgpack.UnpackException):
        raise BadMessage(f"change {len(ends)}: not msgpack") from None
    if (ends[-1] if ends else 0) != len(payload):
        raise BadMessage(f"change {len(ends)}: the payload ends inside of it or it is no change")
    return ends


def raw_heads(payload: bytes, count: int | None = None) -> list[Head]:
    """All changes of a payload as tuples of 7 whose parts may be of any type; raises BadMessage if it is malformed.

    count: their number, from a walk of `ends_of` over the same payload; without it, the walk happens here.
    """
    if count is None:
        count = len(_ends(payload))
    # The walk for the ends has seen every element that the headers claim, so the decoder's own bounds can be wide.
    try:
        found = msgpack.unpackb(
            b"\xdd" + count.to_bytes(4, "big") + payload,
            use_list=False,
            raw=False,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=ID_BYTES_MAX,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise BadMessage(f"malformed changes: {error or type(error).__name__}") from None
    if not set(map(type, found)) <= {tuple} or not set(map(len, found)) <= {len(PARTS)}:
        index = next(i for i, head in enumerate(found) if type(head) is not tuple or len(head) != len(PARTS))
        raise BadMessage(f"change {index}: not an array of {len(PARTS)} parts")
    return list(found)


def check_heads(found: Sequence[Head], bodies: bool = True) -> None:
    """Check what `raw_heads` gave: types (BadMessage), the rules of Change.check (InvalidChange), and, unless told not
    to, that bodies and metas can be decoded (BadMessage). Columns are checked at once: it runs for every publish."""
    if not found:
        return
    resources, ids, ops, fields, values, versions, metas = zip(*found, strict=True)
    kinds = [set(map(type, column)) for column in (resources, ids, ops, fields, values, versions, metas)]
    allowed: tuple[set[type], ...] = (
        {str},
        {str},
        {str},
        {tuple, _NoneType},
        {bytes, _NoneType},
        {int, _NoneType},
        {bytes, _NoneType},
    )
    for name, have, may in zip(PARTS, kinds, allowed, strict=True):
        if not have <= may:
            column = found_column(found, name)
            index = next(i for i, part in enumerate(column) if type(part) not in may)
            raise BadMessage(f"change {index}: {name} is {_msgpack_name(column[index])}")
    if (
        not all(map(WORD.match, set(resources)))
        or not all(map(WORD.match, set(ops)))
        or not all(ids)
        or not all(map(_fields_right, _distinct(fields)))
        or any(version is not None and not 0 <= version < 2**63 for version in set(versions))
    ):
        _find_invalid(found)
    if bodies:
        check_values([value for value in values if value is not None])
        check_values([meta for meta in metas if meta is not None], maps=True)


def found_column(found: Sequence[Head], name: str) -> list[Any]:
    index = PARTS.index(name)
    return [head[index] for head in found]


def _distinct(fields: Sequence[tuple[Any, ...] | None]) -> Iterable[tuple[Any, ...] | None]:
    try:
        return set(fields)
    except TypeError:  # an empty map among the names
        return fields


def _fields_right(fields: tuple[Any, ...] | None) -> bool:
    return fields is None or (
        len(fields) <= FIELDS_MAX and all(type(name) is str and FIELD.match(name) is not None for name in fields)
    )


def _find_invalid(found: Sequence[Head]) -> None:
    for index, (resource, id, op, fields, _, version, _) in enumerate(found):
        try:
            Change(resource, id, op, fields, None, version).check()
        except InvalidChange as error:
            raise InvalidChange(f"change {index}: {error}") from None


def _msgpack_name(value: Any) -> str:
    names = {"NoneType": "nil", "tuple": "an array", "bytes": "bin", "str": "text", "int": "an integer"}
    return names.get(type(value).__name__, type(value).__name__)


def split(payload: bytes) -> list[bytes]:
    """The encodings of a payload's changes, each checked like a publish. Raises BadMessage, InvalidChange."""
    ends = _ends(payload)
    check_heads(raw_heads(payload, len(ends)))
    return [payload[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def ends_of(payload: bytes) -> list[int]:
    """Where each change of a payload ends. Raises BadMessage."""
    return _ends(payload)


def heads(payload: bytes) -> list[tuple[str, str, str, tuple[str, ...] | None, int, int]]:
    """(resource, id, op, fields, start, end) of each change: what filters look at, and where to cut.

    For payloads from a log or a checked publish: part types are not looked at again. Raises BadMessage.
    """
    ends = _ends(payload)
    return [
        (head[0], head[1], head[2], head[3], start, end)
        for head, start, end in zip(raw_heads(payload, len(ends)), [0, *ends], ends, strict=False)
    ]


# ---- JSON forms


def change_to_json(change: Change) -> dict[str, Any]:
    """{"resource", "id", "op", "fields", "body", "version", "meta"}; what is None is absent."""
    made: dict[str, Any] = {"resource": change.resource, "id": change.id, "op": change.op}
    if change.fields is not None:
        made["fields"] = list(change.fields)
    if change.body is not None:
        made["body"] = value_to_json(change.body)
    if change.version is not None:
        made["version"] = change.version if change.version < 2**53 else value_to_json(change.version)
    if change.meta is not None:
        made["meta"] = {key: value_to_json(value) for key, value in change.meta.items()}
    return made


def json_texts(payload: bytes) -> Iterator[str]:
    """The JSON texts of a payload's changes, separated by commas, some at a time: decoded values take many times their
    bytes, so no more of them live than `TEXT_BYTES` (or one change) are made of. Raises BadMessage."""
    made: list[dict[str, Any]] = []
    size = 0
    found = raw_heads(payload)
    for left, head in zip(range(len(found) - 1, -1, -1), found, strict=True):
        made.append(change_to_json(change_of(head)))
        size += len(head[4] or b"") + len(head[6] or b"")
        if size >= TEXT_BYTES or not left:
            yield dumps(made)[1:-1]
            made, size = [], 0


def change_from_json(value: Any) -> Change:
    """The change of a JSON object. null is the same as absent. Raises InvalidChange, also for unknown names: a part
    that this release does not know must not be lost silently."""
    if not isinstance(value, dict):
        raise InvalidChange('a change must be an object: {"resource": …, "id": …, "op": …}')
    for name in value:
        if name not in PARTS:
            near = difflib.get_close_matches(name, PARTS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"a change has {', '.join(PARTS)}"
            raise InvalidChange(f"a change has no {name[:64]!r}; {hint}")
    for name in PARTS[:3]:
        if name not in value:
            raise InvalidChange(f"the change has no {name!r}")
    fields, meta = value.get("fields"), value.get("meta")
    if fields is not None and not isinstance(fields, list):
        raise InvalidChange("fields must be a list of names")
    if meta is not None and not isinstance(meta, dict):
        raise InvalidChange("meta must be an object")
    change = Change(
        value["resource"],
        value["id"],
        value["op"],
        None if fields is None else tuple(fields),
        value_from_json(value.get("body"), "body"),
        value_from_json(value.get("version"), "version"),
        None if meta is None else {key: value_from_json(item, f"meta.{key}") for key, item in meta.items()},
    )
    change.check()
    return change


def event_to_json(event: Event) -> dict[str, Any]:
    """The change's object and "position", "seq", "epoch", "time", "publisher", "group", "last"; and "listed" where it
    is true."""
    made = change_to_json(event.change)
    made["position"] = str(event.position)
    made["seq"] = event.seq
    made["epoch"] = event.epoch
    made["time"] = event.time
    made["publisher"] = event.publisher
    made["group"] = event.group
    made["last"] = event.last
    if event.listed:
        made["listed"] = True
    return made


def encode_json_change(value: Mapping[str, Any] | Any, limit: int) -> bytes:
    """The canonical encoding of a change in its JSON form. Raises InvalidChange, ChangeTooLarge."""
    return encode_change(change_from_json(value), limit)
