"""Which servers a client may use, and its next connection to one of them.

`servers` is a list or comma-separated text of ws://HOST:PORT, http://HOST:PORT (the same) and zk://HOST:PORT,…/CHROOT
(whoever takes part there, asked again in each round). Default: $CHANGEFEED_URL, else ws://127.0.0.1:7557.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import trio

from changefeed.errors import BadUrl, ChangefeedError, Unavailable, Unreachable
from changefeed.ports import World
from changefeed.rotation import Rotation
from changefeed.settings import DEFAULT_PORT, Settings
from changefeed.transport import Connection, Network
from changefeed.transport.urls import parse_url
from changefeed.wire import MSGPACK

ENVIRONMENT: Final = "CHANGEFEED_URL"
DEFAULT_SERVER: Final = f"ws://127.0.0.1:{DEFAULT_PORT}"
SCHEMES: Final = ("ws", "http", "zk")
#: How an in-process instance is called where a server's URL stands otherwise.
IN_PROCESS: Final = "in-process"
#: What a message may be longer than the largest frame's payload: its envelope, and the stamps of its events.
ENVELOPE_BYTES: Final = 2**21
#: How long the coordinator may take to say who takes part, in seconds.
MEMBERS_S: Final = 10.0
#: While others have not been tried, a server that does not answer (frozen, cut off) is left after so many seconds.
OTHERS_WAIT_S: Final = 2.0
#: Servers whose reasons for not answering are remembered.
REASONS_MAX: Final = 16

Connect = Callable[[], Awaitable[Connection]]
Servers = str | Sequence[str] | None


def parse_servers(servers: Servers = None, *, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The servers' URLs, each once, in their order; `ws://HOST:PORT` and `zk://…` are their normal forms.

    Raises BadUrl for anything else, naming the nearest scheme.
    """
    if servers is None:
        servers = (os.environ if environ is None else environ).get(ENVIRONMENT) or DEFAULT_SERVER
    parts = _split(servers) if isinstance(servers, str) else [part for text in servers for part in _split(text)]
    found = [_parse_server(part) for part in parts]
    if not found:
        raise BadUrl("no server is named; write ws://HOST:PORT[,ws://HOST:PORT…]")
    return tuple(dict.fromkeys(found))


def _split(text: str) -> list[str]:
    """Comma-separated URLs; a part without a scheme that follows zk:// is one more host of that ensemble."""
    parts: list[str] = []
    for part in (piece.strip() for piece in text.split(",")):
        if not part:
            continue
        if "://" not in part and parts and parts[-1].startswith("zk://") and "/" not in parts[-1].removeprefix("zk://"):
            parts[-1] += "," + part
        else:
            parts.append(part)
    return parts


def _parse_server(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise BadUrl(f"{url!r} is no URL of a server; write ws://HOST:PORT, http://HOST:PORT or zk://HOST:PORT/CHROOT")
    scheme = scheme.lower()
    if scheme == "zk":
        if not rest.strip("/,"):
            raise BadUrl(f"{url!r} names no host; write zk://HOST:PORT,HOST:PORT/CHROOT")
        return f"zk://{rest}"
    if scheme not in (*SCHEMES, "wss", "https"):
        near = difflib.get_close_matches(scheme, SCHEMES, 1, 0.3)
        hint = f"did you mean {near[0]}://? " if near else ""
        raise BadUrl(f"{url!r}: unknown scheme {scheme!r}; {hint}Servers are ws://, http:// or zk://")
    address = parse_url(f"{scheme}://{rest}")
    return f"ws://{address.shown}{address.path.rstrip('/')}"


async def resolve(servers: Sequence[str]) -> tuple[str, ...]:
    """The instances' URLs: those given, and the members of each zk://. Raises CoordinatorUnavailable, Unreachable."""
    found: list[str] = []
    for server in servers:
        if not server.startswith("zk://"):
            found.append(server)
            continue
        from changefeed.coordination.zookeeper import list_members  # kazoo only for those who use it

        with trio.move_on_after(MEMBERS_S):
            found += _valid([member.url for member in (await list_members(server)).values()])
            continue
        raise Unreachable(f"{server} did not say within {MEMBERS_S:g} s who takes part")
    if not found:
        raise Unreachable(f"nobody takes part at {', '.join(servers)} now")
    return tuple(dict.fromkeys(found))


def _valid(servers: Sequence[str]) -> list[str]:
    """Those of a peer's URLs that can be understood."""
    found = []
    for server in servers:
        try:
            found.append(_parse_server(server))
        except BadUrl:
            continue
    return found


class Dialer:
    """Opens a client's connections, one after the other.

    server: the one last tried, or the zk:// that is asked first. rotation: whose turn it is and how long to wait.
    """

    def __init__(
        self, servers: Servers, connect: Connect | None, network: Network | None, settings: Settings, world: World
    ) -> None:
        self.server = ""
        self.rotation = Rotation(settings.reconnect_min_s, settings.reconnect_max_s)
        self._settings = settings
        self._world = world
        self._connect = connect
        self._network = network
        self._given = (IN_PROCESS,) if connect is not None else parse_servers(servers)
        self._why: dict[str, str] = {}
        if connect is None and network is None:
            from changefeed.transport.websocket import WebsocketNetwork

            self._network = WebsocketNetwork(settings)
        if not any(server.startswith("zk://") for server in self._given):
            self.rotation.use(self._given, world.entropy.random())

    async def dial(self) -> Connection:
        """Wait for one's turn, then try one server. Cancellation: safe.

        Raises Unavailable kinds (Unreachable names every server that failed since one answered), UnsupportedProtocol.
        """
        rotation = self.rotation
        await trio.sleep(rotation.delay(self._world.entropy.random()))
        resolving = rotation.round_begins and any(server.startswith("zk://") for server in self._given)
        rotation.trying()
        if resolving:
            if not self.server:
                self.server = next(server for server in self._given if server.startswith("zk://"))
            try:
                rotation.use(await resolve(self._given), self._world.entropy.random())
            except Unavailable:
                # Who was known before may still serve; the coordinator is not needed for that.
                if not rotation.known:
                    raise
        self.server = rotation.choose()
        try:
            if self._connect is not None:
                return await self._connect()
            assert self._network is not None
            whole = self._settings.handshake_s
            return await self._network.connect(
                self.server,
                subprotocols=(MSGPACK,),
                message_bytes_max=self._settings.frame_bytes_max + ENVELOPE_BYTES,
                timeout_s=min(whole, OTHERS_WAIT_S) if rotation.first_round else whole,
            )
        except Unavailable as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Unavailable) -> ChangefeedError:
        self._why.pop(self.server, None)
        self._why[self.server] = str(error)
        if len(self._why) > REASONS_MAX:
            del self._why[next(iter(self._why))]
        if len(self._why) == 1:
            return error
        return Unreachable(
            "no server could be reached: " + "; ".join(f"{url}: {why}" for url, why in self._why.items())
        )

    def welcomed(self) -> None:
        self._why.clear()
        self.rotation.welcomed(trio.current_time())

    def lost(self) -> None:
        self.rotation.lost(trio.current_time())

    def redirect(self, servers: Sequence[str]) -> None:
        """Try these first. An in-process client stays where it is."""
        if self._connect is None:
            self.rotation.redirect(_valid(servers))
