"""Random publishers, lost answers, incarnations and failovers against what must hold whatever happens.

Several leaders live at once (the deposed do not know it), several publishers send, resend, skip, forge and take over;
reads of a look-up and its look come at different moments; appends fail in every way. The log remembers everything,
and so does the referee: what it holds each answer to is written beside the check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from leader_bench import SyncLog, batch

from changefeed.batch import Batch, Entry
from changefeed.errors import (
    AppendOutcomeUnknown,
    BadMessage,
    ChangefeedError,
    Forgotten,
    LogError,
    LogFull,
    LogUnavailable,
    NotCurrent,
    PublisherInUse,
    Superseded,
)
from changefeed.leader.book import Request
from changefeed.leader.effects import Admit, Append, Deny, Effect, Facts, Give, Hold, LookUp, Reply, Visible
from changefeed.leader.machine import Sequencer
from changefeed.wire.changes import split
from changefeed.wire.messages import Answer, Open

PUBLISHERS = ("anne", "bob", "Named")
FINAL = {"number-gap", "number-reused", "number-skipped", "superseded", "forgotten", "outcome-unknown"}
picks = st.integers(0, 1_000_000)


def pick(choices: Any, index: int) -> Any:
    """One of a collection that Hypothesis cannot know beforehand."""
    choices = list(choices)
    return choices[index % len(choices)]


def place_in(entry: Entry, sent: Batch) -> int | None:
    """The referee's own way to find a batch in an entry: group by group, change by change."""

    def groups(number: int, sizes: tuple[int, ...], payload: bytes) -> list[tuple[int, list[bytes]]]:
        changes, found = split(payload), []
        for size in sizes:
            found.append((number, changes[:size]))
            changes, number = changes[size:], number + size
        return found

    mine = groups(sent.number, sent.sizes, sent.payload)
    if all(group in groups(entry.number, entry.sizes, entry.payload) for group in mine):
        return sent.number - entry.number
    return None


def middle(sent: Batch, begin: int, count: int) -> Batch:
    """The groups of a batch after `begin` changes, `count` changes of them; it is an error if that cuts a group."""
    ends = [sum(sent.sizes[: index + 1]) for index in range(len(sent.sizes))]
    sizes = tuple(size for size, end in zip(sent.sizes, ends, strict=True) if begin < end <= begin + count)
    assert sum(sizes) == count and begin in (0, *ends), "a group was cut"
    payload = b"".join(split(sent.payload)[begin : begin + count])
    number = sent.number + begin
    return Batch(sent.publisher, sent.incarnation, number - 1, number, sizes, payload)


@dataclass
class Ask:
    """A batch that was sent: to whom, when, and what came back."""

    number: int
    leader: Boss
    channel: str
    batch: Batch
    born: int
    answer: Answer | None = None
    refused: str = ""


class Watched(Sequencer):
    """Lets the referee see a refusal when it is decided."""

    referee: Callable[[int, ChangefeedError], None]

    def _refuse(
        self, request: Request, error: ChangefeedError, effects: list[Effect], count: int | None = None
    ) -> None:
        self.referee(request.ticket, error)
        super()._refuse(request, error, effects, count)


@dataclass
class Boss:
    """A leader. last_in_office: the newest moment at which the log still bore its fence."""

    machine: Sequencer
    last_in_office: int
    channels: dict[str, tuple[str, int]] = field(default_factory=dict)
    openings: dict[int, tuple[str, Open, Any, dict[str, Any] | None]] = field(default_factory=dict)
    look_ups: list[tuple[LookUp, dict[str, Any] | None]] = field(default_factory=list)
    append: Append | None = None
    asked: dict[str, list[int]] = field(default_factory=dict)


