"""The conformance suite, on every coordinator that we have."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from changefeed.coordination import Alive, Coordinator
from changefeed.coordination.file import FileCoordinator
from changefeed.coordination.memory import MemoryCoordination, MemoryCoordinator
from changefeed.ports import World
from changefeed.settings import Settings
from changefeed.testing.coordinator_suite import CHECKS, Check
from changefeed.testing.zookeeper_ensemble import ZookeeperEnsemble


class MemoryPlace:
    def __init__(self) -> None:
        self.server = MemoryCoordination()

    def open(self, alive: Alive | None = None) -> MemoryCoordinator:
        return self.server.coordinator(alive=alive)

    async def end_session(self, who: Coordinator) -> None:
        assert isinstance(who, MemoryCoordinator)
        self.server.expire(who)

    async def crash(self, who: Coordinator) -> None:
        assert isinstance(who, MemoryCoordinator)
        self.server.crash(who)
        self.server.expire(who)

    async def wipe(self) -> None:
        self.server.wipe()


class FilePlace:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "coordinator"

    def open(self, alive: Alive | None = None) -> FileCoordinator:
        return FileCoordinator(f"file:{self.folder}", str(self.folder), world=World())

    async def end_session(self, who: Coordinator) -> None:
        """Its member file is deleted: what it has locked is not what others see."""
        assert isinstance(who, FileCoordinator) and who.member_path
        os.unlink(who.member_path)

    async def crash(self, who: Coordinator) -> None:
        assert isinstance(who, FileCoordinator)
        who.abandon()

    async def wipe(self) -> None:
        gone = self.folder.with_name("gone")
        os.rename(self.folder, gone)
        shutil.rmtree(gone)


class ZookeeperPlace:
    """Below a chroot of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, alive: Alive | None = None) -> Coordinator:
        from changefeed.coordination.zookeeper_recipe import ZookeeperCoordinator

        return ZookeeperCoordinator(self.url, Settings(), world=World(), alive=alive)

    async def end_session(self, who: Coordinator) -> None:
        await who.expire_session()  # type: ignore[attr-defined]

    async def crash(self, who: Coordinator) -> None:
        await who.abandon()  # type: ignore[attr-defined]

    async def wipe(self) -> None:
        from changefeed.coordination.zookeeper import delete_tree

        await delete_tree(self.url)


def by_name(check: Check) -> str:
    return getattr(check, "__name__", "check")


@pytest.mark.parametrize("check", CHECKS, ids=by_name)
async def test_memory(check: Check) -> None:
    """The coordinator of tests and simulations behaves as the real ones do."""
    await check(MemoryPlace())


@pytest.mark.parametrize("check", CHECKS, ids=by_name)
async def test_file(check: Check, tmp_path: Path) -> None:
    """The coordinator of one machine."""
    await check(FilePlace(tmp_path))


@pytest.mark.zookeeper
@pytest.mark.parametrize("check", CHECKS, ids=by_name)
async def test_zookeeper(check: Check, ensemble: ZookeeperEnsemble) -> None:
    """The coordinator of a fleet, against three real servers."""
    await check(ZookeeperPlace(ensemble.url(f"/suite/{by_name(check)}")))
