"""The second half of C15: a leader that nobody harmed is left alone. Pure.

A fault that ends no leader's process and cuts off no log must not end a term: neither may the coordinator's absence
(the log makes it safe, the coordinator only makes it live), nor a second challenger who comes too late.
"""

from __future__ import annotations

from typing import Final

from changefeed.history.broken import Findings
from changefeed.history.records import Record
from changefeed.history.view import View

#: Only the coordinator is away.
AWAY: Final = frozenset({"quorum", "read-only"})
#: Ends processes, at once; or harms no leader that answers, and no record of one.
KILLS: Final = frozenset({"kill", "kill-all", "kill-at", "slow-coordinator", "disk-full", "unknown-incarnation"})
#: Harms clients, or only what is shown.
HARMLESS: Final = frozenset({"kill-client", "freeze-client", "cut-client", "slow-reader", "clock-jump"})
#: Why a term ends when another instance has taken the lead.
BY_ANOTHER: Final = frozenset({"overtaken", "fenced"})


def check(view: View, found: Findings) -> None:
    terms = {(view.era(at), record["epoch"]): (at, record) for at, record in view.elected}
    for at, record in view.deposed:
        begun = terms.get((view.era(at), record["epoch"]))
        if begun is None or begun[1]["node"] != record["node"] or begun[1]["life"] != record["life"]:
            continue
        if record["why"] in BY_ANOTHER:
            _overtaken(view, at, record, found)
        _left_alone(view, begun[0], at, record, found)


def _overtaken(view: View, at: int, record: Record, found: Findings) -> None:
    """Only others were killed: this one lives, since it says so. Then nobody had a reason to replace it.

    Only where the store tells of its commits, as it does in virtual time: on a real machine, load is a reason.
    """
    faults = [fault for fault in view.faults if fault.at < at]
    before = {fault.kind for fault in faults}
    # A kill at a named step that a lost record or a planned stop brings about is not only a kill.
    if any(fault.kind == "kill-at" and fault.how.endswith(("/delete", "/drain")) for fault in faults):
        return
    if view.restores or not view.commits or not before <= KILLS | HARMLESS:
        return
    found.say(
        f"{record['node']} was replaced in epoch {record['epoch']} ({record['why']}), although nobody had harmed it",
        record=at,
    )


def _left_alone(view: View, begun: int, at: int, record: Record, found: Findings) -> None:
    """The coordinator went away while this term ran, and nothing else had happened by its end."""
    before = [fault for fault in view.faults if fault.at < at and fault.kind not in HARMLESS]
    away = [fault for fault in before if fault.kind in AWAY and fault.at > begun]
    if not away or any(fault.kind not in AWAY for fault in before):
        return
    during = [fault for fault in away if fault.over is None or record["t"] <= fault.over]
    if during:
        found.say(
            f"the term of {record['node']} in epoch {record['epoch']} ended ({record['why']}) while only the "
            f"coordinator was away ({during[0].kind})",
            record=at,
        )
