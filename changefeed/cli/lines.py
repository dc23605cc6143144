"""JSON lines into receipts, in order: the hands of `changefeed publish FEED -` and `--file`.

One task reads and submits, another one waits for the outcomes in the order of the lines; so lines are pipelined, and
each receipt is told as soon as it and those before it are there. A line that is malformed or refused is told with its
number, and the lines after it go on. Under a named publisher line n is number n: a rerun gives the same lines the same
numbers, and what was stored answers with the receipt that it had.
"""

from __future__ import annotations

import copy
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import trio

from changefeed.change import Receipt
from changefeed.errors import (
    BadMessage,
    ChangefeedError,
    ChangeTooLarge,
    InvalidChange,
    OutcomeUnknown,
    Refused,
    UnknownField,
    UnknownResource,
    Unreachable,
)
from changefeed.nursery import open_owned_nursery
from changefeed.publisher.driver import Pending, Publisher
from changefeed.wire.changes import change_from_json
from changefeed.wire.values import loads

#: Bytes read at once, and how long one line may be: a change of 1 MiB, written with escapes.
CHUNK_BYTES: Final = 65536
LINE_BYTES_MAX: Final = 8 * 2**20
#: Lines submitted ahead of their outcomes; the publisher bounds them by bytes too.
AHEAD_MAX: Final = 20_000
#: What is the line's fault, when it is submitted: the next line may do better.
OF_THE_LINE: Final = (BadMessage, InvalidChange, ChangeTooLarge, UnknownResource, UnknownField)

Tell = Callable[[int, Receipt | ChangefeedError], Awaitable[None]]


@dataclass
class Tally:
    """acknowledged: lines with a receipt; repeated: those among them that the log had already. refused: nothing of them
    is stored. unknown: that can no longer be told (they were trimmed)."""

    acknowledged: int = 0
    repeated: int = 0
    refused: int = 0
    unknown: int = 0


def receipt_to_json(receipt: Receipt) -> dict[str, Any]:
    return {"position": str(receipt.position), "seq": receipt.position.seq, "repeated": receipt.repeated}


async def chunks_of(fd: int) -> AsyncIterator[bytes]:
    """What a file, pipe or terminal gives, as it comes. Cancellation: what was being read is lost with the process."""
    limiter = trio.CapacityLimiter(1)
    while chunk := await trio.to_thread.run_sync(os.read, fd, CHUNK_BYTES, abandon_on_cancel=True, limiter=limiter):
        yield chunk


async def numbered_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes | None]]:
    """(number, line) from 1 on, without the line's end; None for a line above `LINE_BYTES_MAX`, which is not kept."""
    number, kept, dropping = 1, bytearray(), False
    async for chunk in chunks:
        begin = 0
        while (end := chunk.find(b"\n", begin)) >= 0:
            kept += chunk[begin:end]
            yield number, None if dropping or len(kept) > LINE_BYTES_MAX else bytes(kept)
            number, begin, dropping = number + 1, end + 1, False
            kept.clear()
        kept += chunk[begin:]
        if len(kept) > LINE_BYTES_MAX:
            dropping = True
            kept.clear()
    if kept or dropping:
        yield number, None if dropping else bytes(kept)


async def connect(publisher: Publisher, timeout_s: float) -> None:
    """Until the leader has taken the publisher in. Raises after `timeout_s` what the leader refused it with
    (PublisherInUse …) or Unreachable; at once what a server refused for good."""
    with trio.move_on_after(timeout_s) as scope:
        await publisher.wait_ready()
    if scope.cancelled_caught:
        status = publisher.status
        if isinstance(status.last_error, Refused):
            # A leader was reached, and says for how long that it will not: for one, another process has the name.
            raise copy.copy(status.last_error)
        why = status.last_error or f"{status.server} has not answered yet"
        raise Unreachable(f"no leader could be reached within {timeout_s:g} s: {why}")


async def outcome(pending: Pending, publisher: Publisher, timeout_s: float) -> Receipt:
    """The receipt. Raises OutcomeUnknown after `timeout_s` without one, and whatever `Pending.wait` raises."""
    with trio.move_on_after(timeout_s):
        return await pending.wait()
    why = publisher.status.last_error
    raise OutcomeUnknown(f"no answer within {timeout_s:g} s; it may be stored or not" + (f" ({why})" if why else ""))


async def publish_lines(
    publisher: Publisher, chunks: AsyncIterator[bytes], *, numbered: bool, timeout_s: float, tell: Tell
) -> Tally:
    """Publish every line, and tell each one's receipt or refusal, in order. Blank lines are passed over.

    numbered: line n is number n. timeout_s: how long to wait for one answer. Raises what ended the publisher, with the
    line where it is known; OutcomeUnknown if an answer does not come. An answer that tells that nothing can be known
    any more (a rerun of what retention has trimmed) is told like the others.
    """
    tally = Tally()
    send, receive = trio.open_memory_channel[tuple[int, Pending | ChangefeedError]](AHEAD_MAX)
    async with open_owned_nursery() as nursery:
        nursery.start_soon(_submit_lines, publisher, chunks, numbered, send)
        async with receive:
            async for number, submitted in receive:
                await _settle(publisher, number, submitted, timeout_s, tell, tally)
    return tally


async def _submit_lines(
    publisher: Publisher,
    chunks: AsyncIterator[bytes],
    numbered: bool,
    send: trio.MemorySendChannel[tuple[int, Pending | ChangefeedError]],
) -> None:
    async with send, aclosing(numbered_lines(chunks)) as lines:  # type: ignore[type-var]
        async for number, line in lines:
            if line is not None and not line.strip():
                continue
            try:
                if line is None:
                    raise ChangeTooLarge(f"the line is longer than {LINE_BYTES_MAX} bytes")
                change = change_from_json(loads(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line))
                submitted: Pending | ChangefeedError = await publisher.submit(
                    change, number=number if numbered else None
                )
            except OF_THE_LINE as error:
                submitted = error
            try:
                await send.send((number, submitted))
            except trio.BrokenResourceError:
                return  # who waits for the outcomes has ended, and says why


async def _settle(
    publisher: Publisher,
    number: int,
    submitted: Pending | ChangefeedError,
    timeout_s: float,
    tell: Tell,
    tally: Tally,
) -> None:
    result: Receipt | ChangefeedError
    if isinstance(submitted, ChangefeedError):
        result = submitted
    else:
        try:
            result = await outcome(submitted, publisher, timeout_s)
        except Refused as error:
            result = error
        except OutcomeUnknown as error:
            if not submitted.done:
                raise OutcomeUnknown(f"line {number}: {error}", error.pending) from error
            result = error
    if isinstance(result, Receipt):
        tally.acknowledged += 1
        tally.repeated += result.repeated
    elif isinstance(result, OutcomeUnknown):
        tally.unknown += 1
    else:
        tally.refused += 1
    await tell(number, result)
