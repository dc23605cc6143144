"""What the command line says of snapshots: to who sets one up, to who looks, to who starts with its list."""

from __future__ import annotations

from typing import Any

import pytest
from cli_fakes import ListSink

from changefeed.batch import Tail
from changefeed.change import Change, Event, FeedSettings, ListedEvent, Position
from changefeed.cli.feed_set import not_in_snapshot
from changefeed.cli.feed_set import run as feed_set
from changefeed.cli.feeds import folded, snapshot_words
from changefeed.cli.output import Output
from changefeed.cli.parser import parse
from changefeed.cli.status import feed_lines
from changefeed.cli.tail import how_to_go_on, human_line, parse_start
from changefeed.errors import BadConfig
from changefeed.log import Fence, Look
from changefeed.wire.messages import Start

LINEAGE = "0123456789abcdef"


def look(floor: int, folded: int | None) -> Look:
    ends = [Tail(seq, 1, "0badf00d", bytes(32)) for seq in (9, floor)]
    return Look(LINEAGE, *ends, Fence(1, "0badf00d"), (), 0, 0, 0, folded)


@pytest.mark.parametrize(
    ("on", "floor", "folded", "missing"),
    [
        (True, 0, None, 0),  # nothing was trimmed: all of it will be folded
        (True, 5, None, 5),
        (True, 5, 3, 5),  # it was off meanwhile, and is begun anew
        (True, 5, 5, 0),
        (True, 5, 9, 0),  # it was on already
        (False, 5, None, 0),
    ],
)
def test_what_a_snapshot_lacks(on: bool, floor: int, folded: int | None, missing: int) -> None:
    """What was trimmed before it is begun; nothing of one that was kept all along."""
    assert not_in_snapshot(FeedSettings(snapshot=on), look(floor, folded)) == missing


async def test_a_snapshot_cannot_be_kept_and_not_kept() -> None:
    """Refused before any log is opened."""
    _, values = parse(["feed", "set", "vmapi", "--snapshot", "--no-snapshot"], {})
    with pytest.raises(BadConfig, match="--snapshot and --no-snapshot contradict each other"):
        await feed_set(values, Output(out=ListSink(), err=ListSink()))


def test_flags_of_a_snapshot() -> None:
    """Neither is given by itself."""
    for words, expected in (([], (None, None)), (["--snapshot"], (True, None)), (["--no-snapshot"], (None, True))):
        _, values = parse(["feed", "set", "vmapi", "--retention-age", "1d", *words], {})
        assert (values.snapshot or None, values.no_snapshot or None) == expected


def told(**more: Any) -> dict[str, Any]:
    return {"leader": "a", "epoch": 3, "seq": 7, "head": None, **more}


def test_status_and_feeds_tell_how_far_a_snapshot_is() -> None:
    """Nothing is said of a feed that keeps none, not even of what is left of one that it kept."""
    on, off = {"snapshot": True}, {"snapshot": False}
    assert snapshot_words(told(settings=on, log={"folded": 6})) == "  snapshot up to seq 6"
    assert snapshot_words(told(settings=on, log={"folded": None})) == "  snapshot not begun"
    assert snapshot_words(told(settings=on)) == "  snapshot not begun"
    assert snapshot_words(told(settings=off, log={"folded": 6})) == snapshot_words(told()) == ""
    assert (folded(told(log={"folded": 6})), folded(told())) == (6, None)
    assert feed_lines("vmapi", told(settings=on, log={"folded": 6}), False)[1].endswith("seq 7  snapshot up to seq 6")


def test_start_at_the_snapshot() -> None:
    """It is a word like the others, and the nearest is named."""
    assert parse_start("snapshot") == Start(at="snapshot")
    with pytest.raises(BadConfig, match="did you mean 'snapshot'"):
        parse_start("snapshto")


def event(listed: bool) -> Event:
    change = Change("vm", "a", "update", None, {"n": 1}, 4)
    kind = ListedEvent if listed else Event
    return kind(change, Position(LINEAGE, 1, "0badf00d", 3), 0, "p", 3, True)


def test_a_listed_event_is_shown_as_one() -> None:
    """With the seq that it has in the log."""
    assert human_line(event(True)) == '00:00:00.000  listed #3  update  vm  a  v4  {"n": 1}'
    assert human_line(event(False)) == '00:00:00.000  #3  update  vm  a  v4  {"n": 1}'


def test_how_a_list_is_gone_on_with() -> None:
    """Behind its end the stream goes on; before it, there is nothing to go on from."""
    reached = Position(LINEAGE, 1, "0badf00d", 8)
    words = how_to_go_on("vmapi", event(False), reached)
    assert words == f"to go on after it: changefeed tail vmapi --start {event(False).position}"
    assert how_to_go_on("vmapi", event(True), reached).endswith(f"--start {reached}")
    for early in (None, Position.listing(LINEAGE)):
        assert how_to_go_on("vmapi", event(True), early).endswith("--start snapshot")
