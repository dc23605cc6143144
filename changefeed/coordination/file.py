"""A coordinator in a folder, for several processes of one machine.

Leadership is a *record* per feed, changed only under a short lock; taking the lead and challenging are one
compare-and-set on it. Each instance proves that it lives by a lock on its own member file, which the kernel drops
with the process; so a dead leader is known within one look, and a frozen one can be challenged.

    DIR/lock                  the short lock: never held across an await, never deleted
    DIR/id                    the coordinator's random id
    DIR/members/NAME.member   who lives: locked with flock by its process, JSON: the member and its session
    DIR/feeds/FEED.json       {"version", "epoch", "leader"}: written beside, fsynced, renamed

Locks and forks: a lock belongs to the open file, which a forked child shares and would keep alive; so every file here
is close-on-exec, member files are closed in forked children, and no fork happens while a short lock is held.

Blocking work (fsync, waiting for the short lock) runs in a thread; looking at a record takes microseconds and is done
in place. Nothing is left running between calls.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeVar
from urllib.parse import unquote

import trio

from changefeed.change import check_feed_name
from changefeed.coordination import Coordinator, CoordinatorState, LeaderRecord, Member, View
from changefeed.coordination.filesystems import refuse_network
from changefeed.coordination.records import (
    RECORD_BYTES_MAX,
    dump,
    leader_from_json,
    leader_to_json,
    load,
    member_from_json,
    member_to_json,
    quoted_name,
)
from changefeed.errors import CoordinatorUnavailable, NameTaken
from changefeed.ports import World

T = TypeVar("T")
log = logging.getLogger(__name__)

#: How often `wait_change` looks: a dead leader is noticed within this and one look.
POLL_S: Final = 0.05
#: How long a change waits for the short lock before it raises; holders need microseconds.
LOCK_LIMIT_S: Final = 2.0
#: How long an instance whose name was taken while it was away waits before it tries to join again.
JOIN_AGAIN_S: Final = 1.0
#: Temporary files of crashed processes are removed at this age.
LEFTOVER_S: Final = 60.0
_ROUNDS_MAX: Final = 50


@dataclass(frozen=True, slots=True)
class _Record:
    """version: random, new with each epoch; -1 where there is no readable record. leader: whoever was written last,
    alive or not."""

    version: int = -1
    epoch: int = 0
    leader: LeaderRecord | None = None


# ---- locks that do not survive in forked children

#: Held while a lock that a forked child must not inherit is taken or held.
_FORKS: Final = threading.Lock()
_HOLDERS: Final[weakref.WeakSet[FileCoordinator]] = weakref.WeakSet()


def _in_forked_child() -> None:
    for holder in list(_HOLDERS):
        holder.forget_after_fork()
    _FORKS.release()


os.register_at_fork(before=_FORKS.acquire, after_in_parent=_FORKS.release, after_in_child=_in_forked_child)


@contextmanager
def _short_lock(path: str) -> Iterator[None]:
    """Hold the folder's lock. Raises CoordinatorUnavailable if it is not free within LOCK_LIMIT_S."""
    deadline = time.monotonic() + LOCK_LIMIT_S
    while (fd := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise CoordinatorUnavailable(
                f"{path} has been locked for over {LOCK_LIMIT_S:g} s by process {_written_pid(path)}: is it frozen?"
            )
        time.sleep(0.001)
    try:
        os.pwrite(fd, b"%-10d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(fd)
        _FORKS.release()


def _try_lock(path: str) -> int | None:
    """The locked file, with _FORKS held; or None, with _FORKS free."""
    _FORKS.acquire()
    fd = -1
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever locks a file that was deleted meanwhile holds nothing that others see.
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        if fd < 0:  # the folder itself is missing
            _FORKS.release()
            raise
    except BaseException:
        if fd >= 0:
            os.close(fd)
        _FORKS.release()
        raise
    os.close(fd)
    _FORKS.release()
    return None


def _written_pid(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(10).decode(errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"


class FileCoordinator:
    """A participant of the coordinator in `folder`. Opening it touches nothing; the folder is made at first use.

    Raises BadUrl from the first call if the folder lies on a network file system, whose locks cannot be trusted."""

    def __init__(self, url: str, folder: str, *, world: World) -> None:
        self.url = url
        self.folder = os.path.abspath(folder)
        self._world = world
        self._id = ""
        self._member: Member | None = None
        self._session = ""
        self._fd = -1
        self._generation = 0
        self._told: dict[str, int] = {}
        self._forked = False
        self._answers = False
        self._join_again_at = 0.0
        self._limiter = trio.CapacityLimiter(1)

    # -- paths

    def _path(self, *parts: str) -> str:
        return os.path.join(self.folder, *parts)

    def _member_path(self, name: str) -> str:
        return self._path("members", f"{quoted_name(name)}.member")

    def _record_path(self, feed: str) -> str:
        return self._path("feeds", f"{check_feed_name(feed)}.json")

    # -- the contract

    async def start(self, member: Member) -> None:
        """Join as `member` and keep the membership until `aclose`. Raises NameTaken if another live process holds the
        name; a dead one's file is replaced."""
        self._member_path(member.name)
        self._member = member
        try:
            await self._in_thread(self._join)
        except BaseException:
            self._member = None
            raise

    def state(self) -> CoordinatorState:
        return CoordinatorState(self._id, self._answers and not self._forked, self._session, 0.0)

    async def read(self, feed: str) -> View:
        await trio.lowlevel.checkpoint()
        await self._keep()
        return self._looking(lambda: self._view(feed))

    async def take(self, feed: str, seen: View) -> View | None:
        return await self._win(feed, seen, challenge=False)

    async def challenge(self, feed: str, seen: View) -> View | None:
        return await self._win(feed, seen, challenge=True)

    async def raise_epoch(self, feed: str, seen: View, epoch: int) -> bool:
        if epoch <= seen.epoch:
            raise ValueError(f"an epoch is only raised: {epoch} is not above {seen.epoch}")
        await self._keep()
        version = self._new_version()

        def decide(current: _Record) -> _Record | None:
            return replace(current, version=version, epoch=epoch) if current.version == seen.version else None

        return await self._in_thread(lambda: self._change(feed, decide)) is not None

    async def mark_leaving(self, feed: str, epoch: int, successor: str) -> bool:
        def decide(current: _Record) -> _Record | None:
            if current.leader is None or not self._holds(current.leader, epoch):
                return None
            return replace(current, leader=replace(current.leader, leaving=True, successor=successor))

        return await self._in_thread(lambda: self._change(feed, decide)) is not None

    async def resign(self, feed: str, epoch: int) -> None:
        def decide(current: _Record) -> _Record | None:
            return replace(current, leader=None) if self._holds(current.leader, epoch) else None

        await self._in_thread(lambda: self._change(feed, decide))

    def mine(self, view: View) -> bool:
        return view.leader is not None and view.leader.session == self._session != ""

    async def members(self) -> Mapping[str, Member]:
        await trio.lowlevel.checkpoint()
        await self._keep()
        found, dead = self._looking(self._scan)
        if dead:
            await self._in_thread(lambda: self._remove_dead(dead))
        return found

    async def wait_change(self, feed: str, known: View | None) -> View:
        told = self._told.get(feed, min(1, self._generation))
        await trio.lowlevel.checkpoint()
        while True:
            try:
                await self._keep()
                view = self._looking(lambda: self._view(feed))
            except CoordinatorUnavailable:
                await trio.sleep(POLL_S)  # away: wait until it is back
            else:
                if view != known or told != self._generation:
                    self._told[feed] = self._generation
                    return view
            await trio.sleep(POLL_S)

    async def aclose(self) -> None:
        """Leave: the member file goes, and with it every leader record of this session. Not cancelled midway."""
        with trio.CancelScope(shield=True):
            if self._fd >= 0 and not self._forked:
                try:
                    await self._in_thread(self._leave)
                except CoordinatorUnavailable as error:
                    log.warning("left without removing the member file: %s", error)
        self.abandon()
        self._member = None

    # -- for tests, and for processes that were forked

    @property
    def member_path(self) -> str:
        """The file whose lock proves that this member lives; "" before `start`."""
        return self._member_path(self._member.name) if self._member is not None else ""

    def abandon(self) -> None:
        """Drop the member's lock without a word, as the kernel does when the process dies."""
        fd, self._fd, self._session = self._fd, -1, ""
        if fd >= 0:
            os.close(fd)

    def forget_after_fork(self) -> None:
        """In a forked child: close, but never unlock; the lock is the parent's."""
        self._forked = True
        self.abandon()

    # -- running

    async def _in_thread(self, action: Callable[[], T]) -> T:
        def run() -> T:
            return self._looking(action)

        self._refuse_forked()
        return await trio.to_thread.run_sync(run, limiter=self._limiter)

    def _looking(self, action: Callable[[], T]) -> T:
        try:
            result = action()
        except CoordinatorUnavailable:
            self._answers = False
            raise
        except OSError as error:
            self._answers = False
            why = error.strerror or error
            raise CoordinatorUnavailable(f"the coordinator's folder cannot be used: {self.folder}: {why}") from error
        self._answers = True
        return result

    def _refuse_forked(self) -> None:
        if self._forked:
            raise CoordinatorUnavailable("this is a forked child: the coordinator belongs to its parent process")

    async def _keep(self) -> None:
        """Look whether the folder and my member file are still the ones that I know; make them anew if not."""
        self._refuse_forked()
        if (self._id and self._looking(self._whole)) or trio.current_time() < self._join_again_at:
            return
        try:
            await self._in_thread(self._rejoin)
        except NameTaken as error:
            log.warning("cannot join again: %s", error)
            self._join_again_at = trio.current_time() + JOIN_AGAIN_S

    def _whole(self) -> bool:
        try:
            with open(self._path("id"), "rb") as file:
                if file.read(64).decode(errors="replace").strip() != self._id:
                    return False
            return self._member is None or self._holding()
        except FileNotFoundError:
            return False

    def _holding(self) -> bool:
        """Whether the file that I have locked is the one that others see."""
        if self._fd < 0 or self._member is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._member_path(self._member.name)))
        except FileNotFoundError:
            return False

    def _prepare(self) -> None:
        """Make folders and id where they are missing."""
        if os.path.lexists(self.folder) and not os.path.isdir(self.folder):
            raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", self.folder)
        _make_folder(self.folder)
        for folder in (self._path("members"), self._path("feeds")):
            os.makedirs(folder, exist_ok=True)
        refuse_network(self.folder, self.url)
        with _short_lock(self._path("lock")):
            try:
                with open(self._path("id"), "rb") as file:
                    found = file.read(64).decode(errors="replace").strip()
            except FileNotFoundError:
                found = ""
            if not found:
                found = self._world.entropy.token(8)
                os.rename(self._write_beside(self.folder, found.encode() + b"\n"), self._path("id"))
                # The names of the folders above come along: a record whose folder is lost with the power is lost.
                _sync_folder(self.folder)
            self._sweep()
        self._id = found

    def _sweep(self) -> None:
        """Remove temporary files of processes that died while writing."""
        oldest = time.time() - LEFTOVER_S
        for folder in (self.folder, self._path("members"), self._path("feeds")):
            for entry in os.scandir(folder):
                if entry.name.startswith(".new-") and entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)

    def _write_beside(self, folder: str, data: bytes) -> str:
        fd, path = tempfile.mkstemp(prefix=".new-", dir=folder)  # close-on-exec
        try:
            os.fchmod(fd, 0o644)
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        return path

    # -- membership

    def _rejoin(self) -> None:
        self._prepare()
        if self._member is not None and not self._holding():
            self._join()

    def _join(self) -> None:
        """Lock a file of my own, complete, then put it under my name: nobody ever sees it unlocked or half."""
        assert self._member is not None
        self._prepare()
        self.abandon()
        member, path = self._member, self._member_path(self._member.name)
        session = self._world.entropy.token(8)
        with _short_lock(self._path("lock")):
            holder = self._listed(member.name)
            if holder is not None and holder[0].process != member.process:
                raise NameTaken(
                    f"another live process (at {holder[0].url}) takes part as {member.name!r}: "
                    "give this one another name"
                )
            fd, temporary = tempfile.mkstemp(prefix=".new-", dir=self._path("members"))
            try:
                os.fchmod(fd, 0o644)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(fd, dump(member_to_json(member) | {"session": session}))
                os.rename(temporary, path)
                if not os.path.samestat(os.fstat(fd), os.stat(path)):
                    raise CoordinatorUnavailable(f"{path} was replaced while it was made")
            except BaseException:
                os.close(fd)
                if os.path.exists(temporary):
                    os.unlink(temporary)
                raise
            self._fd, self._session = fd, session
            self._generation += 1
            _HOLDERS.add(self)

    def _leave(self) -> None:
        with _short_lock(self._path("lock")):
            if self._holding() and self._member is not None:
                os.unlink(self._member_path(self._member.name))

    def _listed(self, name: str) -> tuple[Member, str] | None:
        """The live member of that name, with its session; for callers that hold the short lock."""
        return _live(self._member_path(name))

    def _scan(self) -> tuple[dict[str, Member], list[str]]:
        found: dict[str, Member] = {}
        dead: list[str] = []
        for entry in sorted(os.listdir(self._path("members"))):
            if entry.startswith(".") or not entry.endswith(".member"):
                continue
            name = unquote(entry.removesuffix(".member"))
            listed = self._probe(name)
            if listed is None:
                dead.append(name)
            elif listed[0].name == name:
                found[name] = listed[0]
        return found, dead

    def _probe(self, name: str) -> tuple[Member, str] | None:
        with _FORKS:
            return self._listed(name)

    def _remove_dead(self, names: list[str]) -> None:
        with _short_lock(self._path("lock")):
            for name in names:
                if self._listed(name) is None:
                    try:
                        os.unlink(self._member_path(name))
                    except FileNotFoundError:
                        pass

    # -- records

    def _read_record(self, feed: str) -> _Record:
        """The record; one without leader and of epoch 0 where it is missing or torn."""
        try:
            with open(self._record_path(feed), "rb") as file:
                value = load(file.read(RECORD_BYTES_MAX + 1))
        except FileNotFoundError:
            return _Record()
        if value is None:
            return _Record()
        version, epoch, leader = value.get("version"), value.get("epoch"), value.get("leader")
        if not isinstance(version, int) or not isinstance(epoch, int) or version < 0 or epoch < 0:
            return _Record()
        if leader is None:
            return _Record(version, epoch)
        session = leader.get("session") if isinstance(leader, dict) else None
        if not isinstance(session, str):
            return _Record()
        return _Record(version, epoch, leader_from_json(leader, session))

    def _view(self, feed: str) -> View:
        record = self._read_record(feed)
        return View(feed, record.epoch, record.version, record.leader if self._alive(record.leader) else None)

    def _alive(self, leader: LeaderRecord | None) -> bool:
        if leader is None:
            return False
        listed = self._probe(leader.name)
        return listed is not None and listed[1] == leader.session

    def _holds(self, leader: LeaderRecord | None, epoch: int) -> bool:
        return leader is not None and leader.epoch == epoch and leader.session == self._session != ""

    def _new_version(self) -> int:
        return int(self._world.entropy.token(8), 16) >> 2

    async def _win(self, feed: str, seen: View, *, challenge: bool) -> View | None:
        await self._keep()
        member, session, version = self._member, self._session, self._new_version()
        if member is None or not session:
            raise CoordinatorUnavailable("not joined: this instance is no member of the coordinator now")
        me = LeaderRecord(member.name, member.process, member.url, seen.epoch + 1, session)

        def decide(current: _Record) -> _Record | None:
            if current.version != seen.version or (not challenge and self._alive(current.leader)):
                return None
            return _Record(version, me.epoch, me)

        won = await self._in_thread(lambda: self._change(feed, decide))
        return None if won is None else View(feed, won.epoch, won.version, won.leader)

    def _change(self, feed: str, decide: Callable[[_Record], _Record | None]) -> _Record | None:
        """Replace the record by what `decide` makes of it (None: leave it). The new one is written and synced before
        the short lock is taken, so that the lock is held for a comparison and a rename only."""
        path, folder = self._record_path(feed), self._path("feeds")
        for _ in range(_ROUNDS_MAX):
            current = self._read_record(feed)
            wanted = decide(current)
            if wanted is None:
                return None
            leader = None
            if wanted.leader is not None:
                leader = leader_to_json(wanted.leader) | {"session": wanted.leader.session}
            temporary = self._write_beside(
                folder, dump({"version": wanted.version, "epoch": wanted.epoch, "leader": leader})
            )
            with _short_lock(self._path("lock")):
                changed = self._read_record(feed) != current
                if not changed:
                    os.rename(temporary, path)
            if changed:
                os.unlink(temporary)
                continue
            _sync_folder(folder)
            return wanted
        raise CoordinatorUnavailable(f"the record of {feed} changed {_ROUNDS_MAX} times while it was to be changed")


def _live(path: str) -> tuple[Member, str] | None:
    """The member whose file is locked, with its session; None for a dead or missing one. The caller holds _FORKS: a
    child forked while this looks would keep the trial lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            value = load(os.read(fd, RECORD_BYTES_MAX + 1))
            member = member_from_json(value)
            session = value.get("session") if value is not None else None
            return (member, session) if member is not None and isinstance(session, str) else None
        return None
    finally:
        os.close(fd)


def _make_folder(folder: str) -> None:
    """Make a folder and those above it that are missing, each durable with its name."""
    missing = []
    at = folder
    while not os.path.lexists(at):
        missing.append(at)
        at = os.path.dirname(at)
    os.makedirs(folder, exist_ok=True)
    for made in reversed(missing):
        _sync_folder(os.path.dirname(made))


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _conforms(coordinator: FileCoordinator) -> Coordinator:
    return coordinator  # mypy holds the class to the contract
