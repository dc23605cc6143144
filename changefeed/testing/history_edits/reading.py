"""C4, C5, C10, C11: what readers were given, and what they saved."""

from __future__ import annotations

from changefeed.history.records import Record
from changefeed.testing.history_edits.bench import Bench, edit, later_epoch, seq_of, shifted, stamp_of


@edit("C4", "an event has other bytes")
def _event_bytes(bench: Bench) -> bool:
    place = bench.pick(bench.events())
    if place is None:
        return False
    place[0][place[1]]["digest"] = "f" * 16
    return True


@edit("C4", "an event has another publisher")
def _event_publisher(bench: Bench) -> bool:
    place = bench.pick(bench.events())
    if place is None:
        return False
    place[0][place[1]]["publisher"] += "x"
    return True


@edit("C4", "an event has another group")
def _event_group(bench: Bench) -> bool:
    place = bench.pick(bench.events())
    if place is None:
        return False
    place[0][place[1]]["group"] += bench.chance.choice((-1, 1))
    return True


@edit("C4", "an event is of another term")
def _event_term(bench: Bench) -> bool:
    place = bench.pick(bench.events())
    if place is None or bench.restored:
        return False
    event = place[0][place[1]]
    event["position"] = later_epoch(event["position"])
    return True


@edit("C4", "two readers have different events at a place that the log no longer tells")
def _event_bytes_below(bench: Bench) -> bool:
    seen: dict[str, list[Record]] = {}
    for event in bench.all("event", lambda event: seq_of(event["position"]) <= bench.floor):
        seen.setdefault(event["position"], []).append(event)
    event = bench.pick([events[-1] for events in seen.values() if len({e["reader"] for e in events}) > 1])
    if event is None or bench.restored:
        return False
    event["digest"] = "f" * 16
    return True


@edit("C5", "an event is dropped")
def _drop_event(bench: Bench) -> bool:
    places = [
        (life, n)
        for life, n in bench.events()
        if any(
            r["f"] in ("event", "bookmark") and seq_of(r["position"]) > seq_of(life[n]["position"]) for r in life[n:]
        )
        and any(r["f"] == "connected" for r in life[:n])
    ]
    place = bench.pick(places)
    return place is not None and bench.remove(place[0][place[1]])


@edit("C5", "an event is given twice")
def _event_twice(bench: Bench) -> bool:
    place = bench.pick(bench.events())
    if place is None:
        return False
    event = place[0][place[1]]
    bench.records.insert(bench.at(event) + 1, dict(event))
    return True


@edit("C5", "two events are given in the other order")
def _swap_events(bench: Bench) -> bool:
    places = [(life, n) for life, n in bench.events() if n + 1 < len(life) and life[n + 1]["f"] == "event"]
    place = bench.pick(places)
    if place is None:
        return False
    a, b = place[0][place[1]], place[0][place[1] + 1]
    return bench.move_behind(a, b)


@edit("C5", "the end of a group is not marked, or too early")
def _last(bench: Bench) -> bool:
    place = bench.pick(bench.events())
    if place is None:
        return False
    event = place[0][place[1]]
    event["last"] = not event["last"]
    return True


@edit("C5", "an event is given that the filter does not select")
def _unselected(bench: Bench) -> bool:
    held = bench.held()
    places = []
    for life, n in bench.events():
        seq, given = seq_of(life[n]["position"]) + 1, {seq_of(r["position"]) for r in life if r["f"] == "event"}
        if seq in held and seq not in given and any(r["f"] == "event" for r in life[n + 1 :]):
            places.append((life[n], seq))
    place = bench.pick(places)
    if place is None:
        return False
    before, seq = place
    entry = held[seq]
    offset = seq - entry["seq"]
    return bench.insert_behind(
        before, "event", reader=before["reader"], position=f"{bench.stamp(entry)}.{seq}", key=entry["keys"][offset],
        digest=entry["digests"][offset], publisher=entry["publisher"], group=seq, last=True,
    )  # fmt: skip


