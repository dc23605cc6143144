"""Bugs in what a feed keeps of each object, and in the list that a subscription starts with."""

from __future__ import annotations

from typing import Final

from simulations.mutants.mutant import Mutant
from simulations.mutants.patching import Patch

FOLDING: Final = "changefeed.leader.folding"
RETENTION: Final = "changefeed.leader.retention"
CLIENT: Final = "changefeed.subscriber.listing"

MUTANTS: Final = (
    Mutant(
        "M34",
        "a late change of a lower version takes an object's row",
        "a snapshot keeps the highest version and ignores a lower one",
        (
            Patch(
                FOLDING,
                "if not tells or (version is not None and highest is not None and version < highest):",
                "if not tells:",
            ),
        ),
        sees=("snapshot",),
    ),
    Mutant(
        "M35",
        "retention trims what is not in the snapshot yet",
        "what is folded and the entries behind it are always everything",
        (
            Patch(
                RETENTION,
                "        wanted = min(wanted, floor if look.folded is None else look.folded)\n",
                "        pass\n",
            ),
        ),
        sees=("snapshot",),
    ),
    Mutant(
        "M36",
        "a subscriber is given again, behind the list, what led to a row of it",
        "the latest event of each object, then the stream, with no overlap",
        (
            Patch(
                CLIENT, "                self._newer[event.resource, event.id] = event.seq\n", "                pass\n"
            ),
        ),
        sees=("snapshot",),
    ),
)
