"""Bugs of the leader: what it appends, what it answers, what it knows of publishers."""

from __future__ import annotations

from typing import Final

from simulations.mutants.mutant import Mutant
from simulations.mutants.patching import Patch

MACHINE: Final = "changefeed.leader.machine"
DRIVER: Final = "changefeed.leader.driver"
ASK: Final = "            await self._log.append(self.epoch, self.term, append.expected_tail, append.entries)\n"
FAILED: Final = "        if isinstance(error, LogUnavailable):\n            flight.tries += 1\n"
UNKNOWN: Final = 'error.code == "append-outcome-unknown"'

MUTANTS: Final = (
    Mutant(
        "M5",
        "receipts leave before the log was asked",
        "durable -> acknowledge -> fan out, never otherwise",
        (
            Patch(
                DRIVER,
                ASK,
                "            if append.tries == 0:\n"
                "                early = self._machine.appended()\n"
                "                self._perform([effect for effect in early if isinstance(effect, Reply)])\n"
                f"{ASK}"
                "            if append.tries == 0:\n"
                "                self._perform([effect for effect in early if not isinstance(effect, Reply)])\n",
            ),
        ),
        sees=("C1",),
    ),
    Mutant(
        "M6",
        "subscribers see an entry before it is durable",
        "durable -> acknowledge -> fan out, never otherwise",
        (
            Patch(
                DRIVER,
                ASK,
                f"            if append.tries == 0:\n                self._visible(append.entries)\n{ASK}",
            ),
        ),
        sees=("C3", "C4", "C5", "C12"),
    ),
    Mutant(
        "M7",
        "a new leader does not read from the log how far a publisher's numbers go",
        "publisher state is written in the transaction of the append and read from the log after failover",
        (
            Patch(
                MACHINE,
                "            known.learn(facts.state)\n",
                "            old = facts.state\n"
                "            known.learn(type(old)(request.publisher, old.incarnation, 0, 0, old.named))\n",
            ),
        ),
        sees=("C2", "C13", "C1", "crash"),
    ),
    Mutant(
        "M8",
        "a leader does not note what it has just stored",
        "known number, same bytes: the receipt that it already has",
        (
            Patch(
                MACHINE,
                "            run.stored = batch.last_number\n            run.landed(",
                "            run.landed(",
            ),
        ),
        sees=("C2", "C3", "C13", "C14"),
    ),
    Mutant(
        "M10",
        "an append of unknown outcome counts as not stored: it is sent again and the term goes on",
        "any append whose outcome is unknown: election, fence and recovery again instead of guessing",
        (Patch(MACHINE, FAILED, FAILED.replace("(error, LogUnavailable)", f"(error, LogUnavailable) or {UNKNOWN}")),),
        hidden_by=("M2", "D1"),
        sees=("C2", "C4", "C1", "C8"),
    ),
    Mutant(
        "M11",
        "an append of unknown outcome counts as stored",
        "any append whose outcome is unknown: election, fence and recovery again instead of guessing",
        (Patch(MACHINE, FAILED, f"        if {UNKNOWN}:\n            return self.appended()\n{FAILED}"),),
        sees=("C1",),
    ),
    Mutant(
        "M21",
        "a batch that leaves a gap in its publisher's numbers is accepted",
        "gap? -> refuse",
        (Patch(MACHINE, "        elif batch.after == run.expected:\n", "        elif True:\n"),),
        tests=("tests/leader/test_leader_machine.py",),
    ),
    Mutant(
        "M23",
        "the leader knows only the last eight numbers of a publisher; an older one counts as new",
        "publisher state is dropped only when all its entries are trimmed",
        (
            Patch(
                MACHINE,
                "        elif batch.number <= run.expected:\n",
                "        elif run.expected - 8 < batch.number <= run.expected:\n",
            ),
            Patch(
                MACHINE,
                "        elif batch.after == run.expected:\n",
                "        elif batch.number <= run.expected or batch.after == run.expected:\n",
            ),
        ),
        hidden_by=("D1",),
        sees=("C2", "crash"),
    ),
    Mutant(
        "M26",
        "all that waits is answered when its first entry is durable",
        "one transaction for all entries that wait; receipts leave after it",
        (
            Patch(
                DRIVER,
                ASK,
                "            await self._log.append(self.epoch, self.term, append.expected_tail, append.entries[:1])\n"
                "            if len(append.entries) > 1:\n"
                "                self._perform(self._machine.appended())\n"
                "                first = append.entries[0].last_seq\n"
                "                await self._log.append(self.epoch, self.term, first, append.entries[1:])\n",
            ),
        ),
        sees=("C1", "C3", "C5", "C12"),
    ),
    # ---- defences
    Mutant(
        "D3",
        "the answers of one append leave in the reverse order",
        "answers of one connection leave in the order in which its batches came",
        (
            Patch(
                MACHINE,
                "        effects.append(Visible(flight.entries))\n",
                "        effects.reverse()\n        effects.append(Visible(flight.entries))\n",
            ),
        ),
    ),
    Mutant(
        "D4",
        "a follower takes any answer of the leader as that of the oldest batch without one",
        "a reply that matches nothing is dropped",
        (
            Patch(
                "changefeed.peer.machine",
                "            if not queue or queue[0] != message.answer.number:\n",
                "            if not queue:\n",
            ),
        ),
    ),
)
