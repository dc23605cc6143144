"""What a part of a message may be: reading with every check, writing, and its JSON Schema, all from one table. Pure.

A `Kind` reads a plain value (as msgpack or JSON gave it) and raises `Wrong` with the path and a sentence; writes a
value as a plain one; and says its JSON Schema. `Record` does so for a frozen dataclass, one kind per wire name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Final

from changefeed.change import SEQ_MAX, Position
from changefeed.errors import BadPosition

Schema = dict[str, Any]


class Wrong(Exception):
    """A part is not what it must be. path: where; filled from the inside out."""

    def __init__(self, sentence: str, path: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.path = path

    def inside(self, name: str) -> Wrong:
        joint = "" if not self.path or self.path.startswith("[") else "."
        return Wrong(self.sentence, f"{name}{joint}{self.path}")


@dataclass(frozen=True, slots=True)
class Kind:
    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    schema: Schema


def same(value: Any) -> Any:
    return value


def shown(value: Any) -> str:
    """A value in a sentence: short, whatever a peer sent."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 512:
        return "an integer with hundreds of digits"
    if isinstance(value, dict | list | tuple):
        return f"a map of {len(value)}" if isinstance(value, dict) else f"a list of {len(value)}"
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else text[:77] + "…"


def integer(low: int = 0, high: int = SEQ_MAX) -> Kind:
    def read(value: Any) -> int:
        if type(value) is not int:
            raise Wrong(f"must be an integer, got {shown(value)}")
        if not low <= value <= high:
            raise Wrong(f"must be from {low} to {high}, got {shown(value)}")
        return value

    return Kind(read, same, {"type": "integer", "minimum": low, "maximum": high})


def number(high: float = 1e9) -> Kind:
    """A float of at least 0; whole numbers may come as integers."""

    def read(value: Any) -> float:
        if type(value) not in (int, float):
            raise Wrong(f"must be a number, got {shown(value)}")
        if not (0 <= value <= high and math.isfinite(value)):
            raise Wrong(f"must be from 0 to {high:g}, got {shown(value)}")
        return float(value)

    return Kind(read, float, {"type": "number", "minimum": 0, "maximum": high})


def _read_boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise Wrong(f"must be true or false, got {shown(value)}")
    return value


BOOLEAN: Final = Kind(_read_boolean, same, {"type": "boolean"})


