"""Scenarios of connections and how they end. Each function is one; its docstring says what is right."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from changefeed.conformance.client import Failed
from changefeed.conformance.events import SLOW_DEAD_S
from changefeed.conformance.frames import at, frame
from changefeed.conformance.stage import SAVED_S, Stage, Talk
from changefeed.errors import ConnectionLost
from changefeed.wire.messages import Fault, Redirect

#: While no server takes it in, for at least so long (seconds) and until it made such a pause, a client may try so
#: often. With the bounds of protocol.md it tries about eight times, and more often than allowed in one run of 10^8.
DOWN_S: Final = 3.0
PAUSE_S: Final = 1.5
TRIES_MAX: Final = 15
#: After that it may take so long to come back: the longest pause, and a connection.
BACK_S: Final = 20.0


# ---- connections


async def slow(stage: Stage) -> None:
    """Bytes that come one by one make the same messages."""
    stage.relay.drip = True
    talk = await stage.begin(3, dead_s=SLOW_DEAD_S)
    await talk.say(frame(0, 3, 1, 2, 3, size=300))
    await stage.printed(1, 2, 3)


async def half_frame(stage: Stage) -> None:
    """A connection that breaks in the middle of a message: nothing of that is handled, then it resumes."""
    talk = await stage.begin(4)
    await talk.say(frame(0, 2, 1, 2))
    await stage.printed(1, 2)
    stage.relay.cut_after = 1000
    try:
        await talk.say(frame(2, 4, 3, 4, size=4000))
    except ConnectionLost:
        pass
    talk = await stage.again(2)
    await talk.welcome(2, 4)
    await talk.say(frame(2, 4, 3, 4))
    await stage.printed(1, 2, 3, 4)


async def closed_handshake(stage: Stage) -> None:
    """A server that closes during the handshake, or answers HTTP 503 (as a proxy does while it restarts), is tried
    again."""
    stage.relay.refuse = "silent"
    await stage.start_client()
    await _tried(stage, 1)
    stage.relay.refuse = "http"
    await _tried(stage, stage.relay.tries + 1)
    stage.relay.refuse = ""
    await _taken_in(stage, "it should have tried again when the handshakes before had failed")


async def hanging_handshake(stage: Stage) -> None:
    """A server that takes the connection and does not answer (it is frozen) is given up after 10 seconds."""
    stage.relay.refuse = "hang"
    await stage.start_client()
    await _tried(stage, 1)
    stage.relay.refuse = ""
    await _taken_in(stage, "the server had not answered its handshake; it should have tried again after 10 s")


async def _taken_in(stage: Stage, why: str) -> None:
    talk = await stage.accept(why)
    talk.expect_beginning()
    await talk.welcome(0, 1)
    await talk.say(frame(0, 1, 1))
    await stage.printed(1)


async def _tried(stage: Stage, times: int) -> None:
    await stage.until(
        lambda: stage.relay.tries >= times,
        lambda: f"it should have tried to connect {times} times; it tried {stage.relay.tries} times",
    )


async def failover(stage: Stage) -> None:
    """Of several servers in $CHANGEFEED_URL any will do: it goes to the next when one is gone, and resumes there."""
    talk = await stage.begin(3, stage.relay.url, stage.other.url)
    await talk.say(frame(0, 3, 1, 2, 3))
    await stage.printed(1, 2, 3)
    gone, left = (stage.relay, stage.other) if stage.relay.tries else (stage.other, stage.relay)
    await gone.shut()
    talk = await stage.again(3, "one of its two servers was killed; it should have gone to the other")
    await talk.welcome(3, 5)
    await talk.say(frame(3, 5, 4, 5))
    await stage.printed(1, 2, 3, 4, 5)
    if not left.tries:
        raise Failed("it did not go to the other server")


async def redirect(stage: Stage) -> None:
    """A redirect may be followed or ignored; either way nothing is lost, and nothing comes twice."""
    talk = await stage.begin(4)
    await talk.say(frame(0, 1, 1))
    await stage.printed(1)
    await talk.say(Redirect((stage.other.url,), 0.2), frame(1, 2, 2))
    there = await stage.arrives(1.5)
    followed = there is not None
    if there is None:
        await talk.close(4410, "moved")
        there = await stage.accept("it should have come again after close code 4410")
    start = there.subscribe.start.position
    if start not in (at(1), at(2)):
        raise Failed(f"it resumed at {there.started_at}; it had handled {at(1)}, or {at(2)}")
    await there.welcome(start, 4)
    if followed:
        await talk.gone("it followed a redirect, and was taken in elsewhere")
    await there.say(frame(start.seq, 4, *range(start.seq + 1, 5)))
    await stage.printed(1, 2, 3, 4)


async def backoff(stage: Stage) -> None:
    """While nobody takes it in it waits between its tries, longer and longer; then it comes back."""
    talk = await stage.begin(1)
    await talk.say(frame(0, 1, 1))
    await stage.printed(1)
    stage.relay.refuse = "silent"
    talk.abort()
    await _pauses(stage, lambda: stage.relay.tries, "the server closed each connection at once")
    stage.relay.refuse = ""
    await stage.again(1, within_s=BACK_S)


async def not_current(stage: Stage) -> None:
    """`not-current` (4401) before `subscribed` is no final answer: it asks again, with the same position and pauses
    that grow."""
    talk = await stage.begin(1)
    await talk.say(frame(0, 1, 1))
    await stage.printed(1)
    talk.abort()

    async def no(talk: Talk) -> None:
        talk.expect_position(1)
        await talk.say(Fault("not-current", "nobody leads the feed now; ask again", True))
        await talk.close(4401, "not-current")

    await _turned_away(stage, no, "the server was not current")
    talk = await stage.again(1, within_s=BACK_S)
    await talk.welcome(1, 2)
    await talk.say(frame(1, 2, 2))
    await stage.printed(1, 2)


async def flapping(stage: Stage) -> None:
    """A server that takes it in and closes at once again does not make it connect in a busy loop."""
    talk = await stage.begin(1)
    await talk.say(frame(0, 1, 1))
    await stage.printed(1)
    talk.abort()

    async def welcome(talk: Talk) -> None:
        talk.expect_position(1)
        await talk.welcome(1, 1)
        await talk.close(4411, "draining")

    await _turned_away(stage, welcome, "the server closed after each subscribed")
    await stage.again(1, within_s=BACK_S)


async def _turned_away(stage: Stage, answer: Callable[[Talk], Awaitable[None]], what: str) -> None:
    """Each connection gets that answer, until the client has made a pause."""

    async def turn_away(talk: Talk) -> None:
        try:
            await answer(talk)
        except ConnectionLost:
            pass

    async def serve() -> None:
        while True:
            talk = await stage.arrives(float("inf"))
            assert talk is not None
            nursery.start_soon(turn_away, talk)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await _pauses(stage, lambda: stage.arrivals, what)
        nursery.cancel_scope.cancel()


async def _pauses(stage: Stage, count: Callable[[], int], what: str) -> None:
    """Until the client, which nobody takes in, has made a pause between its tries; there may not be too many before.

    A pause is waited for, since how often a loop without any goes round is a matter of the machine.
    """
    begun = tried_at = stage.lived_s
    before = seen = count()
    while seen == before or stage.lived_s < max(begun + DOWN_S, tried_at + PAUSE_S):
        await stage.changed.wait()
        if count() != seen:
            seen, tried_at = count(), stage.lived_s
        took = stage.lived_s - begun
        if seen == before and took >= stage.patience_s:
            raise Failed(f"it did not try to connect again while {what}")
        if seen - before > TRIES_MAX:
            raise Failed(
                f"it connected {seen - before} times within {took:.1f} s while {what}; it should try at once, then "
                "wait a random time up to 0.1 s, 0.2 s, 0.4 s … 15 s"
            )


# ---- endings


async def _comes_again(stage: Stage, *codes: int) -> None:
    talk = await stage.begin(3)
    await talk.say(frame(0, 1, 1))
    await stage.printed(1)
    for code in codes:
        await talk.close(code, "come again")
        talk = await stage.again(1, f"it should have come again after close code {code}")
        await talk.welcome(1, 3)
    await talk.say(frame(1, 3, 2, 3))
    await stage.printed(1, 2, 3)


async def close_reconnect(stage: Stage) -> None:
    """Close codes from 4000 to 4499, also unknown ones: it reconnects and resumes."""
    await _comes_again(stage, 4410, 4000, 4499)


async def close_other(stage: Stage) -> None:
    """Close codes outside of 4000 to 4999, such as 1000, 1001 and 1011: it reconnects and resumes."""
    await _comes_again(stage, 1000, 1001, 1011)


async def close_final(stage: Stage) -> None:
    """Close codes from 4500 to 4999, also unknown ones: it stops, with an exit status that is neither 0 nor 3."""
    talk = await stage.begin(3)
    await talk.say(frame(0, 1, 1))
    await stage.printed(1)
    for code in (4500, 4999):
        await talk.close(code, "do not come again")
        _expect_final(await stage.stopped(f"close code {code} means do not reconnect"), f"close code {code}")
        if code == 4500:
            await stage.start_client()
            talk = await stage.accept()
            start = talk.subscribe.start.position
            await talk.welcome(1 if start == at(1) else 0, 1)


async def refused(stage: Stage) -> None:
    """A subscription that is refused for good, as that of an unknown feed: it stops, with an exit status that is
    neither 0 nor 3."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.say(Fault("unknown-feed", "no instance knows that feed", False))
    await talk.close(4511, "unknown-feed")
    _expect_final(await stage.stopped("the feed is unknown (4511)"), "close code 4511 (unknown-feed)")


