"""Bodies and metas: a JSON value (plus bytes and 64-bit integers) <-> canonical msgpack, and its JSON form. Pure.

*Canonical*: maps are sorted by their keys' UTF-8 bytes, every integer, length and text takes its shortest form, floats
take 64 bits, there are no extension types. So a value has one encoding, whoever encodes it, and a batch's digest is the
same in every language.

*JSON form*: bytes are {"$bytes": base64}, integers beyond 2**53 - 1 either way {"$int": "text"}. A map whose only key
is "$bytes", "$int" or "$map" is written {"$map": that map}, so that nothing is mistaken for what it is not.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, Final, NoReturn

import msgpack

from changefeed.errors import BadMessage, InvalidChange

DEPTH_MAX: Final = 64
"""How deep lists and maps may lie inside each other; a value that is neither has depth 0."""
INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**64 - 1
SAFE_INT: Final = 2**53 - 1
"""Beyond this, JSON numbers lose digits in most languages, and integers are written as {"$int": text}."""

_PLAIN: Final = frozenset({str, int, bool, type(None), bytes})
_CONTAINERS: Final = frozenset({dict, list})
_VALUES: Final = _PLAIN | _CONTAINERS | {float}
_MARKS: Final = frozenset({"$bytes", "$int", "$map"})
_ALLOWED: Final = "use text, numbers, true, false, null, lists, maps with text keys, or bytes"
_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_INTEGER: Final = re.compile(r"(?:0|-?[1-9][0-9]{0,19})\Z")
#: So many bytes of bodies are decoded at once to be checked; at least one.
_CHECKED_BYTES: Final = 64 * 1024
#: Below this size even a hostile nest of array headers makes the decoder allocate only a few megabytes.
_SMALL: Final = 1024

# One Packer for all: every call runs to its end under the interpreter's lock, because only exact built-in types reach
# it (no callback into Python code), and it forgets what it packed.
_pack: Final = msgpack.Packer(use_bin_type=True, strict_types=True).pack


# ---- to msgpack


def encode_value(value: Any, what: str = "body") -> bytes:
    """The canonical msgpack form. Raises InvalidChange with the path of what is wrong, e.g. "body.nics[0].mac: …"."""
    try:
        encoded: bytes = _pack(_sorted(value, DEPTH_MAX))
    except (TypeError, ValueError, OverflowError):
        # Either something is wrong, and the careful way finds out what and where; or it is a value of a derived type.
        encoded = _pack(_careful(value, what, DEPTH_MAX))
    return encoded


def _sorted(value: Any, room: int) -> Any:
    """The value with its maps sorted; raises TypeError or ValueError for what needs the careful way."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:
        if not room:
            raise ValueError
        room -= 1
        "".join(value)  # a TypeError unless all keys are text
        return {key: (v if type(v := value[key]) in _PLAIN else _sorted(v, room)) for key in sorted(value)}
    if kind is list or kind is tuple:
        if not room:
            raise ValueError
        room -= 1
        return [v if type(v) in _PLAIN else _sorted(v, room) for v in value]
    if kind is float and math.isfinite(value):
        return value
    raise TypeError


