"""changefeed demo: a git history through a cluster whose leader is killed again and again; ends with a verdict."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from changefeed.cli.command import Command, Values
from changefeed.cli.output import Output
from changefeed.config import Option, parse_count
from changefeed.demo.history import History, make_up, read_git
from changefeed.errors import BadConfig
from changefeed.ports import World
from changefeed.settings import parse_duration


async def run(values: Values, output: Output) -> int:
    from changefeed.demo.cluster import Demo
    from changefeed.demo.show import verdict_lines
    from changefeed.demo.verdict import judge

    output = output.for_people()
    check_places(values)
    history = await choose_history(values, output)
    begun = trio.current_time()

    async def say(event: str, facts: dict[str, Any], text: str) -> None:
        await output.line({"event": event, "text": text, **facts}, f"{trio.current_time() - begun:5.1f} s  {text}")

    with folder(values.keep) as place:
        demo = Demo(
            history,
            place,
            log=values.log,
            coordinator=values.coordinator,
            kill_every_s=values.kill_every,
            kills_wanted=values.kills,
            say=say,
        )
        await say(
            "history", {}, f"{history.source}: {len(history.commits):,} commits, {history.changes:,} file changes"
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show_progress, demo, output)
            await demo.run()
            nursery.cancel_scope.cancel()
        await output.progress("")
        verdict = await trio.to_thread.run_sync(judge, place)
    await output.line(verdict.summary(), "\n".join(["", *verdict_lines(verdict, history)]))
    if values.keep:
        await output.note(f"records, logs and data are kept in {place}")
    return 0 if verdict.clean else 1


def check_places(values: Values) -> None:
    """Refuse a log or a coordinator that the processes of the cluster cannot share. Raises BadConfig, BadUrl."""
    from changefeed.coordination.urls import open_coordinator
    from changefeed.log.urls import open_log

    for flag, url in (("--log", values.log), ("--coordinator", values.coordinator)):
        if url is not None and url.startswith("memory:"):
            raise BadConfig(f"{flag} {url!r}: the demo's instances are processes of their own, and share no memory")
    if values.log is not None:
        open_log(values.log, values.settings)
    if values.coordinator is not None:
        open_coordinator(values.coordinator, values.settings, world=World())


async def choose_history(values: Values, output: Output) -> History:
    """The repository's history; a made-up one where none is named, or where it is shorter than --at-least."""
    if values.git is None:
        return make_up(values.at_least)
    try:
        history = await trio.to_thread.run_sync(read_git, Path(values.git))
    except BadConfig as error:
        if "at_least" not in values.given:
            raise
        await output.note(f"{error}; a made-up history stands in")
        return make_up(values.at_least)
    if "at_least" in values.given and history.changes < values.at_least:
        await output.note(f"{history.source} has {history.changes:,} file changes; a made-up history stands in")
        return make_up(values.at_least)
    return history


async def show_progress(demo: Any, output: Output) -> None:
    while True:
        await output.progress(
            f"  {demo.answered:,} of {demo.history.changes:,} changes acknowledged, epoch {demo.epoch}, "
            f"{demo.kills} kills; subscribers at "
            + ", ".join(f"{child.gauge.get('seq'):,}" for child in demo.subscribers.values())
        )
        await trio.sleep(0.2)


@contextmanager
def folder(keep: str | None) -> Iterator[Path]:
    """The folder of a run: a temporary one that is removed in the end, or the one to keep, which must be empty."""
    if keep is not None:
        place = Path(keep)
        try:
            place.mkdir(parents=True, exist_ok=True)
            if any(place.iterdir()):
                raise BadConfig(f"{keep} is not empty: name a new folder for --keep")
        except OSError as error:
            raise BadConfig(f"cannot use {keep}: {error.strerror}") from error
        yield place.resolve()
        return
    place = Path(tempfile.mkdtemp(prefix="changefeed-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


COMMAND = Command(
    name="demo",
    run=run,
    options=(
        Option("git", "the repository whose history is replayed (default: a made-up history)", metavar="REPO"),
        Option(
            "at-least",
            "where the history has fewer file changes, a made-up one of this size stands in (default 2000)",
            parse_count,
            default=2000,
            metavar="N",
        ),
        Option("coordinator", "who elects (default: a folder of this run)", metavar="URL"),
        Option("log", "the log (default: SQLite in a folder of this run)", metavar="URL"),
        Option("keep", "keep records, logs and data in this new folder", metavar="DIR"),
        Option("kill-every", "kill the leader so often (default 3s)", parse_duration, default=3.0, metavar="DURATION"),
        Option("kills", "spread the replay over so many kills (default 10)", parse_count, default=10, metavar="N"),
    ),
    about="Three instances, three publishers that own the paths which hash to them, three subscribers: one from the "
    "beginning, one late, one that is itself killed again and again. Each writes down what it does; the verdict is "
    "computed from these files alone. Exit status 1 if it is not clean.",
)
