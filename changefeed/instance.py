"""One process's part in its feeds; the only place that knows everything. Public: `open_instance`.

It opens the log and the coordinator, listens, joins, runs one FeedNode per feed (again, if its log was replaced under
it), and hands each connection to the stage that its first message names.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from changefeed.change import FeedSettings, check_feed_name
from changefeed.coordination import Coordinator, Member
from changefeed.coordination.urls import open_coordinator
from changefeed.errors import (
    BadConfig,
    BadUrl,
    ChangefeedError,
    ConnectionLost,
    InsecureListen,
    InvalidName,
    LogDamaged,
    LogFormatUnknown,
    LogReplaced,
    NotCurrent,
    NotDeclaredHere,
)
from changefeed.feednode import FeedNode, OwnClients
from changefeed.log import FeedLog, LogStore
from changefeed.log.urls import open_log
from changefeed.nursery import lone, open_owned_nursery
from changefeed.peer.driver import ask_peer, serve_peer
from changefeed.ports import World
from changefeed.publisher.driver import Publisher, open_publisher
from changefeed.serving.entry import serve_connection
from changefeed.serving.feed import Feed
from changefeed.serving.http import Routes
from changefeed.settings import DEFAULT_PORT, Settings
from changefeed.signal import Changed
from changefeed.status import instance_status
from changefeed.subscriber.driver import Subscription, open_subscription
from changefeed.transport import Connection, Listener, Network, Request
from changefeed.transport.memory import connection_pair
from changefeed.transport.urls import parse_url
from changefeed.transport.websocket import WebsocketNetwork
from changefeed.wire import MSGPACK, PEER, SUBPROTOCOLS
from changefeed.wire.codec import encode
from changefeed.wire.messages import Ask, PeerHello

logger = logging.getLogger("changefeed.instance")

#: Between two tries to open a feed's log again after it failed.
REOPEN_S = 1.0
#: How long a drain asks the coordinator where else a feed is served.
OTHERS_S = 2.0
#: How long the end may take: a coordinator that is away is left to notice by itself.
CLOSE_S = 5.0


class Instance:
    """A running instance; made by `open_instance`, ends with its block.

    name, process: who; `process` is random, new at each start. address: (host, port) listened on. url: what peers use.
    """

    def __init__(
        self,
        feeds: Sequence[str],
        *,
        store: LogStore,
        coordinator: Coordinator,
        listener: Listener,
        network: Network,
        member: Member,
        settings: Settings,
        world: World,
        kill_frozen: bool,
    ) -> None:
        self.name = member.name
        self.process = member.process
        self.url = member.url
        self.address = listener.address
        self.settings = settings
        self.world = world
        self.started = world.wall_ms()
        self.store = store
        self.coordinator = coordinator
        self.kill_frozen = kill_frozen
        self.draining = False
        self._member = member
        self._network = network
        self._listener = listener
        self._feeds = tuple(feeds)
        self._nodes: dict[str, FeedNode] = {}
        self._problems: dict[str, ChangefeedError] = {}
        self._changed = Changed()
        self._clients: trio.Nursery | None = None
        self._connections = 0

    # ---- for applications

    def leads(self, feed: str) -> bool:
        """Whether this instance leads the feed now (it may be deposed the next moment: only the log decides)."""
        node = self._nodes.get(feed)
        return node is not None and node.near_leader() is not None

    def status(self) -> dict[str, Any]:
        """What `changefeed status --json` shows of this instance; JSON-able."""
        return instance_status(self)

    async def wait_ready(self) -> None:
        """Until every feed knows a leader. Cancellation: safe."""
        while not all(self.ready(feed) for feed in self._feeds):
            await self._changed.wait()

    def ready(self, feed: str) -> bool:
        node = self._nodes.get(feed)
        return node is not None and node.failed is None and bool(node.leading()[0])

    @property
    def feeds(self) -> tuple[str, ...]:
        return self._feeds

    def node(self, feed: str) -> FeedNode | None:
        """The feed's present node; None while its log cannot be opened."""
        return self._nodes.get(feed)

    def problem(self, feed: str) -> ChangefeedError | None:
        """Why the feed is not served, if it is not."""
        return self._problems.get(feed)

    @asynccontextmanager
    async def publisher(self, feed: str, *, name: str | None = None) -> AsyncIterator[Publisher]:
        """A publisher through this instance, without a socket; see `open_publisher`."""
        async with open_publisher(
            self._own(feed), name=name, settings=self.settings, world=self.world, connect=self._connect_self
        ) as publisher:
            yield publisher

    @asynccontextmanager
    async def subscribe(self, feed: str, **options: Any) -> AsyncIterator[Subscription]:
        """A subscription through this instance, without a socket; options as for `open_subscription`."""
        async with open_subscription(
            self._own(feed), settings=self.settings, world=self.world, connect=self._connect_self, **options
        ) as subscription:
            yield subscription

    def _own(self, feed: str) -> str:
        if feed not in self._feeds:
            raise NotDeclaredHere(f"this instance takes part in {', '.join(self._feeds)}, not in {feed!r}")
        return feed

    async def _connect_self(self) -> Connection:
        if self._clients is None:
            raise NotCurrent("this instance has been closed")
        mine, served = connection_pair(MSGPACK)
        self._clients.start_soon(self._serve_own, served)
        return mine

    async def _serve_own(self, connection: Connection) -> None:
        """They stay while the instance drains: what they submit goes on to whoever leads then."""
        try:
            await self._serve(connection, Request("/v1", peer="in-process"), own=True)
        except* ChangefeedError as group:
            logger.debug("in-process connection ended: %s", group.exceptions[0])
        finally:
            connection.abort()

    async def drain(self) -> None:
        """Hand over what I lead, send clients elsewhere (subscribers spread over `redirect_spread_s`), stop listening.

        Returns when no other process is connected any more, or after `drain_s`. This instance's own publishers and
        subscriptions go on until the instance is closed. Cancellation: may be called again.
        """
        self.draining = True
        with trio.move_on_after(self.settings.drain_s):
            async with trio.open_nursery() as nursery:
                for feed, node in list(self._nodes.items()):
                    nursery.start_soon(self._drain_feed, feed, node)
            await self._listener.aclose()
            while self._connections:
                await self._changed.wait()

    async def _drain_feed(self, feed: str, node: FeedNode) -> None:
        """A handover that takes longer than half of the time goes on while clients are sent away."""
        with trio.move_on_after(self.settings.drain_s / 2):
            await node.hand_over()
        node.drain_to(await self._others(feed))

    async def _others(self, feed: str) -> tuple[str, ...]:
        """Where else the feed is served, as far as the coordinator knows."""
        with trio.move_on_after(OTHERS_S):
            try:
                members = await self.coordinator.members()
            except ChangefeedError:
                return ()
            others = [one for one in members.values() if one.process != self.process and feed in one.feeds]
            return tuple(one.url for one in others)
        return ()

    # ---- tasks

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. The coordinator has been joined before."""
        async with trio.open_nursery() as nursery:
            self._clients = nursery
            try:
                for feed in self._feeds:
                    await nursery.start(self._run_feed, feed)
                routes = Routes(self.status, self.readiness)
                nursery.start_soon(self._listener.serve, self._handle, routes.respond)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._clients = None

    async def _run_feed(self, feed: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the feed's node; again, from the log on, if its log was damaged or replaced or a fault of ours ended it.

        Raises what keeps the log from being opened the first time (LogUnavailable …), except for a damaged one: the
        instance then serves its other feeds and says so.
        """
        untold = [task_status.started]

        def tell() -> None:
            while untold:
                untold.pop()()

        while True:
            try:
                log, declared = await self._open_log(feed)
            except ChangefeedError as error:
                if untold and not isinstance(error, LogReplaced | LogDamaged | LogFormatUnknown):
                    raise
                self._problem(feed, error)
            else:
                try:
                    await self._run_node(feed, log, declared, tell)
                finally:
                    with trio.CancelScope(shield=True):
                        await log.aclose()
            tell()
            await trio.sleep(REOPEN_S)
            if self.draining:
                # A node that begins now would only stand for election.
                return

    async def _open_log(self, feed: str) -> tuple[FeedLog, FeedSettings]:
        """The feed's log, and its settings. Raises what the log says."""
        log = await self.store.open(feed)
        try:
            return log, await log.settings()
        except BaseException:
            with trio.CancelScope(shield=True):
                await log.aclose()
            raise

    async def _run_node(self, feed: str, log: FeedLog, declared: FeedSettings, started: Callable[[], None]) -> None:
        """One node, until its log fails or a fault of ours ends it; either is said in `problem`."""
        node: FeedNode | None = None
        try:
            node = FeedNode(
                log=log,
                declared=declared,
                coordinator=self.coordinator,
                network=self._network,
                member=self._member,
                settings=self.settings,
                world=self.world,
                kill_frozen=self.kill_frozen,
            )
            self._nodes[feed] = node
            self._problems.pop(feed, None)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._relay_changes, node)
                started()
                await node.run()
                nursery.cancel_scope.cancel()
        except Exception as error:
            # A fault of ours in one feed must not end the others: say it loudly, then begin again from the log.
            logger.exception("feed %s: its part in this instance failed and is started again", feed)
            failed = NotCurrent(f"feed {feed} failed here and is started again: {error!r}"[:500])
            self._problem(feed, failed)
            if node is not None:
                node.fail(failed)
        finally:
            self._nodes.pop(feed, None)
        if node is not None and node.failed is not None:
            self._problem(feed, node.failed)

    def _problem(self, feed: str, error: ChangefeedError) -> None:
        if str(self._problems.get(feed)) != str(error):
            logger.error("feed %s is not served: %s", feed, error)
        self._problems[feed] = error
        self._changed.notify()

    async def _relay_changes(self, node: FeedNode) -> None:
        while True:
            self._changed.notify()
            await node.changed.wait()

    # ---- connections

    def readiness(self) -> tuple[bool, list[str]]:
        """Whether this instance can do its work, and why not."""
        reasons = []
        if self.draining:
            reasons.append("draining")
        for feed in self._feeds:
            problem = self._problems.get(feed)
            if problem is not None:
                reasons.append(f"feed {feed}: {problem}")
            elif not self.ready(feed):
                reasons.append(f"feed {feed}: no leader is known")
        return not reasons, reasons

    async def _handle(self, connection: Connection, request: Request) -> None:
        self._connections += 1
        try:
            await self._serve(connection, request)
        finally:
            self._connections -= 1
            self._changed.notify()

    async def _serve(self, connection: Connection, request: Request, *, own: bool = False) -> None:
        chosen = _Chosen(self._nodes, self._feeds, self._problems)
        feeds: Mapping[str, Feed] = _Own(chosen) if own else chosen
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cut_when_failed, chosen, connection)
            await serve_connection(connection, request, feeds, partial(self._serve_peer, chosen), self.settings)
            nursery.cancel_scope.cancel()

    async def _cut_when_failed(self, chosen: _Chosen, connection: Connection) -> None:
        """A session must not outlive its feed's node: the log under it is gone."""
        node = await chosen.wait()
        await node.wait_failed()
        assert node.failed is not None
        with trio.move_on_after(1):
            await connection.aclose(node.failed.close_code, str(node.failed)[:100])
        raise ConnectionLost(str(node.failed))

    async def _serve_peer(self, feeds: Mapping[str, FeedNode], connection: Connection, first: Any) -> None:
        try:
            node = feeds[first.feed]
        except KeyError:
            raise NotDeclaredHere(f"instance {self.name} takes no part in feed {first.feed!r}") from None
        if isinstance(first, Ask):
            await connection.send(encode(node.said(first), PEER))
            # The asker closes; waiting for it keeps the answer from being cut off.
            await connection.receive()
        elif isinstance(first, PeerHello):
            await serve_peer(connection, first, node)


