"""Bodies: their canonical encoding, their JSON form, what is refused and how it is said."""

from __future__ import annotations

import enum
import json
import struct
import types
from collections import OrderedDict
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from changefeed.errors import BadMessage, InvalidChange
from changefeed.testing.strategies import values
from changefeed.wire.values import (
    DEPTH_MAX,
    check_values,
    decode_value,
    dumps,
    encode_value,
    loads,
    value_from_json,
    value_to_json,
    whole,
)


def reference(value: Any) -> bytes:
    """The canonical form, written down once more from the specification of msgpack, without msgpack."""
    if value is None:
        return b"\xc0"
    if value is True or value is False:
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return _sized(len(data), (0xA0, 32), b"\xd9", b"\xda", b"\xdb") + data
    if isinstance(value, bytes):
        return _sized(len(value), None, b"\xc4", b"\xc5", b"\xc6") + value
    if isinstance(value, list):
        return _sized(len(value), (0x90, 16), None, b"\xdc", b"\xdd") + b"".join(map(reference, value))
    pairs = sorted((key.encode(), key) for key in value)
    body = b"".join(reference(key) + reference(value[key]) for _, key in pairs)
    return _sized(len(value), (0x80, 16), None, b"\xde", b"\xdf") + body


def _integer(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes([value])
    if -32 <= value < 0:
        return struct.pack(">b", value)
    kinds = ((0xCC, "B"), (0xCD, "H"), (0xCE, "I"), (0xCF, "Q")) if value > 0 else ()
    for tag, code in kinds or ((0xD0, "b"), (0xD1, "h"), (0xD2, "i"), (0xD3, "q")):
        try:
            return bytes([tag]) + struct.pack(">" + code, value)
        except struct.error:
            continue
    raise AssertionError(value)


def _sized(size: int, fix: tuple[int, int] | None, one: bytes | None, two: bytes, four: bytes) -> bytes:
    if fix is not None and size < fix[1]:
        return bytes([fix[0] | size])
    if one is not None and size < 2**8:
        return one + struct.pack(">B", size)
    return two + struct.pack(">H", size) if size < 2**16 else four + struct.pack(">I", size)


@given(values)
@example({"b": 1, "a": 2, "\U0001f600": 3, "\uffff": 4, "": 5})
@example([127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
@example([-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)])
@example(["x" * 31, "x" * 32, "x" * 255, "x" * 256, "é" * 40000, b"y" * 255, b"y" * 256, b"y" * 70000])
@example([[0] * 15, [0] * 16, [0] * 70000, {str(i): i for i in range(15)}, {str(i): i for i in range(16)}])
@example([0.0, -0.0, 1.0, 1e308, 5e-324])
def test_the_encoding_is_the_one_that_the_specification_gives(value: Any) -> None:
    """Sorted keys, shortest integers and lengths, floats of 64 bits: byte for byte as a second encoder has it."""
    assert encode_value(value) == reference(value)


@given(values)
def test_a_value_survives_msgpack_and_json(value: Any) -> None:
    """Decoding gives the value back, and its JSON text, read again, has the same canonical bytes."""
    encoded = encode_value(value)
    assert encode_value(decode_value(encoded)) == encoded
    text = dumps(value_to_json(value))
    assert encode_value(value_from_json(loads(text))) == encoded
    json.loads(text)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), st.integers(), min_size=2))
def test_the_order_of_a_map_does_not_matter(value: dict[str, int]) -> None:
    """Two maps with the same content have one encoding, however they were filled."""
    small = {key: item % 100 for key, item in value.items()}
    assert encode_value(small) == encode_value(dict(reversed(list(small.items()))))


def test_derived_types_are_encoded_as_what_they_are() -> None:
    """Enumerations, ordered and read-only maps, tuples: users have them, and they mean their plain values."""

    class Colour(enum.StrEnum):
        RED = "red"

    class Level(enum.IntEnum):
        HIGH = 3

    class Ratio(float):
        pass

    value = OrderedDict(b=Colour.RED, a=(Level.HIGH, Ratio(0.5)), c=types.MappingProxyType({Colour.RED: True}))
    assert encode_value(value) == encode_value({"a": [3, 0.5], "b": "red", "c": {"red": True}})


