"""A feed that keeps a snapshot refuses what would make it lie, case by case, then over many schedules."""

from __future__ import annotations

from collections import Counter, deque
from random import Random
from typing import Any

import pytest
from snapshot_bench import SnapBench, SnapLog, batch_of, vm

from changefeed.batch import Batch, Entry
from changefeed.change import Change, Key
from changefeed.errors import LogFull, LogUnavailable
from changefeed.leader import guard
from changefeed.leader.effects import Admit, LookUp, Reply
from changefeed.log import OUTBOX
from changefeed.wire.changes import decode_change, split
from changefeed.wire.messages import Open


@pytest.fixture
def bench() -> SnapBench:
    return SnapBench()


def code(bench: SnapBench, ticket: Any) -> str:
    return bench.answers[ticket].code


# ---- bodies


@pytest.mark.parametrize("op", ["create", "update"])
def test_a_create_or_update_without_body_is_refused(bench: SnapBench, op: str) -> None:
    """The whole batch, with a sentence that names the object; it is said after a look, as every final no."""
    assert bench.publish(1, batch_of(1, vm("a"), vm("b", op=op, body=None))) is None
    bench.settle()
    answer = bench.answers[1]
    assert (answer.code, answer.count, bench.log.held) == ("body-missing", 2, [])
    assert f"the {op} of vm 'b'" in answer.message


def test_a_delete_and_other_words_need_no_body(bench: SnapBench) -> None:
    bench.store(1, batch_of(1, vm("a", op="delete", body=None), vm("a", op="reboot", body=None)))


def test_a_null_body_is_none_but_an_empty_one_is_there(bench: SnapBench) -> None:
    bench.store(1, batch_of(1, vm("a", body={}), vm("a", body=0), vm("a", body="")))


# ---- versions


def test_a_change_without_version_of_an_object_that_has_one_is_refused(bench: SnapBench) -> None:
    """Told by the entry that is not folded yet, then by the snapshot; whatever its op."""
    bench.store(1, batch_of(1, vm("a", 5)))
    for ticket, op in ((2, "update"), (3, "delete"), (4, "reboot")):
        bench.publish(ticket, batch_of(ticket, vm("a", op=op), after=1))
        bench.settle()
    bench.fold()
    assert bench.machine.checks.guard.objects == 0
    bench.publish(5, batch_of(5, vm("b"), vm("a"), after=1))
    bench.settle()
    assert [code(bench, ticket) for ticket in (2, 3, 4, 5)] == ["version-missing"] * 4
    assert "vm 'a'" in bench.answers[5].message
    assert "5 stands" in bench.answers[5].message
    bench.store(6, batch_of(6, vm("b"), vm("a", 6), after=1))


def test_objects_without_versions_cost_no_look_up(bench: SnapBench) -> None:
    """Until some object of the feed has one."""
    bench.store(1, batch_of(1, vm("a")))
    bench.fold()
    bench.publish(2, batch_of(2, vm("a")))
    assert bench.look_ups == []
    bench.store(3, batch_of(3, vm("b", 1)))
    bench.fold()
    bench.publish(4, batch_of(4, vm("a")))
    assert [wanted.keys for wanted in bench.look_ups] == [(("vm", "a"),)]
    bench.publish(5, batch_of(5, vm("c", 1)))
    bench.settle()
    assert (code(bench, 4), code(bench, 5)) == ("", "")


def test_a_deleted_object_keeps_its_version_until_its_tombstone_goes(bench: SnapBench) -> None:
    bench.store(1, batch_of(1, vm("a", 5), vm("a", 6, op="delete")))
    bench.fold()
    bench.publish(2, batch_of(3, vm("a", op="create")))
    bench.settle()
    assert code(bench, 2) == "version-missing"
    bench.log.trim(2)
    bench.store(3, batch_of(4, vm("a", op="create"), after=2))


def test_within_a_batch_the_order_counts(bench: SnapBench) -> None:
    """With a version, then without: refused; the other way round: fine."""
    bench.publish(1, batch_of(1, vm("a", 1), vm("a")))
    bench.settle()
    assert code(bench, 1) == "version-missing"
    bench.store(2, batch_of(3, vm("a"), vm("a", 1), after=0))


