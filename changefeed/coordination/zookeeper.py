"""ZooKeeper, seen from trio: the only module of the project that knows kazoo. The recipe is zookeeper_recipe.py.

**Threads.** kazoo runs three of its own. Its callbacks only hand facts to trio (`run_sync_soon`); requests are put into
its queue from trio, which does not block; only closing blocks, and runs in a thread with a limiter of its own.

**Time.** A reply may never come: callers set the limits. kazoo tells that a session is lost only after it has reached a
server again; until then `session` stays what it was.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import trio
from kazoo.client import KazooClient
from kazoo.exceptions import (
    BadVersionError,
    KazooException,
    NodeExistsError,
    NoNodeError,
    RolledBackError,
    RuntimeInconsistency,
)
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.states import KazooState, KeeperState
from kazoo.retry import KazooRetry

from changefeed.coordination import Member
from changefeed.coordination.records import load, member_from_json
from changefeed.coordination.urls import zookeeper_servers
from changefeed.errors import CoordinatorUnavailable

T = TypeVar("T")
log = logging.getLogger(__name__)
#: kazoo tells of every lost connection as a warning; state() and status say it better.
_kazoo_log = logging.getLogger(f"{__name__}.kazoo")
_kazoo_log.setLevel(logging.ERROR)

#: A TCP connection to a server that does not answer is given up after this: kazoo would wait a whole session.
TCP_LIMIT_S: Final = 2.0
CLOSE_LIMIT_S: Final = 2.0
TOOL_LIMIT_S: Final = 10.0


class Refusal(Exception):
    """The ensemble said no; nothing was changed."""


class NoNode(Refusal):
    """There is no such node, or no parent to create it below."""


class NodeExists(Refusal):
    """There is such a node already."""


class BadVersion(Refusal):
    """The node has another version than the one given."""


_REFUSALS: Final = ((NoNodeError, NoNode), (NodeExistsError, NodeExists), (BadVersionError, BadVersion))


def _ours(error: BaseException) -> BaseException:
    """kazoo's exception as one that the recipe knows."""
    for theirs, ours in _REFUSALS:
        if isinstance(error, theirs):
            return ours(str(error))
    if isinstance(error, KazooException):
        return CoordinatorUnavailable(f"ZooKeeper: {error or type(error).__name__}")
    if isinstance(error, RuntimeError):
        # A server whose quorum was just lost may leave an answer out; kazoo gives its connection up with this. What was
        # asked may have been done, as after any lost connection.
        return CoordinatorUnavailable(f"ZooKeeper's answers cannot be matched, its client gave up: {error}")
    return error


@dataclass(frozen=True, slots=True)
class Node:
    """version: how often the data was set. owner: the session that an ephemeral node belongs to, else ""."""

    data: bytes
    version: int
    owner: str


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One step of a transaction. kind: check, create, set or delete. version: -1 is any."""

    kind: str
    path: str
    data: bytes = b""
    version: int = -1
    ephemeral: bool = False


def session_name(session_id: int) -> str:
    """A session id as it is shown everywhere: hexadecimal, as in ZooKeeper's own logs; "" for 0."""
    return f"{session_id & 0xFFFF_FFFF_FFFF_FFFF:x}" if session_id else ""


class Reply(Generic[T]):
    """The answer to one request."""

    def __init__(self, convert: Callable[[Any], T]) -> None:
        self._done = trio.Event()
        self._convert = convert
        self._error: BaseException | None = None
        self._value: Any = None

    def set(self, error: BaseException | None, value: Any) -> None:
        self._error, self._value = error, value
        self._done.set()

    async def get(self) -> T:
        """The answer. Raises NoNode, NodeExists, BadVersion, CoordinatorUnavailable."""
        await self._done.wait()
        if self._error is not None:
            raise _ours(self._error)
        return self._convert(self._value)


