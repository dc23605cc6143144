"""Rows of the proof: losses of power of the SQLite log, and failures of its disk. See simulations/power_loss.py."""

from __future__ import annotations

from collections.abc import Iterator

from changefeed.simulation.disk.failures import CALLS, Failed, fail_each
from changefeed.simulation.disk.losses import AWAY, search
from simulations.power_loss import away_named, scratch_folder
from simulations.proof.rows import Row

POINTS = 500
COMMITS = 300
#: With housekeeping and a reader in threads, and with something taken away.
POINTS_BESIDE = 200
POINTS_AWAY = 60


def rows(jobs: int = 2, quick: bool = False) -> Iterator[Row]:
    """Losses of power of a run, without and with something taken away; failures of each disk call.

    jobs: processes that judge. quick: a tenth of the points, which does not pass.
    """
    share = 10 if quick else 1
    folder = scratch_folder()
    for beside, points in ((False, POINTS), (True, POINTS_BESIDE)):
        found = search(COMMITS, points // share, 1, beside=beside, jobs=jobs, scratch=folder)
        again = sum(point.again >= 0 for point in found.points)
        yield Row(
            f"power loss of the SQLite log{', checkpoints and readers beside the appends' if beside else ''}:"
            " no acknowledged event lost",
            f"{len(found.points)} crash points of {found.boundaries} write boundaries, {again} with a second one in"
            f" the recovery; {found.events} events acknowledged; {len(found.wrong)} points lost something",
            f"{points} points, 0 lost",
            len(found.points) >= points and again == len(found.points) and not found.wrong,
        )
    for away in AWAY[1:]:
        found = search(COMMITS // 5, POINTS_AWAY, 2, away=away, jobs=jobs, scratch=folder)
        promises = ", ".join(f"{promise} {count}" for promise, count in sorted(found.promises.items()))
        yield Row(
            f"the same without {away_named(away)} loses some",
            f"{len(found.wrong)} of {len(found.points)} points lost something ({promises})",
            "at least 1",
            bool(found.wrong),
        )
    yield _failures(folder, share)


def _failures(folder: str | None, share: int) -> Row:
    failed: list[Failed] = []
    for call in CALLS:
        failed += fail_each(call, 1, folder, every=share)
    wrong = [each for each in failed if each.wrong]
    kinds = len({(each.call, each.at.what, each.fault) for each in failed})
    return Row(
        "each disk call of each call of the log fails: honest answer, nothing acknowledged lost, also with the power"
        " lost or all processes killed after it",
        f"{len(failed)} failures of {kinds} kinds, {len(wrong)} did harm",
        "every call that writes, 0 harm",
        not wrong and share == 1 and {each.call for each in failed} == set(CALLS),
    )
