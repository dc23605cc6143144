"""A history as a space-time diagram for people: time runs down, one narrow column per node, words at the right.

      time s  nem  a    b    c    st   p0   s0
     12.0412   │   ┃    │    │    │    S    │    p0 submits k17, k18
     12.0431   │   A────┼────┼───>│    │    │    a appends 3:41-42, stored
     12.0440   │   ┃────┼────┼────┼───>R    │    p0 gets its receipt 3:41-42
     12.0502   │   ┃────┼────┼────┼────┼───>e    s0 gets 3:41-42 from a
     12.1000   X──>         kill a

Lines of life: `┃` leads, `│` runs, `:` is frozen, blank is down. Pure: records in, lines out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

WIDTH: Final = 120
#: So many columns fit beside words that say something.
COLUMNS_MAX: Final = 15
ROWS: Final = 40
#: Rows before these that are about the same keys and seqs.
FOCUS_ROWS: Final = 16
#: Where the record is known at which a promise broke: so many rows before and behind it, the rest of ROWS at the end.
BEFORE, BEHIND = 24, 4
TIME_WIDTH: Final = 11
#: Deliveries and saves of one reader within this time are one row, where the first of them stands, unless something of
#: BARRIERS came between.
JOINED_NS: Final = 50_000_000
BARRIERS: Final = frozenset({"append", "elected", "deposed", "fault", "over", "restored", "heal"})
#: What a run says at its end, and to its checkers, is no step of it.
NO_STEPS: Final = frozenset({"log", "entry", "effects", "want", "limit", "sighting"})

#: Targets of faults that are no node.
NO_NODES: Final = frozenset({"leader", "all", "*"})

_PUBLISHER: Final = frozenset({"submit", "acked", "failed", "unknown", "lost"})
_INSTANCE: Final = frozenset({"elected", "fence", "append", "repeat", "deposed"})
_READER: Final = frozenset({"reader", "connected", "event", "bookmark", "handled", "refused"})
_NEMESIS: Final = frozenset({"fault", "effect", "over", "restored", "heal", "converged"})
_STORE: Final = frozenset({"commit", "fenced", "trimmed"})
_GROUPS: Final = ("nemesis", "instance", "store", "publisher", "reader", "other")
#: Only these: who appended and acknowledged what, and when, must stay in its place.
_JOINED: Final = frozenset({"event", "handled"})
_MARKS: Final = {
    "submit": "S", "acked": "R", "failed": "F", "unknown": "?", "lost": "L", "quit": "Q",
    "elected": "E", "fence": "#", "append": "A", "repeat": "=", "deposed": "D", "commit": "C", "fenced": "#",
    "trimmed": "T",
    "reader": "o", "connected": "o", "event": "e", "bookmark": "b", "handled": "h", "refused": "!",
    "fault": "X", "effect": "x", "over": "/", "restored": "X", "heal": "H", "converged": "=",
}  # fmt: skip
_SHORT: Final = {"nemesis": "nem", "store": "st"}
LEGEND: Final = (
    "┃ leads  │ runs  : frozen  blank: down   S submit  R receipt  F refused  ? unknown  A append  E elected  # fence",
    "D deposed  = answered again  C commit  T trim  o connects  e event  b bookmark  h handled  ! refused",
    "X fault  x its effect  / its end  H heal  Q killed  L told of a loss",
)


@dataclass(slots=True)
class Row:
    """One step, or several of a kind that were joined."""

    at: int
    node: str
    f: str
    facts: dict[str, Any]
    source: str = ""
    target: str = ""
    first: int = 0
    last: int = 0
    keys: set[str] = field(default_factory=set)
    count: int = 1
    saved: int = 0
    number: int = 0


@dataclass(slots=True)
class _Life:
    up: bool = True
    leads: bool = False
    frozen: bool = False

    def mark(self) -> str:
        if not self.up:
            return " "
        return ":" if self.frozen else "┃" if self.leads else "│"


def seq_of(value: Any) -> int:
    """The seq of a position's text form, or of a seq. 0 for nothing."""
    if isinstance(value, bool) or value is None:
        return 0
    if isinstance(value, int):
        return value
    tail = str(value).rpartition(".")[2]
    return int(tail) if tail.isdecimal() else 0


def epoch_of(value: Any) -> str:
    """The epoch of a position's text form, with a colon; "" where there is none."""
    parts = str(value).split(".")
    return f"{parts[1]}:" if len(parts) == 4 else ""


def span(first: int, last: int) -> str:
    return str(first) if last <= first else f"{first}-{last}"