class _Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """cut_off: no connection is made while it is set (by tests)."""

    cut_off = False

    def create_connection(self, *args: Any, timeout: float = TCP_LIMIT_S, **options: Any) -> Any:
        if self.cut_off:
            raise ConnectionRefusedError("cut off by a test")
        return super().create_connection(*args, timeout=min(timeout, TCP_LIMIT_S), **options)


class ZookeeperClient:
    """One KazooClient. Its attributes are facts that arrived in the trio thread; `notify` is called there when they
    changed. Requests are answered in the order in which they were begun.

    connected: there is a session with a server that takes writes. session: its name; "" once it is known to be lost.
    session_s: the negotiated time-out. ended: kazoo gave up; this client will never connect again.
    changed_at: trio time of the last change of state.
    """

    def __init__(self, hosts: str, session_s: float, notify: Callable[[], None]) -> None:
        self.connected = False
        self.read_only = False
        self.session = ""
        self.session_s = 0.0
        self.ended = False
        self.changed_at = trio.current_time()
        self._hosts, self._asked_s = hosts, session_s
        self._heard_at = -1.0
        self._closing = False
        self._notify = notify
        self._token = trio.lowlevel.current_trio_token()
        self._handler = _Handler()
        self._kazoo = KazooClient(
            hosts=hosts,
            timeout=session_s,
            handler=self._handler,
            read_only=False,  # a read-only server's session is worth nothing, and kazoo does not leave it reliably
            connection_retry=KazooRetry(
                max_tries=-1, delay=0.05, backoff=1.5, max_delay=1.0, sleep_func=self._handler.sleep_func
            ),
            logger=_kazoo_log,
        )
        self._kazoo.add_listener(self._on_state)
        self._watch_handshake()
        self._kazoo.start_async()

    # -- in kazoo's threads: hand facts over, nothing else

    def _post(self, action: Callable[..., object], *facts: object) -> None:
        try:
            self._token.run_sync_soon(action, *facts)
        except trio.RunFinishedError:
            pass

    def _on_state(self, state: str) -> None:
        identity = self._kazoo.client_id
        self._post(self._set_state, state, identity[0] if identity else 0, self._kazoo.client_state)

    def _watch_handshake(self) -> None:
        """kazoo keeps the negotiated time-out to itself: look at the handshake's reply as it passes."""
        connection = self._kazoo._connection
        invoke = connection._invoke

        def invoke_and_look(*args: Any, **options: Any) -> Any:
            reply = invoke(*args, **options)
            granted = getattr(reply[0], "time_out", None) if isinstance(reply, tuple) and reply else None
            if isinstance(granted, int) and granted > 0:
                self._post(setattr, self, "session_s", granted / 1000.0)
            return reply

        connection._invoke = invoke_and_look

    # -- in the trio thread

    def _set_state(self, state: str, session_id: int, keeper: str) -> None:
        self.read_only = keeper == KeeperState.CONNECTED_RO
        self.connected = state == KazooState.CONNECTED and session_id != 0 and not self.read_only
        if session_id:
            self.session = session_name(session_id)
        if state == KazooState.LOST:
            self.session = ""
            self.ended = keeper in (KeeperState.CLOSED, KeeperState.AUTH_FAILED) and not self._closing
        self.changed_at = trio.current_time()
        self._notify()

    def _begin(self, start: Callable[[Any], Any], convert: Callable[[Any], T]) -> Reply[T]:
        reply = Reply(convert)

        def hand_over(result: Any) -> None:
            self._post(self._deliver, reply, result.exception, result.value)

        start(self._kazoo).rawlink(hand_over)
        return reply

    def _deliver(self, reply: Reply[Any], error: BaseException | None, value: Any) -> None:
        self._heard_at = trio.current_time()
        reply.set(error, value)

    def sync(self, path: str) -> Reply[None]:
        """What is read behind this is at least as new as this."""
        return self._begin(lambda kazoo: kazoo.sync_async(path), lambda _: None)

    def get(self, path: str) -> Reply[Node]:
        def convert(found: Any) -> Node:
            data, stat = found
            return Node(data, stat.version, session_name(stat.ephemeralOwner))

        return self._begin(lambda kazoo: kazoo.get_async(path), convert)

    def children(self, path: str) -> Reply[list[str]]:
        return self._begin(lambda kazoo: kazoo.get_children_async(path), sorted)

    def watch(self, path: str, changed: Callable[[], None]) -> Reply[None]:
        """Call `changed` in the trio thread once, when the node is made, set or deleted, or when watches are lost with
        the connection. Setting the same watch (an equal `changed`) again does not double it."""
        return self._begin(lambda kazoo: kazoo.exists_async(path, _Watch(self, changed)), lambda _: None)

    def create(self, path: str, data: bytes = b"", *, ephemeral: bool = False, sequence: bool = False) -> Reply[str]:
        """The reply is the path made."""
        return self._begin(lambda kazoo: kazoo.create_async(path, data, ephemeral=ephemeral, sequence=sequence), str)

    async def create_all(self, paths: Sequence[str], data: bytes = b"") -> None:
        """Make persistent nodes, parents first; those that are there stay as they are."""
        replies = [self.create(path, data) for path in paths]
        for reply in replies:
            try:
                await reply.get()
            except NodeExists:
                pass

    async def transaction(self, ops: Sequence[Op]) -> tuple[Op, Refusal] | None:
        """All steps or none. None: done; else the step that was refused, and why."""

        def start(kazoo: Any) -> Any:
            request = kazoo.transaction()
            for op in ops:
                if op.kind == "check":
                    request.check(op.path, op.version)
                elif op.kind == "create":
                    request.create(op.path, op.data, ephemeral=op.ephemeral)
                elif op.kind == "set":
                    request.set_data(op.path, op.data, op.version)
                else:
                    request.delete(op.path, op.version)
            return request.commit_async()

        results = await self._begin(start, list).get()
        faults = [(op, result) for op, result in zip(ops, results, strict=True) if isinstance(result, Exception)]
        if not faults:
            return None
        told = [fault for fault in faults if not isinstance(fault[1], RolledBackError | RuntimeInconsistency)]
        op, error = (told or faults)[0]
        ours = _ours(error)
        if not isinstance(ours, Refusal):
            raise ours
        return op, ours

    @property
    def newest_seen(self) -> int:
        """Transaction id of the newest data that this client has seen; servers that are behind it refuse it."""
        return int(self._kazoo.last_zxid or 0)

    def check(self) -> None:
        """Notice that kazoo's thread has ended by itself (it does not always say so)."""
        if not self._closing and self._kazoo._connection.connection_stopped.is_set():
            self.ended = True

    def suspect(self, since: float) -> None:
        """A request begun at `since` got no answer. If nothing came at all, cut the connection: as long as requests
        are sent, kazoo sends no pings and would never notice a frozen server."""
        if self._heard_at < since:
            self.cut()

    def cut(self) -> None:
        """Break the connection; kazoo makes another one, keeping the session."""
        stream = getattr(self._kazoo._connection, "_socket", None)
        if stream is not None:
            try:
                stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    async def close(self) -> None:
        """End the session and kazoo's threads; at most CLOSE_LIMIT_S, then the session is left to time out and the
        threads end by themselves. Not cancelled midway."""
        self._closing = True

        def stop() -> None:
            try:
                self._kazoo.stop()
                self._kazoo.close()
            except Exception as error:  # a writer that would not end: its connection has been cut by then
                log.info("closing a ZooKeeper client: %s", error)

        with trio.CancelScope(shield=True):
            with trio.move_on_after(CLOSE_LIMIT_S) as scope:
                await trio.to_thread.run_sync(stop, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True)
            if scope.cancelled_caught:
                self.cut()

    async def expire(self) -> None:
        """For tests: be cut off for as long as it takes to end my session at the servers, as its time-out would. The
        client then gets a new one by itself. (Another client takes the session over and closes it; two connections of
        one session at once confuse the servers, hence the cut.)"""
        identity = (self._kazoo._session_id, self._kazoo._session_passwd)
        self._handler.cut_off = True
        try:
            self.cut()
            await _with_tool(self._hosts, lambda tool: None, timeout=self._asked_s, client_id=identity)
        finally:
            self._handler.cut_off = False