def _encodable(value: str) -> bool:
    """False for text with a lone surrogate (JSON can write one): it has no UTF-8 form and could not be passed on."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return True


def text(
    low: int, high: int, pattern: re.Pattern[str] | None = None, *, printable: bool = True, what: str = ""
) -> Kind:
    """Text of low to high characters that has a UTF-8 form; printable unless told otherwise; fitting a pattern."""

    def read(value: Any) -> str:
        if type(value) is not str:
            raise Wrong(f"must be text, got {shown(value)}")
        if not low <= len(value) <= high:
            raise Wrong(f"must be text of {low} to {high} characters, got {len(value)}")
        if pattern is not None:
            if not pattern.match(value):
                raise Wrong(f"must be {what}, got {shown(value)}")
        elif printable and not value.isprintable():
            raise Wrong(f"must be printable, got {shown(value)}")
        elif not _encodable(value):
            raise Wrong("holds a lone surrogate, which has no UTF-8 form")
        return value

    schema: Schema = {"type": "string", "minLength": low, "maxLength": high}
    if pattern is not None:
        schema["pattern"] = "^(?:" + pattern.pattern.replace("\\Z", "") + ")$"
    return Kind(read, same, schema)


def clipped(high: int) -> Kind:
    """Text for people: whatever is longer is cut when it is written."""
    inner = text(0, high, printable=False)
    return Kind(inner.read, lambda value: value if len(value) <= high else value[: high - 1] + "…", inner.schema)


def choice(*values: str) -> Kind:
    def read(value: Any) -> str:
        if type(value) is not str or value not in values:
            raise Wrong(f"must be one of {', '.join(values)}, got {shown(value)}")
        return value

    return Kind(read, same, {"type": "string", "enum": list(values)})


def _read_position(value: Any) -> Position:
    if type(value) is not str or len(value) > 64:
        raise Wrong(f"must be the text of a position, got {shown(value)}")
    try:
        return Position.parse(value)
    except BadPosition as error:
        raise Wrong(str(error)) from None


POSITION: Final = Kind(
    _read_position,
    str,
    {"type": "string", "pattern": r"^[0-9a-f]{16}\.(?:0|[1-9][0-9]{0,18})\.[0-9a-f]{8}\.(?:0|[1-9][0-9]{0,15})$"},
)


def optional(kind: Kind) -> Kind:
    return Kind(
        lambda value: None if value is None else kind.read(value),
        lambda value: None if value is None else kind.write(value),
        {"anyOf": [kind.schema, {"type": "null"}]},
    )


def _items(value: Any, high: int) -> Sequence[Any]:
    if type(value) not in (list, tuple):
        raise Wrong(f"must be a list, got {shown(value)}")
    if len(value) > high:
        raise Wrong(f"has {len(value)} items; the limit is {high}")
    items: Sequence[Any] = value
    return items


def list_of(kind: Kind, high: int, into: Callable[[list[Any]], Any] = tuple) -> Kind:
    def read(value: Any) -> Any:
        made = []
        for index, item in enumerate(_items(value, high)):
            try:
                made.append(kind.read(item))
            except Wrong as wrong:
                raise wrong.inside(f"[{index}]") from None
        return into(made)

    def write(value: Any) -> list[Any]:
        items = sorted(value) if isinstance(value, frozenset) else value
        return [kind.write(item) for item in items]

    return Kind(read, write, {"type": "array", "items": kind.schema, "maxItems": high})


def map_of(key: Kind, kind: Kind, high: int) -> Kind:
    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise Wrong(f"must be a map, got {shown(value)}")
        if len(value) > high:
            raise Wrong(f"has {len(value)} names; the limit is {high}")
        made = {}
        for name, item in value.items():
            try:
                made[key.read(name)] = kind.read(item)
            except Wrong as wrong:
                raise wrong.inside(f"[{shown(name)}]") from None
        return made

    return Kind(
        read,
        lambda value: {key.write(name): kind.write(value[name]) for name in sorted(value)},
        {
            "type": "object",
            "propertyNames": key.schema,
            "additionalProperties": kind.schema,
            "maxProperties": high,
        },
    )


def counts(low: int, high: int, items_max: int, total_max: int | None = None) -> Kind:
    """A list of integers, checked at the speed of C."""

    def read(value: Any) -> tuple[int, ...]:
        items = tuple(_items(value, items_max))
        if items and (set(map(type, items)) != {int} or min(items) < low or max(items) > high):
            index = next(i for i, item in enumerate(items) if type(item) is not int or not low <= item <= high)
            raise Wrong(f"must be an integer from {low} to {high}, got {shown(items[index])}", f"[{index}]")
        if total_max is not None and sum(items) > total_max:
            raise Wrong(f"add up to {sum(items)}; the limit is {total_max}")
        return items

    item = {"type": "integer", "minimum": low, "maximum": high}
    return Kind(read, list, {"type": "array", "items": item, "maxItems": items_max})


def pairs(high: int, items_max: int) -> Kind:
    """A list of pairs of positive integers."""

    def read(value: Any) -> tuple[tuple[int, int], ...]:
        made = tuple(map(tuple, _items(value, items_max))) if _lists(value) else None
        if made is None or any(len(p) != 2 or type(p[0]) is not int or type(p[1]) is not int for p in made):
            raise Wrong("must be a list of pairs of integers")
        if any(not 1 <= first <= high or not 1 <= count <= high for first, count in made):
            raise Wrong(f"must be pairs of integers from 1 to {high}")
        return made

    def _lists(value: Any) -> bool:
        return set(map(type, _items(value, items_max))) <= {list, tuple}

    item = {"type": "integer", "minimum": 1, "maximum": high}
    pair = {"type": "array", "prefixItems": [item, item], "items": False, "minItems": 2}
    return Kind(read, lambda value: [list(pair) for pair in value], {"type": "array", "items": pair})


def two(first: Kind, second: Kind) -> Kind:
    """A list of exactly two, of a kind each."""

    def read(value: Any) -> tuple[Any, Any]:
        items = _items(value, 2)
        if len(items) != 2:
            raise Wrong(f"must be a list of two, got {shown(value)}")
        made = []
        for index, (kind, item) in enumerate(((first, items[0]), (second, items[1]))):
            try:
                made.append(kind.read(item))
            except Wrong as wrong:
                raise wrong.inside(f"[{index}]") from None
        return made[0], made[1]

    schema = {"type": "array", "prefixItems": [first.schema, second.schema], "items": False, "minItems": 2}
    return Kind(read, lambda value: [first.write(value[0]), second.write(value[1])], schema)


def binary(low: int, high: int) -> Kind:
    """msgpack bin. Its length has a bound of its own only where the message's does not do."""

    def read(value: Any) -> bytes:
        if type(value) is not bytes:
            raise Wrong(f"must be bin, got {shown(value)}")
        if not low <= len(value) <= high:
            raise Wrong(f"must be {low} to {high} bytes, got {len(value)}")
        return value

    return Kind(read, same, {"type": "string"})