def test_a_word_that_tells_no_state_gives_no_version(bench: SnapBench) -> None:
    """As in the snapshot, so that every leader says the same."""
    bench.store(1, batch_of(1, vm("a", 9, op="reboot", body=None), vm("a")))


def test_after_a_batch_that_waits_the_answer_waits_too(bench: SnapBench) -> None:
    """A pending version refuses nothing before it is durable: it may be refused itself."""
    bench.open("q", "d")
    bench.publish(1, batch_of(1, vm("a", 1)))
    assert bench.publish(2, batch_of(1, vm("a"), publisher="q", incarnation=2), "d") is None
    assert bench.look_ups == []
    bench.settle()
    assert (code(bench, 1), code(bench, 2)) == ("", "version-missing")


def test_what_was_never_stored_refuses_nothing(bench: SnapBench) -> None:
    bench.open("q", "d")
    bench.publish(1, batch_of(1, vm("a", 1)))
    bench.publish(2, batch_of(1, vm("a"), publisher="q", incarnation=2), "d")
    assert bench.machine.next_append(0) is not None
    bench.perform(bench.machine.append_failed(LogFull("no room")))
    bench.settle()
    assert (code(bench, 1), code(bench, 2)) == ("log-full", "")


def test_two_channels_race_for_one_object(bench: SnapBench) -> None:
    """The one that is accepted first decides; the other one is asked about before that, and judged after it."""
    bench.store(0, batch_of(1, vm("x", 1)))
    bench.fold()
    bench.open("q", "d")
    bench.publish(1, batch_of(2, vm("a")))
    (asked,) = bench.look_ups
    early = bench.log.facts(asked)
    bench.look_ups.clear()
    bench.publish(2, batch_of(1, vm("a", 7), publisher="q", incarnation=2), "d")
    bench.append()
    bench.perform(bench.machine.found(asked.token, early))
    assert (code(bench, 2), code(bench, 1)) == ("", "version-missing")


def test_a_fold_between_question_and_judgement_hides_nothing(bench: SnapBench) -> None:
    """What the look-up did not see yet is remembered until its batch is judged."""
    bench.store(0, batch_of(1, vm("x", 1)))
    bench.fold()
    bench.open("q", "d")
    bench.publish(1, batch_of(2, vm("a")))
    (asked,) = bench.look_ups
    early = bench.log.facts(asked)
    bench.look_ups.clear()
    bench.store(2, batch_of(1, vm("a", 7), publisher="q", incarnation=2), "d")
    bench.fold()
    bench.perform(bench.machine.found(asked.token, early))
    assert code(bench, 1) == "version-missing"
    assert bench.machine.checks.guard.objects == 0, "and no longer"


def test_what_was_asked_for_a_batch_that_had_a_gap_is_asked_again(bench: SnapBench) -> None:
    """Nothing is remembered for it once it was judged; it may come back behind what fills the gap."""
    bench.store(0, batch_of(1, vm("x", 1)))
    bench.fold()
    bench.open("q", "d")
    bench.publish(1, batch_of(2, vm("x")))
    bench.publish(2, batch_of(3, vm("a")))
    refused, early = bench.look_ups
    bench.look_ups.clear()
    bench.perform(bench.machine.found(early.token, bench.log.facts(early)))
    bench.perform(bench.machine.found(refused.token, bench.log.facts(refused)))
    (gap,) = bench.look_ups
    facts = bench.log.facts(gap)
    bench.look_ups.clear()
    bench.store(3, batch_of(1, vm("a", 7), publisher="q", incarnation=2), "d")
    bench.fold()
    bench.publish(4, batch_of(2, vm("x", 2)))
    bench.append()
    bench.perform(bench.machine.found(gap.token, facts))
    bench.settle()
    assert (code(bench, 1), code(bench, 2)) == ("version-missing", "version-missing")


