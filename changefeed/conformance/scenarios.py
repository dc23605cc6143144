"""What is played and what is expected of a subscriber. Each function is one scenario; its docstring is its title."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from changefeed.conformance.stage import DEAD_S, HEARTBEAT_S, Failed, Stage, at, frame, open_stage
from changefeed.errors import ChangefeedError, ConnectionLost
from changefeed.wire.messages import Beat, Fault, Redirect

Scenario = Callable[[Stage], Awaitable[None]]


async def in_order(stage: Stage) -> None:
    """Events are printed once each, in order, and the client says how far it has handled them."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 5)
    await talk.say(frame(0, 2, 1, 2), frame(2, 5, 3, 4, 5))
    await stage.client.printed(1, 2, 3, 4, 5)
    await talk.hear_handled(5)


async def resume(stage: Stage) -> None:
    """After a lost connection it resumes after its position."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 3)
    await talk.say(frame(0, 3, 1, 2, 3))
    await stage.client.printed(1, 2, 3)
    talk.connection.abort()
    talk = await stage.accept("it should have connected again")
    talk.expect_position(3)
    await talk.welcome(3, 5)
    await talk.say(frame(3, 5, 4, 5))
    await stage.client.printed(1, 2, 3, 4, 5)


async def restart(stage: Stage) -> None:
    """Killed and started again, it resumes where it had saved; nothing is skipped."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 3)
    await talk.say(frame(0, 3, 1, 2, 3))
    await stage.client.printed(1, 2, 3)
    await talk.hear_handled(3)
    # What it says that it handled need not be saved yet; a second later it should be.
    await trio.sleep(2 * HEARTBEAT_S)
    stage.client.kill()
    await talk.gone("it was killed")
    await stage.start_client()
    talk = await stage.accept()
    start = talk.subscribe.start
    seq = 0 if start.at == "beginning" else start.position.seq if start.position is not None else -1
    if not 0 <= seq <= 3:
        raise Failed(f"it came back with {start}; it had handled everything up to 3")
    if seq == 0:
        raise Failed("it began at the beginning again: it had two heartbeats' time to save its position")
    await talk.welcome(seq, 4)
    await talk.say(frame(seq, 4, *range(seq + 1, 5)))
    await stage.client.printed(1, 2, 3, *range(seq + 1, 5))


async def range_gap(stage: Stage) -> None:
    """A frame that begins beyond its position: it resumes, and handles nothing of that frame."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 9)
    await talk.say(frame(0, 3, 1, 2, 3), frame(5, 7, 6, 7))
    await talk.gone("a frame began at 5, its position was 3")
    talk = await stage.accept("it should have resumed")
    talk.expect_position(3)
    await talk.welcome(3, 9)
    await talk.say(frame(3, 9, 4, 5, 6, 7, 8, 9))
    await stage.client.printed(1, 2, 3, 4, 5, 6, 7, 8, 9)


async def bookmark(stage: Stage) -> None:
    """A frame without events moves its position."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 50)
    await talk.say(frame(0, 3, 2), frame(3, 50))
    await stage.client.printed(2)
    await talk.hear_handled(50)
    talk.connection.abort()
    talk = await stage.accept("it should have connected again")
    talk.expect_position(50)


async def repeat(stage: Stage) -> None:
    """Frames that come again or overlap: each event once."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 7)
    await talk.say(frame(0, 3, 1, 2, 3), frame(0, 3, 1, 2, 3), frame(1, 5, 2, 3, 4, 5), frame(2, 4, 3, 4))
    await talk.say(frame(5, 7, 6, 7))
    await stage.client.printed(1, 2, 3, 4, 5, 6, 7)


async def sparse(stage: Stage) -> None:
    """Seqs with holes inside a frame's range are no gap: a filter took the rest."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 100)
    await talk.say(frame(0, 40, 5, 17, 39), frame(40, 100, 41, 99))
    await stage.client.printed(5, 17, 39, 41, 99)


async def reset(stage: Stage) -> None:
    """A position that is too old: it stops, and says so by its exit status 3."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 2)
    await talk.say(frame(0, 2, 1, 2))
    await stage.client.printed(1, 2)
    talk.connection.abort()
    talk = await stage.accept("it should have connected again")
    talk.expect_position(2)
    details = {"position": str(at(2)), "earliest": str(at(500)), "head": str(at(900))}
    await talk.say(Fault("position-too-old", "trimmed up to 500", False, details))
    await talk.connection.aclose(4531, "position-too-old")
    status = await stage.client.stopped()
    if status != 3:
        raise Failed(f"it stopped with exit status {status}; 3 means that it cannot resume")
    await stage.client.printed(1, 2)


async def close_reconnect(stage: Stage) -> None:
    """Close codes 4000 to 4499, also unknown ones: it reconnects and resumes."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 3)
    await talk.say(frame(0, 1, 1))
    await stage.client.printed(1)
    for code in (4410, 4000, 4499):
        await talk.connection.aclose(code, "come again")
        talk = await stage.accept(f"it should have come again after close code {code}")
        talk.expect_position(1)
        await talk.welcome(1, 3)
    await talk.say(frame(1, 3, 2, 3))
    await stage.client.printed(1, 2, 3)


