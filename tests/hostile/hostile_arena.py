"""A real `changefeed serve` process with a healthy publisher and a healthy subscriber beside everything that is tried.

`with Arena(folder) as arena:` ends with the judgement "nothing else was harmed": the process is the same and has logged
no error, each healthy peer had one connection and no error, every receipt is in the feed once and in order, and the
subscriber saw every seq of the feed, from the first to the last, once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import trio

from changefeed.change import Change, Receipt, Resource
from changefeed.errors import ConnectionLost
from changefeed.publisher.driver import Publisher, open_publisher
from changefeed.subscriber.driver import Subscription, open_subscription
from changefeed.testing.processes import ServeProcess
from changefeed.transport import Connection
from changefeed.transport.websocket import WebsocketNetwork
from changefeed.wire import MSGPACK
from changefeed.wire.changes import encode_change
from changefeed.wire.codec import decode, encode
from changefeed.wire.messages import Answer, Fault, Publish

#: Only to fail instead of hanging; nothing is measured against it.
PATIENCE_S = 60
#: What the feed vmapi declares; the feed free declares nothing.
DECLARED = (Resource("vm", ("state", "ram")), Resource("nic"))
#: Short enough for tests to wait for; everything else is as by default.
SETTINGS = ("handshake=1s", "stall_after=2s")
HEALTHY = "healthy"
#: The one thing that strangers may make an instance say aloud, at most once a second.
ALLOWED_WARNING = " connections, the last one of "


class OneConnection(WebsocketNetwork):
    """Counts what a healthy peer must do only once."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    async def connect(self, *args: Any, **options: Any) -> Connection:
        self.made += 1
        return await super().connect(*args, **options)


class Healthy:
    """A publisher and a subscriber of the feed vmapi, in a thread of their own."""

    def __init__(self, url: str) -> None:
        self.receipts: list[tuple[str, Receipt]] = []
        self.seen: list[tuple[int, str]] = []
        self._url = url
        self._networks = (OneConnection(), OneConnection())
        self._thread = threading.Thread(target=self._run, name="healthy peers")
        self._stop = threading.Event()
        self._error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._error = error

    async def _main(self) -> None:
        publishing, subscribing = self._networks
        async with (
            open_publisher("vmapi", self._url, network=publishing) as publisher,
            open_subscription("vmapi", self._url, start="beginning", network=subscribing, name=HEALTHY) as subscription,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._read, subscription)
            await self._publish(publisher)
            with trio.fail_after(PATIENCE_S):
                await subscription.wait_until(self.receipts[-1][1].position)
            assert publisher.status.last_error is None and subscription.state.last_error is None
            nursery.cancel_scope.cancel()

    async def _publish(self, publisher: Publisher) -> None:
        while not self._stop.is_set():
            id = f"{HEALTHY}-{len(self.receipts)}"
            with trio.fail_after(PATIENCE_S):
                self.receipts.append((id, await publisher.publish("vm", id, "update", fields=["state"])))
            await trio.sleep(0.01)

    async def _read(self, subscription: Subscription) -> None:
        async for event in subscription:
            self.seen.append((event.seq, event.id))

    def finish(self) -> None:
        """Stop, and raise AssertionError unless nothing was harmed."""
        self._stop.set()
        self._thread.join(2 * PATIENCE_S)
        assert not self._thread.is_alive(), "the healthy peers hang"
        if self._error is not None:
            raise self._error
        assert [network.made for network in self._networks] == [1, 1], "a healthy peer had to connect again"
        seqs = [seq for seq, _ in self.seen]
        assert seqs == list(range(1, len(seqs) + 1)), "the healthy subscriber missed events, or saw some again"
        mine = [(seq, id) for seq, id in self.seen if id.startswith(HEALTHY)]
        told = [(receipt.position.seq, id) for id, receipt in self.receipts]
        assert mine[: len(told)] == told, "receipts and the feed differ"
        assert len(told) > 1, "the healthy publisher published nothing"