def _effects(bench: Bench, least: int) -> Record | None:
    held = bench.held()
    keys = {key for entry in held.values() for key in entry["keys"]}
    found: Record | None = bench.pick(
        bench.all(
            "effects",
            lambda one: (
                len(one["keys"]) >= least and set(one["keys"][-least:]) <= keys and bench.names(held, one["position"])
            ),
        )
    )
    return found


@edit("C5", "an effect is missing")
def _drop_effect(bench: Bench) -> bool:
    one = _effects(bench, 1)
    if one is None:
        return False
    one["keys"] = one["keys"][:-1]
    return True


@edit("C5", "an effect was applied twice")
def _effect_twice(bench: Bench) -> bool:
    one = _effects(bench, 1)
    if one is None:
        return False
    one["keys"] = [*one["keys"], bench.chance.choice(one["keys"])]
    return True


@edit("C5", "two effects stand in the other order")
def _swap_effects(bench: Bench) -> bool:
    one = _effects(bench, 2)
    if one is None:
        return False
    keys = one["keys"]
    one["keys"] = [*keys[:-2], keys[-1], keys[-2]]
    return True


# ---- C10: what was saved


def _saves(bench: Bench) -> list[tuple[list[Record], int]]:
    """Saved positions of what the log itself holds."""
    held = bench.held()
    return [
        (life, n)
        for life in bench.lives()
        for n, record in enumerate(life)
        if record["f"] == "handled" and bench.names(held, record["position"])
    ]


@edit("C10", "a saved position goes back")
def _saved_back(bench: Bench) -> bool:
    places = []
    for life, n in _saves(bench):
        for before in life[:n]:
            if before["f"] == "handled" and seq_of(before["position"]) > 0:
                places += [(life[n], before)]
    place = bench.pick(places)
    if place is None:
        return False
    record, before = place
    record["position"] = f"{stamp_of(before['position']).split('.')[0]}.0.00000000.0"
    return True


@edit("C10", "a position is saved before its effect")
def _saved_early(bench: Bench) -> bool:
    places = [(life[n], life[n + 1]) for life, n in bench.events() if life[n + 1 :] and life[n + 1]["f"] == "handled"]
    # Where its life began is told, or shown by events before.
    lives = {id(life[n]): life[:n] for life, n in bench.events()}
    places = [
        (event, saved)
        for event, saved in places
        if event["position"] == saved["position"] and any(r["f"] in ("connected", "event") for r in lives[id(event)])
    ]
    place = bench.pick([p for p in places if _is_new(bench, p[0])])
    if place is None:
        return False
    event, saved = place
    return bench.move_behind(event, saved)


def _is_new(bench: Bench, event: Record) -> bool:
    """Whether the reader was not given it, nor what lies behind it, in an earlier life."""
    at, seq = bench.at(event), seq_of(event["position"])
    return all(
        seq_of(record["position"]) < seq
        for record in bench.records[:at]
        if record.get("reader") == event["reader"] and record["f"] in ("event", "bookmark", "handled", "connected")
    )


@edit("C10", "a saved position is of another term")
def _saved_term(bench: Bench) -> bool:
    place = bench.pick(_saves(bench))
    if place is None or bench.restored:
        return False
    record = place[0][place[1]]
    record["position"] = later_epoch(record["position"])
    return True


@edit("C10", "whole groups are applied, and a position inside of one is saved")
def _saved_inside(bench: Bench) -> bool:
    places = []
    for life, n in bench.events():
        record = life[n]
        whole = life[0]["f"] == "reader" and life[0]["groups"]
        if whole and not record["last"]:
            places.append(record)
    event = bench.pick(places)
    return event is not None and bench.insert_behind(
        event, "handled", reader=event["reader"], position=event["position"]
    )


