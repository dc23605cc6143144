"""Scenarios of events, positions, ranges and heartbeats. Each function is one; its docstring says what is right.

A scenario knows nothing of how the client is made; it sees what a server sees, what the program prints, and its end.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from changefeed.conformance.client import Failed
from changefeed.conformance.frames import DEAD_S, HEARTBEAT_S, LATER, at, frame, run_of
from changefeed.conformance.stage import GRACE_S, SAVED_S, Stage
from changefeed.wire.messages import Events

#: Long enough to notice a heartbeat that is missing, and a client that calls a living server dead.
WATCH_S: Final = max(DEAD_S + HEARTBEAT_S, 2 * HEARTBEAT_S + GRACE_S + 1.0)
#: Announced where a single message may take long on a busy machine, in seconds.
SLOW_DEAD_S: Final = 25.0


# ---- events and positions


async def in_order(stage: Stage) -> None:
    """Without a saved position it starts at "beginning"; events are handled once each, in order, and it says how far
    it is."""
    talk = await stage.begin(5)
    await talk.say(frame(0, 2, 1, 2), frame(2, 5, 3, 4, 5))
    await stage.printed(1, 2, 3, 4, 5)
    await talk.hear_handled(5)


async def resume(stage: Stage) -> None:
    """After a lost connection it resumes after its position."""
    talk = await stage.begin(3)
    await talk.say(frame(0, 3, 1, 2, 3))
    await stage.printed(1, 2, 3)
    talk.abort()
    talk = await stage.again(3)
    await talk.welcome(3, 5)
    await talk.say(frame(3, 5, 4, 5))
    await stage.printed(1, 2, 3, 4, 5)


async def trimmed_start(stage: Stage) -> None:
    """The position in `subscribed` is where it stands: if the connection breaks before any event, it resumes there,
    and does not start at "beginning" again."""
    await stage.start_client()
    talk = await stage.accept()
    talk.expect_beginning()
    await talk.welcome(40, 43)
    await talk.hear_regularly(3 * HEARTBEAT_S)
    talk.abort()
    talk = await stage.again(40, "it should have connected again")
    await talk.welcome(40, 43)
    await talk.say(frame(40, 43, 41, 42, 43))
    await stage.printed(41, 42, 43)


async def opaque_positions(stage: Stage) -> None:
    """It resumes with the very text of `to`, which is of another leader's term than what came before."""
    talk = await stage.begin(4)
    epoch, term = LATER
    later = run_of(3, 4, epoch=epoch, term=term)
    await talk.say(Events(0, at(4, *LATER), (run_of(1, 2), later)))
    await stage.printed(1, 2, 3, 4)
    talk.abort()
    talk = await stage.again(at(4, *LATER))
    await talk.welcome(at(4, *LATER), 6)
    await talk.say(Events(4, at(6, 11, "00c0ffee")))
    await talk.hear_handled(at(6, 11, "00c0ffee"))
    talk.abort()
    await stage.again(at(6, 11, "00c0ffee"))


async def restart(stage: Stage) -> None:
    """Killed and started again, it resumes at the position that it had saved, and skips nothing."""
    talk = await stage.begin(3)
    await talk.say(frame(0, 3, 1, 2, 3))
    await stage.printed(1, 2, 3)
    await stage.kill_saved()
    await stage.start_client()
    talk = await stage.accept()
    start = talk.subscribe.start
    seq = start.position.seq if start.position is not None else 0
    if start.position is None or not 1 <= seq <= 3 or start.position != at(seq):
        said = start.position or start.at
        raise Failed(
            f"it came back with {said}; it had {SAVED_S:g} s to save a position after what it handled, {at(3)}"
        )
    await talk.welcome(seq, 4)
    await talk.say(frame(seq, 4, *range(seq + 1, 5)))
    await stage.printed(1, 2, 3, *range(seq + 1, 5))


