"""Which coordinator a URL means: memory:  memory:NAME  file:DIR  file:///DIR  zk://HOST:PORT,HOST:PORT/CHROOT"""

from __future__ import annotations

import difflib
import re
from typing import Final
from urllib.parse import unquote

from changefeed.coordination import Alive, Coordinator
from changefeed.coordination.file import FileCoordinator
from changefeed.coordination.memory import named_coordination
from changefeed.errors import BadUrl
from changefeed.ports import World
from changefeed.settings import Settings

SCHEMES: Final = ("memory", "file", "zk")
_FORMS: Final = "memory:, file:DIR, file:///DIR, zk://HOST:PORT,HOST:PORT/CHROOT"
_OTHER_NAMES: Final = {"zookeeper": "zk", "zoo": "zk", "mem": "memory", "ram": "memory", "dir": "file"}
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)\Z", re.DOTALL)


def open_coordinator(url: str, settings: Settings, *, world: World, alive: Alive | None = None) -> Coordinator:
    """The coordinator that `url` names, not yet started: no I/O happens here.

    alive: asked before the name of another process whose session still lives is taken over (see `Coordinator.start`).
    Raises BadUrl for a URL that cannot be understood; the message names the nearest scheme.
    """
    match = _SCHEME.match(url) if isinstance(url, str) else None
    if match is None:
        raise BadUrl(f"{url!r} is not a coordinator's URL; write {_FORMS}")
    scheme, rest = match[1].lower(), match[2]
    if scheme == "memory":
        return named_coordination(rest.removeprefix("//")).coordinator(alive=alive, url=url)
    if scheme == "file":
        return FileCoordinator(url, file_path(url, rest), world=world)
    if scheme == "zk":
        from changefeed.coordination.zookeeper_recipe import ZookeeperCoordinator  # kazoo only for those who use it

        return ZookeeperCoordinator(url, settings, world=world, alive=alive)
    near = _OTHER_NAMES.get(scheme) or next(iter(difflib.get_close_matches(scheme, SCHEMES, 1, 0.4)), None)
    hint = f"did you mean {near}:? " if near else ""
    raise BadUrl(f"{url!r}: unknown scheme {scheme!r}; {hint}Coordinators are {_FORMS}")


#: Where a server's port is not given.
ZOOKEEPER_PORT: Final = 2181
_HOST: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?\Z")
_NODE: Final = re.compile(r"[^/\x00-\x1f\x7f-\x9f\ud800-\uf8ff\ufff0-\uffff]{1,255}\Z")


def zookeeper_servers(url: str) -> tuple[str, str]:
    """("HOST:PORT,HOST:PORT", "/chroot" or "") of a zk:// URL. Raises BadUrl."""
    form = "zk://HOST:PORT,HOST:PORT/CHROOT"
    if not url.lower().startswith("zk://"):
        raise BadUrl(f"{url!r} does not name a ZooKeeper ensemble; write {form}")
    servers, slash, chroot = url[len("zk://") :].partition("/")
    hosts = []
    for server in servers.split(","):
        match = _HOST.match(server.strip())
        port = int(match["port"] or ZOOKEEPER_PORT) if match is not None else 0
        if match is None or not 0 < port < 65536:
            raise BadUrl(f"{url!r}: {server!r} is not HOST:PORT; write {form}")
        hosts.append(f"{match['host']}:{port}")
    path = (slash + chroot).rstrip("/")
    for part in path.split("/")[1:]:
        if not _NODE.match(part) or part in (".", ".."):
            raise BadUrl(f"{url!r}: {part!r} cannot be a part of ZooKeeper's path; write {form}")
    return ",".join(hosts), path


def file_path(url: str, rest: str) -> str:
    """The folder of a file: URL: `file:DIR` as it stands, `file:///DIR` percent-decoded. Raises BadUrl."""
    if not rest.startswith("//"):
        path = rest
    else:
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise BadUrl(f"{url!r} names a host: write file:DIR, or file:///DIR for a folder of this machine")
        path = "/" + unquote(path)
    if not path or "\0" in path:
        raise BadUrl(f"{url!r} names no folder; write file:DIR or file:///DIR")
    return path