class Arena:
    """url: of the instance. Its feeds: vmapi (see DECLARED) and free. warns: what it may warn of."""

    def __init__(self, folder: Path, *, healthy: bool = True, flags: Sequence[str] = (), warns: str = "") -> None:
        self.folder = folder
        self.log = f"sqlite:{folder / 'log'}"
        self.coordinator = f"file:{folder / 'coordinator'}"
        tuned = [word for setting in SETTINGS for word in ("--set", setting)]
        self.instance = serve_process(
            ["vmapi", "free"],
            log=self.log,
            coordinator=self.coordinator,
            name="one",
            folder=folder,
            flags=[*tuned, *flags],
        )
        self.url = self.instance.url
        self.network = WebsocketNetwork()
        self._healthy = Healthy(self.url) if healthy else None
        self._process = ""
        self._allowed = [ALLOWED_WARNING, *([warns] if warns else [])]

    def __enter__(self) -> Arena:
        declare(self.folder, self.log)
        self.instance.start()
        try:
            until(lambda: self.instance.ready() or not self.instance.running, self.instance.tail)
            assert self.instance.running, self.instance.tail()
            self._process = self.instance.get("/status")["process"]
            if self._healthy is not None:
                self._healthy.start()
                until(lambda: bool(self._healthy and self._healthy.seen), self.instance.tail)
        except BaseException:
            self.instance.kill()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if self._healthy is not None:
                self._healthy.finish()
            assert self.instance.get("/status", PATIENCE_S)["process"] == self._process, "the process is another one"
            assert self.instance.get("/readyz", PATIENCE_S)["ready"]
            said = self.instance.output.read_text()
            warnings = [line for line in said.splitlines() if " WARNING " in line]
            warnings = [line for line in warnings if not any(allowed in line for allowed in self._allowed)]
            assert "Traceback" not in said and " ERROR " not in said and not warnings, said[-4000:]
        finally:
            self.instance.kill()

    def rss(self) -> int:
        """Resident bytes of the instance's process now."""
        return int(Path(f"/proc/{self.instance.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    @contextlib.contextmanager
    def grows_by_less_than(self, mebibytes: int) -> Iterator[None]:
        """Holds the *peak* of the instance's memory during the block to a bound above what it was."""
        place = Path(f"/proc/{self.instance.pid}")
        (place / "clear_refs").write_text("5")  # the peak begins anew
        before = self.rss()
        yield
        lines = (place / "status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        assert peak - before < mebibytes * 2**20, f"grew by {(peak - before) / 2**20:.0f} MiB; {mebibytes} were allowed"

    async def connect(self, subprotocol: str = MSGPACK) -> Peer:
        connection = await self.network.connect(
            self.url, subprotocols=(subprotocol,), message_bytes_max=2**25, timeout_s=PATIENCE_S
        )
        return Peer(connection)

    async def serves(self) -> None:
        """A newcomer is served: events come, and a publish is answered."""
        with trio.fail_after(PATIENCE_S):
            async with open_publisher("free", self.url) as publisher:
                receipt = await publisher.publish("thing", "newcomer", "create")
            start = "beginning"
            async with open_subscription("free", self.url, start=start, ids=["newcomer"]) as subscription:
                async for event in subscription:
                    if event.position == receipt.position:
                        return


class Peer:
    """A client that says whatever it likes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def say(self, *messages: Any) -> None:
        """Messages of the wire; bytes and text go as they are."""
        for message in messages:
            raw = isinstance(message, bytes | str)
            await self.connection.send(message if raw else encode(message, self.connection.subprotocol))

    async def hear(self) -> Any:
        with trio.fail_after(PATIENCE_S):
            return decode(await self.connection.receive(), self.connection.subprotocol)

    async def hear_one(self, kind: type[Any]) -> Any:
        """The next message of that kind; others are passed over."""
        while not isinstance(message := await self.hear(), kind):
            assert not isinstance(message, Fault), message
        return message

    async def end(self) -> tuple[Fault | None, ConnectionLost]:
        """What the server said last, and how it closed (code 1006: it dropped the connection)."""
        fault: Fault | None = None
        while True:
            try:
                message = await self.hear()
            except ConnectionLost as lost:
                return fault, lost
            if isinstance(message, Fault):
                fault = message

    async def answer(self) -> Answer:
        answer: Answer = await self.hear_one(Answer)
        return answer


def publish(number: int, *, after: int | None = None, id: str = "row", resource: str = "vm", **more: Any) -> Publish:
    """One change, encoded here."""
    change = encode_change(Change(resource, id, "update", **more), 2**30)
    return Publish(number - 1 if after is None else after, number, (1,), change)


def clean_environment() -> dict[str, str]:
    """Without what changefeed reads."""
    return {key: value for key, value in os.environ.items() if not key.startswith("CHANGEFEED_")}


def serve_process(feeds: Sequence[str], **options: Any) -> ServeProcess:
    """An instance whose environment has nothing that changefeed reads."""
    with mock.patch.dict(os.environ, clean_environment(), clear=True):
        return ServeProcess(feeds, **options)


def declare(folder: Path, log: str) -> None:
    """Before an instance runs, so that it knows from its beginning."""
    from dataclasses import replace

    from changefeed.log.urls import open_log

    async def write() -> None:
        store = open_log(log)
        feed = await store.open("vmapi")
        await feed.set_settings(replace(await feed.settings(), resources=DECLARED))
        await feed.aclose()
        await store.aclose()

    trio.run(write)


def until(condition: Any, told: Any = str) -> None:
    """Until another process has done its part."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.01)