async def effects_first(stage: Stage) -> None:
    """A position is saved, and said to be handled, only after the effects of all events up to it: killed while it
    cannot print, it comes back for what it had not printed."""
    ids = {seq: f"id-{seq}-".ljust(400, "x") for seq in range(1, 401)}
    stage.client.ids = ids
    stage.client.stick()
    talk = await stage.begin(400)
    talk.pour(*(frame(seq, seq + 50, *range(seq + 1, seq + 51), ids=ids) for seq in range(0, 400, 50)))
    # Until its output stands still; if that was too early, what follows must be right all the same.
    unread = -1
    while unread <= 0 or unread != stage.client.unread:
        unread = stage.client.unread
        await trio.sleep(0.4)
    await trio.sleep(SAVED_S)
    stage.client.kill()
    stage.client.unstick()
    await stage.kill()
    last = stage.client.seqs[-1] if stage.client.seqs else 0
    handled = talk.handled.seq if talk.handled is not None else 0
    if handled > last:
        raise Failed(f"it said that it handled {at(handled)} when it had printed events up to {last} only")
    await stage.start_client()
    talk = await stage.accept()
    start = talk.subscribe.start.position
    if start is not None and start.seq > last:
        raise Failed(f"it had printed events up to {last} when it was killed, but it had saved {start}")


async def empty_cursor(stage: Stage) -> None:
    """A position that was saved and cannot be read is not the same as none: it stops with a non-zero exit status."""
    talk = await stage.begin(3)
    await talk.say(frame(0, 3, 1, 2, 3))
    await stage.printed(1, 2, 3)
    await stage.kill_saved()
    if not stage.client.cursor.is_file():
        raise Failed(f"there is no file $CHANGEFEED_CURSOR {SAVED_S:g} s after it handled events")
    stage.client.cursor.write_bytes(b"")
    await stage.start_client()
    if await stage.stopped("its file $CHANGEFEED_CURSOR had become empty") == 0:
        raise Failed("it stopped with exit status 0 though its file $CHANGEFEED_CURSOR had become empty")


# ---- ranges


async def range_gap(stage: Stage) -> None:
    """A message that begins beyond its position: one was lost. It reconnects, resumes, and handles nothing of it."""
    talk = await stage.begin(9)
    await talk.say(frame(0, 3, 1, 2, 3), frame(5, 7, 6, 7))
    await talk.gone("a message began after 5, but its position was 3")
    talk = await stage.again(3, "it should have resumed")
    await talk.welcome(3, 9)
    await talk.say(frame(3, 9, 4, 5, 6, 7, 8, 9))
    await stage.printed(1, 2, 3, 4, 5, 6, 7, 8, 9)


async def bookmark_gap(stage: Stage) -> None:
    """A bookmark that begins beyond its position is a gap, too: it does not move there."""
    talk = await stage.begin(9)
    await talk.say(frame(0, 3, 1, 2, 3), frame(5, 9))
    await talk.gone("a bookmark began after 5, but its position was 3")
    await stage.again(3, "it should have resumed")


async def bookmark(stage: Stage) -> None:
    """A message without events moves its position."""
    talk = await stage.begin(50)
    await talk.say(frame(0, 3, 2), frame(3, 50))
    await stage.printed(2)
    await talk.hear_handled(50)
    talk.abort()
    talk = await stage.again(50)
    await talk.welcome(50, 51)
    await talk.say(frame(50, 51, 51))
    await stage.printed(2, 51)


async def bookmark_saved(stage: Stage) -> None:
    """The position of a message without events is saved like any other."""
    talk = await stage.begin(50)
    await talk.say(frame(0, 3, 2), frame(3, 50))
    await stage.printed(2)
    await talk.hear_handled(50)
    await stage.kill_saved()
    await stage.start_client()
    await stage.again(50, f"it was started again {SAVED_S:g} s after a bookmark")


async def repeat(stage: Stage) -> None:
    """Messages that come again or overlap: each event once."""
    talk = await stage.begin(7)
    await talk.say(frame(0, 3, 1, 2, 3), frame(0, 3, 1, 2, 3), frame(1, 5, 2, 3, 4, 5), frame(2, 4, 3, 4))
    await talk.say(frame(5, 7, 6, 7))
    await stage.printed(1, 2, 3, 4, 5, 6, 7)
    await talk.hear_handled(7)


async def sparse(stage: Stage) -> None:
    """Seqs with holes inside a message's range are no gap: a filter took the rest."""
    talk = await stage.begin(100)
    await talk.say(frame(0, 40, 5, 17, 39), frame(40, 100, 41, 99))
    await stage.printed(5, 17, 39, 41, 99)
    await talk.hear_handled(100)


