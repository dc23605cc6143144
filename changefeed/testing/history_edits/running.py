"""C13, C14, C15, C16: what is refused, and the run as a whole."""

from __future__ import annotations

from changefeed.history.records import Record
from changefeed.testing.history_edits.bench import Bench, edit, seq_of, stamp_of

# ---- C13: honest errors


@edit("C13", "a good position is refused")
def _refuse_good(bench: Bench) -> bool:
    held = bench.held()
    saved = bench.pick(bench.all("handled", lambda one: bench.names(held, one["position"])))
    code = bench.chance.choice(("position-too-old", "other-lineage", "future-position"))
    if saved is None or bench.restored:
        return False
    return bench.insert_behind(
        saved, "refused", reader=saved["reader"], code=code, position=saved["position"], earliest=None, head=None
    )


@edit("C13", "a position is refused for the wrong reason")
def _wrong_reason(bench: Bench) -> bool:
    record = bench.pick(bench.all("refused", lambda one: one["code"] == "position-too-old"))
    if record is None or bench.restored:
        return False
    record["code"] = bench.chance.choice(("future-position", "other-lineage", "not-current"))
    return True


@edit("C13", "a position that was trimmed is gone on from")
def _trimmed_resumed(bench: Bench) -> bool:
    trims = bench.all("trimmed")
    asked = []
    for record in bench.all("connected"):
        floors = [trim["floor"] for trim in trims if bench.at(trim) < bench.at(record)]
        if floors and max(floors) > 0:
            asked.append((record, max(floors)))
    place = bench.pick(asked)
    if place is None or bench.restored:
        return False
    record, floor = place
    record["asked"] = f"{stamp_of(record['position'])}.{floor - 1}"
    return True


@edit("C13", "a position of another log is gone on from")
def _foreign_resumed(bench: Bench) -> bool:
    record = bench.pick(bench.all("connected", lambda one: one["asked"]))
    if record is None or bench.restored:
        return False
    record["asked"] = "ffffffffffffffff" + record["asked"][16:]
    return True


@edit("C13", "a position of the future is gone on from")
def _future_resumed(bench: Bench) -> bool:
    record = bench.pick(bench.all("connected", lambda one: one["asked"]))
    if record is None or bench.restored:
        return False
    record["asked"] = f"{stamp_of(record['asked'])}.{seq_of(bench.log['tail']) + 1}"
    return True


@edit("C13", "a position of another term is gone on from")
def _other_term_resumed(bench: Bench) -> bool:
    held = bench.held()
    record = bench.pick(bench.all("connected", lambda one: one["asked"] and bench.names(held, one["asked"])))
    if record is None or bench.restored:
        return False
    lineage, epoch, _, seq = record["asked"].split(".")
    record["asked"] = f"{lineage}.{epoch}.ffffffff.{seq}"
    return True


@edit("C13", "a publisher is not told that receipts were lost")
def _untold(bench: Bench) -> bool:
    record = bench.pick(bench.all("lost"))
    return record is not None and bench.remove(record)


@edit("C13", "a publisher is told of losses that are none")
def _false_alarm(bench: Bench) -> bool:
    ack = bench.pick(bench.all("acked"))
    if ack is None or bench.restored:
        return False
    return bench.insert_behind(ack, "lost", code="acknowledged-lost")


@edit("C13", "a publisher is refused for a reason that is none")
def _false_refusal(bench: Bench) -> bool:
    codes = ["number-gap", "number-reused"]
    submits = bench.all("submit")
    lives = {(s["node"], s["life"]) for s in submits if s["name"]}
    submit = bench.pick([s for s in submits if not s["name"] or len(lives) == 1])
    if submit is None or bench.restored:
        return False
    if not bench.all("trimmed"):
        codes.append("forgotten")
    codes.append("superseded")
    return bench.insert_behind(submit, "failed", op=submit["op"], code=bench.chance.choice(codes))


# ---- C14: liveness


@edit("C14", "it does not converge")
def _never(bench: Bench) -> bool:
    return bench.remove(bench.all("converged")[0])


