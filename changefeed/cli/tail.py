"""changefeed tail FEED: events to standard output, across failovers, for ever or up to a bound."""

from __future__ import annotations

import signal
import time
from datetime import datetime
from typing import TYPE_CHECKING, Final

import trio

from changefeed.change import SEQ_MAX, Event, Filter, Position
from changefeed.cli.command import SERVER, TIMEOUT, Command, Positional, Values
from changefeed.cli.output import Output, printable, to_json
from changefeed.config import Option, hint, parse_count
from changefeed.errors import BadConfig
from changefeed.settings import parse_duration
from changefeed.wire.changes import event_to_json
from changefeed.wire.messages import Start

if TYPE_CHECKING:
    from changefeed.cli.follow import Follow


#: Where to begin, by words.
STARTS: Final = ("beginning", "now", "snapshot")


async def run(values: Values, output: Output) -> int:
    from changefeed.cli.follow import Follow
    from changefeed.subscriber.cursors import FileCursor
    from changefeed.subscriber.driver import open_subscription

    async def tell(event: Event) -> None:
        await output.raw((human_line(event) if output.human else to_json(event_to_json(event))) + "\n")

    caught: list[int] = []
    async with trio.open_nursery() as nursery:
        async with open_subscription(
            values.feed,
            values.server,
            start=choose_start(values),
            filter=Filter(dict(values.resource), frozenset(values.id), frozenset(values.op)),
            name=values.name,
            cursor=None if values.cursor is None else FileCursor(values.cursor),
            settings=values.settings,
            wait=False,
        ) as subscription:
            follow = Follow(subscription, tell, values.count)
            await nursery.start(watch_signals, follow, caught, nursery.cancel_scope)
            nursery.start_soon(stop_when_closed, output, follow)
            await follow.connect(values.timeout)
            if values.until_caught_up:
                nursery.start_soon(follow.stop_when_caught_up)
            await follow.run()
        nursery.cancel_scope.cancel()
    if output.human and follow.last is not None:
        await output.note(how_to_go_on(values.feed, follow.last, subscription.state.position))
    return 128 + caught[0] if caught else 0


def how_to_go_on(feed: str, last: Event, reached: Position | None) -> str:
    """The command that goes on after the last event told, for people. There is no position in a list, nor behind it
    until what changed meanwhile has been told: it is begun again."""
    if not last.position.is_listing:
        return f"to go on after it: changefeed tail {feed} --start {last.position}"
    if reached is None or reached.is_listing:
        return f"the list was not at its end; to begin it again: changefeed tail {feed} --start snapshot"
    return f"to go on after the list: changefeed tail {feed} --start {reached}"


async def watch_signals(
    follow: Follow, caught: list[int], scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]
) -> None:
    """The first signal ends the loop between two events, the second one ends everything."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            caught.append(number)
            follow.stop()
            if len(caught) > 1:
                scope.cancel()


async def stop_when_closed(output: Output, follow: Follow) -> None:
    await output.out.wait_closed()
    follow.stop()


def choose_start(values: Values) -> Start:
    """Where to begin where no cursor says so: --start, --since; else the beginning for --until-caught-up, else now."""
    if values.start is not None and values.since is not None:
        raise BadConfig("--start and --since exclude each other")
    if values.since is not None:
        return Start(time=max(0, int((time.time() - min(values.since, time.time())) * 1000)))
    if values.start is not None:
        start: Start = values.start
        return start
    return Start(at="beginning" if values.until_caught_up else "now")


def parse_start(text: str) -> Start:
    """One of STARTS, a position, or a time (2026-11-24T10:49:28Z, or milliseconds since 1970). Raises BadConfig."""
    if text in STARTS:
        return Start(at=text)
    if text.count(".") == 3:
        return Start(position=Position.parse(text))
    if text.isdecimal() and len(text) <= 16 and int(text) <= SEQ_MAX:
        return Start(time=int(text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        known = f"{', '.join(STARTS)}, a position as printed by changefeed tail, or a time such as 2026-11-24T10:49:28Z"
        raise BadConfig(f"{text!r:.100} is none of {known}{hint(text, STARTS)}") from None
    return Start(time=max(0, int(moment.timestamp() * 1000)))


def parse_resource(text: str) -> tuple[str, tuple[str, ...]]:
    """R or R:field,field. Whether they can be names is checked with the whole filter."""
    name, _, fields = text.partition(":")
    return name, tuple(field for field in fields.split(",") if field)


def human_line(event: Event) -> str:
    """One line for people: when, which seq, what happened to what, and the body as far as it fits. An event
    of a snapshot's list says that it is one: a list is in the order of its objects, not of seqs."""
    when = time.strftime("%H:%M:%S", time.gmtime(event.time / 1000)) + f".{event.time % 1000:03}"
    words = [when, f"listed #{event.seq}" if event.listed else f"#{event.seq}", event.op, event.resource, event.id]
    if event.fields:
        words.append(f"[{','.join(event.fields)}]")
    if event.version is not None:
        words.append(f"v{event.version}")
    if event.body is not None:
        body = to_json(event_to_json(event)["body"])
        words.append(body if len(body) <= 120 else body[:119] + "…")
    return printable("  ".join(words))


COMMAND = Command(
    name="tail",
    run=run,
    positionals=(Positional("feed", "the feed"),),
    options=(
        Option(
            "start",
            "where to begin, unless a cursor says so: beginning, now (the default), snapshot (a list of all objects, "
            "then what changes), a position, or a time",
            parse_start,
            metavar="START",
        ),
        Option("since", "begin so long ago", parse_duration, metavar="DURATION"),
        Option("resource", "only this resource, or only its updates of these fields; may be repeated",
               parse_resource, kind="many", metavar="R[:field,field]"),
        Option("id", "only this id; may be repeated", kind="many", metavar="ID"),
        Option("op", "only this op; may be repeated", kind="many", metavar="OP"),
        Option("name", "the name under which status lists this subscriber (default: host and pid)", metavar="NAME"),
        Option("cursor", "go on where the last run with this file ended; an event is handled when it is written out",
               metavar="FILE"),
        Option("count", "end after so many events", parse_count, metavar="N"),
        Option("until-caught-up", "end once everything that is there has been told (from the beginning)", kind="flag"),
        SERVER,
        TIMEOUT,
    ),
    about="Goes on across failovers and restarts of servers, for ever; only the first connection has a time-out. A "
    "field filter narrows updates only: creates, deletes and updates without fields match it too.",
    own_signals=True,
)  # fmt: skip