def _careful(value: Any, path: str, room: int) -> Any:
    """What `_sorted` does, with a sentence for everything that is wrong, and derived types made plain."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        value = str.__str__(value)
        _check_text(value, path)
        return value
    if isinstance(value, int):
        if not INT_MIN <= value <= INT_MAX:
            raise InvalidChange(f"{path}: the integer {_short(value)} is outside of [-2**63, 2**64)")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidChange(f"{path}: {value} has no JSON form; leave it out or send text")
        return float(value)
    if type(value) is bytes:
        return value
    if isinstance(value, Mapping):
        if not room:
            _too_deep(path)
        for key in value:
            if not isinstance(key, str):
                raise InvalidChange(f"{path}: the map key {_short(key)} is {type(key).__name__}; keys must be text")
            _check_text(key, path)
        return {str.__str__(key): _careful(value[key], _child(path, key), room - 1) for key in sorted(value)}
    if isinstance(value, list | tuple) and not isinstance(value, msgpack.ExtType):
        if not room:
            _too_deep(path)
        return [_careful(item, f"{path}[{index}]", room - 1) for index, item in enumerate(value)]
    raise InvalidChange(f"{path}: {type(value).__name__} is not a JSON value; {_ALLOWED}")


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidChange(f"{path}: text with a lone surrogate has no UTF-8 form") from None


def _too_deep(path: str) -> NoReturn:
    raise InvalidChange(f"{path}: more than {DEPTH_MAX} lists and maps inside each other (or one that holds itself)")


def _child(path: str, key: str) -> str:
    return f"{path}.{key}" if len(key) <= 64 and _KEY.match(key) else f"{path}[{_short(key)}]"


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 512 else "with hundreds of digits"
    return text if len(text) <= 80 else text[:77] + "…"


# ---- from msgpack


def decode_value(data: bytes) -> Any:
    """The value of an encoding; raises BadMessage if it is not one msgpack value.

    It does not insist on the canonical form nor on the bounds: `check_values` did, where the publish was accepted.
    """
    if len(data) > _SMALL:
        whole(data)
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0, ext_hook=_no_ext)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise BadMessage(f"not a msgpack value: {_reason(error)}") from None


def whole(data: bytes) -> None:
    """Raise BadMessage unless data is exactly one complete msgpack value. Allocates nothing.

    The decoder allocates an array when it sees its header: a few kilobytes of nested headers, each claiming a million
    elements, would cost gigabytes. A walk without building anything comes first: if all claimed elements are really
    there, the decoder cannot allocate more than a fixed multiple of the data.
    """
    walker = msgpack.Unpacker(max_buffer_size=len(data) or 1)
    walker.feed(data)
    try:
        walker.skip()
    except (ValueError, msgpack.UnpackException) as error:
        raise BadMessage(f"not a msgpack value: {_reason(error)}") from None
    if walker.tell() != len(data):
        raise BadMessage(f"{len(data) - walker.tell()} bytes after the end of the msgpack value")


def check_values(encodings: Sequence[bytes], maps: bool = False) -> None:
    """Raise BadMessage unless each is one msgpack value that `encode_value` could have made, but for the map order.

    maps: each must be a map. This is what a server does with what it is told to keep, so that nothing enters a log
    that a subscriber cannot decode. Map order is not looked at: whoever sorts wrongly only loses the recognition of
    his own retries across languages.
    """
    # A list takes one byte and becomes seventy, and while millions live the interpreter's collector goes over them
    # again and again: what is decoded is dropped after so many bytes.
    begin = size = 0
    for end, encoding in enumerate(encodings, 1):
        size += len(encoding)
        if size >= _CHECKED_BYTES or end == len(encodings):
            _check_some(encodings[begin:end], maps)
            begin, size = end, 0


def _check_some(encodings: Sequence[bytes], maps: bool) -> None:
    joined = b"".join(encodings)
    walker = msgpack.Unpacker(max_buffer_size=len(joined) or 1)
    walker.feed(joined)
    skip, tell = walker.skip, walker.tell
    try:
        for end in accumulate(map(len, encodings)):
            skip()
            if tell() != end:
                raise BadMessage("a body or meta is not exactly one msgpack value")
        head = b"\xdd" + len(encodings).to_bytes(4, "big")
        values = msgpack.unpackb(head + joined, raw=False, strict_map_key=True, max_ext_len=0, ext_hook=_no_ext)
    except (ValueError, msgpack.UnpackException) as error:
        raise BadMessage(f"a body or meta is not a msgpack value: {_reason(error)}") from None
    if maps and not all(type(value) is dict for value in values):
        raise BadMessage("a meta is not a map")
    _check_decoded(values)


def _check_decoded(values: list[Any]) -> None:
    """Types, finite floats, text keys and depth of decoded values: level by level, each at the speed of C."""
    items: list[Any] = values
    for _ in range(DEPTH_MAX + 1):
        kinds = set(map(type, items))
        if not kinds <= _VALUES:
            raise BadMessage("a body or meta holds an extension type")
        if float in kinds and not all(math.isfinite(item) for item in items if type(item) is float):
            raise BadMessage("a body or meta holds a float that is not finite")
        if kinds.isdisjoint(_CONTAINERS):
            return
        maps = [item for item in items if type(item) is dict]
        lists = [item for item in items if type(item) is list]
        try:
            "".join(chain.from_iterable(maps))
        except TypeError:
            raise BadMessage("a map in a body or meta has a key that is not text") from None
        items = [*chain.from_iterable(map(dict.values, maps)), *chain.from_iterable(lists)]
    raise BadMessage(f"a body or meta has more than {DEPTH_MAX} lists and maps inside each other")


def _no_ext(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code} is not allowed")


def _reason(error: Exception) -> str:
    if isinstance(error, msgpack.OutOfData) or "incomplete" in str(error):
        return "it is incomplete"
    if isinstance(error, msgpack.StackError):
        return "it is nested too deeply"
    return str(error) or "it is malformed"


# ---- JSON


def value_to_json(value: Any) -> Any:
    """The JSON form of a decoded value: what `dumps` can write."""
    kind = type(value)
    if kind is str or value is None or kind is bool or kind is float:
        return value
    if kind is int:
        return value if -SAFE_INT <= value <= SAFE_INT else {"$int": str(value)}
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if kind is dict:
        plain = {key: value_to_json(item) for key, item in value.items()}
        return {"$map": plain} if len(plain) == 1 and not _MARKS.isdisjoint(plain) else plain
    if kind is list or kind is tuple:
        return [value_to_json(item) for item in value]
    return value_to_json(_careful(value, "value", DEPTH_MAX))


def value_from_json(value: Any, what: str = "body") -> Any:
    """The value of a JSON form; raises InvalidChange with the path of a wrong "$bytes", "$int" or "$map".

    An integer beyond 2**53 - 1 that is written as a plain number is taken as it stands.
    """
    return _from_json(value, what, DEPTH_MAX)


def _from_json(value: Any, path: str, room: int) -> Any:
    if isinstance(value, dict):
        if not room:
            _too_deep(path)
        if len(value) == 1:
            ((key, inner),) = value.items()
            if key == "$bytes":
                return _bytes_of(inner, path)
            if key == "$int":
                return _int_of(inner, path)
            if key == "$map":
                if not isinstance(inner, dict):
                    raise InvalidChange(f'{path}: "$map" must hold an object')
                value = inner
        return {key: _from_json(item, _child(path, key), room - 1) for key, item in value.items()}
    if isinstance(value, list):
        if not room:
            _too_deep(path)
        return [_from_json(item, f"{path}[{index}]", room - 1) for index, item in enumerate(value)]
    return value


def _bytes_of(text: Any, path: str) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text.encode(), validate=True)
    except (ValueError, binascii.Error):
        pass
    raise InvalidChange(f'{path}: "$bytes" must hold base64 text (RFC 4648, with padding)')


def _int_of(text: Any, path: str) -> int:
    if isinstance(text, str) and _INTEGER.match(text) and INT_MIN <= int(text) <= INT_MAX:
        return int(text)
    raise InvalidChange(f'{path}: "$int" must hold the decimal text of an integer in [-2**63, 2**64)')


def dumps(value: Any) -> str:
    """Compact JSON text on one line; not-finite numbers are a ValueError (nothing of ours holds one)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def loads(text: str | bytes) -> Any:
    """The value of a JSON text. Raises BadMessage for malformed text, NaN, Infinity, a number too large for a float,
    a name that comes twice in one object, and a nest too deep."""
    try:
        return _decoder.decode(text if isinstance(text, str) else text.decode())
    except UnicodeDecodeError:
        raise BadMessage("JSON text must be UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadMessage(f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise BadMessage("not acceptable JSON: nested too deeply") from None
    except ValueError as error:
        # The interpreter refuses to compute an integer of thousands of digits, in words for programmers.
        why = "an integer has thousands of digits" if "integer string conversion" in str(error) else error
        raise BadMessage(f"not acceptable JSON: {why}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the name {_short(name)} comes twice in one object")
            seen.add(name)
    return made


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {_short(text)} is too large")
    return value


_decoder: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant, parse_float=_number)