def _expect_final(status: int, what: str) -> None:
    if status in (0, 3):
        meaning = "that all is well" if status == 0 else "that it cannot resume"
        raise Failed(f"it stopped with exit status {status} after {what}; that means {meaning}")


async def reset(stage: Stage) -> None:
    """A position that is too old: it stops with exit status 3, and keeps its position, so that it does not go on as if
    nothing had happened when it is started again."""
    talk = await stage.begin(2)
    await talk.say(frame(0, 2, 1, 2))
    await stage.printed(1, 2)
    await talk.hear_handled(2)
    await trio.sleep(SAVED_S)
    talk.abort()
    talk = await stage.again(2)
    await _too_old(stage, talk)
    await stage.start_client()
    try:
        talk = await stage.accept()
    except Failed:
        if stage.client.status in (None, 0):
            raise
        return  # it will not even try: right as well
    talk.expect_position(2)
    await _too_old(stage, talk)
    await stage.printed(1, 2)


async def _too_old(stage: Stage, talk: Talk) -> None:
    details = {"position": str(at(2)), "earliest": str(at(500)), "head": str(at(900))}
    await talk.say(Fault("position-too-old", "what follows was trimmed up to 500", False, details))
    await talk.close(4531, "position-too-old")
    await _cannot_resume(stage, "its position is too old (4531)")


async def _cannot_resume(stage: Stage, why: str) -> None:
    status = await stage.stopped(why)
    if status != 3:
        raise Failed(f"it stopped with exit status {status} when {why}; 3 means that it cannot resume")


async def reset_by_code(stage: Stage) -> None:
    """The close codes of other-lineage and future-position say the same without a `fault` before: exit status 3."""
    for code, word in ((4532, "other-lineage"), (4533, "future-position")):
        await stage.start_client()
        talk = await stage.accept()
        await talk.close(code, word)
        await _cannot_resume(stage, f"it was closed with {code} ({word})")