@edit("C14", "it converges too late")
def _late(bench: Bench) -> bool:
    converged, heal = bench.all("converged")[0], bench.all("heal")[0]
    late = heal["t"] + int(heal["bound_s"] * 1e9) + 1
    for record in bench.records[bench.at(converged) :]:
        record["t"] = max(record["t"], late)
    return True


@edit("C14", "a group never gets an outcome")
def _no_outcome(bench: Bench) -> bool:
    gone = {(quit["node"], quit["life"]) for quit in bench.all("quit") if quit["abandoned"]}
    last = {submit["op"]: submit for submit in bench.all("submit")}
    op = bench.pick([op for op, submit in last.items() if (submit["node"], submit["life"]) not in gone])
    if op is None:
        return False
    for record in bench.all("acked", lambda one: one["op"] == op) + bench.all("failed", lambda one: one["op"] == op):
        bench.remove(record)
    return True


@edit("C14", "a reader never gets the end")
def _left_behind(bench: Bench) -> bool:
    lives: dict[str, list[Record]] = {}
    for life in bench.lives():
        lives[life[0]["reader"]] = life
    held = bench.held()
    places = []
    for reader, life in lives.items():
        events = [record for record in life if record["f"] == "event"]
        # The newest of what its filter selects, and nothing of it in an earlier life.
        if events and bench.names(held, events[-1]["position"]) and life[0]["f"] == "reader":
            seq = seq_of(events[-1]["position"])
            if all(seq_of(r["position"]) < seq for r in _earlier(bench, reader, life)):
                places.append((reader, seq))
    place = bench.pick(places)
    if place is None or bench.restored:
        return False
    reader, seq = place
    for record in [r for r in bench.records if r.get("reader") == reader and r["f"] in STEPS]:
        if seq_of(record["position"]) >= seq:
            bench.remove(record)
    return True


STEPS = ("connected", "event", "bookmark", "handled")


def _earlier(bench: Bench, reader: str, life: list[Record]) -> list[Record]:
    begin = bench.at(life[0])
    return [r for r in bench.records[:begin] if r.get("reader") == reader and r["f"] in STEPS]


# ---- C15, C16: the run as a whole


@edit("C15", "a receipt takes longer than is allowed after a fault")
def _slow(bench: Bench) -> bool:
    faults = bench.all("fault")
    submitted = {record["op"]: bench.at(record) for record in reversed(bench.all("submit"))}
    first = {record["op"]: record for record in reversed(bench.all("acked"))}
    places = []
    for n, fault in enumerate(faults):
        at = bench.at(fault)
        end = bench.at(faults[n + 1]) if n + 1 < len(faults) else len(bench.records)
        acks = [ack for op, ack in first.items() if at < bench.at(ack) < end and submitted[op] < at]
        if acks:
            places.append((fault, min(acks, key=bench.at)))
    place = bench.pick(places)
    if place is None:
        return False
    fault, ack = place
    for record in bench.records[bench.at(ack) :]:
        record["t"] += 100 * 10**9
    return bench.insert_behind(fault, "limit", kind=fault["kind"], receipts_s=90.0)


@edit("C16", "the run was too idle")
def _idle(bench: Bench) -> bool:
    name = bench.chance.choice(
        ("acks", "leader-changes", "resumes", "repeats", "faults", "fault:kill-leader", "nothing")
    )
    return bench.insert_behind(bench.records[0], "want", name=name, count=1000)


@edit("C16", "nothing was acknowledged")
def _no_acks(bench: Bench) -> bool:
    acks = bench.all("acked")
    for ack in acks:
        bench.remove(ack)
    return bool(acks)


@edit("C16", "the log itself is missing")
def _no_log(bench: Bench) -> bool:
    return bench.remove(bench.log)


@edit("C16", "a fault has no effect that was seen")
def _no_effect(bench: Bench) -> bool:
    effect = bench.pick(bench.all("effect"))
    return effect is not None and bench.remove(effect)


@edit("C16", "no fault has any effect that was seen")
def _no_effects(bench: Bench) -> bool:
    effects = bench.all("effect")
    for effect in effects:
        bench.remove(effect)
    for fault in bench.all("fault", lambda one: one["expects"]):
        del fault["expects"]
    return bool(effects)