async def close_final(stage: Stage) -> None:
    """Close codes 4500 to 4999, also unknown ones: it stops with a non-zero exit status."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 3)
    await talk.say(frame(0, 1, 1))
    await stage.client.printed(1)
    await talk.connection.aclose(4777, "do not come again")
    if await stage.client.stopped() == 0:
        raise Failed("it stopped with exit status 0 though it was told not to come again")
    await stage.quiet(0.5, "close code 4777 means do not")


async def unknown_parts(stage: Stage) -> None:
    """Message types and parts that it does not know are ignored."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 3)
    await talk.say_raw({"type": "from-a-later-release", "anything": [1, 2]})
    await talk.say_raw({"type": "beat", "epoch": 7, "head": 3, "stale_s": 0.0, "weather": "fine"})
    await talk.say(frame(0, 3, 1, 2, 3))
    await stage.client.printed(1, 2, 3)


async def heartbeat(stage: Stage) -> None:
    """It says something every heartbeat_s, also when nothing happens."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 0)
    for _ in range(4):
        await talk.hear(2.5 * HEARTBEAT_S)
        await talk.say(Beat(7, 0))


async def silent_server(stage: Stage) -> None:
    """A server that says nothing for heartbeat_dead_s is taken for dead."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 1)
    await talk.say(frame(0, 1, 1))
    await stage.client.printed(1)
    again = await stage.accept(f"it should have come again after {DEAD_S:g} s of silence (heartbeat_dead_s)")
    again.expect_position(1)


async def quiet_feed(stage: Stage) -> None:
    """A feed on which nothing happens is not dead as long as the server beats."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 0)
    for _ in range(8):
        await talk.say(Beat(7, 0))
        await trio.sleep(HEARTBEAT_S)
    if stage.arrivals != 1:
        raise Failed("it reconnected though the server said that it lives")
    await talk.say(frame(0, 1, 1))
    await stage.client.printed(1)


async def slow(stage: Stage) -> None:
    """Bytes that come one by one make the same messages."""
    stage.relay.drip = True
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 3)
    await talk.say(frame(0, 3, 1, 2, 3, size=300))
    await stage.client.printed(1, 2, 3)


async def half_frame(stage: Stage) -> None:
    """A connection that breaks in the middle of a frame: nothing of it is handled, then it resumes."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 4)
    await talk.say(frame(0, 2, 1, 2))
    await stage.client.printed(1, 2)
    stage.relay.cut_after = 500
    try:
        await talk.say(frame(2, 4, 3, 4, size=2000))
    except ConnectionLost:
        pass
    talk = await stage.accept("it should have connected again")
    talk.expect_position(2)
    await talk.welcome(2, 4)
    await talk.say(frame(2, 4, 3, 4))
    await stage.client.printed(1, 2, 3, 4)


async def redirect(stage: Stage) -> None:
    """A redirect may be followed or ignored; either way nothing is lost."""
    await stage.start_client()
    talk = await stage.accept()
    await talk.welcome(0, 2)
    await talk.say(frame(0, 1, 1), Redirect((f"ws://127.0.0.1:{stage.relay.port}",), 0.1))
    await stage.client.printed(1)
    with trio.move_on_after(1.0):
        talk = await stage.accept()
        talk.expect_position(1)
        await talk.welcome(1, 2)
    try:
        await talk.say(frame(1, 2, 2))
    except ChangefeedError:
        raise Failed("it left the connection without going anywhere else") from None
    await stage.client.printed(1, 2)


SCENARIOS: Final[tuple[Scenario, ...]] = (
    in_order,
    resume,
    restart,
    range_gap,
    bookmark,
    repeat,
    sparse,
    reset,
    close_reconnect,
    close_final,
    unknown_parts,
    heartbeat,
    silent_server,
    quiet_feed,
    slow,
    half_frame,
    redirect,
)


@dataclass(frozen=True)
class Grade:
    """name, title: of the scenario. problem: "" if the client passed."""

    name: str
    title: str
    problem: str


async def grade(scenario: Scenario, command: Sequence[str]) -> Grade:
    """Play one scenario with a client of its own."""
    problem = ""
    with tempfile.TemporaryDirectory(prefix="changefeed-conformance-") as folder:
        try:
            async with open_stage(command, Path(folder)) as stage:
                await scenario(stage)
        except* Failed as failed:
            problem = str(_first(failed))
        except* ConnectionLost as lost:
            problem = f"it left the connection too early ({_first(lost)})"
        except* ChangefeedError as error:
            problem = f"what it sent is not in the protocol: {_first(error)}"
    return Grade(scenario.__name__.replace("_", "-"), (scenario.__doc__ or "").strip(), problem)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
