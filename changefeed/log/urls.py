"""Which store a URL names.

    sqlite:DIR  sqlite:///PATH   a directory with one SQLite file per feed
    postgresql://USER@HOST/DB     a PostgreSQL database, for many machines; needs changefeed[postgres]
    memory:  memory:NAME          nothing survives; one place per name and process

Paths are taken literally: nothing is percent-decoded.
"""

from __future__ import annotations

import difflib
from typing import Final

from changefeed.errors import BadUrl
from changefeed.log import LogStore
from changefeed.log.memory import MemoryLogStore, shared_place
from changefeed.log.sqlite import SqliteLogStore
from changefeed.ports import World
from changefeed.settings import Settings

SCHEMES: Final = ("sqlite", "postgresql", "memory")
POSTGRESQL: Final = ("postgresql", "postgres")


def open_log(url: str, settings: Settings | None = None, *, world: World | None = None) -> LogStore:
    """The store that `url` names; does no I/O yet. Raises BadUrl."""
    settings = Settings() if settings is None else settings
    world = World() if world is None else world
    scheme, colon, rest = url.partition(":")
    known = ", ".join(f"{name}:" for name in SCHEMES)
    if not colon or "/" in scheme:
        raise BadUrl(f"log URL {url!r} has no scheme; write sqlite:{url or 'DIR'} (known: {known})")
    if scheme == "memory":
        return MemoryLogStore(shared_place(rest), settings, world=world, url=url)
    if scheme == "sqlite":
        return SqliteLogStore(url, _path(url, rest), settings, world=world)
    if scheme in POSTGRESQL:
        # Loaded when it is asked for: psycopg is an extra.
        from changefeed.log.postgresql import PostgresqlLogStore

        return PostgresqlLogStore(url, settings, world=world)
    near = difflib.get_close_matches(scheme.lower(), SCHEMES, n=1)
    hint = f"; did you mean {near[0]}:{rest}?" if near else ""
    raise BadUrl(f"log URL {url!r} is of an unknown scheme {scheme!r}; known: {known}{hint}")


def _path(url: str, rest: str) -> str:
    if rest.startswith("//"):
        if not rest.startswith("///"):
            raise BadUrl(f"log URL {url!r} names a host; write sqlite:DIR or sqlite:///ABSOLUTE/DIR")
        rest = rest[2:]
    if not rest or "\0" in rest:
        raise BadUrl(f"log URL {url!r} names no directory; write sqlite:DIR")
    return rest