def test_what_is_folded_is_forgotten(bench: SnapBench) -> None:
    """Object by object, also behind one that changed again."""
    bench.store(1, batch_of(1, vm("a", 1)))
    bench.store(2, batch_of(2, vm("b", 1)))
    bench.store(3, batch_of(3, vm("a", 2)))
    bench.fold(2)
    assert bench.machine.checks.guard.objects == 1
    bench.fold(1)
    assert bench.machine.checks.guard.objects == 0


def test_a_retry_is_answered_by_its_receipt(bench: SnapBench) -> None:
    """Also after the object got a version, in memory or from the log, by this leader or the next; without body too."""
    bench.store(1, batch_of(1, vm("a")))
    bench.store(2, batch_of(2, vm("a", 1)))
    again = bench.publish("again", batch_of(1, vm("a")))
    assert again is not None
    assert (again.code, again.repeated) == ("", True)
    bench.fold()
    later = SnapBench(bench.log)
    later.publish("later", batch_of(1, vm("a")))
    later.settle()
    assert (code(later, "later"), later.answers["later"].repeated) == ("", True)


def test_a_retry_of_what_is_pending_shares_its_append(bench: SnapBench) -> None:
    """Although a version of the same object was accepted behind it."""
    bench.open(channel="d", session="other", incarnation=1)
    bench.publish(1, batch_of(1, vm("a")))
    bench.publish(2, batch_of(2, vm("a", 1)))
    bench.publish("again", batch_of(1, vm("a")), "d")
    bench.settle()
    assert [code(bench, ticket) for ticket in (1, 2, "again")] == ["", "", ""]
    assert bench.answers["again"].first == bench.answers[1].first


def test_the_outbox_is_never_refused(bench: SnapBench) -> None:
    """What an application has committed; but it gives versions."""
    step = bench.machine.open(open_outbox(), "(outbox)", own=True)
    assert isinstance(bench.opened(step), Admit)
    sent = [vm("a", 5), vm("a"), vm("b", body=None)]
    bench.publish(1, batch_of(1, *sent, publisher=OUTBOX, incarnation=2), "(outbox)")
    assert bench.look_ups == []
    bench.settle()
    bench.publish(2, batch_of(1, vm("a")))
    bench.settle()
    assert (code(bench, 1), code(bench, 2)) == ("", "version-missing")


def open_outbox() -> Any:
    return Open("f", OUTBOX, "(outbox)", named=True)


# ---- the order of a publisher's batches


def test_what_comes_behind_a_batch_that_is_asked_about_waits_behind_it(bench: SnapBench) -> None:
    """And is asked about at once; answers leave in order whatever is found first."""
    bench.store(0, batch_of(1, vm("x", 1)))
    bench.fold()
    bench.publish(1, batch_of(2, vm("a")))
    bench.publish(2, batch_of(3, vm("b")))
    bench.publish(3, batch_of(4, vm("x", 2)))
    first, second = bench.look_ups
    bench.look_ups.clear()
    bench.perform(bench.machine.found(second.token, bench.log.facts(second)))
    assert bench.machine.waiting == 0
    assert not bench.machine.idle
    bench.perform(bench.machine.found(first.token, bench.log.facts(first)))
    assert bench.machine.waiting == 3
    bench.settle()
    assert bench.order == [0, 1, 2, 3]


def test_behind_a_refused_batch_there_is_a_gap(bench: SnapBench) -> None:
    """As behind any other one; the publisher sends them again."""
    bench.store(0, batch_of(1, vm("x", 1)))
    bench.publish(1, batch_of(2, vm("x")))
    bench.publish(2, batch_of(3, vm("b")))
    bench.settle()
    assert (code(bench, 1), code(bench, 2)) == ("version-missing", "number-gap")
    bench.store(3, batch_of(3, vm("b"), after=1))


def test_a_log_that_cannot_be_asked_refuses_for_now(bench: SnapBench) -> None:
    bench.store(0, batch_of(1, vm("x", 1)))
    bench.fold()
    bench.publish(1, batch_of(2, vm("a")))
    bench.publish(2, batch_of(3, vm("y", 1)))
    (asked,) = bench.look_ups
    bench.look_ups.clear()
    bench.perform(bench.machine.not_found(asked.token, LogUnavailable("away")))
    bench.settle()
    assert (code(bench, 1), code(bench, 2)) == ("not-current", "number-gap")
    assert bench.machine.queue_bytes == 0


