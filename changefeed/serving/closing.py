"""How a session ends: say why, then close with the error's code."""

from __future__ import annotations

from typing import Final

import trio

from changefeed.errors import ChangefeedError, ConnectionLost
from changefeed.transport import Connection
from changefeed.wire.codec import encode
from changefeed.wire.faults import fault_of

#: A peer that takes no byte is not waited for longer to be told why.
SAY_S: Final = 2.0


def typed_error(error: BaseException) -> ChangefeedError | None:
    """The typed error that ended a session, out of whatever groups it is in: one that tells more than that the
    connection is lost, if there is one. None if something else was raised beside: that is a bug, not an ending."""
    found = list(_leaves(error))
    typed = [leaf for leaf in found if isinstance(leaf, ChangefeedError)]
    if len(typed) < len(found) or not typed:
        return None
    return next((leaf for leaf in typed if not isinstance(leaf, ConnectionLost)), typed[0])


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for child in error.exceptions for leaf in _leaves(child)]
    return [error]


async def close_with(connection: Connection, error: ChangefeedError) -> None:
    """Tell the peer, as far as it can be told, and close. Nobody else may be sending."""
    if isinstance(error, ConnectionLost):
        connection.abort()
        return
    with trio.move_on_after(SAY_S) as scope:
        try:
            await connection.send(encode(fault_of(error), connection.subprotocol))
        except ConnectionLost:
            return
    if not scope.cancelled_caught:
        await connection.aclose(error.close_code, error.code)
