"""changefeed publish: one change, or JSON lines from a file or standard input."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Any

import trio

from changefeed.change import Change, Receipt
from changefeed.cli.command import SERVER, TIMEOUT, Command, Positional, Values
from changefeed.cli.output import Output, error_record, printable
from changefeed.config import Option, parse_version
from changefeed.errors import BadConfig, BadMessage, ChangefeedError, OutcomeUnknown

#: Lines between two looks at the terminal.
PROGRESS_EVERY = 100
#: How long an interrupted command may take to say how far it came.
TELL_S = 0.5


async def run(values: Values, output: Output) -> int:
    change = one_change(values)
    try:
        return await (publish_stream(values, output) if change is None else publish_one(values, change, output))
    except BrokenPipeError:
        return 1  # quietly, as whoever read the receipts has left; but not everything was published and told


def one_change(values: Values) -> Change | None:
    """The change that the words tell; None for a stream. Raises BadConfig, InvalidChange."""
    words = values.change
    if words == ["-"] or (values.file is not None and not words):
        given = [f"--{name}" for name in ("fields", "body", "version", "meta") if name in values.given]
        if given or (values.file is not None and words):
            raise BadConfig(f"{given[0] if given else '-'} does not go with JSON lines from {values.file or '-'}")
        return None
    if values.file is not None:
        raise BadConfig("--file and a change in words exclude each other")
    if len(words) != 3:
        raise BadConfig("write: changefeed publish FEED RESOURCE ID OP, or changefeed publish FEED - for JSON lines")
    if values.publisher is not None:
        raise BadConfig("--publisher numbers lines: it goes with - or --file, not with one change in words")
    resource, id, op = words
    change = Change(resource, id, op, values.fields, values.body, values.version, values.meta)
    change.check()
    return change


async def publish_one(values: Values, change: Change, output: Output) -> int:
    from changefeed.cli.lines import connect, outcome, receipt_to_json
    from changefeed.publisher.driver import open_publisher

    async with open_publisher(values.feed, values.server, settings=values.settings) as publisher:
        await connect(publisher, values.timeout)
        receipt = await outcome(await publisher.submit(change), publisher, values.timeout)
    await output.line(receipt_to_json(receipt), receipt_text(receipt))
    return 0


async def publish_stream(values: Values, output: Output) -> int:
    from changefeed.cli.lines import chunks_of, connect, publish_lines, receipt_to_json
    from changefeed.cli.run import leaves
    from changefeed.publisher.driver import open_publisher

    fd = open_file(values.file)
    told = 0

    async def tell(number: int, result: Receipt | ChangefeedError) -> None:
        nonlocal told
        told += 1
        if isinstance(result, Receipt):
            await output.line({"line": number, **receipt_to_json(result)}, f"line {number}: {receipt_text(result)}")
        else:
            record = error_record(result)
            await output.line(
                {"line": number, **record}, f"line {number}: {printable(record['message'])} ({record['error']})"
            )
        if told % PROGRESS_EVERY == 0 and not output.human:
            await output.progress(f"{count(told)} answered")

    name = values.publisher
    try:
        async with open_publisher(values.feed, values.server, name=name, settings=values.settings) as publisher:
            await connect(publisher, values.timeout)
            tally = await publish_lines(
                publisher, chunks_of(fd), numbered=name is not None, timeout_s=values.timeout, tell=tell
            )
    except BaseException as error:
        # A closed pipe ends quietly; who refused everything says so.
        if any(isinstance(one, trio.Cancelled | OutcomeUnknown) for one in leaves(error)):
            with trio.move_on_after(TELL_S, shield=True), suppress(OSError):
                await output.note(
                    f"{count(told)} answered; what was sent after them may be stored or not" + resume(name)
                )
        raise
    again = f", {tally.repeated} of them stored before" if tally.repeated else ""
    refused = f"; {tally.refused} refused" if tally.refused else ""
    unknown = f"; {tally.unknown} of unknown outcome" if tally.unknown else ""
    await output.note(f"{count(tally.acknowledged)} acknowledged{again}{refused}{unknown}")
    return 1 if tally.refused or tally.unknown else 0


def count(lines: int) -> str:
    return "1 line" if lines == 1 else f"{lines} lines"


def resume(name: str | None) -> str:
    return "" if name is None else f": run it again with --publisher {name}, and each line is stored once"


def receipt_text(receipt: Receipt) -> str:
    return f"seq {receipt.position.seq} at {receipt.position}" + (" (repeated)" if receipt.repeated else "")


def open_file(path: str | None) -> int:
    """A file descriptor to read lines from; standard input for None and "-". Raises BadConfig."""
    if path is None or path == "-":
        return 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return fd
    except OSError as error:
        raise BadConfig(f"cannot read {path}: {error.strerror}") from error


def parse_fields(text: str) -> tuple[str, ...]:
    fields = tuple(part for part in text.split(",") if part)
    if not fields:
        raise BadConfig(f"{text!r} names no field; leave --fields out where the fields are not told")
    return fields


def parse_json(text: str) -> Any:
    """A JSON value in the form of changes: text, or @FILE for a file's content. Raises BadConfig, InvalidChange."""
    from changefeed.wire.values import loads, value_from_json

    content: str | bytes = text
    if text.startswith("@"):
        try:
            with open(text[1:], "rb") as file:
                content = file.read()
        except OSError as error:
            raise BadConfig(f"cannot read {text[1:]}: {error.strerror}") from error
    try:
        return value_from_json(loads(content))
    except BadMessage as error:
        raise BadConfig(str(error)) from error


COMMAND = Command(
    name="publish",
    run=run,
    positionals=(
        Positional("feed", "the feed"),
        Positional("change", "RESOURCE ID OP of one change, or - for JSON lines from standard input", nargs="*"),
    ),
    options=(
        Option("fields", "names of the fields that changed", parse_fields, metavar="a,b"),
        Option("body", "a JSON value, or @FILE", parse_json, metavar="JSON|@FILE"),
        Option("version", "grows with each change of this object, such as a row version", parse_version, metavar="N"),
        Option("meta", "a JSON object about the change, or @FILE", parse_json, metavar="JSON|@FILE"),
        Option("file", "publish the JSON lines of a file", metavar="FILE"),
        Option("publisher", "line n is number n of this publisher: a rerun publishes only the rest", metavar="NAME"),
        SERVER,
        TIMEOUT,
    ),
    about='A JSON line is {"resource", "id", "op", "fields", "body", "version", "meta"}. Each line gets one receipt, '
    "in order, as soon as it is durable. A malformed or refused line is told with its number, the lines after it go "
    "on, and the exit status is 1.",
    level="ERROR",  # what has no outcome in the end is told by the command itself
)