def test_what_waits_over_a_closed_channel_is_dropped(bench: SnapBench) -> None:
    """And does not stand in the way of what its publisher sends again."""
    bench.store(0, batch_of(1, vm("x", 1)))
    bench.fold()
    bench.publish(1, batch_of(2, vm("a")))
    bench.machine.close("c")
    bench.open(channel="d", incarnation=1)
    bench.publish(2, batch_of(2, vm("a")), "d")
    bench.settle()
    assert (1 not in bench.answers, code(bench, 2), bench.machine.queue_bytes) == (True, "", 0)
    assert [entry.number for entry in bench.log.held] == [1, 2]


def test_a_deposed_leader_refuses_nothing(bench: SnapBench) -> None:
    """The look finds another fence: the term is over."""
    bench.store(1, batch_of(1, vm("a", 5)))
    bench.publish(2, batch_of(2, vm("a")))
    bench.log.fence(9)
    bench.look()
    assert 2 not in bench.answers
    assert bench.machine.ended == "fenced"


def test_a_payload_that_holds_no_changes_is_refused(bench: SnapBench) -> None:
    """Whoever accepted it has looked at it; a leader still does not stumble over it."""
    answer = bench.publish(1, Batch("p", 1, 0, 1, (1,), b"\xc1"))
    assert answer is not None
    assert answer.code == "bad-message"


# ---- terms, and the option


def test_the_next_leader_knows_what_is_not_folded_yet(bench: SnapBench) -> None:
    """Nothing without a version is judged before it has read that; what has one goes on."""
    bench.store(1, batch_of(1, vm("a", 5), vm("b")))
    later = SnapBench(bench.log, build=False)
    later.publish(2, batch_of(3, vm("c", 1)))
    later.publish(3, batch_of(4, vm("a")))
    later.append()
    assert (code(later, 2), 3 in later.answers) == ("", False)
    assert not later.machine.idle, "no handover before it is answered"
    later.build()
    later.settle()
    assert code(later, 3) == "version-missing"


def test_what_a_leader_accepts_while_it_reads_counts_too(bench: SnapBench) -> None:
    """Its entries lie behind those that it reads."""
    bench.store(1, batch_of(1, vm("a", 5)))
    later = SnapBench(bench.log, build=False)
    found = [(guard.marks_of(entry), entry.last_seq) for entry in bench.log.held]
    later.store(2, batch_of(2, vm("b", 1)))
    later.perform(later.machine.built(found))
    for ticket, id in ((3, "a"), (4, "b")):
        later.publish(ticket, batch_of(ticket, vm(id), after=2))
        later.settle()
    assert (code(later, 3), code(later, 4)) == ("version-missing", "version-missing")


def test_an_option_that_is_switched_on_counts_what_is_pending(bench: SnapBench) -> None:
    """Batches that were accepted before, in flight and waiting; and off again, nothing is refused any more."""
    bench.perform(bench.machine.keep_no_snapshot())
    bench.open("q", "d")
    bench.publish(1, batch_of(1, vm("a", 1)))
    flying = bench.machine.next_append(0)
    bench.publish(2, batch_of(2, vm("b", 1)))
    bench.machine.keep_snapshot(bench.log.look())
    bench.build()
    bench.publish(3, batch_of(1, vm("b"), publisher="q", incarnation=2), "d")
    assert flying is not None
    bench.log.append(1, "00000001", 0, flying.entries)
    bench.perform(bench.machine.appended())
    bench.settle()
    assert code(bench, 3) == "version-missing"
    bench.publish(4, batch_of(2, vm("a"), publisher="q", incarnation=2, after=0), "d")
    bench.perform(bench.machine.keep_no_snapshot())
    bench.settle()
    assert code(bench, 4) == "", "it waited, and need not any more"


