"""What every transport needs: a connection's handler ends that connection and nothing else; one task at a time."""

from __future__ import annotations

import logging
from typing import Final

import trio

from changefeed.errors import ChangefeedError, ConnectionLost
from changefeed.transport import Connection, ConnectionHandler, HttpHandler, Request, Response

logger = logging.getLogger("changefeed.transport")

INTERNAL_ERROR: Final = 1011


class Alone:
    """Only one task at a time: `with alone: …` raises BusyResourceError for a second one."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._busy = False

    def __enter__(self) -> None:
        if self._busy:
            raise trio.BusyResourceError(f"another task is {self._doing} this connection")
        self._busy = True

    def __exit__(self, *exc_info: object) -> None:
        self._busy = False


def leaves(error: BaseException) -> list[BaseException]:
    """The single exceptions in a group, in order; the exception itself if it is none."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for child in error.exceptions for leaf in leaves(child)]
    return [error]


async def run_handler(handle: ConnectionHandler, connection: Connection, request: Request) -> None:
    """Run the handler, then close the connection: with 1000, with the close code of a typed error that it raised, or
    with 1011 for anything unexpected, which is logged with its traceback. Only cancellation goes through (and what is
    no Exception at all); the connection is aborted then."""
    code, reason = 1000, ""
    finished = False
    try:
        try:
            await handle(connection, request)
        except* Exception as group:
            code, reason = _verdict(group, connection)
        finished = True
    finally:
        if not finished:
            connection.abort()
    await connection.aclose(code, reason)


def _verdict(group: BaseExceptionGroup[Exception], connection: Connection) -> tuple[int, str]:
    errors = leaves(group)
    unexpected = [error for error in errors if not isinstance(error, ChangefeedError)]
    if unexpected:
        logger.error("connection of %s: unexpected error; it is closed", connection.peer, exc_info=group)
        return INTERNAL_ERROR, "internal error"
    # That the peer left is no news; a typed error beside it is.
    typed = [error for error in errors if isinstance(error, ChangefeedError) and not isinstance(error, ConnectionLost)]
    if not typed:
        logger.debug("connection of %s ended: %s", connection.peer, errors[0])
        return 1000, ""
    logger.info("connection of %s closed: %s", connection.peer, typed[0])
    return typed[0].close_code, typed[0].code


async def respond(http: HttpHandler, request: Request) -> Response:
    """The handler's response; 500 for whatever it raises, which is logged."""
    try:
        return await http(request)
    except Exception:
        logger.exception("GET %s failed", request.path)
        return Response(500, b'{"error": "internal error"}\n')
