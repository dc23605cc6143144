"""changefeed serve FEED…: one instance, until SIGTERM or Ctrl-C; then a drain and exit status 0."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import trio

from changefeed.cli.command import LOG, Command, Positional, Values
from changefeed.cli.last_resort import LastResort
from changefeed.cli.output import ERASE, Output
from changefeed.config import DATA_DIR, DEFAULT_COORDINATOR, DEFAULT_LISTEN, Option

if TYPE_CHECKING:
    from changefeed.instance import Instance


#: Once everything was cancelled: more than an instance takes to close.
END_S = 15.0


async def run(values: Values, output: Output) -> int:
    from changefeed.instance import open_instance  # everything that an instance needs, only for who is one

    stop, opened = trio.Event(), trio.Event()
    caught: list[int] = []
    with LastResort(END_S) as resort:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(resort.watch)
            await nursery.start(_watch_signals, opened, stop, caught, nursery.cancel_scope)
            if not values.given & {"log", "coordinator"}:
                await _say(output, {"event": "defaults", "data": DATA_DIR}, f"log and coordinator under ./{DATA_DIR}")
                os.makedirs(DATA_DIR, exist_ok=True)
            async with open_instance(
                values.feeds,
                log=values.log,
                coordinator=values.coordinator,
                listen=values.listen,
                advertise=values.advertise,
                name=values.name,
                candidate=not values.no_candidate,
                insecure=values.insecure,
                kill_frozen=not values.no_kill_frozen,
                settings=values.settings,
            ) as instance:
                opened.set()
                nursery.start_soon(_announce, instance, values, output)
                await stop.wait()
                erase = ERASE if caught[0] == signal.SIGINT and output.human else ""  # the terminal's ^C
                text = f"{erase}draining; once more ends at once"
                await _say(output, {"event": "draining", "instance": instance.name}, text)
                await instance.drain()
            nursery.cancel_scope.cancel()
    if len(caught) > 1 or not opened.is_set():
        return 128 + caught[-1]
    await _say(output, {"event": "stopped"}, "stopped")
    return 0


async def _watch_signals(
    opened: trio.Event,
    stop: trio.Event,
    caught: list[int],
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The first signal drains (before there is anything to drain it ends the start), the second one ends everything."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            caught.append(number)
            stop.set()
            if len(caught) > 1 or not opened.is_set():
                scope.cancel()


async def _announce(instance: Instance, values: Values, output: Output) -> None:
    facts = {
        "instance": instance.name,
        "pid": os.getpid(),
        "url": instance.url,
        "feeds": list(values.feeds),
        "log": values.log,
        "coordinator": values.coordinator,
    }
    text = f"{instance.name} (pid {os.getpid()}) serves {', '.join(values.feeds)} at {instance.url}; log {values.log}, "
    await _say(output, {"event": "serving", **facts}, f"{text}coordinator {values.coordinator}")
    await instance.wait_ready()
    leaders = {feed: status["leader"] for feed, status in instance.status()["feeds"].items()}
    led = ", ".join(f"{feed} is led by {name}" for feed, name in leaders.items())
    await _say(output, {"event": "ready", "instance": instance.name, "leaders": leaders}, f"ready: {led}")


async def _say(output: Output, record: dict[str, Any], text: str) -> None:
    """A line about this instance. That nobody reads it is no reason to stop serving."""
    try:
        await output.line(record, text)
    except BrokenPipeError:
        pass


COMMAND = Command(
    name="serve",
    run=run,
    positionals=(Positional("feeds", "names of the feeds that this instance takes part in", nargs="+"),),
    options=(
        LOG,
        Option(
            "coordinator",
            f"who elects: file:DIR, zk://HOST:PORT,…/CHROOT or memory: (default {DEFAULT_COORDINATOR})",
            default=DEFAULT_COORDINATOR,
            metavar="URL",
        ),
        Option("listen", f"where to listen (default {DEFAULT_LISTEN})", default=DEFAULT_LISTEN, metavar="HOST:PORT"),
        Option("advertise", "the URL by which other instances and clients reach this one", metavar="URL"),
        Option("name", "this instance's name, unique within the coordinator (default: host and port)", metavar="NAME"),
        Option("no-candidate", "serve, but never lead", kind="flag"),
        Option("insecure", "listen beyond loopback although there is no authentication", kind="flag"),
        Option("no-kill-frozen", "never kill a frozen leader that holds the log's lock", kind="flag"),
    ),
    about="Without flags a log and a coordinator are kept under ./changefeed-data, on the default port. "
    "SIGTERM or Ctrl-C hands the lead over, drains, and ends with exit status 0.",
    own_signals=True,
    config=True,
    level="INFO",
)
