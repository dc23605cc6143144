"""Transport over websockets: the only module that knows trio-websocket; one port also answers plain HTTP GET.

What is done around the library, and why:
- The request's head is read here, bounded in time and size, before the library sees a byte: plain HTTP, other paths,
  noise and TLS hellos never reach it. It then gets the bytes again through a stream of ours.
- A server's data frames do not pass the library: frames towards clients are not masked, so two bytes to ten of header
  before the payload are all there is to encode. They are written straight to the socket, without a task switch while
  the kernel takes them. The same stream orders them with the library's own control frames.
- A client's connection has no nursery to live in; its tasks run in a system task that lets nothing through.
- A cancelled send leaves half a frame: it aborts the connection.
"""

from __future__ import annotations

import contextvars
import errno
import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio
from trio_websocket import ConnectionClosed as WsClosed
from trio_websocket import ConnectionRejected as WsRejected
from trio_websocket import HandshakeError as WsHandshakeError
from trio_websocket import WebSocketConnection as WsConnection
from trio_websocket import wrap_client_stream, wrap_server_stream

from changefeed.errors import (
    ChangefeedError,
    ConnectionLost,
    FrameTooLarge,
    Unreachable,
    UnsupportedProtocol,
)
from changefeed.settings import Settings
from changefeed.transport import Connection, ConnectionHandler, HttpHandler, Listener, Message, Request, Response
from changefeed.transport.bytestreams import ByteListener, ByteNetwork, ByteStream
from changefeed.transport.handlers import Alone, leaves, respond, run_handler
from changefeed.transport.http1 import (
    HEAD_BYTES_MAX,
    BadHead,
    Head,
    format_response,
    looks_like_http,
    parse_request,
    parse_response,
)
from changefeed.transport.stream import FrameStream
from changefeed.transport.tcp import TcpNetwork
from changefeed.transport.urls import PROTOCOL_PATH, Address, parse_url

logger = logging.getLogger("changefeed.transport")

#: Messages that the library holds for a task that does not receive; then it reads no more, and TCP holds the peer back.
QUEUE_MESSAGES: Final = 1
RECEIVE_BYTES: Final = 256 * 1024
#: The library goes through all frames of what it has read without giving way: tens of thousands of empty ones would
#: hold everybody up for a quarter of a second. A server reads less at once.
SERVER_RECEIVE_BYTES: Final = 64 * 1024
#: How long `aclose` waits for the peer's answer, and a plain HTTP peer may take to go.
CLOSE_S: Final = 2.0
HTTP_BYTES_MAX: Final = 64 * 1024 * 1024
ABNORMAL: Final = 1006
TOO_BIG: Final = 1009
_CAPACITY_ERRNOS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


