"""URLs of logs: what they name, and what is said of those that name nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from changefeed.errors import BadUrl
from changefeed.log.memory import MemoryLogStore
from changefeed.log.sqlite import SqliteLogStore
from changefeed.log.urls import open_log
from changefeed.settings import Settings
from changefeed.testing.log_scribe import Scribe


@pytest.mark.parametrize(
    ("url", "directory"),
    [
        ("sqlite:data/feeds", "data/feeds"),
        ("sqlite:/srv/feeds", "/srv/feeds"),
        ("sqlite:///srv/feeds", "/srv/feeds"),
        ("sqlite:a b?c%20d", "a b?c%20d"),
    ],
)
def test_sqlite_urls_name_a_directory(url: str, directory: str) -> None:
    """One or three slashes; the path is taken literally."""
    store = open_log(url, Settings())
    assert isinstance(store, SqliteLogStore) and (store.kind, store.url) == ("sqlite", url)
    assert store.directory == str(Path(directory).absolute())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlit:data", r"did you mean sqlite:data\?"),
        ("SQLITE:data", r"did you mean sqlite:data\?"),
        ("memroy:", r"did you mean memory:\?"),
        ("data/feeds", r"no scheme; write sqlite:data/feeds"),
        ("./a:b", r"no scheme"),
        ("", r"no scheme; write sqlite:DIR"),
        ("postgresql://db/feeds?sslmod=on", r"invalid URI query parameter.*write postgresql://USER@HOST:5432/DATABASE"),
        ("postgresql://me:secret@db/x?a=b", r"^log URL 'postgresql://me@db/x"),
        ("kafka://x", r"unknown scheme 'kafka'; known: sqlite:, postgresql:, memory:$"),
        ("sqlite:", r"names no directory"),
        ("sqlite://host/feeds", r"names a host"),
        ("sqlite:a\0b", r"names no directory"),
    ],
)
def test_bad_urls_say_what_to_write(url: str, says: str) -> None:
    """BadUrl names the known schemes, and the nearest for a typo."""
    with pytest.raises(BadUrl, match=says):
        open_log(url, Settings())


async def test_memory_urls_share_a_place_by_name() -> None:
    """Two stores of one name are two processes on one log; another name is another place."""
    stores = [open_log(url) for url in ("memory:shared-by-urls", "memory:shared-by-urls", "memory:another")]
    assert all(isinstance(store, MemoryLogStore) and store.kind == "memory" for store in stores)
    log, same, other = [await store.open("vmapi") for store in stores]
    await (await Scribe.fencing(log, 1)).write(1)
    assert (await same.look()).tail.seq == 1 and (await other.look()).tail.seq == 0


async def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """sqlite: wants a directory; a file in its place is named."""
    (tmp_path / "feeds").write_text("")
    store = open_log(f"sqlite:{tmp_path}/feeds")
    with pytest.raises(BadUrl, match="is not a directory"):
        await store.open("vmapi")
    with pytest.raises(BadUrl, match="is not a directory"):
        await store.feeds()


async def test_paths_are_taken_literally_down_to_the_file(tmp_path: Path) -> None:
    """Characters that mean something in SQLite's own URIs are just characters."""
    store = open_log(f"sqlite:{tmp_path}/a b?mode=ro#c%20d")
    log = await store.open("vmapi")
    await (await Scribe.fencing(log, 1)).write(1)
    assert (tmp_path / "a b?mode=ro#c%20d" / "vmapi.db").is_file() and await store.feeds() == ["vmapi"]
    await log.aclose()