class Unordered:
    def __repr__(self) -> str:
        return "<thing>"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"nics": [{"mac": {1}}]}, "body.nics[0].mac: set is not a JSON value"),
        ({"a": {"x y": Unordered()}}, "body.a['x y']: Unordered is not a JSON value"),
        ({"a": bytearray(b"x")}, "body.a: bytearray is not a JSON value"),
        ([0, memoryview(b"x")], "body[1]: memoryview is not a JSON value"),
        (float("nan"), "body: nan has no JSON form"),
        ([float("-inf")], "body[0]: -inf has no JSON form"),
        (2**64, "body: the integer 18446744073709551616 is outside"),
        (-(2**63) - 1, "body: the integer -9223372036854775809 is outside"),
        pytest.param(10**5000, "body: the integer with hundreds of digits is outside", id="huge"),
        ({1: 2}, "body: the map key 1 is int; keys must be text"),
        ({"a": {None: 1, "b": 2}}, "body.a: the map key None is NoneType"),
        ({"a": "\ud800"}, "body.a: text with a lone surrogate"),
        ({"\udfff": 1}, "body: text with a lone surrogate"),
        (msgpack.ExtType(1, b""), "body: ExtType is not a JSON value"),
        (msgpack.Timestamp(0), "body: Timestamp is not a JSON value"),
        ("x".__class__, "body: type is not a JSON value"),
    ],
)
def test_what_is_no_json_value_is_refused_with_its_path(value: Any, sentence: str) -> None:
    """The error names the place, the type and what is allowed."""
    with pytest.raises(InvalidChange) as caught:
        encode_value(value)
    assert str(caught.value).startswith(sentence)
    assert len(str(caught.value)) < 300


def nest(depth: int, value: Any = 1) -> Any:
    for index in range(depth):
        value = [value] if index % 2 else {"a": value}
    return value


def test_depth_is_bounded_alike_everywhere() -> None:
    """64 containers inside each other pass; 65, and a list that holds itself, are refused by encoder, checker, JSON."""
    deepest, deeper = nest(DEPTH_MAX), nest(DEPTH_MAX + 1)
    empty = nest(DEPTH_MAX, [])
    check_values([encode_value(nest(DEPTH_MAX - 1, []))])
    assert decode_value(encode_value(deepest)) == deepest
    check_values([encode_value(deepest)])
    assert value_from_json(value_to_json(deepest)) == deepest
    itself: list[Any] = []
    itself.append(itself)
    for bad in (deeper, empty, itself):
        with pytest.raises(InvalidChange, match="more than 64"):
            encode_value(bad)
    for bad in (deeper, empty):
        with pytest.raises(InvalidChange, match="more than 64"):
            value_from_json(bad)
        with pytest.raises(BadMessage, match="more than 64"):
            check_values([b"\x01", msgpack.packb(bad)])


@given(st.lists(values, max_size=5))
def test_the_checker_accepts_what_the_encoder_makes(several: list[Any]) -> None:
    """Nothing that a publisher of ours sends is refused by the server's check."""
    check_values(list(map(encode_value, several)))


@pytest.mark.parametrize(
    ("encodings", "sentence"),
    [
        ([b"\xa1\xff"], "not a msgpack value"),
        ([b"\xc1"], "not a msgpack value"),
        ([b""], "not a msgpack value"),
        ([b"\x92\x01"], "not a msgpack value"),
        ([b"\x01\x02"], "not exactly one"),
        ([b"\x92\x01", b"\x02\x05"], "not exactly one"),
        ([b"\xd4\x05\x00"], "max_ext_len"),
        ([b"\xc7\x00\x05"], "extension type 5"),
        ([b"\xd6\xff\x00\x00\x00\x00"], "max_ext_len"),
        ([b"\xc7\x00\xff"], "timestamp"),
        ([b"\x81\xc4\x01a\x01"], "key that is not text"),
        ([b"\x81\x01\x01"], "not allowed for map key"),
        ([b"\x91\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"], "not finite"),
        ([b"\xca\x7f\x80\x00\x00"], "not finite"),
        ([b"\x91" * 2000 + b"\xc0"], "nested too deeply"),
        ([b"\xdd\x00\x10\x00\x00" * 1000], "not a msgpack value"),
    ],
)
def test_what_a_subscriber_could_not_decode_is_refused(encodings: list[bytes], sentence: str) -> None:
    """A hostile body is refused where it is published, so that it never becomes everybody's poison."""
    with pytest.raises(BadMessage, match=sentence):
        check_values(encodings)


def test_a_meta_must_be_a_map() -> None:
    """Checked where it is published."""
    check_values([b"\x80"], maps=True)
    with pytest.raises(BadMessage, match="a meta is not a map"):
        check_values([b"\x80", b"\x01"], maps=True)


