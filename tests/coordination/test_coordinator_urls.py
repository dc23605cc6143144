"""Which coordinator a URL means, and what is said about one that means none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from changefeed.coordination import LeaderRecord, Member
from changefeed.coordination.file import FileCoordinator
from changefeed.coordination.filesystems import kind_of, refuse_network
from changefeed.coordination.memory import MemoryCoordinator
from changefeed.coordination.records import (
    dump,
    leader_from_json,
    leader_to_json,
    load,
    member_from_json,
    member_to_json,
    quoted_name,
)
from changefeed.coordination.urls import open_coordinator, zookeeper_servers
from changefeed.coordination.zookeeper_recipe import ZookeeperCoordinator
from changefeed.errors import BadUrl, InvalidName
from changefeed.ports import World
from changefeed.settings import Settings


def opened(url: str) -> object:
    return open_coordinator(url, Settings(), world=World())


def test_each_scheme_opens_its_coordinator(tmp_path: Path) -> None:
    """Opening does no I/O: folder and servers need not exist yet."""
    assert isinstance(opened("memory:"), MemoryCoordinator)
    assert isinstance(opened("zk://h1:1,h2:2/x"), ZookeeperCoordinator)
    for url in (f"file:{tmp_path}/new", f"file://{tmp_path}/new", f"FILE://localhost{tmp_path}/new"):
        coordinator = opened(url)
        assert isinstance(coordinator, FileCoordinator)
        assert (coordinator.url, coordinator.folder) == (url, f"{tmp_path}/new")
    assert not (tmp_path / "new").exists()
    relative = opened("file:here")
    assert isinstance(relative, FileCoordinator) and relative.folder == os.path.abspath("here")
    spaced = opened("file:///a%20b")
    assert isinstance(spaced, FileCoordinator) and spaced.folder == "/a b"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "write memory:"),
        ("/some/dir", "write memory:"),
        ("zookeeper://h:1", "did you mean zk:?"),
        ("zkk://h:1", "did you mean zk:?"),
        ("flie:x", "did you mean file:?"),
        ("memroy:", "did you mean memory:?"),
        ("postgresql://h/x", "unknown scheme 'postgresql'"),
        ("file:", "names no folder"),
        ("file://host/dir", "names a host"),
        ("file://", "names a host"),
        ("zk://", "is not HOST:PORT"),
        ("zk:h:1", "does not name a ZooKeeper ensemble"),
        ("zk://h:0", "is not HOST:PORT"),
        ("zk://h:99999", "is not HOST:PORT"),
        ("zk://h:1,,h:2", "is not HOST:PORT"),
        ("zk://h:1/a//b", "cannot be a part of ZooKeeper's path"),
        ("zk://h:1/a/../b", "cannot be a part of ZooKeeper's path"),
    ],
)
def test_a_url_that_cannot_be_understood_is_refused(url: str, said: str) -> None:
    """With a sentence that says how to write it."""
    with pytest.raises(BadUrl) as caught:
        opened(url)
    assert said in str(caught.value) and "://" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "hosts", "chroot"),
    [
        ("zk://h", "h:2181", ""),
        ("zk://h1:1, h2:2/", "h1:1,h2:2", ""),
        ("zk://[::1]:7,10.0.0.1/a/b/", "[::1]:7,10.0.0.1:2181", "/a/b"),
    ],
)
def test_servers_and_chroot(url: str, hosts: str, chroot: str) -> None:
    """The default port is ZooKeeper's own."""
    assert zookeeper_servers(url) == (hosts, chroot)


MOUNTS = """\
25 30 0:23 / /sys rw - sysfs sysfs rw
30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 30 0:50 / /home rw shared:2 - nfs4 server:/home rw
41 40 0:51 / /home/me/my\\040disk rw - ext4 /dev/sdb1 rw
42 30 0:52 / /mnt rw - fuse.sshfs me@host: rw
43 30 0:53 / /twice rw - nfs server:/x rw
44 30 0:54 / /twice rw - tmpfs tmpfs rw
45 30 0:55 / /broken
"""


def test_network_file_systems_are_refused() -> None:
    """Locks there cannot be trusted; the sentence says what to use instead."""
    for folder in ("/home", "/home/you/x", "/mnt/deep/x"):
        with pytest.raises(BadUrl, match="network file system"):
            refuse_network(folder, "file:x", MOUNTS)
    for folder in ("/", "/homes", "/home/me/my disk/x", "/twice/x", "/var"):
        refuse_network(folder, "file:x", MOUNTS)
    assert kind_of("/home/me", MOUNTS) == "nfs4" and kind_of("/twice", MOUNTS) == "tmpfs"
    refuse_network("/", "file:x")


def test_records_come_back_as_they_were() -> None:
    """Members and leader records, through JSON."""
    member = Member("ü/1", "ab", "ws://x:1", False, ("vmapi", "napi"))
    assert member_from_json(load(dump(member_to_json(member)))) == member
    leader = LeaderRecord("a", "p", "ws://x", 7, "session", True, "b")
    assert leader_from_json(load(dump(leader_to_json(leader))), "session") == leader


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"\xff",
        b'{"instance": "a"}',
        b'{"instance": "", "process": "p", "url": "u", "epoch": 1}',
        b'{"instance": "a", "process": 7, "url": "u", "epoch": 1}',
        b'{"instance": "a", "process": "p", "url": "u", "epoch": true, "feeds": 3}',
        b'{"instance": "a", "process": "p", "url": "u", "epoch": 0, "candidate": "yes"}',
        b'{"instance": "a", "process": "p", "url": "u", "epoch": 1, "leaving": 3, "feeds": [1]}',
        b'{"instance": "' + b"a" * 70_000 + b'", "process": "p", "url": "u", "epoch": 1}',
    ],
)
def test_what_is_no_record_of_ours_reads_as_none(data: bytes) -> None:
    """Torn, foreign or oversized content never raises."""
    assert member_from_json(load(data)) is None
    assert leader_from_json(load(data), "s") is None


def test_instance_names_fit_into_paths() -> None:
    """Whatever a name holds, it is one part of a path."""
    assert quoted_name("a/../b") == "a%2F..%2Fb"
    for name in ("", ".", "..", "x" * 201, "ü" * 50):
        with pytest.raises(InvalidName):
            quoted_name(name)
