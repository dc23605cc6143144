"""C10: what a reader has saved never goes back, never runs ahead of what it was given, and is where it goes on.

Broken if a saved position is lower than one saved before, lies beyond an event that its filter selects and that was not
given before, is of another term than the entry that holds its seq, or lies inside a group although whole groups are
applied; if a life begins before what was saved, beyond what was given, or its first event skips one that it selects; if
a server goes on from another position than was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from changefeed.history.broken import Broken, Findings
from changefeed.history.log import Log, first_above
from changefeed.history.records import Record
from changefeed.history.view import Segment, Step, View, place_of

PROMISE = "C10"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    for segments in view.readers.values():
        chapter: list[Segment] = []
        for segment in segments:
            if chapter and chapter[0].chapter != segment.chapter:
                _Chapter(view, chapter, found).check()
                chapter = []
            chapter.append(segment)
        _Chapter(view, chapter, found).check()
    for at, record in view.effects:
        _cursor(view, at, record, found)
    return found.result()


class _Chapter:
    """A reader's lives between two resets. saved: the highest seq that was saved; start: the start of the group that it
    lies in; given: up to where the reader was given all."""

    def __init__(self, view: View, segments: list[Segment], found: Findings) -> None:
        self.view = view
        self.segments = segments
        self.found = found
        self.saved: int | None = None
        self.start = 0
        self.given: int | None = None
        self.log: Log = view.log
        self.selected: Sequence[int] = ()

    def check(self) -> None:
        for segment in self.segments:
            steps = segment.steps
            if not steps:
                continue
            if self.view.restores:
                newest = next((step for step in reversed(steps) if step.kind != "refused"), steps[-1])
                self.log = self.view.log_of(newest.stamp, newest.seq)
            try:
                self.selected = self.log.selected(segment.filter)
            except KeyError:
                self.selected = ()  # exactly_once says so
            self._life(segment, steps)

    def _life(self, segment: Segment, steps: list[Step]) -> None:
        begun = False
        if self.saved is None and segment.start == "now" and steps[0].kind != "connected":
            self.given = None  # nothing tells when that was
        for step in steps:
            kind = step.kind
            if kind == "event":
                if not begun:
                    self._first_event(segment, step)
                self.given = step.seq if self.given is None else max(self.given, step.seq)
            elif kind == "connected":
                self._connected(segment, step, not begun)
                if not begun:
                    self.given = step.seq if self.given is None else max(self.given, step.seq)
            elif kind == "bookmark":
                self.given = step.seq if self.given is None else max(self.given, step.seq)
            elif kind == "handled":
                self._handled(segment, step)
            begun = begun or kind != "refused"

    def _stands(self, segment: Segment, step: Step, what: str) -> None:
        held = self.log.at.get(step.seq)
        if held is not None and held.stamp != step.stamp and not self.view.lost(step.stamp, step.seq):
            self.found.say(
                f"{segment} {what} {step.stamp}.{step.seq}, but the entry that holds {step.seq} is of {held.stamp}",
                record=step.at,
                seqs=[step.seq],
            )

    def _connected(self, segment: Segment, step: Step, first: bool) -> None:
        self._stands(segment, step, "was to go on after")
        about = {"record": step.at, "seqs": [step.seq]}
        asked = step.record.get("asked")
        if asked:
            stamp, seq = place_of(asked)
            if not self._begins(segment, step, stamp, seq):
                self.found.say(f"{segment} asked to go on after {asked}, but was to go on after {_text(step)}", **about)
        if not first:
            return
        if self.saved is not None and step.seq < (self.start if segment.groups else self.saved):
            self.found.say(f"{segment} began after {step.seq}, although {self.saved} was saved", **about)
        given = self.given
        fits = given is not None and not self._skips(given, step.seq, step)
        if self.saved is not None:
            if not fits:
                self.found.say(f"{segment} began after {step.seq}, although it had been given only {given}", **about)
        elif "." in segment.start:
            stamp, seq = place_of(segment.start)
            if not self._begins(segment, step, stamp, seq) and not (fits and step.seq > seq):
                self.found.say(f"{segment} was to begin after {segment.start}, but began after {_text(step)}", **about)
        elif segment.start == "beginning" and self.log.whole and step.seq > self._floor and not fits:
            # It may have been killed between saving and saying so: then it begins where it was.
            self.found.say(f"{segment} was to begin at the beginning, but began after {_text(step)}", **about)

    def _begins(self, segment: Segment, step: Step, stamp: str, seq: int) -> bool:
        """Whether a welcome is where a position is to be gone on from: there, or before the group that it lies in."""
        if step.seq == seq:
            return step.stamp == stamp
        if not segment.groups:
            return False
        begins = self.log.groups_after(seq, stamp, segment.filter)
        return step.seq < seq if begins is None else step.seq == begins

    @property
    def _floor(self) -> int:
        """The highest floor that the log ever had."""
        return max((self.log.floor, *(floor for _, floor in self.view.trims)))

    def _skips(self, after: int, upto: int, step: Step) -> bool:
        """Whether anything that is selected lies in (after, upto]: before a step that is of a known log."""
        if upto <= after or (self.view.restores and not self.log.stands(step.stamp, step.seq)):
            return False  # of what was lost with the storage, and not seen before, nothing tells what is selected
        return first_above(self.selected, after) != first_above(self.selected, upto)

    def _first_event(self, segment: Segment, step: Step) -> None:
        """The first event of a life of which nothing told where it began."""
        about = {"record": step.at, "seqs": [step.seq], "key": step.record["key"]}
        saved = self.saved
        if saved is not None and step.seq <= (self.start if segment.groups else saved):
            self.found.say(f"{segment} was given {_text(step)} again, although {saved} was saved", **about)
        elif saved is not None and self._skips(self.given or 0, step.seq - 1, step):
            self.found.say(f"{segment} began with {_text(step)}, and had been given only {self.given} before", **about)

    def _handled(self, segment: Segment, step: Step) -> None:
        about = {"record": step.at, "seqs": [step.seq]}
        self._stands(segment, step, "saved")
        if self.saved is not None and step.seq < self.saved:
            self.found.say(f"{segment} saved {_text(step)} after {self.saved}: its position went back", **about)
        given = self.given or 0
        if self.given is not None and self._skips(given, step.seq, step):
            self.found.say(f"{segment} saved {_text(step)}, but had been given only {given}", **about)
        if segment.groups and self.log.group_start(step.seq, step.stamp, segment.filter) != step.seq:
            self.found.say(f"{segment} saved {_text(step)}, which lies inside a group", **about)
        if self.saved is None or step.seq >= self.saved:
            self.saved, self.start = step.seq, self.log.group_start(step.seq, step.stamp, segment.filter)


def _text(step: Step) -> str:
    return f"{step.stamp}.{step.seq}"


def _cursor(view: View, at: int, record: Record, found: Findings) -> None:
    """The cursor that the reader's own database holds in the end."""
    position, segments = record.get("position"), view.readers.get(record["reader"])
    if not position or not segments:
        return
    chapter = segments[-1].chapter
    steps = [step for segment in segments if segment.chapter == chapter for step in segment.steps]
    saved = max((step.seq for step in steps if step.kind == "handled"), default=0)
    if place_of(position)[1] < saved:
        found.say(f"the database of reader {record['reader']} says {position}, but {saved} had been saved", record=at)