@dataclass(frozen=True, slots=True)
class _Watch:
    """Called by kazoo in its thread. Equal ones count as one: kazoo keeps watches in sets."""

    client: ZookeeperClient
    changed: Callable[[], None]

    def __call__(self, event: object) -> None:
        self.client._post(self.changed)


async def read_members(client: ZookeeperClient, root: str) -> dict[str, Member]:
    """The members listed below a chroot, by name; a node that is not ours is left out."""
    base = f"{root}/instances"
    client.sync(base)
    try:
        names = await client.children(base).get()
    except NoNode:
        return {}
    found: dict[str, Member] = {}
    for reply in [client.get(f"{base}/{name}") for name in names]:
        try:
            member = member_from_json(load((await reply.get()).data))
        except NoNode:
            continue
        if member is not None:
            found[member.name] = member
    return found


async def list_members(url: str, *, timeout_s: float = 5.0) -> dict[str, Member]:
    """The live members below a zk:// URL by name, over a connection made for it: for clients that are given the
    ensemble as their servers. Raises BadUrl, CoordinatorUnavailable (also when it takes longer than `timeout_s`)."""
    hosts, root = zookeeper_servers(url)
    connected = trio.Event()
    client = ZookeeperClient(hosts, 2 * timeout_s, lambda: connected.set() if client.connected else None)
    try:
        with trio.fail_after(timeout_s):
            await connected.wait()
            return await read_members(client, root)
    except trio.TooSlowError:
        raise CoordinatorUnavailable(f"{url} did not list its members within {timeout_s:g} s") from None
    finally:
        await client.close()


