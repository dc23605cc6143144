"""Bugs of the log and of the coordinator: in the memory ones, which the cluster tier runs, and in their real twins."""

from __future__ import annotations

from typing import Final

from simulations.mutants.mutant import Mutant
from simulations.mutants.patching import Patch

MEMORY: Final = "changefeed.log.memory"
SQLITE: Final = "changefeed.log.sqlite_write"
COORDINATION: Final = "changefeed.coordination.memory"
ZOOKEEPER: Final = "changefeed.coordination.zookeeper_recipe"
CONFORMANCE: Final = ("tests/log/test_log_conformance.py",)

NO_FENCE: Final = Patch(
    MEMORY,
    "        if epoch < 1 or (data.fence.epoch, data.fence.term) != (epoch, term):\n",
    "        if epoch < 1:\n",
)
NO_TAIL: Final = Patch(MEMORY, "            if data.tail.seq != expected_tail:\n", "            if False:\n")

MUTANTS: Final = (
    Mutant(
        "M1",
        "the store ignores the epoch: whoever asks may append",
        "an append is accepted only if its epoch and term equal the fence",
        (NO_FENCE,),
        sees=("C9", "C8", "C4", "C1"),
        twin=(
            Patch(
                SQLITE,
                "    if epoch < 1 or (fence.epoch, fence.term) != (epoch, term):\n",
                "    if epoch < 1:\n",
            ),
        ),
        twin_tests=CONFORMANCE,
    ),
    Mutant(
        "M2",
        "the store ignores the expected tail",
        "an append checks the fence by the lock it takes, and the expected tail too: two defences",
        (NO_TAIL,),
        hidden_by=("M1", "D1"),
        sees=("C9", "C8", "C4", "C1"),
        twin=(Patch(SQLITE, "    if tail.seq != expected_tail:\n", "    if False:\n"),),
        twin_tests=CONFORMANCE,
    ),
    Mutant(
        "M3",
        "the store ignores both the epoch and the expected tail",
        "two leaders at once must be harmless",
        (NO_FENCE, NO_TAIL),
        hidden_by=("D1",),
        sees=("C9", "C8", "C4", "C1"),
    ),
    Mutant(
        "M9",
        "the coordinator gives an epoch again instead of the next one",
        "an epoch is an integer that only grows; one compare-and-set from n to n + 1",
        (
            Patch(
                COORDINATION,
                "        self.server._set_epoch(feed, seen.epoch + 1)\n",
                "        self.server._set_epoch(feed, max(1, seen.epoch))\n",
            ),
        ),
        hidden_by=("D2",),
        sees=("C8", "C14"),
    ),
    Mutant(
        "M24",
        "a leader record of an earlier session of the same process counts as one's own",
        "a node counts only if its ephemeralOwner is this session",
        (
            Patch(
                COORDINATION,
                '        return view.leader is not None and view.leader.session == self.session != ""\n',
                "        return view.leader is not None and self.member is not None"
                " and view.leader.process == self.member.process\n",
            ),
            Patch(
                COORDINATION,
                '        return leader is not None and leader.epoch == epoch and leader.session == self.session != ""\n',  # noqa: E501
                "        return leader is not None and leader.epoch == epoch\n",
            ),
        ),
        tests=("tests/coordination/test_coordinator_suite.py",),
    ),
    Mutant(
        "M27",
        "a position is checked by its seq alone: its lineage and its term do not matter",
        "a position is refused if it is of another lineage; an epoch number that comes again is another term",
        (
            Patch(
                "changefeed.log",
                "        if position.lineage != self.lineage:\n",
                "        if False:\n",
            ),
            Patch(
                "changefeed.log",
                "        elif (position.epoch, position.term) != self.epoch_of(position.seq):\n",
                "        elif False:\n",
            ),
        ),
        sees=("C13", "C5", "C4"),
    ),
    Mutant(
        "M28",
        "what was trimmed is missing without an error",
        'trimming never breaks a reader midway: it gets the typed "too old"',
        (
            Patch(
                MEMORY,
                "        if after_seq < data.floor.seq:\n",
                "        if False:\n",
            ),
            Patch(
                "changefeed.log",
                "        elif position.seq < self.floor.seq and self.epoch_of(position.seq) in"
                " (None, (position.epoch, position.term)):\n            kind, why",
                "        elif position.seq < self.floor.seq:\n            pass\n        elif False:\n            kind, why",  # noqa: E501
            ),
        ),
        sees=("C5", "C13"),
        twin=(
            Patch(
                "changefeed.log.sqlite_read",
                "    if after_seq < floor.seq:\n",
                "    if False:\n",
            ),
        ),
        twin_tests=CONFORMANCE,
    ),
    Mutant(
        "M30",
        "the fence is written to the system's cache only: a loss of power takes it back",
        "from the moment that fence returns, no append with a lower epoch can ever become visible",
        (
            Patch(
                "changefeed.log.sqlite_file",
                '            with self._transaction("fence") as connection:\n',
                '            self._writing().execute("PRAGMA synchronous=OFF")\n'
                '            with self._transaction("fence") as connection:\n',
            ),
            Patch(
                "changefeed.log.sqlite_file",
                "        self._note(found.fence.epoch, found.tail)\n        self._make_whole(clean)\n",
                "        self._note(found.fence.epoch, found.tail)\n"
                '        self._writing().execute("PRAGMA synchronous=FULL")\n',
            ),
        ),
        tests=("tests/power_loss/test_power_loss.py",),
    ),
    # ---- defences
    Mutant(
        "D1",
        "the store takes entries that carry a stored number or do not continue the digest chain",
        "the same number is stored once (the store's last line of defence)",
        (Patch(MEMORY, "            self._check_new(data, entries)\n", "            pass\n"),),
    ),
    Mutant(
        "D2",
        "the store lets an epoch be fenced twice",
        "an epoch is fenced at most once, with its term",
        (
            Patch(
                MEMORY,
                "            if fence.epoch <= data.fence.epoch:\n",
                "            if fence.epoch < data.fence.epoch:\n",
            ),
        ),
    ),
)
