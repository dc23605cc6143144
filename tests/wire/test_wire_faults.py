"""Errors over the wire: what a server raises is what a client gets."""

from __future__ import annotations

import pytest

from changefeed.change import Position
from changefeed.errors import (
    AcknowledgedLost,
    CannotResume,
    ChangefeedError,
    ConnectionLost,
    ProtocolError,
    Refused,
    Superseded,
    Unavailable,
    every_error,
)
from changefeed.wire import JSON, MSGPACK
from changefeed.wire.codec import decode, encode
from changefeed.wire.faults import error_of, fault_of, final_close, refusal_of
from changefeed.wire.messages import Answer, Fault

AT = Position("a" * 16, 3, "b" * 8, 10)


def made(cls: type[ChangefeedError]) -> ChangefeedError:
    if issubclass(cls, CannotResume):
        return cls("why", AT, None, Position("a" * 16, 3, "b" * 8, 99))
    if issubclass(cls, Superseded | AcknowledgedLost):
        return cls("why", 17)
    return cls("why")


@pytest.mark.parametrize("cls", list(every_error()), ids=lambda cls: cls.code)
@pytest.mark.parametrize("subprotocol", [MSGPACK, JSON])
def test_every_error_survives_the_wire(cls: type[ChangefeedError], subprotocol: str) -> None:
    """Class, sentence and details arrive, in a fault and in a refused answer."""
    error = made(cls)
    fault = decode(encode(fault_of(error), subprotocol), subprotocol, Fault)
    answer = decode(
        encode(Answer(1, 1, code=error.code, message=str(error), details=error.details()), subprotocol), subprotocol
    )
    for again in (error_of(fault), refusal_of(answer)):
        assert type(again) is cls
        assert str(again) == "why"
        assert again.details() == error.details()
    assert fault.retryable == cls.retryable


def test_a_code_of_a_later_release_keeps_its_meaning() -> None:
    """Unknown codes: a fault goes by the sender's word on retrying, an answer is a final refusal."""
    assert type(error_of(Fault("new-thing", "m", True))) is Unavailable
    assert type(error_of(Fault("new-thing", "m", False))) is ChangefeedError
    refused = refusal_of(Answer(1, 1, code="new-thing", message="m"))
    assert type(refused) is Refused and str(refused) == "m (new-thing)"


def test_details_that_make_no_sense_are_dropped() -> None:
    """A broken server cannot make the client's error handling raise."""
    error = error_of(Fault("position-too-old", "m", False, {"position": "nonsense", "head": 5}))
    assert isinstance(error, CannotResume) and error.position is None and error.head is None
    lost = error_of(Fault("acknowledged-lost", "m", False, {"last_number": "x"}))
    assert isinstance(lost, AcknowledgedLost) and lost.last_number == 0


@pytest.mark.parametrize("cls", [cls for cls in every_error() if "close_code" in vars(cls)], ids=lambda cls: cls.code)
def test_a_close_code_alone_says_enough(cls: type[ChangefeedError]) -> None:
    """Without a fault before it: 4500 and above is final and typed, below is not."""
    error = final_close(ConnectionLost("closed", cls.close_code, "reason"))
    if cls.close_code >= 4500:
        assert type(error) is cls and "reason" in str(error)
    else:
        assert error is None


def test_close_codes_that_nobody_knows() -> None:
    """By range: a later release's 4999 is final, everything outside of 4000 to 4999 is an accident."""
    assert type(final_close(ConnectionLost("closed", 4999, ""))) is ProtocolError
    for code in (1000, 1001, 1006, 1011, 3000, 4499, 5000):
        assert final_close(ConnectionLost("closed", code, "")) is None