class _Chosen(Mapping[str, FeedNode]):
    """The feeds as one connection sees them; remembers which one it chose."""

    def __init__(
        self, nodes: Mapping[str, FeedNode], feeds: Sequence[str], problems: Mapping[str, ChangefeedError]
    ) -> None:
        self._nodes = nodes
        self._feeds = feeds
        self._problems = problems
        self._choice: FeedNode | None = None
        self._chosen = trio.Event()

    def __getitem__(self, feed: str) -> FeedNode:
        node = self._nodes.get(feed)
        if node is None:
            if feed in self._feeds:
                problem = self._problems.get(feed)
                raise problem if problem is not None else NotCurrent(f"feed {feed} is being opened; ask again")
            raise KeyError(feed)
        self._choice = node
        self._chosen.set()
        return node

    def __iter__(self) -> Iterator[str]:
        return iter(self._feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    def __contains__(self, feed: object) -> bool:
        return feed in self._feeds

    async def wait(self) -> FeedNode:
        await self._chosen.wait()
        assert self._choice is not None
        return self._choice


class _Own(Mapping[str, Feed]):
    """The feeds as the instance's own clients see them."""

    def __init__(self, chosen: _Chosen) -> None:
        self._chosen = chosen

    def __getitem__(self, feed: str) -> Feed:
        return OwnClients(self._chosen[feed])

    def __iter__(self) -> Iterator[str]:
        return iter(self._chosen)

    def __len__(self) -> int:
        return len(self._chosen)


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT", ":PORT", "[::1]:PORT" or "HOST"; raises BadConfig."""
    host, _, port = text.rpartition(":") if ":" in text and not text.endswith("]") else (text, "", str(DEFAULT_PORT))
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdigit() or int(port) > 65535:
        raise BadConfig(f"--listen {text!r}: write HOST:PORT, for example 127.0.0.1:{DEFAULT_PORT}")
    return host, int(port)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_advertise(host: str, port: int) -> str:
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    return f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"


def check_feeds(feeds: Sequence[str]) -> None:
    """Raise InvalidName or BadConfig unless these can be an instance's feeds."""
    for feed in feeds:
        check_feed_name(feed)
    if not feeds:
        raise BadConfig("name at least one feed")
    twice = next((feed for index, feed in enumerate(feeds) if feed in feeds[:index]), None)
    if twice is not None:
        raise BadConfig(f"feed {twice!r} is named twice; name each feed once")


def check_advertise(url: str) -> None:
    """Raise BadUrl for what nobody could connect to."""
    try:
        parse_url(url)
    except BadUrl as error:
        raise BadUrl(f"--advertise (advertise=): {error}") from error


def check_instance_name(name: str) -> str:
    if not name or len(name) > 64 or not all(c.isalnum() or c in "._-" for c in name):
        raise InvalidName(f"{name!r} cannot name an instance: use 1 to 64 letters, digits, '.', '-' or '_'")
    return name


async def _alive(network: Network, feeds: Sequence[str], settings: Settings, member: Member) -> bool:
    """Whether the process of a member still answers at its URL: a name may be taken over only from a dead one."""
    said = await ask_peer(network, member.url, (member.feeds or tuple(feeds))[0], member.process, settings)
    return said is not None and said.process == member.process


@asynccontextmanager
async def open_instance(
    feeds: Sequence[str],
    *,
    log: str | LogStore = "sqlite:changefeed-data/log",
    coordinator: str | Coordinator = "file:changefeed-data/coordinator",
    listen: str = f"127.0.0.1:{DEFAULT_PORT}",
    advertise: str | None = None,
    name: str | None = None,
    candidate: bool = True,
    insecure: bool = False,
    kill_frozen: bool = False,
    settings: Settings | None = None,
    network: Network | None = None,
    world: World | None = None,
) -> AsyncIterator[Instance]:
    """Take part in feeds: serve subscribers, accept publishes, be a candidate for leader.

    feeds: names; each feed's log is created if it is missing. log, coordinator: URLs (or opened ones, for tests).
    listen: HOST:PORT (port 0: any free one); beyond loopback only with `insecure=True`, as there is no authentication
    yet. advertise: the URL by which peers and redirected clients reach this instance. name: unique among the instances
    of a coordinator, default host and port. candidate: False to serve without ever leading. kill_frozen: SIGKILL a
    frozen leader on this machine that holds the log's lock once its epoch was won (see docs/internals/leadership.md).

    Raises InsecureListen, PortInUse, BadUrl, BadConfig, NameTaken, CoordinatorUnavailable, LogUnavailable. Leaving the
    block stops everything at once, without a drain: call `Instance.drain()` before. Cancellation: stops at once.
    """
    settings, world = settings or Settings(), world or World()
    network = network or WebsocketNetwork(settings)
    check_feeds(feeds)
    if advertise is not None:
        check_advertise(advertise)
    host, port = parse_listen(listen)
    if not insecure and not is_loopback(host):
        raise InsecureListen(
            f"will not listen on {host}, which is beyond loopback: there is no authentication yet. "
            "Say --insecure (insecure=True) if the network in front of it is trusted"
        )
    if name is not None:
        check_instance_name(name)
    store = open_log(log, settings, world=world) if isinstance(log, str) else log
    if isinstance(coordinator, str):
        alive: Callable[[Member], Any] = partial(_alive, network, feeds, settings)
        coordinator = open_coordinator(coordinator, settings, world=world, alive=alive)
    listener = await network.listen(
        host, port, subprotocols=(*SUBPROTOCOLS, PEER), message_bytes_max=settings.frame_bytes_max + 2**21
    )
    try:
        url = advertise or default_advertise(*listener.address)
        name = name or check_instance_name(f"{socket.gethostname()}-{listener.address[1]}"[:64])
        member = Member(name, world.entropy.token(8), url, candidate, tuple(feeds))
        instance = Instance(
            feeds,
            store=store,
            coordinator=coordinator,
            listener=listener,
            network=network,
            member=member,
            settings=settings,
            world=world,
            kill_frozen=kill_frozen,
        )
        await coordinator.start(member)
        async with open_owned_nursery() as nursery:
            try:
                await nursery.start(instance.run)
            except BaseExceptionGroup as group:
                raise lone(group) from None
            yield instance
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S):
            await listener.aclose()
            await coordinator.aclose()
            await store.aclose()


__all__ = ["Instance", "open_instance"]
