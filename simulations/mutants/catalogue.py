"""All mutants by name, and the combinations in which they run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from simulations.mutants import election, leader, publisher, snapshot, stores, subscriber
from simulations.mutants.mutant import Mutant
from simulations.mutants.patching import Patch


def _number(mutant: Mutant) -> tuple[str, int]:
    return mutant.name[0], int(mutant.name[1:])


MUTANTS: Final[dict[str, Mutant]] = {
    mutant.name: mutant
    for mutant in sorted(
        (
            *stores.MUTANTS,
            *leader.MUTANTS,
            *publisher.MUTANTS,
            *subscriber.MUTANTS,
            *election.MUTANTS,
            *snapshot.MUTANTS,
        ),
        key=_number,
    )
}
#: The bugs that must be caught, in order.
BUGS: Final = tuple(mutant for mutant in MUTANTS.values() if mutant.is_bug)


def patches_of(names: Iterable[str]) -> list[Patch]:
    """All replacements of these mutants together. Raises KeyError for an unknown name."""
    return list(dict.fromkeys(patch for name in names for patch in MUTANTS[name].patches))
