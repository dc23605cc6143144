"""C1, C2, C3, C6, C7: what publishers were told, and what stands in the log."""

from __future__ import annotations

from changefeed.history.records import Record
from changefeed.testing.history_edits.bench import Bench, edit, later_epoch, seq_of, shifted


@edit("C1", "an acknowledged entry is not in the log")
def _lose_acked(bench: Bench) -> bool:
    ack = bench.pick(bench.acks())
    return ack is not None and bench.remove(bench.held()[seq_of(ack["first"])])


@edit("C1", "a receipt names the place beside")
def _shift_receipt(bench: Bench) -> bool:
    ack = bench.pick(bench.acks())
    if ack is None or bench.restored:
        return False
    ack["first"], ack["last"] = shifted(ack["first"], 1), shifted(ack["last"], 1)
    return True


@edit("C1", "a receipt names another term")
def _receipt_term(bench: Bench) -> bool:
    ack = bench.pick(bench.acks())
    if ack is None or bench.restored:
        return False
    ack["first"], ack["last"] = later_epoch(ack["first"]), later_epoch(ack["last"])
    return True


@edit("C1", "a receipt names one place too many")
def _receipt_long(bench: Bench) -> bool:
    ack = bench.pick(bench.all("acked"))
    if ack is None:
        return False
    ack["last"] = shifted(ack["last"], 1)
    return True


@edit("C1", "a receipt comes before its commit")
def _early_receipt(bench: Bench) -> bool:
    ack = bench.pick(bench.acks() if bench.commits else [])
    if ack is None:
        return False
    seq = seq_of(ack["first"])
    commits = [c for c in bench.commits if c["first"] <= seq <= c["last"] and c["term"] in ack["first"]]
    return bool(commits) and bench.move_behind(commits[0], ack)


@edit("C1", "the log holds other bytes than were acknowledged")
def _acked_bytes(bench: Bench) -> bool:
    ack = bench.pick(bench.acks())
    if ack is None:
        return False
    entry = bench.held()[seq_of(ack["first"])]
    place = seq_of(ack["first"]) - entry["seq"]
    entry["digests"] = [*entry["digests"][:place], "0" * 16, *entry["digests"][place + 1 :]]
    return True


@edit("C2", "an entry stands in the log again")
def _again(bench: Bench) -> bool:
    entry = bench.pick(bench.entries)
    if entry is None:
        return False
    newest = bench.entries[-1]
    seq = newest["seq"] + len(newest["keys"])
    again = {**entry, "seq": seq, "t": newest["t"], "number": entry["number"] + 1000}
    again.update(epoch=newest["epoch"], term=newest["term"])
    bench.records.insert(bench.at(newest) + 1, again)
    bench.log["tail"] = f"{bench.stamp(newest)}.{seq + len(entry['keys']) - 1}"
    return True


def _followers(bench: Bench) -> list[tuple[Record, Record]]:
    """Pairs of entries of one incarnation, the earlier first."""
    entries = bench.entries
    return [
        (a, b)
        for n, a in enumerate(entries)
        for b in entries[n + 1 :]
        if (a["publisher"], a["incarnation"]) == (b["publisher"], b["incarnation"])
    ]


@edit("C2", "a number of a publisher is used twice")
def _same_number(bench: Bench) -> bool:
    pair = bench.pick(_followers(bench))
    if pair is None:
        return False
    pair[1]["number"] = pair[0]["number"]
    return True


@edit("C3", "nobody published it")
def _unpublished(bench: Bench) -> bool:
    entry = bench.pick(bench.entries)
    if entry is None:
        return False
    key = entry["keys"][0]
    for submit in bench.all("submit", lambda submit: key in submit["keys"]):
        bench.remove(submit)
    return True


@edit("C3", "it was surely not stored, and is")
def _aborted(bench: Bench) -> bool:
    held = bench.held()
    ops = [s for s in bench.all("submit") if any(s["keys"][0] in held[seq]["keys"] for seq in held)]
    submit = bench.pick(ops)
    if submit is None:
        return False
    op = submit["op"]
    for record in bench.all("acked", lambda ack: ack["op"] == op):
        bench.remove(record)
    for one in bench.submit_of(op):
        bench.insert_behind(one, "failed", op=op, code="log-full")
    return True