def _read_details(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise Wrong(f"must be a map, got {shown(value)}")
    _plain(value, 8)
    return value


def _plain(value: Any, room: int) -> None:
    kind = type(value)
    if value is None or kind in (bool, int) or (kind is str and _encodable(value)):
        return
    if kind is float and math.isfinite(value):
        return
    if kind in (dict, list) and room:
        if kind is dict and not all(type(key) is str and _encodable(key) for key in value):
            raise Wrong("must have text keys")
        for item in value.values() if kind is dict else value:
            _plain(item, room - 1)
        return
    raise Wrong("must hold JSON values, at most 8 lists and maps inside each other")


DETAILS: Final = Kind(_read_details, dict, {"type": "object"})


def _default_of(field: Field[Any]) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


class Record:
    """A frozen dataclass as a map. parts: wire name -> kind, or (kind, name of the dataclass's field).

    A part whose field has a default may be absent, and is when it equals the default; so may those in `defaults`.
    Unknown names are ignored.
    check: called with the finished value; raises Wrong for what parts must be to each other.
    """

    def __init__(
        self,
        cls: type[Any],
        parts: Mapping[str, Kind | tuple[Kind, str]],
        check: Callable[[Any], None] | None = None,
        *,
        defaults: Mapping[str, Any] | None = None,
        schema: Schema | None = None,
    ) -> None:
        self.cls = cls
        self.check = check
        self.type: str | None = getattr(cls, "TYPE", None)
        self.filled = dict(defaults or {})
        known = {f.name: _default_of(f) for f in fields(cls)} | self.filled
        self.parts: list[tuple[str, Kind, str, Any]] = []
        for name, part in parts.items():
            kind, attribute = part if isinstance(part, tuple) else (part, name)
            self.parts.append((name, kind, attribute, known[attribute]))
        self.extra_schema = schema or {}

    def read(self, value: Any) -> Any:
        if type(value) is not dict:
            raise Wrong(f"must be a map, got {shown(value)}")
        made: dict[str, Any] = dict(self.filled)
        for name, kind, attribute, default in self.parts:
            if name in value:
                try:
                    made[attribute] = kind.read(value[name])
                except Wrong as wrong:
                    raise wrong.inside(name) from None
            elif default is MISSING:
                raise Wrong("is missing", name)
        done = self.cls(**made)
        if self.check is not None:
            self.check(done)
        return done

    def write(self, value: Any) -> dict[str, Any]:
        made: dict[str, Any] = {} if self.type is None else {"type": self.type}
        for name, kind, attribute, default in self.parts:
            part = getattr(value, attribute)
            if default is MISSING or part != default:
                made[name] = kind.write(part)
        return made

    @property
    def kind(self) -> Kind:
        return Kind(self.read, self.write, self.schema())

    def schema(self) -> Schema:
        properties: Schema = {} if self.type is None else {"type": {"const": self.type}}
        required = [] if self.type is None else ["type"]
        for name, kind, _, default in self.parts:
            properties[name] = kind.schema
            if default is MISSING:
                required.append(name)
        return {"type": "object", "properties": properties, "required": required} | self.extra_schema