async def groups(stage: Stage) -> None:
    """A message may hold several runs, of several terms, with groups: all their events are handled."""
    talk = await stage.begin(12)
    epoch, term = LATER
    runs = (
        run_of(1, 2, 3, groups=((1, 2), (3, 1))),
        run_of(5, 8, groups=((4, 1), (8, 1))),
        run_of(9, 10, 12, epoch=epoch, term=term, groups=((9, 3),)),
    )
    await talk.say(Events(0, at(12, *LATER), runs))
    await stage.printed(1, 2, 3, 5, 8, 9, 10, 12)


async def large(stage: Stage) -> None:
    """A message may be as large as `frame_bytes_max` allows."""
    talk = await stage.begin(8, dead_s=SLOW_DEAD_S)
    await talk.say(frame(0, 8, *range(1, 9), size=1_000_000))
    await stage.printed(1, 2, 3, 4, 5, 6, 7, 8)


async def strange_ids(stage: Stage) -> None:
    """Ids are any text: quotes, line ends, characters beyond the first 65,536, and what looks like something else."""
    ids = {
        1: "é\u2028\n\"\\'",
        2: "\U0001f409" * 100,
        3: "null",
        4: "12",
        5: " ",
        6: "\x00\x7f",
        7: "x" * 512,
        8: "$int",
    }
    stage.client.ids = ids
    talk = await stage.begin(8)
    await talk.say(frame(0, 8, *ids, ids=ids))
    await stage.printed(*ids)


async def unknown_parts(stage: Stage) -> None:
    """Message types and parts that it does not know are ignored, also inside of runs."""

    def later(plain: dict[str, Any]) -> None:
        plain["weather"] = {"sky": ["blue", None]}
        for run in plain.get("runs", ()):
            run["colour"] = "green"

    talk = await stage.begin(3)
    await talk.say_plain({"type": "from-a-later-release", "after": 900, "to": str(at(901)), "anything": [1, 2]})
    await talk.say_plain({"type": "beat", "epoch": 7, "head": 3, "stale_s": 0.0, "weather": "fine"})
    await talk.say_with(frame(0, 2, 1, 2), later)
    await talk.say_with(frame(2, 3), later)
    await talk.say_with(frame(3, 5, 4, 5), later)
    await stage.printed(1, 2, 4, 5)
    await talk.hear_handled(5)


# ---- heartbeats


async def heartbeat(stage: Stage) -> None:
    """It says handled every heartbeat_s, also when nothing happens."""
    talk = await stage.begin(1)
    await talk.say(frame(0, 1, 1))
    await talk.hear_regularly(WATCH_S)
    await talk.hear_handled(1)


async def heartbeat_busy(stage: Stage) -> None:
    """It says handled every heartbeat_s, also while messages come without a pause."""
    talk = await stage.begin(0)
    end = trio.current_time() + WATCH_S
    seq = 0

    async def busy() -> None:
        nonlocal seq
        while trio.current_time() < end:
            await talk.say(frame(seq, seq + 1, seq + 1))
            seq += 1
            await trio.sleep(HEARTBEAT_S / 10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(busy)
        await talk.hear_regularly(WATCH_S)
    await stage.printed(*range(1, seq + 1))
    await talk.hear_handled(seq)


async def quiet_feed(stage: Stage) -> None:
    """A feed on which nothing happens is not dead as long as the server beats."""
    talk = await stage.begin(0)
    await trio.sleep(WATCH_S)
    if talk.over is not None or stage.arrivals != 1:
        raise Failed("it left the connection though the server said every heartbeat_s that it lives")
    await talk.say(frame(0, 1, 1))
    await stage.printed(1)


async def silence(stage: Stage) -> None:
    """A server that says nothing for heartbeat_dead_s is taken for dead, also right after `subscribed`, and although
    its connection stays open and no goodbye is answered."""
    why = f"it should have come again after {DEAD_S:g} s of silence (heartbeat_dead_s)"
    talk = await stage.begin(0)
    talk.quiet = True
    talk = await stage.again(0, why)
    await talk.welcome(0, 1)
    await talk.say(frame(0, 1, 1))
    await stage.printed(1)
    talk.quiet = True
    stage.relay.freeze()
    talk = await stage.again(1, why)
    await talk.welcome(1, 2)
    await talk.say(frame(1, 2, 2))
    await stage.printed(1, 2)
