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
        from changefeed.coordination.zookeeper import ZookeeperCoordinator  # kazoo only for those who use it

        return ZookeeperCoordinator(url, settings, world=world, alive=alive)
    near = _OTHER_NAMES.get(scheme) or next(iter(difflib.get_close_matches(scheme, SCHEMES, 1, 0.4)), None)
    hint = f"did you mean {near}:? " if near else ""
    raise BadUrl(f"{url!r}: unknown scheme {scheme!r}; {hint}Coordinators are {_FORMS}")


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
