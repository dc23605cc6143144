"""The log of one feed in PostgreSQL, synchronously. Called from worker threads: writes from one thread at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from changefeed.batch import ENTRY_OVERHEAD, Entry, Tail, chain_start
from changefeed.change import NO_TERM, FeedSettings, Key
from changefeed.errors import (
    ChangefeedError,
    LogDamaged,
    LogFormatUnknown,
    LogReplaced,
    LogUnavailable,
    SettingsConflict,
    TailMoved,
    TooManyPublishers,
    TrimmedAway,
    UnknownFeed,
)
from changefeed.log import FORMAT, Fence, Latest, Look, Moved, PublisherState
from changefeed.log.postgresql import outbox, rows
from changefeed.log.postgresql.connections import Link, Server, pause
from changefeed.log.postgresql.layout import check_layout
from changefeed.log.rows import entry_of, entry_row, follow, latest_row
from changefeed.log.rules import (
    EPOCHS_KEPT,
    check_folded,
    check_listed,
    dump_settings,
    fence_refused,
    fenced,
    load_settings,
    too_old,
)
from changefeed.ports import World
from changefeed.settings import Settings

READERS: Final = 4
#: What one transaction of a trim drops at most: appends and fences wait for it.
TRIM_ENTRIES: Final = 2000
TRIM_BYTES: Final = 4 * 2**20
#: What one transaction drops at most where folding begins anew.
CLEAR_ROWS: Final = 5000
CLEAR_BYTES: Final = 4 * 2**20
#: What opening checks of the digest chain.
OPENING_BYTES: Final = 64 * 2**20
OPENING_ENTRIES: Final = 1000
#: SQLSTATE lock_not_available: a fence has waited as long as it lets anybody wait.
LOCKED: Final = "55P03"
#: Our own: rows that were to be taken out of the outbox are gone.
TAKEN: Final = "CF001"


class FeedRows:
    """The rows of one feed. `open` first, `close` last."""

    def __init__(self, server: Server, feed: str, settings: Settings, world: World) -> None:
        self.feed = feed
        self.lineage = ""
        self.id = 0
        self._server = server
        self._settings = settings
        self._world = world
        self._writer = Link(server)
        self._looker = Link(server, stamps=True)
        self._idle: list[Link] = []
        self._mutex = threading.Lock()
        self._newest: tuple[int, Tail] | None = None
        self._final: LogReplaced | None = None
        self._closed = False

    # ---- opening and closing

    def open(self, create: bool, check: bool = True) -> None:
        """See LogStore.open for what it raises."""
        try:
            with self._reading() as link:
                check_layout(link)
                self.id = self._find(link, create)
            look = self._look_now()
            self.lineage = look.lineage
            if check:
                self._check_end(look)
        except BaseException:
            self.close()
            raise
        self._newest = (look.fence.epoch, look.tail)

    def _find(self, link: Link, create: bool) -> int:
        statement = "SELECT id FROM changefeed.feeds WHERE feed = %s"
        found = link.read("open", statement, (self.feed,))
        if not found and create:
            lineage = self._world.entropy.token(8)
            start = chain_start(lineage, self.feed)
            values = (self.feed, lineage, self._world.wall_ms(), NO_TERM, start, FORMAT, dump_settings(FeedSettings()))
            self._writer.write("open", "SELECT changefeed.create_feed(%s, %s, %s, %s, %s, %s::integer, %s)", values)
            found = link.read("open", statement, (self.feed,))
        if not found:
            raise UnknownFeed(f"there is no log of feed {self.feed} in {self._server.shown}")
        return int(found[0][0])

    def _check_end(self, look: Look) -> None:
        """Check what can be told without reading everything: the tail row against the last entries, and their chain."""
        if look.folded is not None and look.folded > look.tail.seq:
            raise LogDamaged(
                f"the log of feed {self.feed} is folded up to seq {look.folded} and ends at {look.tail.seq}"
            )
        if look.floor.seq > look.tail.seq:
            raise LogDamaged(
                f"the log of feed {self.feed} begins at seq {look.floor.seq} and ends before, at {look.tail.seq}"
            )
        newest = (look.epochs[-1].epoch, look.epochs[-1].term) if look.epochs else (0, NO_TERM)
        if newest != (look.fence.epoch, look.fence.term):
            raise LogDamaged(f"the log of feed {self.feed}: its fence and its history of terms disagree")
        with self._reading() as link:
            found = link.read("open", rows.LAST_SEQ, (self.id, self.id, OPENING_ENTRIES))
        after = max(look.floor.seq, int(found[0][0]) if found and found[0][0] is not None else 0)
        self.read(after, OPENING_BYTES)

    def close(self) -> None:
        """Close what is idle; a call that still runs in another thread closes its connection itself."""
        with self._mutex:
            self._closed = True
            idle, self._idle = self._idle, []
        for link in (*idle, self._writer, self._looker):
            link.shut()

    # ---- reading

    def _check_usable(self) -> None:
        if self._closed:
            raise LogUnavailable(f"the log of feed {self.feed} was closed by this process")
        if self._final is not None:
            raise LogReplaced(str(self._final))

    @contextmanager
    def _reading(self) -> Iterator[Link]:
        self._check_usable()
        with self._mutex:
            link = self._idle.pop() if self._idle else Link(self._server)
        try:
            yield link
        except ChangefeedError:
            self._give_back(link)
            raise
        except BaseException:
            link.close()
            raise
        self._give_back(link)

    def _give_back(self, link: Link) -> None:
        with self._mutex:
            keep = not self._closed and len(self._idle) < READERS
            if keep:
                self._idle.append(link)
        if not keep:
            link.close()

    def _ask(self, what: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._reading() as link:
            return link.read(what, statement, parameters)

    def look(self, renew: tuple[int, str, int] | None) -> Look:
        self._check_usable()
        known = self._newest
        if renew is not None:
            self._looker.read("look", "SELECT changefeed.renew(%s, %s, %s, %s)", (self.id, *renew))
        found = self._look_now()
        self._compare(known, found)
        self._note(found.fence.epoch, found.tail)
        return found

    def _look_now(self) -> Look:
        return rows.look_of(self.feed, self._looker.read("look", rows.LOOK, (self.id,)))

    def _note(self, epoch: int, tail: Tail) -> None:
        with self._mutex:
            newest = self._newest
            if newest is None or (epoch, tail.seq) >= (newest[0], newest[1].seq):
                self._newest = (max(epoch, newest[0] if newest else 0), tail)

    def _compare(self, known: tuple[int, Tail] | None, found: Look) -> None:
        """An older copy of the database is told by what this process has seen of the newer one."""
        if found.lineage != self.lineage:
            self._final = LogReplaced(f"the log of feed {self.feed} is another one now (lineage {found.lineage})")
        elif known is not None:
            epoch, tail = known
            same = found.tail == tail or found.tail.seq > tail.seq
            if found.fence.epoch < epoch or not same:
                self._final = LogReplaced(
                    f"the log of feed {self.feed} is an older copy: it was at epoch {epoch}, seq {tail.seq} and is now"
                    f" at epoch {found.fence.epoch}, seq {found.tail.seq}; restart the process"
                )
        if self._final is not None:
            raise LogReplaced(str(self._final))

    def tail_seq(self) -> int:
        found = self._ask("wait", "SELECT tail_seq FROM changefeed.heads WHERE feed_id = %s", self.id)
        return int(found[0][0]) if found else 0

    def read(self, after_seq: int, max_bytes: int) -> list[Entry]:
        """See FeedLog.read. What is returned is checked: no hole before, between or (at the tail) behind the entries,
        every entry's bytes against its digest, and the chain of digests."""
        found = self._ask("read", rows.READ, self.id, after_seq, max_bytes, ENTRY_OVERHEAD)
        if not found:
            raise LogDamaged(f"the log of feed {self.feed} holds no head")
        head = rows.Head.of(found[0][: rows.HEAD_COLUMNS])
        self._check_format(head.format)
        if after_seq < head.floor.seq:
            raise TrimmedAway(too_old(self.feed, after_seq, head.floor.seq))
        start = rows.HEAD_COLUMNS + 1
        entries = [entry_of(self.feed, row[start:]) for row in found if row[start] is not None]
        if entries:
            before = entries[0].seq - 1
            digest = head.floor.digest if before == head.floor.seq else found[0][rows.HEAD_COLUMNS]
            if entries[0].seq > after_seq + 1 or digest is None:
                raise LogDamaged(
                    f"the log of feed {self.feed} has a hole: after seq {after_seq} comes seq {entries[0].seq}"
                )
            for entry in entries:
                follow(self.feed, self.lineage, before, digest, entry)
                before, digest = entry.last_seq, entry.digest
        self._check_tail(after_seq, entries, head.tail)
        return entries

    def _check_tail(self, after_seq: int, found: list[Entry], tail: Tail) -> None:
        if not found and after_seq < tail.seq:
            raise LogDamaged(f"the log of feed {self.feed} holds nothing after seq {after_seq}, yet ends at {tail.seq}")
        if found and found[-1].last_seq >= tail.seq:
            last = found[-1]
            if Tail(last.last_seq, last.epoch, last.term, last.digest, last.time) != tail:
                raise LogDamaged(
                    f"the log of feed {self.feed} says that it ends at seq {tail.seq}, but its last entry ends at"
                    f" {last.last_seq}, or has another stamp"
                )

    def _check_format(self, found: int) -> None:
        if found > FORMAT:
            raise LogFormatUnknown(
                f"the log of feed {self.feed} is of format {found}; this release reads formats up to {FORMAT}"
            )

    def read_time(self, time: int) -> int:
        ((seq,),) = self._ask("read_time", "SELECT changefeed.read_time(%s, %s)", self.id, time)
        if seq is None:
            raise LogDamaged(f"the log of feed {self.feed} has a hole")
        return int(seq)

    def publisher_state(self, publisher: str) -> PublisherState | None:
        found = self._ask("publisher_state", rows.PUBLISHER, self.id, publisher)
        return PublisherState(*found[0]) if found else None

    def last_number(self, publisher: str, incarnation: int) -> int | None:
        state = self.publisher_state(publisher)
        if state is not None and state.incarnation == incarnation and state.last_number:
            return state.last_number
        found = self._ask("last_number", rows.LAST_NUMBER, self.id, publisher, incarnation)
        return int(found[0][0]) if found else None

    def find_batch(self, publisher: str, incarnation: int, number: int) -> Entry | None:
        found = self._ask("find_batch", rows.FIND_BATCH, self.id, publisher, incarnation, number)
        if not found:
            return None
        entry = entry_of(self.feed, found[0])
        return entry if number < entry.number + entry.count else None

    def latest(self, keys: Sequence[Key]) -> list[Latest]:
        wanted = dict.fromkeys(keys)
        found = self._ask(
            "latest", rows.LATEST, [key[0] for key in wanted], [key[1].encode() for key in wanted], self.id
        )
        return [rows.latest_of(self.feed, row) for row in found]

    def list_latest(self, after: Key | None, max_bytes: int, at: int | None) -> list[Latest]:
        # No resource is empty: ("", "") is below all keys.
        resource, id = ("", "") if after is None else after
        found = self._ask("list_latest", rows.LIST_LATEST, resource, id.encode(), max_bytes, self.id)
        if not found:
            raise LogDamaged(f"the log of feed {self.feed} holds no head")
        check_listed(self.feed, found[0][0], at)
        return [rows.latest_of(self.feed, row[1:]) for row in found if row[1] is not None]

    def settings(self) -> FeedSettings:
        found = self._ask("settings", "SELECT value, version FROM changefeed.settings WHERE feed_id = %s", self.id)
        if not found:
            raise LogDamaged(f"the log of feed {self.feed} holds no settings row")
        try:
            return load_settings(*found[0])
        except ValueError as error:
            raise LogDamaged(f"the log of feed {self.feed}: {error}") from None

    # ---- writing

    def _write(self, what: str, statement: str, *parameters: Any) -> tuple[Any, ...]:
        self._check_usable()
        return self._writer.write(what, statement, parameters)

    def _refusal(self, outcome: str, epoch: int, term: str, head: rows.Head) -> None:
        self._check_format(head.format)
        if outcome == "fenced":
            raise fenced(self.feed, epoch, term, head.fence)

    def fence(self, fence: Fence, why: str, time_ms: int, clean: bool) -> Look:
        known = self._newest
        values = (
            self.id,
            *(fence.epoch, fence.term, fence.instance, fence.process, fence.pid, fence.pid_started, fence.url),
            *(fence.coordinator, fence.renewed, fence.format, why, time_ms, FORMAT, EPOCHS_KEPT),
        )
        outcome, *found = self._fence(values)
        look = rows.look_of(self.feed, [tuple(found)])
        self._check_format(look.fence.format if outcome == "format" else 0)
        if outcome == "refused":
            raise fence_refused(self.feed, fence, look.fence)
        self._compare(known, look)
        self._note(look.fence.epoch, look.tail)
        return look

    def _fence(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Once no more than 200 ms has been waited for the lock, whoever holds it is ended: its append, if it was not
        committed yet, is undone by the server."""
        deadline = time.monotonic() + self._settings.log_timeout_s
        while True:
            try:
                return self._write("fence", rows.FENCE, *values)
            except LogUnavailable as error:
                cause = error.__cause__
                if getattr(cause, "sqlstate", None) != LOCKED:
                    raise
                holder = self._end_holder()
                if not pause(deadline, 0.005):
                    who = f"server process {holder}" if holder else "another transaction"
                    raise LogUnavailable(
                        f"fence: {who} has held the lock of feed {self.feed} for {self._settings.log_timeout_s:g} s;"
                        " if it is frozen, end it"
                    ) from error

    def _end_holder(self) -> int:
        found = self._ask("fence", rows.END_HOLDER, self.id)
        return int(found[0][0]) if found and found[0][0] is not None else 0

    def waiting(self, bytes_max: int) -> Moved | None:
        with self._reading() as link:
            return outbox.waiting(link, self.id, bytes_max, self._settings.change_bytes_max)

    def append(
        self, epoch: int, term: str, expected_tail: int, entries: Sequence[Entry], moved: Moved | None = None
    ) -> None:
        columns = [list(column) for column in zip(*map(entry_row, entries), strict=True)]
        last_seqs, seqs, _, _, times, *who, sizes, digests, chained, payloads = columns
        # One row per publisher and incarnation, in the order of their last entries.
        newest = {(entry.publisher, entry.incarnation): entry for entry in entries}
        known = sorted(newest.values(), key=lambda entry: entry.seq)
        try:
            outcome, *found = self._write(
                "append",
                rows.APPEND,
                *(self.id, epoch, term, expected_tail, last_seqs, seqs, times, *who),
                *(sizes, digests, chained, payloads, sum(entry.bytes for entry in entries)),
                [entry.publisher for entry in known],
                [entry.incarnation for entry in known],
                [entry.number + entry.count - 1 for entry in known],
                [entry.last_seq for entry in known],
                *((None, None, 0) if moved is None else (list(moved.rows), moved.open, moved.part)),
            )
        except LogUnavailable as error:
            cause = error.__cause__
            if getattr(cause, "sqlstate", None) == TAKEN:
                raise TailMoved(f"feed {self.feed}: {cause}") from error
            constraint = getattr(getattr(cause, "diag", None), "constraint_name", None)
            if constraint == "entries_by_number":
                raise ValueError(f"an entry's publisher number is stored already: {cause}") from error
            if constraint == "entries_pkey":
                raise LogDamaged(f"the log of feed {self.feed} holds entries beyond its tail") from error
            raise
        head = rows.Head.of(found)
        self._refusal(outcome, epoch, term, head)
        if outcome == "tail-moved":
            raise TailMoved(f"feed {self.feed} ends at seq {head.tail.seq}, not at {expected_tail}")
        if outcome == "time":
            raise ValueError(
                f"entry {entries[0].seq} is of time {entries[0].time}, before {head.tail.time} of the log's tail"
            )
        end = entries[-1]
        self._note(epoch, Tail(end.last_seq, end.epoch, end.term, end.digest, end.time))

    def open_publisher(self, epoch: int, term: str, publisher: str, named: bool) -> PublisherState:
        limit = self._settings.publishers_max
        outcome, incarnation, last_number, last_seq, kept, *found = self._write(
            "open_publisher", rows.OPEN_PUBLISHER, self.id, epoch, term, publisher, named, limit
        )
        self._refusal(outcome, epoch, term, rows.Head.of(found))
        if outcome == "too-many-publishers":
            raise TooManyPublishers(
                f"feed {self.feed} remembers {last_number} publishers, all with entries; the limit is {limit}"
            )
        return PublisherState(publisher, incarnation, last_number, last_seq, kept)

    def trim_some(self, epoch: int, term: str, up_to_seq: int) -> tuple[int, bool]:
        outcome, floor, more, *found = self._write(
            "trim", rows.TRIM, self.id, epoch, term, up_to_seq, TRIM_ENTRIES, TRIM_BYTES, ENTRY_OVERHEAD
        )
        self._refusal(outcome, epoch, term, rows.Head.of(found))
        return int(floor), bool(more)

    def fold_some(
        self, epoch: int, term: str, after: int | None, to: int, latest: Sequence[Latest], gone: Sequence[Key],
        versioned: bool,
    ) -> bool:  # fmt: skip
        """See FeedLog.fold. True: it begins anew, there were many rows to drop, and it is to be called again."""
        columns = [list(column) for column in zip(*map(latest_row, latest), strict=True)] or [[]] * 9
        columns[1] = [id.encode() for id in columns[1]]
        outcome, more, *found = self._write(
            "fold",
            rows.FOLD,
            *(self.id, epoch, term, after, to, *columns),
            *([key[0] for key in gone], [key[1].encode() for key in gone], versioned, CLEAR_ROWS, CLEAR_BYTES),
        )
        head = rows.Head.of(found)
        self._refusal(outcome, epoch, term, head)
        if outcome != "stored":
            check_folded(self.feed, head.folded, after, to, head.floor.seq, head.tail.seq)
        return bool(more)

    def set_settings(self, settings: FeedSettings) -> FeedSettings:
        value = dump_settings(settings)
        stored, version = self._write(
            "set_settings", "SELECT * FROM changefeed.set_settings(%s, %s, %s)", self.id, settings.version, value
        )
        if not stored:
            raise SettingsConflict(
                f"the settings of feed {self.feed} are of version {version} now, not of {settings.version};"
                " read them again"
            )
        return load_settings(value, version)

    # ---- beside appends

    def maintain(self) -> dict[str, int]:
        """Facts: table_bytes, what the feed's tables and indexes take on the server (all feeds of the database)."""
        ((size,),) = self._ask("maintain", "SELECT pg_total_relation_size('changefeed.entries')")
        return {"table_bytes": int(size)}