@edit("C3", "it is in the log with bytes that nobody published")
def _other_bytes_in_log(bench: Bench) -> bool:
    entry = bench.pick(bench.entries)
    if entry is None:
        return False
    entry["digests"] = ["f" * 16, *entry["digests"][1:]]
    return True


@edit("C3", "a reader gets it before it was published")
def _prophecy(bench: Bench) -> bool:
    place = bench.pick(bench.events())
    if place is None:
        return False
    life, n = place
    key = life[n]["key"]
    event = next(one for one in bench.all("event") if one["key"] == key)
    submits = bench.all("submit", lambda submit: key in submit["keys"])
    return len(submits) == 1 and bench.move_behind(submits[0], event)


@edit("C3", "a reader gets what nobody published")
def _phantom_event(bench: Bench) -> bool:
    place = bench.pick(bench.events())
    if place is None:
        return False
    place[0][place[1]]["key"] = "nobody's"
    return True


# ---- C6, C7: order


@edit("C6", "a group is torn")
def _torn(bench: Bench) -> bool:
    entry = bench.pick([entry for entry in bench.entries if max(entry["sizes"]) > 1])
    if entry is None:
        return False
    sizes = entry["sizes"]
    place = next(n for n, size in enumerate(sizes) if size > 1)
    entry["sizes"] = [*sizes[:place], 1, sizes[place] - 1, *sizes[place + 1 :]]
    return True


@edit("C6", "two groups are made one")
def _joined(bench: Bench) -> bool:
    entry = bench.pick([entry for entry in bench.entries if len(entry["sizes"]) > 1])
    if entry is None:
        return False
    entry["sizes"] = [entry["sizes"][0] + entry["sizes"][1], *entry["sizes"][2:]]
    return True


@edit("C6", "the changes of a group stand in another order")
def _turned(bench: Bench) -> bool:
    entry = bench.pick([entry for entry in bench.entries if entry["sizes"][0] > 1])
    if entry is None:
        return False
    for part in ("keys", "digests", "heads"):
        a, b, *rest = entry[part]
        entry[part] = [b, a, *rest]
    return True


@edit("C6", "two groups of a publisher stand in the other order")
def _swapped(bench: Bench) -> bool:
    refused = {record["op"] for record in bench.all("failed")}
    ops = {key: s["op"] for s in bench.all("submit") for key in s["keys"]}
    entries = [
        entry
        for entry in bench.entries
        if entry["sizes"][:2] == [1, 1] and not {ops[key] for key in entry["keys"][:2]} & refused
    ]
    entry = bench.pick(entries)
    if entry is None or bench.restored:
        return False
    for part in ("keys", "digests", "heads"):
        a, b, *rest = entry[part]
        entry[part] = [b, a, *rest]
    return True


@edit("C6", "a publisher's numbers go back")
def _numbers_back(bench: Bench) -> bool:
    pair = bench.pick(_followers(bench))
    if pair is None:
        return False
    pair[1]["number"] = pair[0]["number"] - 1000
    return True


@edit("C6", "an older incarnation stands behind a newer one")
def _old_incarnation(bench: Bench) -> bool:
    pair = bench.pick(_followers(bench))
    if pair is None:
        return False
    pair[1]["incarnation"] -= 1
    return True


@edit("C7", "what was published after a receipt stands before it")
def _out_of_time(bench: Bench) -> bool:
    held = bench.held()
    submits = {submit["op"]: submit for submit in reversed(bench.all("submit"))}
    placed = {submit["keys"][0]: submit for submit in submits.values()}
    pairs = []
    for ack in bench.acks():
        for seq, entry in held.items():
            submit = placed.get(entry["keys"][seq - entry["seq"]])
            if submit is not None and seq < seq_of(ack["first"]) and len(bench.submit_of(submit["op"])) == 1:
                pairs.append((submit, ack))
    pair = bench.pick(pairs)
    if pair is None:
        return False
    submit, ack = pair
    # Only later counts, not the same instant.
    for record in bench.records[bench.at(ack) + 1 :]:
        record["t"] += 1000
    bench.move_behind(submit, ack)
    submit["t"] += 1
    return True