class Cluster(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.log = SyncLog()
        self.now = 0
        self.bosses: list[Boss] = []
        self.asks: list[Ask] = []
        self.made: dict[tuple[str, int], list[Batch]] = {}
        self.told_superseded: dict[tuple[str, int], int] = {}
        self.first_answers: set[tuple[str, int, int]] = set()
        self.parts: list[str] = []
        self.denials: list[str] = []
        self.elect()
        for name in PUBLISHERS:
            self.open(name=name, newest=True, session="x", old=0)
            while self.bosses[-1].openings:
                self.go_on_opening(index=0, fails=None)

    # ---- leaders

    @rule()
    def elect(self) -> None:
        look = self.log.fence(self.log.fence_row.epoch + 1)
        machine = Watched(look, look.fence.epoch, look.fence.term, append_bytes_max=700, queue_bytes_max=1 << 20)
        boss = Boss(machine, self.now)
        machine.referee = lambda number, error: self.check_refused(boss, self.asks[number], error)
        self.bosses = [*self.bosses[-1:], boss]

    def boss(self, newest: bool) -> Boss:
        """The one in office, or the one deposed last."""
        return self.bosses[-1] if newest else self.bosses[0]

    def tick(self) -> int:
        self.now += 1
        self.bosses[-1].last_in_office = self.now
        return self.now

    # ---- publishers

    @rule(name=st.sampled_from(PUBLISHERS), newest=st.booleans(), session=st.sampled_from("xy"), old=picks)
    def open(self, name: str, newest: bool, session: str, old: int) -> None:
        """Ask for an incarnation, or come again with one that was given (or not)."""
        self.tick()
        boss = self.boss(newest)
        given = sorted(inc for who, inc in self.made if who == name)
        incarnation = pick([None, None, *given, *given, self.log.incarnations + 1, 1], old)
        request = Open("f", name, session, name == "Named", incarnation)
        channel = f"{name}-{session}-{old % 2}"
        # Whatever comes of it, earlier channels of this session are gone.
        for replaced in [other for other in boss.channels if other.startswith(f"{name}-{session}-")]:
            if boss.machine.ended is None and not boss.machine.finishing:
                del boss.channels[replaced]
        step = boss.machine.open(request, channel)
        assert all(reply.answer.code == "not-current" for reply in boss.machine.displaced())
        if not isinstance(step, Deny):
            boss.openings[step.token] = (channel, request, step, None)  # type: ignore[union-attr]
        else:
            assert isinstance(step.error, NotCurrent)

    @precondition(lambda self: any(boss.openings for boss in self.bosses))
    @rule(index=picks, fails=st.sampled_from([None] * 8 + [LogUnavailable("away"), AppendOutcomeUnknown("lost")]))
    def go_on_opening(self, index: int, fails: ChangefeedError | None) -> None:
        self.tick()
        boss, token = pick([(boss, token) for boss in self.bosses for token in boss.openings], index)
        channel, request, step, read = boss.openings.pop(token)
        machine = boss.machine
        if isinstance(step, Hold):
            step = machine.resume(token)
        elif fails is not None:
            if isinstance(step, Give) or isinstance(fails, LogUnavailable):
                step = machine.open_failed(token, fails)
        elif isinstance(step, LookUp):
            if read is None:
                boss.openings[token] = (channel, request, step, self.log.reads(step))
                return
            step = machine.open_found(token, Facts(step, look=self.log.look(), **read))
        else:
            try:
                state = self.log.open_publisher(machine.epoch, machine.term, step.publisher, step.named)
            except LogError as error:
                step = machine.open_failed(token, error)
            else:
                step = machine.open_given(token, state)
        self.opened(boss, token, channel, request, step)

    def opened(self, boss: Boss, token: int, channel: str, request: Open, step: Any) -> None:
        if isinstance(step, Admit):
            self.made.setdefault((request.publisher, step.incarnation), [])
            boss.channels[channel] = (request.publisher, step.incarnation)
            boss.asked[channel] = []
            sessions = {other.split("-")[1] for other in boss.channels if other.startswith("Named")}
            assert len(sessions) < 2, "two living sessions of a named publisher"
            # What the log holds, or more where another leader went on.
            held = self.last_of(request.publisher, step.incarnation)
            assert step.last_number == held or boss is not self.bosses[-1]
        elif isinstance(step, Deny):
            self.denied(boss, request, step.error)
        else:
            boss.openings[token] = (channel, request, step, None)

    def denied(self, boss: Boss, request: Open, error: ChangefeedError) -> None:
        who, incarnation = request.publisher, request.incarnation
        self.denials.append(f"open: {error.code}")
        if isinstance(error, Superseded):
            assert incarnation is not None
            self.superseded(boss, who, incarnation, error.last_number)
        elif isinstance(error, Forgotten):
            assert incarnation is not None
            assert incarnation <= self.log.incarnations
            assert (who, incarnation) not in {(e.publisher, e.incarnation) for e in self.log.held}
        elif isinstance(error, BadMessage):
            assert incarnation is not None
            assert (who, incarnation) not in self.made
        else:
            assert isinstance(error, NotCurrent | PublisherInUse)

    def superseded(self, boss: Boss, who: str, incarnation: int, last: int | None) -> None:
        """The last number told is final: what came of it is an outcome for every pending change."""
        if last is None:
            assert self.log.last_number(who, incarnation) is None
        elif boss is self.bosses[-1]:
            assert last == self.last_of(who, incarnation)
        self.told_superseded.setdefault((who, incarnation), last or 0)

    def last_of(self, who: str, incarnation: int) -> int:
        of = [e.number + e.count - 1 for e in self.log.history if (e.publisher, e.incarnation) == (who, incarnation)]
        return max(of, default=0)

    @precondition(lambda self: any(boss.channels for boss in self.bosses))
    @rule(
        index=picks,
        what=st.sampled_from(["new"] * 4 + ["again"] * 3 + ["skip", "late", "forged", "part", "gap", "rerun"]),
        seed=picks,
    )
    def send(self, index: int, what: str, seed: int) -> None:
        born = self.tick()
        boss, channel = pick([(boss, channel) for boss in self.bosses for channel in boss.channels], index)
        sent = self.compose(boss.channels[channel], what, seed)
        ask = Ask(len(self.asks), boss, channel, sent, born)
        self.asks.append(ask)
        boss.asked[channel].append(ask.number)
        self.perform(boss, boss.machine.publish(channel, ask.number, sent))

    def compose(self, who: tuple[str, int], what: str, seed: int) -> Batch:
        made = self.made[who]
        if what == "rerun" and made:
            return self.rerun(who, made[seed % len(made) :], seed)
        holes = [(old, new) for old, new in pairwise(made) if new.number > old.last_number + 1]
        if what == "late" and holes:
            old, _ = pick(holes, seed)
            return batch(old.last_number + 1, "late", publisher=who[0], incarnation=who[1], after=old.last_number)
        if what in ("again", "forged", "part") and made:
            old = pick(made, seed)
            if what == "again":
                return old
            if what == "forged":
                return batch(old.number, "forged", publisher=who[0], incarnation=who[1], after=old.after)
            changes, first = split(old.payload), seed % old.count
            return Batch(*who, old.number + first - 1, old.number + first, (1,), changes[first])
        after = made[-1].last_number if made else 0
        number = after + 1 + (seed % 2 + 1 if what in ("skip", "gap") else 0)
        texts = [f"{who}{number}.{i}" for i in range(seed % 3 + 1)]
        sizes = (1,) * len(texts) if seed % 2 else (len(texts),)
        after = number - 1 if what == "gap" else after
        new = batch(number, *texts, publisher=who[0], incarnation=who[1], after=after, sizes=sizes)
        if what != "gap":
            made.append(new)
        return new

    @staticmethod
    def rerun(who: tuple[str, int], run: list[Batch], seed: int) -> Batch:
        """The same groups, cut elsewhere: from inside a batch over those that follow it without a skipped number."""
        groups: list[tuple[int, list[bytes]]] = []
        for old in run:
            number, changes = old.number, split(old.payload)
            for size in old.sizes:
                groups.append((number, changes[:size]))
                number, changes = number + size, changes[size:]
        groups = groups[seed % run[0].count % len(run[0].sizes) :][: seed % 7 + 1]
        kept = groups[:1]
        for number, changes in groups[1:]:
            if number == kept[-1][0] + len(kept[-1][1]):
                kept.append((number, changes))
        sizes = tuple(len(changes) for _, changes in kept)
        payload = b"".join(data for _, changes in kept for data in changes)
        return Batch(*who, kept[0][0] - 1, kept[0][0], sizes, payload)

    @precondition(lambda self: any(boss.channels for boss in self.bosses))
    @rule(index=picks)
    def close(self, index: int) -> None:
        """The connection is lost, with the answers that were on their way."""
        boss, channel = pick([(boss, channel) for boss in self.bosses for channel in boss.channels], index)
        del boss.channels[channel]
        boss.machine.close(channel)

    def close_one(self) -> None:
        self.close(index=self.now)

    def trim_some(self) -> None:
        self.trim(share=self.now % 3 + 1)

    # ---- look-ups, in two moments

    @precondition(lambda self: any(boss.look_ups for boss in self.bosses))
    @rule(index=picks, fails=st.sampled_from([False] * 9 + [True]))
    def look_up(self, index: int, fails: bool) -> None:
        self.tick()
        boss, place = pick([(boss, i) for boss in self.bosses for i in range(len(boss.look_ups))], index)
        wanted, read = boss.look_ups[place]
        if fails:
            del boss.look_ups[place]
            self.perform(boss, boss.machine.not_found(wanted.token, LogUnavailable("away")))
        elif read is None:
            boss.look_ups[place] = (wanted, self.log.reads(wanted))
        else:
            del boss.look_ups[place]
            facts = Facts(wanted, look=self.log.look(), **read)
            self.perform(boss, boss.machine.found(wanted.token, facts))

    # ---- appends

    @precondition(lambda self: any(boss.append is None and boss.machine.waiting for boss in self.bosses))
    @rule(index=picks, wall=st.integers(0, 50))
    def begin_append(self, index: int, wall: int) -> None:
        self.tick()
        boss = pick([b for b in self.bosses if b.append is None and b.machine.waiting], index)
        boss.append = boss.machine.next_append(wall)

    @precondition(lambda self: any(boss.append for boss in self.bosses))
    @rule(
        index=picks, how=st.sampled_from(["stored"] * 6 + ["full", "full", "away", "away", "lost before", "lost after"])
    )
    def end_append(self, index: int, how: str) -> None:
        self.tick()
        boss = pick([boss for boss in self.bosses if boss.append], index)
        append, boss.append = boss.append, None
        machine = boss.machine
        assert append is not None
        error: ChangefeedError | None = {
            "full": LogFull("full"), "away": LogUnavailable("away"), "lost before": AppendOutcomeUnknown("lost")
        }.get(how)  # fmt: skip
        if error is None:
            try:
                self.store(append, machine)
            except LogError as refused:
                error = refused
            else:
                error = AppendOutcomeUnknown("lost") if how == "lost after" else None
        effects = machine.appended() if error is None else machine.append_failed(error)
        if isinstance(error, LogUnavailable) and machine.ended is None:
            boss.append = machine.next_append(0)
            assert boss.append is not None
            assert boss.append.entries == append.entries
        self.perform(boss, effects)

    def store(self, append: Append, machine: Sequencer) -> None:
        self.log.append(machine.epoch, machine.term, append.expected_tail, append.entries)
        for entry in append.entries:
            key = (entry.publisher, entry.incarnation, entry.number, entry.batch_digest)
            same = [a for a in self.asks if self.key(a.batch) == key]
            # A refused change cannot come in later: somebody who was not refused must be waiting, or have given up.
            assert any(a.answer is None and not a.refused for a in same), (
                "stored after every request for it was refused"
            )
            told = self.told_superseded.get((entry.publisher, entry.incarnation))
            assert told is None or entry.number <= told, "stored after its publisher was told the last number"

    @staticmethod
    def key(sent: Batch) -> tuple[str, int, int, bytes]:
        return (sent.publisher, sent.incarnation, sent.number, sent.digest)

    @rule(share=st.integers(1, 3))
    def trim(self, share: int) -> None:
        self.log.trim(self.log.floor.seq + (self.log.tail.seq - self.log.floor.seq) // (share + 1))

    # ---- the referee

    def perform(self, boss: Boss, effects: Any) -> None:
        visible = False
        for effect in effects:
            match effect:
                case Reply(number, answer):
                    assert not visible or answer.code or answer.repeated, "visible before its receipt left"
                    self.judge(boss, self.asks[number], answer)
                case LookUp():
                    boss.look_ups.append((effect, None))
                case Visible(entries):
                    visible = True
                    assert list(entries) == self.log.history[-len(entries) :], "visible before it was durable"

    def judge(self, boss: Boss, ask: Ask, answer: Answer) -> None:
        assert ask.answer is None
        assert boss.machine.ended is None
        ask.answer = answer
        sent = ask.batch
        if ask.channel in boss.channels and boss.asked[ask.channel][:1] == [ask.number]:
            boss.asked[ask.channel].pop(0)
        else:
            # Only a connection that is not open is answered out of order, and only with "open again".
            assert answer.code == "not-current"
        assert answer.number == sent.number
        if answer.count != sent.count:
            # A part is answered only of what is stored to its end: nothing new is ever cut.
            assert sent.last_number <= self.last_of(sent.publisher, sent.incarnation)
            assert answer.repeated or answer.code == "outcome-unknown"
            sent = middle(sent, 0, answer.count)
            self.parts.append("stored" if answer.repeated else "unknown")
        if not answer.code:
            self.check_stored(sent, answer)
            return
        assert ask.refused == answer.code or (answer.code == "not-current" and not ask.refused)

    def check_refused(self, boss: Boss, ask: Ask, error: ChangefeedError) -> None:
        """At the moment at which a leader decides; the answer may leave later, after those before it."""
        assert ask.answer is None
        assert not ask.refused
        ask.refused = error.code
        sent, code = ask.batch, error.code
        mine = [e for e in self.log.history if (e.publisher, e.incarnation) == (sent.publisher, sent.incarnation)]
        there = any(place_in(e, sent) is not None for e in mine)
        if code in FINAL:
            assert boss.last_in_office >= ask.born, "a final no of a leader that was deposed before the question"
        if code in {"number-gap", "number-reused", "number-skipped", "log-full"}:
            assert not there or boss is not self.bosses[-1], f"{code}, but the very bytes are stored"
        if code == "number-skipped":
            assert not any(e.number <= sent.number <= e.number + e.count - 1 for e in mine), "a number that is stored"
        if isinstance(error, Superseded):
            self.superseded(boss, sent.publisher, sent.incarnation, error.last_number)
        elif code == "outcome-unknown":
            assert not any(e.number <= sent.number <= e.number + e.count - 1 for e in mine if e in self.log.held)
            assert sent.number <= max(e.number + e.count - 1 for e in mine)
        else:
            assert code in {"number-gap", "number-reused", "number-skipped", "log-full", "not-current"}

    def check_stored(self, sent: Batch, answer: Answer) -> None:
        """The receipt points at those very bytes, of that publisher, and only one try was the first."""
        first = answer.first
        assert first is not None
        number, seq = sent.number, first.seq
        while number <= sent.last_number:
            entry = next(e for e in self.log.history if e.seq <= seq <= e.last_seq)
            assert (entry.epoch, entry.term, self.log.lineage) == (first.epoch, first.term, first.lineage)
            assert (entry.publisher, entry.incarnation) == (sent.publisher, sent.incarnation)
            assert number - entry.number == seq - entry.seq
            here = min(entry.last_seq - seq + 1, sent.last_number - number + 1)
            assert place_in(entry, middle(sent, number - sent.number, here)) is not None
            number, seq = number + here, seq + here
        if not answer.repeated:
            key = (sent.publisher, sent.incarnation, sent.number)
            assert key not in self.first_answers
            self.first_answers.add(key)

    @invariant()
    def each_number_is_stored_once_and_in_order(self) -> None:
        last: dict[tuple[str, int], int] = {}
        for entry in self.log.history:
            who = (entry.publisher, entry.incarnation)
            assert entry.after == last.get(who, 0), "a number is missing before this one"
            assert entry.number > entry.after
            last[who] = entry.number + entry.count - 1

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        """What is not answered is waiting, in flight, being looked up, or held for what is in flight."""
        for boss in self.bosses:
            machine = boss.machine
            if machine.idle and machine.ended is None:
                assert machine.queue_bytes == 0
                open_asks = [n for channel in boss.channels for n in boss.asked[channel]]
                assert all(self.asks[n].answer is not None for n in open_asks), open_asks

    def teardown(self) -> None:
        """With a log that works, everything that was asked of the leader in office is answered."""
        if not hasattr(self, "log"):
            return
        boss = self.bosses[-1]
        for _ in range(1000):
            if boss.machine.idle or boss.machine.ended is not None:
                break
            while boss.look_ups:
                wanted, _ = boss.look_ups.pop(0)
                self.perform(boss, boss.machine.found(wanted.token, self.log.facts(wanted)))
            append = boss.append or boss.machine.next_append(0)
            boss.append = None
            if append is not None:
                self.store(append, boss.machine)
                self.perform(boss, boss.machine.appended())
        assert boss.machine.idle or boss.machine.ended is not None
        self.nothing_waits_without_a_reason()
        self.each_number_is_stored_once_and_in_order()


def schedule(cluster: Cluster, random: Random, steps: int) -> None:
    """Steps weighed so that leaders stay in office long enough to get into trouble."""

    def index() -> int:
        return random.randrange(1_000_000)

    def newest() -> bool:
        return random.random() < 0.8

    def go_on_opening() -> None:
        fails = [None] * 30 + [LogUnavailable("away"), AppendOutcomeUnknown("lost")]
        cluster.go_on_opening(index=index(), fails=random.choice(fails))

    def end_append() -> None:
        ways = ["stored"] * 20 + ["full"] * 2 + ["away"] * 2 + ["lost before", "lost after"]
        cluster.end_append(index=index(), how=random.choice(ways))

    def send() -> None:
        kinds = ["new"] * 7 + ["again"] * 4 + ["rerun"] * 4 + ["skip", "late", "forged", "part", "gap"]
        cluster.send(index=index(), what=random.choice(kinds), seed=index())

    def open() -> None:
        name = random.choice(PUBLISHERS)
        cluster.open(name=name, newest=newest(), session=random.choice("xy"), old=index())

    def any_of(kind: str) -> bool:
        return any(getattr(boss, kind) for boss in cluster.bosses)

    def can_append() -> bool:
        return any(boss.append is None and boss.machine.waiting for boss in cluster.bosses)

    while steps:
        steps -= 1
        ways = [cluster.elect, cluster.trim_some] + [open] * 3
        ways += [cluster.elect] * 20 if cluster.bosses[-1].machine.ended else []
        ways += [send] * 24 + [cluster.close_one] if any_of("channels") else []
        ways += [go_on_opening] * 24 if any_of("openings") else []
        ways += (
            [lambda: cluster.look_up(index=index(), fails=random.random() < 0.05)] * 12 if any_of("look_ups") else []
        )
        ways += [end_append] * 10 if any_of("append") else []
        ways += [lambda: cluster.begin_append(index=index(), wall=random.randrange(50))] * 10 if can_append() else []
        random.choice(ways)()
        cluster.each_number_is_stored_once_and_in_order()
        cluster.nothing_waits_without_a_reason()


@pytest.mark.parametrize("recent", [1, 64])
def test_long_schedules(recent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of hundreds of steps, the same for the same seed: every answer that a leader can give is among them."""
    monkeypatch.setattr("changefeed.leader.book.RECENT_MAX", recent)
    monkeypatch.setattr("changefeed.leader.machine.IDLE_MAX", recent)
    answers: Counter[str] = Counter()
    for seed in range(120):
        cluster = Cluster()
        cluster.start()
        schedule(cluster, Random(seed), 300)
        cluster.teardown()
        answers.update(
            (a.answer.code or ("again" if a.answer.repeated else "stored")) for a in cluster.asks if a.answer
        )
        answers.update(cluster.denials)
        answers.update(f"part: {what}" for what in cluster.parts)
    expected = {
        "part: stored", "part: unknown",
        "stored", "again", "number-gap", "number-reused", "number-skipped", "superseded", "log-full", "not-current",
        "outcome-unknown",
        "open: superseded", "open: forgotten", "open: bad-message", "open: not-current", "open: publisher-in-use",
    }  # fmt: skip
    assert {code for code in expected if answers[code] >= 3} == expected, answers


@pytest.mark.parametrize("recent", [1, 64])
def test_no_schedule_breaks_the_sequencing(recent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number once, in order, answers truthful, a no that stays a no; with a memory of one batch, too."""
    monkeypatch.setattr("changefeed.leader.book.RECENT_MAX", recent)
    monkeypatch.setattr("changefeed.leader.machine.IDLE_MAX", recent)
    run_state_machine_as_test(
        Cluster,
        settings=settings(
            max_examples=60,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