def kind_of(node: str, seen: set[str]) -> str:
    """Which group of columns a node belongs to, by what it did."""
    if node == "nemesis" or seen & _NEMESIS:
        return "nemesis"
    if seen & _INSTANCE:
        return "instance"
    if seen & _PUBLISHER:
        return "publisher"
    if seen & _READER:
        return "reader"
    return "store" if node == "store" or seen & _STORE else "other"


class Diagram:
    """A history, and what of it is drawn.

    abouts: what broken promises are about: keys, seqs, and "record", the place in the whole history where it broke.
    left_out: records of the whole history before the first of these.
    """

    def __init__(
        self, history: Iterable[Mapping[str, Any]], abouts: Sequence[Mapping[str, Any]] = (), left_out: int = 0
    ) -> None:
        self._keys, self._seqs = focus_of(abouts)
        places = (about.get("record") for about in abouts)
        self._broke_at = [place for place in places if isinstance(place, int) and not isinstance(place, bool)]
        records = [
            (place, record)
            for place, record in enumerate(history, left_out)
            if record.get("f") not in NO_STEPS and record.get("node") != "end"
        ]
        self._kinds = self._sort_nodes([record for _, record in records])
        self._row_of: dict[int, Row] = {}
        self._appended: list[tuple[int, int, str]] = []
        self._serving: dict[str, str] = {}
        self._faults: dict[Any, Mapping[str, Any]] = {}
        self.rows: list[Row] = []
        self._join(records)

    # ---- what there is

    def _sort_nodes(self, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """node -> its group, in the order of columns."""
        seen: dict[str, set[str]] = {}
        for record in records:
            seen.setdefault(str(record.get("node", "?")), set()).add(str(record.get("f")))
        kinds = {node: kind_of(node, did) for node, did in seen.items()}
        for record in records:
            if record.get("f") == "connected" and record.get("instance"):
                kinds[str(record["instance"])] = "instance"  # who never led is known as somebody's server
            elif record.get("f") == "fault" and str(record.get("target") or "leader") not in NO_NODES:
                kinds.setdefault(str(record["target"]), "instance")  # or as somebody who was harmed
        order = {group: index for index, group in enumerate(_GROUPS)}
        return dict(sorted(kinds.items(), key=lambda item: (order[item[1]], item[0])))

    def _join(self, records: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        latest: dict[str, Row] = {}
        for place, record in records:
            row = self._row(len(self.rows), record)
            before = latest.get(row.node)
            if before is not None and self._joins(before, row):
                before.last = max(before.last, row.last)
                before.count += row.f == before.f
                before.saved = row.last if row.f == "handled" else before.saved
                before.keys |= row.keys
                self._row_of[place] = before
                continue
            if row.f in BARRIERS:
                latest.clear()
            latest[row.node] = self._row_of[place] = row
            self.rows.append(row)

    @staticmethod
    def _joins(before: Row, row: Row) -> bool:
        """Events and saves of one reader, one behind the other."""
        if row.f == "handled" and before.f == "event" and row.last > before.last:
            return False
        return (
            {before.f, row.f} <= _JOINED
            and (row.f == "handled" or before.f == "event")
            and (before.source == row.source or row.f == "handled")
            and row.at - before.at <= JOINED_NS
            and before.last <= row.last
        )

    def _row(self, number: int, record: Mapping[str, Any]) -> Row:
        f, node = str(record.get("f")), str(record.get("node", "?"))
        place = record.get("position")
        row = Row(
            at=int(record.get("t", 0)),
            node=node,
            f=f,
            facts=dict(record),
            first=seq_of(record.get("first", place)),
            last=seq_of(record.get("last") if f != "event" else place) or seq_of(record.get("first", place)),
            keys=keys_of(record),
            number=number,
        )
        match f:
            case "append":
                row.target = next((name for name, kind in self._kinds.items() if kind == "store"), "")
                if record.get("outcome", "stored") == "stored":
                    self._appended = [*self._appended[-63:], (row.first, row.last, node)]
            case "acked":
                row.source = next((who for a, b, who in reversed(self._appended) if a <= row.last <= b), "")
            case "connected":
                row.source = self._serving[node] = str(record.get("instance", ""))
            case "event" | "bookmark":
                row.source = self._serving.get(node, "")
            case "fault":
                self._faults[record.get("id")] = record
                row.target = str(record.get("target", ""))
            case "over" | "effect":
                row.target = str(self._faults.get(record.get("id"), {}).get("target", ""))
        return row

    # ---- what is drawn

    def lines(self, *, rows: int = ROWS, width: int = WIDTH) -> list[str]:
        """What led to where a promise broke, what else was about the same, the last rows; below it a legend."""
        if not self.rows:
            return ["(the history holds no steps)"]
        broke = {self._row_of[place].number for place in self._broke_at if place in self._row_of}
        shown = [self.rows[number] for number in sorted(self._chosen(broke, rows))]
        columns = self._choose(shown)
        pitch = max(4, min(7, (width - TIME_WIDTH - 44) // max(1, len(columns))))
        wanted = {row.number for row in shown}
        lives = {name: _Life() for name in self._kinds}
        lines = [self._head(columns, pitch)]
        previous = -1
        for index, row in enumerate(self.rows):
            before = {name: life.mark() for name, life in lives.items()}
            self._live(lives, row)
            if row.number not in wanted:
                continue
            if index - previous > 1:
                lines.append(f"{'':>{TIME_WIDTH}} … {index - previous - 1:,} steps")
            previous = index
            drawn = self._draw(row, columns, pitch, before, width)
            lines.append("»" + drawn[1:] if row.number in broke else drawn)
        absent = [name for name in self._kinds if name not in columns]
        if absent:
            lines.append(f"(no room for {', '.join(absent)})"[:width])
        return [*lines, "", *LEGEND, *(["» here a promise broke"] if broke else [])]

    def _chosen(self, broke: set[int], rows: int) -> set[int]:
        """The rows that are drawn, by number."""
        count = len(self.rows)
        if not broke:
            chosen = set(range(max(0, count - rows), count))
        else:
            first = min(broke)
            near = range(max(0, first - BEFORE), min(count, first + BEHIND + 1))
            chosen = set(near) | set(range(max(0, count - (rows - len(near))), count)) | set(sorted(broke)[:8])
        focus = [row.number for row in self.rows[: min(chosen)] if self._in_focus(row)]
        return chosen | set(focus[-FOCUS_ROWS:])

    def _in_focus(self, row: Row) -> bool:
        near = any(row.first <= seq <= max(row.first, row.last) for seq in self._seqs)
        return bool(row.keys & self._keys) or (near and row.first > 0)

    def _choose(self, shown: Sequence[Row]) -> list[str]:
        """The columns: all nodes, or those that do something in these rows."""
        names = list(self._kinds)
        if len(names) <= COLUMNS_MAX:
            return names
        count: dict[str, int] = dict.fromkeys(names, 0)
        for row in shown:
            for name in {row.node, row.source, row.target} & count.keys():
                count[name] += 1
        kept = set(sorted(names, key=lambda name: (-count[name], names.index(name)))[:COLUMNS_MAX])
        return [name for name in names if name in kept]

    def _live(self, lives: dict[str, _Life], row: Row) -> None:
        """What a step changes of who runs, leads, is frozen."""
        life = lives.get(row.node)
        if life is not None and row.f not in ("quit",):
            life.up = True
        if life is not None:
            if row.f == "elected":
                life.leads = True
            elif row.f in ("deposed", "quit"):
                life.leads, life.up = False, row.f != "quit"
        target = lives.get(row.target)
        if target is None or row.f not in ("fault", "over"):
            return
        what = str(self._faults.get(row.facts.get("id"), row.facts).get("kind", ""))
        if "freeze" in what or "pause" in what:
            target.frozen = row.f == "fault"
        elif "kill" in what:
            target.up, target.leads, target.frozen = row.f == "over", False, False

    def _head(self, columns: Sequence[str], pitch: int) -> str:
        return (
            f"{'time s':>{TIME_WIDTH}}  "
            + "".join(f"{_SHORT.get(name, name)[: pitch - 1]:<{pitch}}" for name in columns).rstrip()
        )

    def _draw(self, row: Row, columns: Sequence[str], pitch: int, before: Mapping[str, str], width: int) -> str:
        cells = [before[name] for name in columns]
        line = list("".join(cell + " " * (pitch - 1) for cell in cells))
        place = {name: index * pitch for index, name in enumerate(columns)}
        here = place.get(row.node)
        source, target = place.get(row.source), place.get(row.target)
        if here is not None and source is not None and source != here:
            arrow(line, source, here, pitch)
        elif here is not None and target is not None and target != here:
            arrow(line, here, target, pitch)
        if here is not None:
            line[here] = _MARKS.get(row.f, "*")
        text = "".join(line) + "  " + words(row)
        drawn = f"{row.at / 1e9:>{TIME_WIDTH}.4f}  {text}"
        return drawn if len(drawn) <= width else drawn[: width - 1] + "…"


def arrow(line: list[str], start: int, end: int, pitch: int) -> None:
    """Draw from one column to another; lines of life between are crossed, the two ends keep their marks."""
    low, high = min(start, end), max(start, end)
    for index in range(low + 1, high):
        line[index] = "┼" if index % pitch == 0 and line[index] in "│┃:" else "─"
    if end > start:
        line[end - 1] = ">"
    else:
        line[end + 1] = "<"


def focus_of(abouts: Iterable[Mapping[str, Any]]) -> tuple[set[str], set[int]]:
    """(keys, seqs) that broken promises are about: whatever their facts hold under such names."""
    keys: set[str] = set()
    seqs: set[int] = set()
    for name, value in (item for about in abouts for item in about.items()):
        items = list(value)[:50] if isinstance(value, list | tuple | set | frozenset) else [value]
        if name.startswith("key"):
            keys |= {str(item) for item in items}
        elif name.startswith(("seq", "position", "first", "last")):
            seqs |= {seq_of(item) for item in items} - {0}
    return keys, seqs


def keys_of(record: Mapping[str, Any]) -> set[str]:
    found = record.get("keys", ())
    keys = {str(item) for item in found} if isinstance(found, list | tuple) else set()
    return keys | ({str(record["key"])} if "key" in record else set())


def listed(row: Row) -> str:
    """The row's keys, the first and the last by name."""
    found = row.facts.get("keys", ())
    names = [str(item) for item in found] if isinstance(found, list | tuple) else sorted(row.keys)
    return ", ".join(names) if len(names) < 3 else f"{names[0]} … {names[-1]} ({len(names)})"


def words(row: Row) -> str:
    """One step in words; what a kind of record does not explain is shown as it is."""
    facts, who = row.facts, row.node
    place = epoch_of(facts.get("last", facts.get("position", ""))) or (f"{facts['epoch']}:" if "epoch" in facts else "")
    where = place + span(row.first, row.last)
    match row.f:
        case "submit":
            name = f" as {facts['name']}" if facts.get("name") else ""
            return f"{who} submits {listed(row)}{name}"
        case "acked":
            again = ", stored before" if facts.get("repeated") else ""
            return f"{who} gets its receipt {where}{again}"
        case "failed":
            return f"{who}: {facts.get('op')} refused, {facts.get('code')}"
        case "unknown":
            return f"{who}: {facts.get('op')} unknown, {facts.get('code')}"
        case "lost":
            return f"{who} is told that acknowledged changes are lost"
        case "quit":
            return f"{who}: this life is over"
        case "elected":
            return f"{who} elected for epoch {facts.get('epoch')}: {facts.get('why')}"
        case "fence":
            return f"{who} fences epoch {facts.get('epoch')}, tail {seq_of(facts.get('tail'))}"
        case "append":
            return f"{who} appends {where}, {facts.get('outcome', 'stored')}"
        case "repeat":
            return f"{who} answers {facts.get('publisher')} number {facts.get('number')} again"
        case "deposed":
            return f"{who} deposed in epoch {facts.get('epoch')}: {facts.get('why')}"
        case "commit":
            return f"commit {where} under fence {facts.get('fence')}"
        case "fenced":
            return f"the fence of epoch {facts.get('epoch')} is made"
        case "reader":
            chosen = {name: value for name, value in dict(facts.get("filter") or {}).items() if value}
            what = " whole groups" if facts.get("groups") else ""
            return f"{who} begins at {facts.get('start')}{what} {loose(chosen)}".rstrip()
        case "connected":
            return f"{who} at {facts.get('instance')} after {epoch_of(facts.get('position'))}{row.last}"
        case "event":
            some = "" if row.count == row.last - row.first + 1 else f"{row.count} of "
            saved = f", saved {row.saved}" if row.saved else ""
            return f"{who} gets {some}{where} from {row.source or '?'}{saved}"
        case "bookmark":
            return f"{who} knows all up to {where}"
        case "handled":
            return f"{who} saved {place}{row.last}"
        case "refused":
            return f"{who} refused, {facts.get('code')}, at {epoch_of(facts.get('position'))}{row.last}"
        case "fault":
            return f"{facts.get('kind')} {facts.get('target', '')} {loose(facts.get('on'))}".rstrip()
        case "effect":
            return f"seen: {facts.get('what')} {row.target}".rstrip()
        case "over":
            return f"over: fault {facts.get('id')} {row.target}".rstrip()
        case "heal":
            return "everything is healed"
        case "converged":
            return "everybody has come to the end"
    return f"{who} {row.f} {loose(facts)}".rstrip()


def loose(facts: Any) -> str:
    """Facts as NAME=VALUE, without what each record has."""
    if not isinstance(facts, Mapping):
        return "" if facts is None else str(facts)
    skipped = ("t", "node", "life", "f", "feed", "run")
    return " ".join(
        f"{name}={value}" for name, value in facts.items() if name not in skipped and value not in (None, "")
    )
