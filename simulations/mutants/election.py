"""Bugs of the election: who leads, when a leader stops, when one is challenged."""

from __future__ import annotations

from typing import Final

from simulations.mutants.mutant import Mutant
from simulations.mutants.patching import Patch

MACHINE: Final = "changefeed.election.machine"
DRIVER: Final = "changefeed.election.driver"

MUTANTS: Final = (
    Mutant(
        "M4",
        "a new leader reads the tail before it fences",
        "order of a takeover: fence (durable, in the store), then read the tail, then serve",
        (
            Patch(
                DRIVER,
                "                look = await self._log.fence(fence, why=why, time=stamped, clean=clean)\n",
                "                before = await self._log.look()\n"
                "                look = await self._log.fence(fence, why=why, time=stamped, clean=clean)\n"
                "                import dataclasses\n\n"
                "                look = dataclasses.replace(look, tail=before.tail)\n",
            ),
        ),
        hidden_by=("M2", "D1"),
        sees=("C1", "C4", "C8"),
    ),
    Mutant(
        "M19",
        "an idle leader does not look whether it still leads",
        "a leader that is idle learns too: it watches its node and looks at the log's fence every second",
        (
            Patch(
                MACHINE,
                "            if term is not None and id > term.number and found != (term.fence.epoch, term.fence.term):\n",  # noqa: E501
                "            if False:\n",
            ),
            Patch(
                MACHINE,
                '            if record.epoch > epoch:\n                self._end_term(now, "overtaken")\n                return True\n',  # noqa: E501
                "            if record.epoch > epoch:\n                return False\n",
            ),
        ),
        sees=("C14",),
    ),
    Mutant(
        "M20",
        "a leader stops while the coordinator cannot be reached",
        "a leader that still holds the log's fence goes on publishing while ZooKeeper has no quorum",
        (
            Patch(
                MACHINE,
                "        view, record, epoch = self.views.view, self.views.record, term.fence.epoch\n",
                "        if not self.views.connected:\n"
                '            self._end_term(now, "coordinator-away")\n'
                "            return True\n"
                "        view, record, epoch = self.views.view, self.views.record, term.fence.epoch\n",
            ),
        ),
        sees=("C15", "C14"),
    ),
    Mutant(
        "M32",
        "a challenge carries the version that stands when it is written, not the one of the term that was seen to die",
        "a challenge names the term that it saw die: the version is the one under which the suspect's epoch was read",
        (
            Patch(
                DRIVER,
                "                result = await self._bounded(coordinator.challenge, feed, seen)\n",
                "                newest = await self._bounded(coordinator.read, feed)\n"
                "                result = await self._bounded(coordinator.challenge, feed, newest)\n",
            ),
        ),
        sees=("C8", "C15"),
    ),
)