@given(st.binary(max_size=200))
def test_decoding_any_bytes_gives_a_value_or_bad_message(data: bytes) -> None:
    """Nothing else ever comes out; and whatever the checker accepts can be decoded and has a JSON form."""
    try:
        decode_value(data)
    except BadMessage:
        pass
    try:
        check_values([data])
    except BadMessage:
        return
    value = decode_value(data)
    assert encode_value(value_from_json(loads(dumps(value_to_json(value))))) == encode_value(value)


@given(st.binary(max_size=100))
def test_whole_accepts_exactly_one_value(data: bytes) -> None:
    """It agrees with msgpack itself about where a value ends, wherever msgpack can decode it."""
    try:
        whole(data)
    except BadMessage:
        with pytest.raises(ValueError):
            msgpack.unpackb(data, raw=True, strict_map_key=False, object_pairs_hook=list)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\x00\xff", '{"$bytes":"AP8="}'),
        (b"", '{"$bytes":""}'),
        (2**53 - 1, "9007199254740991"),
        (2**53, '{"$int":"9007199254740992"}'),
        (-(2**53), '{"$int":"-9007199254740992"}'),
        (2**64 - 1, '{"$int":"18446744073709551615"}'),
        ({"$int": "5"}, '{"$map":{"$int":"5"}}'),
        ({"$bytes": None}, '{"$map":{"$bytes":null}}'),
        ({"$map": {"$map": 1}}, '{"$map":{"$map":{"$map":{"$map":1}}}}'),
        ({"$map": 2**60}, '{"$map":{"$map":{"$int":"1152921504606846976"}}}'),
        ({"$int": 1, "$map": 2}, '{"$int":1,"$map":2}'),
        ({"$other": 1}, '{"$other":1}'),
        ([1.0, 1, "é", True, None], '[1.0,1,"é",true,null]'),
    ],
)
def test_json_form(value: Any, text: str) -> None:
    """The table of the protocol page: bytes, big integers, and maps that look like them."""
    assert dumps(value_to_json(value)) == text
    assert encode_value(value_from_json(loads(text))) == encode_value(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"$bytes":1}', 'body: "$bytes" must hold base64'),
        ('{"a":[{"$bytes":"AP8"}]}', 'body.a[0]: "$bytes" must hold base64'),
        ('{"$bytes":"A P8="}', 'body: "$bytes" must hold base64'),
        ('{"$bytes":"é"}', 'body: "$bytes" must hold base64'),
        ('{"$int":5}', 'body: "$int" must hold'),
        ('{"$int":"05"}', 'body: "$int" must hold'),
        ('{"$int":"-0"}', 'body: "$int" must hold'),
        ('{"$int":"18446744073709551616"}', 'body: "$int" must hold'),
        ('{"$int":"1e3"}', 'body: "$int" must hold'),
        ('{"$int":"١"}', 'body: "$int" must hold'),
        ('{"$map":[]}', 'body: "$map" must hold an object'),
        ('{"$map":{"a":{"$int":""}}}', 'body.a: "$int" must hold'),
    ],
)
def test_wrong_json_forms_are_refused(text: str, sentence: str) -> None:
    """An escape that is not one is an error, not a map."""
    with pytest.raises(InvalidChange) as caught:
        value_from_json(loads(text))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a":1,"b":2,"a":3}', "the name 'a' comes twice"),
        ('[{"x":{"a":1,"a":1}}]', "the name 'a' comes twice"),
        ("NaN", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("1e999", "is too large"),
        ("9" * 5000, "not acceptable JSON"),
        ("{", "not JSON: "),
        ("", "not JSON: "),
        ("1 2", "not JSON: Extra data"),
        ("[" * 100_000, "nested too deeply"),
        ('"\x01"', "not JSON: "),
        (b"\xff", "must be UTF-8"),
        (b"\xef\xbb\xbf1", "not JSON"),
    ],
)
def test_loads_refuses_what_json_does_not_allow(text: str | bytes, sentence: str) -> None:
    """Twice the same name, NaN, overflow, and texts that are not JSON."""
    with pytest.raises(BadMessage, match=sentence):
        loads(text)


def test_dumps_never_writes_what_loads_refuses() -> None:
    """NaN is an error on the way out, too."""
    with pytest.raises(ValueError):
        dumps({"a": float("nan")})