def _resumed(bench: Bench) -> list[tuple[Record, int]]:
    """(connected, what was saved last) of lives that went on from a saved position."""
    saved: dict[str, int] = {}
    found, fresh = [], False
    for record in bench.records:
        if record["f"] == "handled":
            saved[record["reader"]] = seq_of(record["position"])
        elif record["f"] == "refused":
            saved.pop(record["reader"], None)
        elif record["f"] == "reader":
            fresh = True
        elif record["f"] == "connected" and fresh:
            fresh = False
            if record["asked"] and record["reader"] in saved:
                found.append((record, saved[record["reader"]]))
    return found


@edit("C10", "a life begins before what was saved")
def _begins_early(bench: Bench) -> bool:
    record = bench.pick([record for record, saved in _resumed(bench) if saved > 4])
    if record is None:
        return False
    record["position"] = f"{stamp_of(record['position']).split('.')[0]}.0.00000000.0"
    return True


@edit("C10", "a life begins behind an event that it never had")
def _begins_late(bench: Bench) -> bool:
    resumed = [record for record, _ in _resumed(bench)]
    places = []
    for life in bench.lives():
        if len(life) > 2 and any(life[1] is record for record in resumed) and life[2]["f"] == "event":
            places.append((life[1], life[2]))
    held = bench.held()
    place = bench.pick([p for p in places if _is_new(bench, p[1]) and bench.names(held, p[1]["position"])])
    if place is None:
        return False
    place[0]["position"] = place[1]["position"]
    return True


@edit("C10", "a server goes on from another position than was asked for")
def _other_than_asked(bench: Bench) -> bool:
    record = bench.pick([record for record, saved in _resumed(bench) if saved > 5])
    if record is None:
        return False
    record["asked"] = shifted(record["asked"], -5)
    return True


# ---- C11: bookmarks


def _bookmarks(bench: Bench) -> list[tuple[list[Record], int]]:
    held = bench.held()
    return [
        (life, n)
        for life in bench.lives()
        for n, record in enumerate(life)
        if record["f"] == "bookmark" and bench.names(held, record["position"])
    ]


@edit("C11", "an event comes behind its bookmark")
def _late_event(bench: Bench) -> bool:
    places = [(life[n - 1], life[n]) for life, n in _bookmarks(bench) if n and life[n - 1]["f"] == "event"]
    place = bench.pick(places)
    return place is not None and bench.move_behind(*place)


@edit("C11", "a bookmark goes back")
def _bookmark_back(bench: Bench) -> bool:
    places = [life[n] for life, n in _bookmarks(bench) if any(r["f"] == "bookmark" for r in life[:n])]
    record = bench.pick(places)
    if record is None:
        return False
    record["position"] = f"{stamp_of(record['position']).split('.')[0]}.0.00000000.0"
    return True


@edit("C11", "a bookmark lies beyond the log")
def _bookmark_beyond(bench: Bench) -> bool:
    place = bench.pick(_bookmarks(bench))
    if place is None or bench.restored:
        return False
    record = place[0][place[1]]
    record["position"] = shifted(record["position"], 1000)
    return True


@edit("C11", "a bookmark names what is not committed yet")
def _bookmark_early(bench: Bench) -> bool:
    places = []
    for life, n in _bookmarks(bench):
        at = bench.at(life[n])
        later = [commit for commit in bench.commits if bench.at(commit) > at]
        if later:
            places.append((life[n], later[0]))
    place = bench.pick(places)
    if place is None or bench.restored:
        return False
    record, commit = place
    lineage = stamp_of(record["position"]).split(".")[0]
    record["position"] = f"{lineage}.{commit['epoch']}.{commit['term']}.{commit['last']}"
    return True


@edit("C11", "a bookmark is of another term")
def _bookmark_term(bench: Bench) -> bool:
    place = bench.pick(_bookmarks(bench))
    if place is None or bench.restored:
        return False
    record = place[0][place[1]]
    record["position"] = later_epoch(record["position"])
    return True
