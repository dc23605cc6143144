"""An error <-> the Fault, the refused Answer or the close code that stands for it. Pure.

A client needs no table of codes: a close code from 4000 to 4499 means "reconnect and resume", from 4500 to 4999 "do not
reconnect". A code that this release does not know keeps its message and the sender's word on whether to retry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from changefeed.change import Position
from changefeed.errors import (
    AcknowledgedLost,
    BadPosition,
    CannotResume,
    ChangefeedError,
    ConnectionLost,
    ProtocolError,
    Refused,
    Superseded,
    Unavailable,
    by_code,
    every_error,
)
from changefeed.wire.messages import Answer, Fault

#: The first close code that means "do not reconnect"; they end at 4999.
FINAL_CLOSE: Final = 4500
_CLOSES: Final = range(4000, 5000)


def fault_of(error: ChangefeedError) -> Fault:
    """What a server says before it closes because of `error`."""
    return Fault(error.code, str(error), error.retryable, error.details())


def error_of(fault: Fault) -> ChangefeedError:
    """The typed error that a Fault stands for, with the details that its class knows."""
    return make_error(fault.code, fault.message, fault.details, Unavailable if fault.retryable else ChangefeedError)


def refusal_of(answer: Answer) -> ChangefeedError:
    """The typed error of a refused Answer; an unknown code is a final refusal."""
    return make_error(answer.code, answer.message, answer.details, Refused)


def make_error(
    code: str, message: str, details: Mapping[str, Any], unknown: type[ChangefeedError] = ChangefeedError
) -> ChangefeedError:
    """An error by its code; `unknown` is the class for a code that this release does not know."""
    cls = by_code(code)
    if cls is ChangefeedError and code != ChangefeedError.code:
        return unknown(f"{message} ({code})")
    if issubclass(cls, CannotResume):
        return cls(message, *(_position(details.get(name)) for name in ("position", "earliest", "head")))
    number = details.get("last_number")
    number = number if isinstance(number, int) and number >= 0 else None
    if issubclass(cls, Superseded):
        return cls(message, number)
    if issubclass(cls, AcknowledgedLost):
        return cls(message, number or 0)
    return cls(message)


def final_close(error: ConnectionLost) -> ChangefeedError | None:
    """The error of a connection that was closed with "do not reconnect" and no Fault before; None for other ends."""
    code = error.close_code_received
    if code not in _CLOSES or code < FINAL_CLOSE:
        return None
    cls = next((each for each in every_error() if each.close_code == code), ProtocolError)
    what = f": {error.reason}" if error.reason else ""
    return cls(f"the server closed the connection for good with {code} ({cls.code}){what}")


def _position(text: Any) -> Position | None:
    try:
        return None if text is None else Position.parse(text)
    except BadPosition:
        return None
