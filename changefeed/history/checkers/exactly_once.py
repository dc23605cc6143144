"""C5: a reader gets exactly what its filter selects of the log, from its start on: once, in order, without a gap.

Broken if what one life of a reader was given is not, element by element, what its filter selects of the log between
its start and its last event; if a bookmark claims a range of which something was not given; if `last` does not mark
the last selected event of each group; if a reader's own database holds anything else than what its filter selects of
the log between its origin and its cursor.
"""

from __future__ import annotations

from changefeed.history.broken import Broken, Findings
from changefeed.history.log import Log, first_above
from changefeed.history.records import Record
from changefeed.history.view import Segment, Step, View, place_of

PROMISE = "C5"


def check(view: View) -> list[Broken]:
    found = Findings(PROMISE)
    for segment in view.segments:
        steps = [step for step in segment.steps if step.kind in ("event", "bookmark")]
        if steps:
            _Stream(view, segment, steps, found).check()
    for at, record in view.effects:
        _effects(view, at, record, found)
    return found.result()


def origin(view: View, segment: Segment, log: Log) -> int | None:
    """The seq after which a life begins; None if nothing tells."""
    first = view.readers[segment.reader][0] is segment
    stamp, start = "", None
    if segment.steps and segment.steps[0].kind == "connected":
        stamp, start = segment.steps[0].stamp, segment.steps[0].seq
    elif first and segment.start == "beginning":
        # A log that was trimmed may have been read from its first event on, or from any floor since.
        return None if log.floor or view.trims else 0
    elif first and "." in segment.start:
        stamp, start = place_of(segment.start)
    if start is not None and segment.groups:
        return log.groups_after(start, stamp, segment.filter)
    return start


class _Stream:
    """What one life was given, held against the log."""

    def __init__(self, view: View, segment: Segment, steps: list[Step], found: Findings) -> None:
        self.segment = segment
        self.steps = steps
        self.found = found
        newest = steps[-1]
        self.view = view
        self.log = view.log_of(newest.stamp, newest.seq) if view.restores else view.log
        self.restored = bool(view.restores)
        self.dense = not any((segment.filter or {}).values())
        self.given = origin(view, segment, self.log)

    def check(self) -> None:
        try:
            selected = self.log.selected(self.segment.filter)
        except KeyError as error:
            self.found.say(
                f"what {self.segment} should have got cannot be judged: nothing tells the head of {error}",
                record=self.segment.at,
            )
            return
        at, known = self.log.at, self.log.known_after
        index = first_above(selected, max(self.given or 0, known))
        count = len(selected)
        for step in self.steps:
            seq = step.seq
            # What was lost with the storage, and not seen before: only its order can be judged, and what lies below it
            # in the part that was not lost.
            blind = self.restored and not self.log.stands(step.stamp, seq)
            if step.kind == "bookmark":
                if index < count and selected[index] <= seq and self.given is not None and not blind:
                    self._gap(step, selected[index], "the bookmark says")
                    return
                if self.given is None:
                    index = first_above(selected, max(seq, known))
                self.given = max(self.given or 0, seq)
                continue
            if blind and self._missing(selected, index, step):
                self._gap(step, selected[index], "it was given")
                return
            if blind or seq <= known:
                if not self._order(step):
                    return
                index = first_above(selected, max(seq, known))
            else:
                if self.given is None:
                    index = first_above(selected, seq - 1)
                if index == count or selected[index] != seq:
                    self._wrong(step, selected, index)
                    return
                index += 1
                after = at[selected[index]].group if index < count else None
                if step.record["last"] is not (after != at[seq].group):
                    says = "the last" if step.record["last"] else "not the last"
                    self.found.say(
                        f"{self.segment} was told that {step.stamp}.{seq} is {says} selected event of its group",
                        record=step.at, seqs=[seq],
                    )  # fmt: skip
            self.given = seq

    def _missing(self, selected: list[int], index: int, step: Step) -> bool:
        """Whether the next one that is selected should have come before a step of a log that is gone."""
        if self.given is None or index == len(selected) or selected[index] >= step.seq:
            return False
        return selected[index] <= self.view.kept(step.stamp, step.seq)

    def _order(self, step: Step) -> bool:
        """Where the log is not known: seqs grow, and by one where nothing is filtered."""
        given = self.given
        if given is None or (step.seq == given + 1 if self.dense else step.seq > given):
            return True
        what = "again" if step.seq <= given else f"with a gap after {given}"
        self.found.say(
            f"{self.segment} was given {step.stamp}.{step.seq} {what}", record=step.at, seqs=[given, step.seq]
        )
        return False

    def _wrong(self, step: Step, selected: list[int], index: int) -> None:
        seq, segment = step.seq, self.segment
        wanted = selected[index] if index < len(selected) else None
        about = {"record": step.at, "seqs": [seq] if wanted is None else [seq, wanted], "key": step.record["key"]}
        if seq not in self.log.at:
            says = "which the log does not hold"
        elif wanted is not None and seq > wanted:
            self._gap(step, wanted, "it was given")
            return
        elif first_above(selected, seq) == first_above(selected, seq - 1):
            says = "which its filter does not select"
        else:
            says = f"again or out of order: it had everything up to {self.given}"
        self.found.say(f"{segment} was given {step.stamp}.{seq} ({step.record['key']}), {says}", **about)

    def _gap(self, step: Step, wanted: int, how: str) -> None:
        key = self.log.at[wanted].key
        self.found.say(
            f"{self.segment} was never given {wanted} ({key}), although {how} {step.stamp}.{step.seq}",
            record=step.at,
            seqs=[wanted, step.seq],
            key=key,
        )