async def delete_tree(url: str, path: str = "") -> None:
    """Delete a node below the chroot (or the chroot itself) with all that is under it, in one transaction: for tests
    and operators. Raises CoordinatorUnavailable."""
    hosts, root = zookeeper_servers(url)
    top = f"{root}{path}"
    if not top:
        raise ValueError("the root of ZooKeeper's tree cannot be deleted: name a chroot or a path")

    def below(tool: Any, node: str) -> list[str]:
        return [deep for child in tool.get_children(node) for deep in below(tool, f"{node}/{child}")] + [node]

    def delete(tool: Any) -> None:
        for _ in range(20):  # others may add nodes between the look and the transaction
            try:
                paths = below(tool, top)
            except NoNodeError:
                if tool.exists(top) is None:
                    return
                continue
            request = tool.transaction()
            for node in paths:
                request.delete(node)
            if not any(isinstance(result, Exception) for result in request.commit()):
                return
        raise CoordinatorUnavailable(f"{top} changes all the time: not deleted")

    await _with_tool(hosts, delete)


async def _with_tool(hosts: str, action: Callable[[Any], object], **options: Any) -> None:
    """Do something with a blocking client of its own, in a thread."""

    def run() -> None:
        tool = KazooClient(hosts=hosts, logger=_kazoo_log, **options)
        try:
            tool.start(timeout=TOOL_LIMIT_S)
            action(tool)
        finally:
            tool.stop()
            tool.close()

    try:
        await trio.to_thread.run_sync(run, limiter=trio.CapacityLimiter(1))
    except (KazooException, SequentialThreadingHandler.timeout_exception) as error:
        raise CoordinatorUnavailable(f"ZooKeeper at {hosts}: {error or type(error).__name__}") from error
