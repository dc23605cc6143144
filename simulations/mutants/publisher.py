"""Bugs of publishers: numbers, retries, answers."""

from __future__ import annotations

from typing import Final

from simulations.mutants.mutant import Mutant
from simulations.mutants.patching import Patch

MACHINE: Final = "changefeed.publisher.machine"

MUTANTS: Final = (
    Mutant(
        "M12",
        "what is sent again after a lost connection has another incarnation",
        "reconnects for ever, resends under the same numbers",
        (
            Patch(
                MACHINE,
                "        self._connected = True\n        self._open_due = True\n",
                "        self._connected = True\n        self._open_due = True\n"
                "        self.incarnation, self.last_receipt = None, None\n",
            ),
        ),
        sees=("C2", "C1"),
    ),
    Mutant(
        "M13",
        "what was sent and not answered when a connection ends counts as stored, behind the last receipt",
        "three outcomes: a receipt is an answer of the leader",
        (
            Patch(
                MACHINE,
                "            self.last_error = error\n        return self._unsend()\n",
                "            self.last_error = error\n"
                "        effects, at = [], self.last_receipt\n"
                "        while at is not None and self._sent and not self._rejected:\n"
                "            batch = self._flight[0]\n"
                "            at = Position(at.lineage, at.epoch, at.term, at.seq + 1)\n"
                "            effects += self._stored(batch, Answer(batch.number, batch.count, at))\n"
                "            at = self.last_receipt\n"
                "        return effects + self._unsend()\n",
            ),
        ),
        sees=("C1", "C4", "C13"),
    ),
    Mutant(
        "M14",
        "a named publisher that is started again numbers from 1",
        "a named publisher keeps its incarnation over runs, and its numbers go on",
        (
            Patch(
                MACHINE,
                "        if number is None:\n            number = self.last_number + 1\n        elif not self.named:\n",
                "        if number is None or (self.named and not self._given_out):\n"
                "            number = 1\n"
                "        elif self.named:\n"
                "            number = self.last_number + 1\n"
                "        elif not self.named:\n",
            ),
        ),
        sees=("C13", "C14", "C3"),
    ),
    Mutant(
        "M22",
        "a publisher takes any answer as that of its oldest batch",
        "every request and reply carries epoch, publisher and number; one that matches nothing is dropped",
        (Patch(MACHINE, "        if answer.number != batch.number:\n", "        if False:\n"),),
        hidden_by=("D3", "D4"),
        sees=("C1", "C4"),
    ),
    Mutant(
        "M33",
        "a batch is cut when it is sent again: each of its changes becomes a group",
        "a batch is never cut; the changes of one publish_many appear together or not at all",
        (
            Patch(
                MACHINE,
                "                message = Publish(batch.after, batch.number, batch.sizes, batch.payload)\n",
                "                sizes = (1,) * batch.count if batch.doubtful else batch.sizes\n"
                "                message = Publish(batch.after, batch.number, sizes, batch.payload)\n",
            ),
        ),
        sees=("C13", "C6", "C3", "C14"),
    ),
)
