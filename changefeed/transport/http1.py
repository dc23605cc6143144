"""The little HTTP/1.1 that one port needs beside websockets: a request's head, a response, both bounded. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote

from changefeed.transport import Response

HEAD_BYTES_MAX: Final = 16 * 1024
HEADERS_MAX: Final = 100
_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]{1,8192}) HTTP/(1\.[01])\Z")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}):[ \t]*(.*?)[ \t]*\Z", re.DOTALL)
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_METHOD_BEGINS: Final = re.compile(rb"[A-Z]{0,16}(?: |\Z)")


class BadHead(Exception):
    """The head is no HTTP request that is answered here; status and message are the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """A request's head. target: as on the wire; path: decoded, without query. Header names are in lower case; values of
    a repeated header are joined by ", "."""

    method: str
    version: str
    target: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def upgrades(self) -> bool:
        """Whether a websocket is asked for."""
        return "upgrade" in tokens(self.headers.get("connection", "")) or "upgrade" in self.headers

    def check_websocket(self) -> None:
        """Raise BadHead unless this is a websocket handshake that the library will accept."""
        if self.method != "GET" or self.version != "1.1":
            raise BadHead(400, "a websocket handshake is a GET request of HTTP/1.1")
        if self.headers.get("upgrade", "").lower() != "websocket":
            raise BadHead(400, "only an upgrade to websocket is known here")
        if "upgrade" not in tokens(self.headers.get("connection", "")):
            raise BadHead(400, "the header Connection: Upgrade is missing")
        if self.headers.get("sec-websocket-version") != "13":
            raise BadHead(426, "only websocket version 13 is spoken here")
        try:
            key = base64.b64decode(self.headers.get("sec-websocket-key", ""), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != 16:
            raise BadHead(400, "Sec-WebSocket-Key must be 16 bytes in base64")
        if not self.headers.get("host"):
            raise BadHead(400, "the header Host is missing")
        # The library decodes these, and fails with an error of its own for what it cannot.
        try:
            self.headers["host"].encode("latin-1").decode("idna")
        except UnicodeError:
            raise BadHead(400, "the header Host names no host") from None
        for name in ("connection", "sec-websocket-protocol", "sec-websocket-extensions"):
            if not self.headers.get(name, "").isascii():
                raise BadHead(400, f"the header {name.title()} must be ASCII")

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """What the client offers, in its order of preference."""
        return tuple(part for part in map(str.strip, self.headers.get("sec-websocket-protocol", "").split(",")) if part)


def tokens(value: str) -> set[str]:
    return {part.strip().lower() for part in value.split(",")}


def looks_like_http(data: bytes) -> bool:
    """Whether the first bytes can begin a request; a TLS hello or noise is told at once, without waiting for more."""
    return _METHOD_BEGINS.match(data[:17]) is not None


def parse_request(data: bytes) -> Head:
    """The head of a request from its bytes before the empty line. Raises BadHead."""
    first, *lines = data.split(b"\r\n")
    match = _REQUEST_LINE.match(first)
    if match is None:
        raise BadHead(400, "the first line is not METHOD TARGET HTTP/1.1")
    method, target, version = match[1].decode(), match[2].decode(), match[3].decode()
    if len(lines) > HEADERS_MAX:
        raise BadHead(431, f"more than {HEADERS_MAX} header lines")
    raw_path, _, raw_query = target.partition("?")
    return Head(method, version, target, unquote(raw_path), dict(parse_qsl(raw_query)), _headers(lines))


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.match(line)
        if match is None or _BAD_VALUE.search(match[2]):
            raise BadHead(400, "a header line is malformed")
        name, value = match[1].decode().lower(), match[2].decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def format_response(response: Response, *, body: bool = True) -> bytes:
    """The bytes of a response after which the connection is closed. body=False: for a HEAD request."""
    try:
        phrase = HTTPStatus(response.status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {response.status} {phrase}"]
    headers = {"Content-Type": response.content_type, **response.headers}
    headers |= {"Content-Length": str(len(response.body)), "Cache-Control": "no-store", "Connection": "close"}
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
    return head + response.body if body else head


def parse_response(data: bytes) -> Response:
    """A whole response, read to the connection's end. Raises ValueError if it is none, or is cut off."""
    head, found, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    match = re.match(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: |\Z)", first)
    if not found or match is None:
        raise ValueError("not an HTTP response")
    try:
        headers = _headers(lines)
        length = int(headers.get("content-length", len(body)))
    except (BadHead, ValueError):
        raise ValueError("an HTTP response with malformed headers") from None
    if len(body) < length:
        raise ValueError(f"an HTTP response that was cut off after {len(body)} of {length} bytes")
    return Response(int(match[1]), body[:length], headers.get("content-type", ""), headers)