class WebsocketConnection:
    """See transport.Connection. client: this end opened the connection, so its frames are masked (by the library)."""

    def __init__(
        self, ws: WsConnection, stream: FrameStream, subprotocol: str, peer: str, message_bytes_max: int, client: bool
    ) -> None:
        self.subprotocol = subprotocol
        self.peer = peer
        #: Called once, when the peer's first message was received.
        self.greeted: Callable[[], None] | None = None
        self._ws = ws
        self._stream = stream
        self._message_bytes_max = message_bytes_max
        self._client = client
        self._sending = Alone("sending over")
        self._receiving = Alone("receiving from")
        self._closing = False
        self._aborted = False

    def __repr__(self) -> str:
        return f"<WebsocketConnection to {self.peer}>"

    async def send(self, message: Message) -> None:
        with self._sending:
            if self._closing or self._ws.closed is not None:
                await trio.lowlevel.checkpoint()
                raise self._lost()
            try:
                if self._client:
                    await self._ws.send_message(message)
                else:
                    await self._stream.send_frame(message)
            except (WsClosed, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise self._lost() from error
            except trio.Cancelled:
                self.abort()
                raise

    async def receive(self) -> Message:
        with self._receiving:
            if self._closing:
                await trio.lowlevel.checkpoint()
                raise self._lost()
            try:
                message: Message = await self._ws.get_message()
            except WsClosed as error:
                # The library closes its receiving channel itself only for a message above the limit; an ending that
                # the peer announced (with whatever code) ends the channel from its sending side.
                local = isinstance(error.__context__, trio.ClosedResourceError)
                if local and error.reason is not None and error.reason.code == TOO_BIG:
                    self._stream.discard()
                    limit = self._message_bytes_max
                    raise FrameTooLarge(f"{self.peer} sent a message of more than {limit} bytes") from None
                raise self._lost() from None
            if self.greeted is not None:
                self.greeted()
                self.greeted = None
            return message

    def _lost(self) -> ConnectionLost:
        if self._aborted:
            return ConnectionLost(f"the connection to {self.peer} was dropped at this end")
        reason = self._ws.closed
        if self._closing:
            return ConnectionLost(f"the connection to {self.peer} was closed at this end", 1000)
        if reason is None or reason.code == ABNORMAL:
            return ConnectionLost(f"the connection to {self.peer} broke")
        text = reason.reason or ""
        return ConnectionLost(
            f"{self.peer} ended the connection ({reason.code} {text or 'without a reason'})", reason.code, text
        )

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        if self._closing:
            await trio.lowlevel.checkpoint()
            return
        lost = self._ws.closed is not None
        self._closing = not lost
        try:
            with trio.move_on_after(CLOSE_S):
                await self._ws.aclose(code, _short(reason))
                await self._stream.ended.wait()
        except Exception as error:
            logger.debug("closing the connection to %s: %r", self.peer, error)
        finally:
            self._stream.close()

    def abort(self) -> None:
        if self._ws.closed is None:
            self._aborted = True
        self._stream.abort()


def _short(reason: str) -> str | None:
    """A close frame carries at most 123 bytes of reason."""
    return reason.encode()[:123].decode(errors="ignore") or None


class _Gauge:
    """How many are inside; `with gauge.one() as leave:` counts until the block ends or `leave()` is called."""

    def __init__(self) -> None:
        self.value = 0

    def one(self) -> _Counted:
        return _Counted(self)


class _Counted:
    def __init__(self, gauge: _Gauge) -> None:
        self._gauge = gauge
        self._inside = False

    def __enter__(self) -> Callable[[], None]:
        self._inside = True
        self._gauge.value += 1
        return self._leave

    def _leave(self) -> None:
        if self._inside:
            self._inside = False
            self._gauge.value -= 1

    def __exit__(self, *exc_info: object) -> None:
        self._leave()


class WebsocketListener:
    """See transport.Listener. Bounds: connections_max, handshakes_max (connections that have not said anything yet);
    a connection above them is refused at once."""

    def __init__(
        self,
        listeners: Sequence[ByteListener],
        address: tuple[str, int],
        subprotocols: tuple[str, ...],
        message_bytes_max: int,
        settings: Settings,
    ) -> None:
        self.address = address
        self.connections = _Gauge()
        self.handshakes = _Gauge()
        self._listeners = listeners
        self._subprotocols = subprotocols
        self._message_bytes_max = message_bytes_max
        self._settings = settings
        self._refusals = 0
        self._refusals_said = float("-inf")

    async def serve(self, handle: ConnectionHandler, http: HttpHandler) -> None:
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(self._accept, listener, handle, http, nursery)

    async def aclose(self) -> None:
        for listener in self._listeners:
            await listener.aclose()

    async def _accept(
        self, listener: ByteListener, handle: ConnectionHandler, http: HttpHandler, nursery: trio.Nursery
    ) -> None:
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno not in _CAPACITY_ERRNOS:
                    raise
                logger.error("cannot accept connections now: %s; trying again", error)
                await trio.sleep(0.1)
                continue
            nursery.start_soon(self._serve_one, stream, handle, http)

    async def _serve_one(self, stream: ByteStream, handle: ConnectionHandler, http: HttpHandler) -> None:
        """One connection from accept to its end; only cancellation goes through."""
        peer, limits = stream.peer, self._settings
        if self.connections.value >= limits.connections_max or self.handshakes.value >= limits.handshakes_max:
            self._refused(peer)
            _write_and_go(stream, _plain(503, "too many connections; try another instance, or later"))
            return
        with self.connections.one(), self.handshakes.one() as greeted:
            try:
                try:
                    await self._greet(stream, peer, greeted, handle, http)
                finally:
                    stream.close()
            except* Exception as group:
                _log_ending(peer, group)

    def _refused(self, peer: str) -> None:
        """Log it, but at most one line a second: who connects again and again must not fill the disk with lines."""
        self._refusals += 1
        now = trio.current_time()
        if now >= self._refusals_said + 1:
            logger.warning("refused %d connections, the last one of %s: %d are open, %d of them have not said hello",
                           self._refusals, peer, self.connections.value, self.handshakes.value)  # fmt: skip
            self._refusals, self._refusals_said = 0, now

    async def _greet(
        self,
        stream: ByteStream,
        peer: str,
        greeted: Callable[[], None],
        handle: ConnectionHandler,
        http: HttpHandler,
    ) -> None:
        """Read the head of the request, and go where it leads."""
        with trio.move_on_after(self._settings.handshake_s) as deadline:
            try:
                begin, rest, head = await _read_head(stream)
                if head.upgrades:
                    subprotocol = self._agree(head)
            except BadHead as bad:
                await _respond_and_go(stream, _plain(bad.status, str(bad)))
                return
            if not head.upgrades:
                request = Request(head.path, head.query, head.headers, peer)
                if head.method not in ("GET", "HEAD"):
                    response = _plain(405, "only GET is answered here", {"Allow": "GET, HEAD"})
                else:
                    response = await respond(http, request)
                await _respond_and_go(stream, response, body=head.method != "HEAD")
                return
        if deadline.cancelled_caught:
            logger.debug("%s did not say in %g s what it wants", peer, self._settings.handshake_s)
            return
        await self._upgrade(FrameStream(stream, begin, rest), head, subprotocol, peer, greeted, handle)

    def _agree(self, head: Head) -> str:
        """The sub-protocol of a websocket handshake. Raises BadHead."""
        if head.path != PROTOCOL_PATH:
            raise BadHead(404, f"no websocket is served at {head.path}; changefeed's protocol is at {PROTOCOL_PATH}")
        head.check_websocket()
        offers = head.subprotocols
        for offer in offers:
            if offer in self._subprotocols:
                return offer
        raise BadHead(400, f"{_UNSUPPORTED}: this server speaks {', '.join(self._subprotocols)}; offered: "
                           f"{', '.join(offers)[:200] or 'none'}")  # fmt: skip

    async def _upgrade(
        self,
        stream: FrameStream,
        head: Head,
        subprotocol: str,
        peer: str,
        greeted: Callable[[], None],
        handle: ConnectionHandler,
    ) -> None:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(self._settings.handshake_s) as deadline:
                proposal = await wrap_server_stream(
                    nursery,
                    stream,
                    message_queue_size=QUEUE_MESSAGES,
                    max_message_size=self._message_bytes_max,
                    receive_buffer_size=SERVER_RECEIVE_BYTES,
                )
                ws = await proposal.accept(subprotocol=subprotocol)
                stream.release()
            if not deadline.cancelled_caught:
                connection = WebsocketConnection(ws, stream, subprotocol, peer, self._message_bytes_max, False)
                connection.greeted = greeted
                await run_handler(handle, connection, Request(head.path, head.query, head.headers, peer))
            nursery.cancel_scope.cancel()


_UNSUPPORTED: Final = "unsupported-protocol"


def _log_ending(peer: str, group: BaseExceptionGroup[Exception]) -> None:
    """What peers do is no news, whatever the libraries below raise for it; anything else is a bug that must be seen."""
    errors = leaves(group)
    known = (ChangefeedError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)
    libraries = ("trio_websocket", "wsproto", "h11")
    if all(isinstance(each, known) or type(each).__module__.startswith(libraries) for each in errors):
        logger.debug("connection of %s ended: %r", peer, errors[0])
    else:
        logger.warning("connection of %s ended unexpectedly: %r", peer, errors[0], exc_info=group)


def _plain(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(status, f"{message}\n".encode(), "text/plain; charset=utf-8", headers or {})


async def _read_head(stream: ByteStream) -> tuple[bytes, bytes, Head]:
    """The bytes of a request's head, those read beyond it, and the head. Raises BadHead."""
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > HEAD_BYTES_MAX:
            raise BadHead(431, f"the request's head is larger than {HEAD_BYTES_MAX} bytes")
        more = await stream.receive_some(HEAD_BYTES_MAX)
        if not more:
            raise ConnectionLost("the peer left before it said what it wants")
        data += more
        if not looks_like_http(data):
            raise BadHead(400, "this port speaks plain HTTP and websockets, without TLS")
    end = data.index(b"\r\n\r\n")
    if end > HEAD_BYTES_MAX:
        raise BadHead(431, f"the request's head is larger than {HEAD_BYTES_MAX} bytes")
    return data[: end + 4], data[end + 4 :], parse_request(data[:end])


async def _respond_and_go(stream: ByteStream, response: Response, *, body: bool = True) -> None:
    """Send a response and wait a moment for the peer to go first: closing over unread bytes would reset it away."""
    await stream.send_all(format_response(response, body=body))
    stream.finish()
    with trio.move_on_after(CLOSE_S):
        received = 0
        while received < HTTP_BYTES_MAX and (data := await stream.receive_some(RECEIVE_BYTES)):
            received += len(data)


def _write_and_go(stream: ByteStream, response: Response) -> None:
    """A response as far as the kernel takes it at once, without waiting for anything."""
    try:
        stream.write_now(b"", format_response(response))
        stream.finish()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # who is refused may be gone
    stream.close()


class WebsocketNetwork:
    """See transport.Network. streams: what it runs over; TCP unless told otherwise."""

    def __init__(self, settings: Settings | None = None, *, streams: ByteNetwork | None = None) -> None:
        self._settings = settings or Settings()
        self._streams: ByteNetwork = TcpNetwork() if streams is None else streams

    async def listen(self, host: str, port: int, *, subprotocols: tuple[str, ...], message_bytes_max: int) -> Listener:
        listeners = await self._streams.listen(host, port)
        return WebsocketListener(listeners, (host, listeners[0].port), subprotocols, message_bytes_max, self._settings)

    async def connect(
        self, url: str, *, subprotocols: tuple[str, ...], message_bytes_max: int, timeout_s: float
    ) -> Connection:
        address = parse_url(url)
        with trio.move_on_after(timeout_s):
            stream = await self._streams.connect(address)
            return await _Client(stream, address, subprotocols, message_bytes_max).open()
        raise Unreachable(f"{address.shown} did not answer within {timeout_s:g} s")

    async def get(self, url: str, *, timeout_s: float) -> Response:
        address = parse_url(url)
        with trio.move_on_after(timeout_s):
            stream = await self._streams.connect(address)
            try:
                # HTTP/1.0: the answer ends with the connection and is not chunked.
                request = f"GET {address.target} HTTP/1.0\r\nHost: {address.shown}\r\nAccept: */*\r\n\r\n"
                await stream.send_all(request.encode())
                data = bytearray()
                while more := await stream.receive_some(RECEIVE_BYTES):
                    data += more
                    if len(data) > HTTP_BYTES_MAX:
                        raise Unreachable(f"{address.shown} answers with more than {HTTP_BYTES_MAX} bytes")
                return parse_response(bytes(data))
            except (trio.BrokenResourceError, ValueError) as error:
                raise Unreachable(f"{address.shown}: {error}") from error
            finally:
                stream.close()
        raise Unreachable(f"{address.shown} did not answer within {timeout_s:g} s")


class _Client:
    """Opens a client's connection; its tasks live in a system task until the connection ends."""

    def __init__(
        self, stream: ByteStream, address: Address, subprotocols: tuple[str, ...], message_bytes_max: int
    ) -> None:
        self._stream = FrameStream(stream)
        self._address = address
        self._subprotocols = subprotocols
        self._message_bytes_max = message_bytes_max
        self._settled = trio.Event()
        self._ws: WsConnection | None = None
        self._error: BaseException | None = None

    async def open(self) -> WebsocketConnection:
        name = f"websocket to {self._address.shown}"
        trio.lowlevel.spawn_system_task(self._live, name=name, context=contextvars.copy_context())
        try:
            await self._settled.wait()
            ws = self._ws
            if ws is None:
                raise self._refusal()
            if ws.subprotocol is None:
                offered = ", ".join(self._subprotocols)
                raise UnsupportedProtocol(f"{self._address.shown} speaks websocket, but agreed to none of {offered}")
        except BaseException:
            self._stream.abort()
            raise
        return WebsocketConnection(
            ws, self._stream, ws.subprotocol, self._address.shown, self._message_bytes_max, client=True
        )

    async def _live(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_end, nursery)
                self._ws = await wrap_client_stream(
                    nursery,
                    self._stream,  # type: ignore[arg-type]  # any Stream does; only the annotation is narrower
                    self._address.shown,
                    self._address.protocol_path + (f"?{self._address.query}" if self._address.query else ""),
                    subprotocols=self._subprotocols,
                    message_queue_size=QUEUE_MESSAGES,
                    max_message_size=self._message_bytes_max,
                    receive_buffer_size=RECEIVE_BYTES,
                )
                self._settled.set()
        except* Exception as group:
            self._error = leaves(group)[0]
            logger.debug("connection to %s: %r", self._address.shown, self._error)
        finally:
            self._stream.close()
            self._settled.set()

    async def _watch_end(self, nursery: trio.Nursery) -> None:
        """The library waits for the handshake's end for ever if the stream ends before."""
        await self._stream.ended.wait()
        if not self._settled.is_set():
            nursery.cancel_scope.cancel()

    def _refusal(self) -> ChangefeedError:
        shown, error = self._address.shown, self._error
        if isinstance(error, WsRejected):
            body = (error.body or b"").decode(errors="replace").strip()[:500]
            if body.startswith("<"):
                body = ""  # a page of somebody else's web server
            if error.status_code == 400 and body.startswith(_UNSUPPORTED):
                return UnsupportedProtocol(f"{shown}: {body.removeprefix(_UNSUPPORTED + ': ')}")
            return Unreachable(f"{shown} refused the websocket with HTTP {error.status_code}: {body or 'no reason'}")
        if error is None or isinstance(error, WsHandshakeError):
            return Unreachable(f"{shown} closed the connection during the handshake")
        return Unreachable(f"{shown} does not speak websocket: {error}")