def _effects(view: View, at: int, record: Record, found: Findings) -> None:
    """A reader's own database, held against the log."""
    reader, keys = record["reader"], record["keys"]
    segments = view.readers.get(reader)
    if not segments:
        found.say(f"reader {reader} has effects, but was never there", record=at)
        return
    if len(set(keys)) != len(keys):
        twice = next(key for index, key in enumerate(keys) if key in keys[:index])
        found.say(f"the database of reader {reader} holds {twice} twice", record=at, key=twice)
        return
    segment = segments[-1]
    stamp, after = place_of(record["origin"]) if record["origin"] else ("", 0)
    cursor = record.get("position")
    if cursor is None:
        handled = [step for one in segments if one.chapter == segment.chapter for step in one.steps]
        cursor = next((step.record["position"] for step in reversed(handled) if step.kind == "handled"), None)
    log = view.log_of(*place_of(cursor)) if cursor is not None and view.restores else view.log
    began: int | None = after
    if segment.groups:
        began = log.groups_after(after, stamp, segment.filter)
        after = -1 if began is None else began
    try:
        selected = log.selected(segment.filter)
    except KeyError:
        return  # its stream says so
    begin = first_above(selected, max(after, log.known_after))
    end = first_above(selected, place_of(cursor)[1]) if cursor is not None else begin + len(keys)
    wanted = [log.at[seq].key for seq in selected[begin:end]]
    if began is None:
        # Nothing tells where it had to begin, in a log that was put back: what it has, and no more, is compared.
        wanted = wanted[max(0, len(wanted) - len(keys)) :]
    got = keys if after >= log.known_after else keys[len(keys) - len(wanted) :] if wanted else []
    # Of what was lost with the storage, and not seen before, nothing can be said.
    if got != wanted and (cursor is None or log.stands(*place_of(cursor))):
        place = next(
            (n for n, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted))
        )
        mine = got[place] if place < len(got) else "nothing"
        theirs = wanted[place] if place < len(wanted) else "nothing"
        found.say(
            f"the database of reader {reader} holds {mine} as effect {place + 1}, where the log has {theirs} for it "
            f"({len(got)} effects; the log has {len(wanted)} between {after} and {cursor})",
            record=at,
            key=mine if place < len(got) else theirs,
        )
