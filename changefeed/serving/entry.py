"""A connection's first message says what it is for: hand it to whoever serves that, and tell the peer the end."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import trio

from changefeed.errors import ChangefeedError, HandshakeTimeout, UnknownFeed
from changefeed.serving.closing import close_with, typed_error
from changefeed.serving.driver import serve_subscriber
from changefeed.serving.feed import Feed
from changefeed.serving.publishers import serve_publisher
from changefeed.settings import Settings
from changefeed.transport import Connection, Request
from changefeed.wire import PEER
from changefeed.wire.codec import FIRST_BYTES_MAX, check_size, decode
from changefeed.wire.messages import Ask, Open, PeerHello, Subscribe

logger = logging.getLogger("changefeed.serving")

AnyFeed = TypeVar("AnyFeed", bound=Feed)
PeerHandler = Callable[[Connection, PeerHello | Ask], Awaitable[None]]


async def serve_connection(
    connection: Connection, request: Request, feeds: Mapping[str, AnyFeed], peers: PeerHandler, settings: Settings
) -> None:
    """Serve one connection until it ends, and close it with a Fault and the close code of what ended it.

    feeds: by name; looking one up may raise a typed error (it is being opened, its log is damaged), which the peer is
    told. peers: serves the connections of other instances, which are known by their sub-protocol, with their first
    message. Raises only what is no typed error (a bug), with the connection left to the transport.
    """
    try:
        await _serve(connection, feeds, peers, settings)
    except (ChangefeedError, BaseExceptionGroup) as raised:
        error = typed_error(raised)
        if error is None:
            raise
        logger.debug("connection of %s (%s) ended: %s", connection.peer, request.path, error)
        await close_with(connection, error)


async def _serve(connection: Connection, feeds: Mapping[str, AnyFeed], peers: PeerHandler, settings: Settings) -> None:
    with trio.move_on_after(settings.handshake_s) as deadline:
        data = await connection.receive()
    if deadline.cancelled_caught:
        raise HandshakeTimeout(f"no message came within {settings.handshake_s:g} s of connecting")
    check_size(data, FIRST_BYTES_MAX, "a first message")
    if connection.subprotocol == PEER:
        await peers(connection, decode(data, PEER, (PeerHello, Ask), settings))
        return
    first = decode(data, connection.subprotocol, (Subscribe, Open), settings)
    feed = _feed(first.feed, feeds)
    if isinstance(first, Subscribe):
        await serve_subscriber(connection, first, feed)
    else:
        await serve_publisher(connection, first, feed)


def _feed(name: str, feeds: Mapping[str, AnyFeed]) -> AnyFeed:
    try:
        return feeds[name]
    except KeyError:
        known = sorted(feeds)
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it serves {', '.join(known[:20]) or 'none'}"
        raise UnknownFeed(f"this instance serves no feed {name!r}; {hint}") from None


__all__ = ["PeerHandler", "serve_connection"]
