"""The machine's state as a person reads it. Pure."""

from __future__ import annotations

from typing import Final

from changefeed.election.state import State
from changefeed.election.status import ElectionStatus

#: A look that waits longer than this is worth a sentence.
SLOW_SHOWN_S: Final = 0.5


def describe(state: State, now: float) -> ElectionStatus:
    """One consistent value of everything that status shows."""
    term, won, record = state.term, state.won, state.views.record
    fence = term.fence if term is not None else won.fence if won is not None else None
    if fence is not None:
        epoch, term_id, why = fence.epoch, fence.term, (term or won).why  # type: ignore[union-attr]
        leader, url, process = state.member.name, state.member.url, state.member.process
    elif record is not None:
        epoch, (term_id, why) = record.epoch, _history(state, record.epoch)
        leader, url, process = record.name, record.url, record.process
    else:
        epoch, term_id, why = 0 if state.views.view is None else state.views.view.epoch, "", ""
        leader, url, process = "", "", ""
    handover = state.handover
    return ElectionStatus(
        feed=state.feed,
        role=state.role,
        epoch=epoch,
        term=term_id,
        leader=leader,
        url=url,
        process=process,
        why=why,
        since=state.leader_since,
        connected=state.views.connected,
        coordinator=state.views.id,
        log_ok=state.log.answers(now),
        log_slow_s=state.log.waiting_s(now),
        hindrance=state.hindrance(now),
        leaving=handover is not None,
        successor="" if handover is None else handover.successor or "",
        kills=state.kills,
        notes=tuple(_notes(state, now)),
        events=tuple(state.events),
    )


def _history(state: State, epoch: int) -> tuple[str, str]:
    """Term id and reason of an epoch, from the log's own history."""
    look = state.log.look
    for record in reversed(look.epochs if look is not None else ()):
        if record.epoch == epoch:
            return record.term, record.why
    return "", ""


def _notes(state: State, now: float) -> list[str]:
    notes: list[str] = []
    if state.broken:
        notes.append(f"{state.broken}: this feed's log cannot be served; this instance does not stand for election")
    foreign = state.log.foreign(now, state.wall(now), state.views.id, state.member.process)
    if foreign is not None:
        notes.append(
            f"two coordinators: {foreign.instance or 'an instance'} leads epoch {foreign.epoch} under coordinator "
            f"{foreign.coordinator}, this instance uses {state.views.id}; give all instances of a log the same "
            "--coordinator; this one does not stand for election"
        )
    if state.log.unknown_format() and state.log.look is not None:
        notes.append(
            f"the log needs format {state.log.look.fence.format}, which this release cannot read: upgrade this instance"
        )
    notes += _waiting(state, now)
    notes += _coordinator(state, now)
    if now < state.pace.rest_until:
        notes.append(f"too many elections: this instance rests for {state.pace.rest_until - now:.1f} s more")
    if state.kills:
        notes.append(f"killed {state.kills} frozen process(es) that held the log's lock")
    return notes


def _waiting(state: State, now: float) -> list[str]:
    notes = []
    slow, won = state.log.waiting_s(now), state.won
    if slow >= SLOW_SHOWN_S:
        notes.append(f"log slow since {slow:.1f} s: it has not answered a look")
    if won is not None and now - won.since >= SLOW_SHOWN_S / 2:
        holder = state.holder()
        by = ""
        if holder is not None:
            seen = max(0.0, (state.wall(now) - holder.renewed) / 1000)
            by = f"; {holder.instance or 'somebody'} (pid {holder.pid}, last seen {seen:.1f} s ago) may hold its lock"
        notes.append(f"epoch {won.fence.epoch} has waited for the log's fence for {now - won.since:.1f} s{by}")
    return notes


def _coordinator(state: State, now: float) -> list[str]:
    if state.views.connected:
        record = state.views.record
        suspect = record is not None and state.term is None and state.suspicion.concerns(record.process)
        if record is not None and suspect and state.suspicion.heard_elsewhere:
            return [f"{record.name} is not heard here, but another instance hears it"]
        return []
    if state.term is not None:
        return ["the coordinator cannot be asked: this instance goes on leading, since the log's fence is its own"]
    record = state.views.record
    if record is not None and state.gone(record):
        return [f"the coordinator cannot be asked: {record.name}, which is gone, cannot be replaced meanwhile"]
    return ["the coordinator cannot be asked: a dead leader cannot be replaced meanwhile"]
