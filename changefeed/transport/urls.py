"""URLs of instances: ws://HOST:PORT[/PATH] or http://HOST:PORT[/PATH], which mean the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from changefeed.errors import BadUrl
from changefeed.settings import DEFAULT_PORT

#: Where an instance speaks this library's protocol; other upgrade paths belong to somebody else.
PROTOCOL_PATH: Final = "/v1"


@dataclass(frozen=True, slots=True)
class Address:
    """host and port to connect to; path as given, query without "?"."""

    host: str
    port: int
    path: str
    query: str

    @property
    def shown(self) -> str:
        """HOST:PORT as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def protocol_path(self) -> str:
        """The path to upgrade at: below the URL's own path, so that an instance may stand behind a prefix."""
        path = self.path.rstrip("/")
        return path if path.endswith(PROTOCOL_PATH) else path + PROTOCOL_PATH

    @property
    def target(self) -> str:
        """Path and query, as a request names them."""
        return (self.path or "/") + (f"?{self.query}" if self.query else "")


def parse_url(url: str) -> Address:
    """The address that a URL names; the port is 7557 if it names none. Raises BadUrl."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except (ValueError, AttributeError, TypeError):
        raise BadUrl(
            f"{url!r} is no URL of a host and a port (1 to 65535); write ws://HOST:PORT or http://HOST:PORT"
        ) from None
    if "://" not in url:
        raise BadUrl(f"{url!r} is no URL; write ws://HOST:PORT or http://HOST:PORT")
    if parts.scheme in ("wss", "https"):
        raise BadUrl(f"{url!r}: TLS is not spoken yet; put a TLS proxy in front and write ws://HOST:PORT")
    if parts.scheme not in ("ws", "http"):
        raise BadUrl(f"{url!r}: unknown scheme {parts.scheme!r}; write ws://HOST:PORT or http://HOST:PORT")
    if not host or parts.username is not None or parts.fragment:
        raise BadUrl(f"{url!r} names no host, or more than a host, port and path; write ws://HOST:PORT")
    if not all(33 <= ord(char) < 127 for char in parts.path + parts.query):
        raise BadUrl(f"{url!r}: path and query must be printable ASCII without spaces")
    return Address(host, DEFAULT_PORT if port is None else port, parts.path, parts.query)