def test_an_end_drops_what_waits(bench: SnapBench) -> None:
    bench.store(1, batch_of(1, vm("a", 5)))
    bench.publish(2, batch_of(2, vm("a")))
    bench.perform(bench.machine.end("handover"))
    assert bench.machine.idle
    assert bench.machine.built([]) == []


def test_a_leader_that_remembers_too_much_takes_no_more(bench: SnapBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a fold is through: its memory is bounded."""
    monkeypatch.setattr(guard, "OBJECTS_MAX", 2)
    bench.store(1, batch_of(1, vm("a", 1)))
    assert bench.machine.room(1)
    bench.store(2, batch_of(2, vm("b", 1)))
    assert not bench.machine.room(1)
    bench.fold()
    assert bench.machine.room(1)


# ---- many schedules


class World:
    """Publishers of one feed and its leaders, an outbox too, in any order of events."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.log = SnapLog()
        self.told: Counter[str] = Counter()
        self.sent: dict[str, list[Batch]] = {}
        self.elect()

    def elect(self) -> None:
        self.bench = SnapBench.__new__(SnapBench)
        super(SnapBench, self.bench).__init__(self.log, snapshot=True)
        self.built = False
        self.opened: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.waiting: dict[str, deque[Batch]] = {}
        self.early: list[tuple[LookUp, Any]] = []
        for name in ("p", "q", OUTBOX):
            self.open(name)

    def open(self, name: str) -> None:
        own = name == OUTBOX
        step = self.bench.machine.open(opening(name), name, own=own)
        self.bench.perform(self.bench.machine.displaced())
        found = self.bench.opened(step)
        assert isinstance(found, Admit)
        self.opened[name] = found.incarnation
        self.last[name] = found.last_number
        self.waiting[name] = deque()

    def changes(self) -> list[Change]:
        random = self.random
        made = []
        for _ in range(random.choice([1, 1, 1, 2, 3])):
            op = random.choice(["create", "update", "update", "delete", "reboot"])
            id = random.choice("abcdef")
            # Half of the objects never have a version.
            version = random.randrange(9) if id in "abc" and random.random() < 0.4 else None
            body = None if (op in ("delete", "reboot") and random.random() < 0.5) or random.random() < 0.03 else 1
            made.append(vm(id, version, op, body))
        return made

    def send(self) -> None:
        name = self.random.choice(["p", "q", "p", "q", OUTBOX])
        if len(self.waiting[name]) >= (1 if name == OUTBOX else 4):
            return
        changes = self.changes()
        number = self.last[name] + 1
        self.last[name] += len(changes)
        sent = batch_of(number, *changes, publisher=name, incarnation=self.opened[name])
        self.sent.setdefault(name, []).append(sent)
        self.waiting[name].append(sent)
        self.bring(name, sent)

    def again(self) -> None:
        """A batch that was stored comes once more."""
        name = self.random.choice(["p", "q"])
        stored = [e for e in self.log.history if (e.publisher, e.incarnation) == (name, self.opened[name])]
        if stored and not self.waiting[name]:
            entry = self.random.choice(stored)
            sent = Batch(name, entry.incarnation, entry.after, entry.number, entry.sizes, entry.payload)
            self.waiting[name].append(sent)
            self.bring(name, sent, stored=entry)

    def bring(self, name: str, sent: Batch, stored: Entry | None = None) -> None:
        ticket = (name, sent.number, len(self.bench.answers), self.random.random())
        self.perform(self.bench.machine.publish(name, (ticket, sent, stored), sent))

    def perform(self, effects: Any) -> None:
        for effect in effects:
            if isinstance(effect, Reply):
                self.answer(*effect.ticket, effect.answer)
        self.bench.look_ups += [effect for effect in effects if isinstance(effect, LookUp)]

    def answer(self, ticket: Any, sent: Batch, stored: Entry | None, answer: Any) -> None:
        self.told[answer.code or ("again" if answer.repeated else "stored")] += 1
        waiting = self.waiting[sent.publisher]
        assert waiting.popleft() is sent, "in order"
        if stored is not None and stored in self.log.held:
            assert (answer.code, answer.first.seq) == ("", stored.seq)
        if answer.code == "version-missing":
            assert sent.publisher != OUTBOX
            assert any(self.missing(sent, versions_in(self.log.history[:n])) for n in range(len(self.log.history) + 1))
        if answer.code == "body-missing":
            assert sent.publisher != OUTBOX
            assert any(c.body is None and c.op in ("create", "update") for c in changes_of(sent))
        if answer.code and not waiting:
            self.reopen(sent.publisher)

    def missing(self, sent: Batch | Entry, versions: set[Key]) -> bool:
        """Whether a batch has a change without version of an object that has one before it."""
        versions = set(versions)
        for change in changes_of(sent):
            if change.version is None and (change.resource, change.id) in versions:
                return True
            give(versions, change)
        return False

    def reopen(self, name: str) -> None:
        """Go on behind what the log holds, once nothing is on its way."""
        pending = self.log.last_number(name, self.opened[name]) or 0
        self.last[name] = pending

    def look(self) -> None:
        """Read now, tell now or later: everything may happen in between."""
        if self.bench.look_ups:
            wanted = self.bench.look_ups.pop(0)
            self.early.append((wanted, self.log.facts(wanted)))
        if self.early and self.random.random() < 0.5:
            wanted, facts = self.early.pop(self.random.randrange(len(self.early)))
            self.perform(self.bench.machine.found(wanted.token, facts))

    def append(self) -> None:
        machine = self.bench.machine
        append = machine.next_append(0)
        if append is None:
            return
        if self.random.random() < 0.05:
            self.perform(machine.append_failed(LogFull("no room")))
            return
        self.log.append(machine.epoch, machine.term, append.expected_tail, append.entries)
        self.perform(machine.appended())

    def fold(self) -> None:
        machine = self.bench.machine
        if not self.built:
            self.built = True
            after = self.log.folded or 0
            found = [(guard.marks_of(e), e.last_seq) for e in self.log.held if e.seq > after]
            self.perform(machine.built(found))
            return
        reached = self.log.fold(self.random.choice([1, 2, None]))
        machine.checks.guard.reached(reached, self.log.versioned)

    def run(self, steps: int) -> None:
        ways = [self.send] * 10 + [self.look] * 8 + [self.append] * 5 + [self.fold] * 2 + [self.again] * 2
        for _ in range(steps):
            if self.random.random() < 0.01:
                self.elect()
            self.random.choice(ways)()
        while not self.built:
            self.fold()
        for _ in range(1000):
            self.look()
            self.append()
        assert self.bench.machine.idle
        assert not any(self.waiting.values()), "everything is answered"
        assert self.bench.machine.queue_bytes == 0


def opening(name: str) -> Any:
    return Open("f", name, name, named=True)


def changes_of(sent: Batch | Entry) -> list[Change]:
    return [decode_change(data) for data in split(sent.payload)]


def give(versions: set[Key], change: Change) -> None:
    if change.version is not None and (change.body is not None or change.op in ("create", "update", "delete")):
        versions.add((change.resource, change.id))


def versions_in(entries: list[Entry]) -> set[Key]:
    found: set[Key] = set()
    for entry in entries:
        for change in changes_of(entry):
            give(found, change)
    return found


def test_no_schedule_lets_a_versionless_change_through_or_refuses_without_reason() -> None:
    """Over publishers that race, an outbox, look-ups that come late, folds, refused appends, takeovers in between."""
    told: Counter[str] = Counter()
    for seed in range(250):
        world = World(Random(seed))
        world.run(200)
        versions: set[Key] = set()
        for entry in world.log.history:
            assert entry.publisher == OUTBOX or not world.missing(entry, versions), f"seed {seed}, entry {entry.seq}"
            for change in changes_of(entry):
                give(versions, change)
                assert entry.publisher == OUTBOX or change.body is not None or change.op not in ("create", "update")
        told.update(world.told)
    expected = {"stored", "again", "version-missing", "body-missing", "number-gap", "log-full"}
    assert {one for one in expected if told[one] >= 20} == expected, told
