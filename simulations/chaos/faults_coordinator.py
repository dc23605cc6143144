"""Faults of the coordinator: ZooKeeper's servers, sessions, nodes and data; the file coordinator's record."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError

from changefeed.simulation.plan import Step
from changefeed.testing.zookeeper_ensemble import EnsembleError, ZookeeperEnsemble
from simulations.chaos.stage import FEED, LEADER_S, SERVERS, SETTINGS, Stage

#: A session is gone at most a tick after its time-out; more is waited for.
EXPIRY_SPARE_S: Final = 3.0
TOOL_S: Final = 5.0


async def _thread(call: Callable[..., Any], *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(partial(call, *arguments))


def _ensemble(stage: Stage) -> ZookeeperEnsemble:
    assert stage.ensemble is not None
    return stage.ensemble


async def kill_zookeeper(stage: Stage, step: Step, chance: random.Random) -> None:
    ensemble = _ensemble(stage)
    index = chance.randrange(ensemble.size)
    if chance.random() < 0.5:
        try:
            index = await _thread(ensemble.leader)
        except EnsembleError:
            pass
    async with stage.fault(step.kind, SERVERS[index], ("server-gone",)) as doing:
        ensemble.kill(index)
        doing.effect("server-gone")
        await trio.sleep(step.lasts)
        await _thread(ensemble.restart, index)


async def quorum_lost(stage: Stage, step: Step, chance: random.Random) -> None:
    """Two of three, frozen or killed; what is left serves nobody."""
    ensemble = _ensemble(stage)
    gone = chance.sample(range(ensemble.size), 2)
    kill = chance.random() < 0.5
    left = next(index for index in range(ensemble.size) if index not in gone)
    async with stage.fault(
        step.kind, ",".join(SERVERS[i] for i in gone), ("no-quorum", "servers-stopped"), killed=kill
    ) as doing:
        for index in gone:
            await _thread(ensemble.kill if kill else ensemble.pause, index)
        if not kill:
            # Who is left finds out only after its own time-out: that none of the others runs was looked at.
            doing.effect("servers-stopped")
        end = trio.current_time() + step.lasts
        try:
            while trio.current_time() < end + 2.0:
                if not await _thread(ensemble.mode, left):
                    doing.effect("no-quorum")
                    break
            await trio.sleep_until(end)
        finally:
            for index in gone:
                if kill:
                    ensemble.launch(index)
                else:
                    ensemble.resume(index)
        await _serving(stage)


async def _serving(stage: Stage, within_s: float = 30.0) -> None:
    """Until every server serves again."""
    ensemble = _ensemble(stage)
    with trio.move_on_after(within_s):
        for index in range(ensemble.size):
            while not await _thread(ensemble.mode, index):  # noqa: ASYNC110 - other processes notify nobody
                await trio.sleep(0.02)


async def expire_session(stage: Stage, step: Step, chance: random.Random) -> None:
    """Cut off from ZooKeeper until its servers have given the session up."""
    node = stage.aim(step.target, chance)
    async with stage.fault(step.kind, node.name, ("session-expired",)) as doing:
        with _tool(stage) as tool:
            path = f"{stage.chroot}/instances/{node.name}"
            owner = await _thread(_owner, tool, path)
            if not owner:
                doing.effect("missed")
                return
            rules = stage.network.cut_between(node.name, SERVERS)
            try:
                end = trio.current_time() + SETTINGS["coordinator_session_s"] + EXPIRY_SPARE_S
                while trio.current_time() < end:
                    if await _thread(_owner, tool, path) != owner:
                        doing.effect("session-expired")
                        break
                    await trio.sleep(0.05)
                else:
                    doing.effect("missed")
            finally:
                stage.network.mend(rules)


class _tool:
    """A client of the ensemble for this harness."""

    def __init__(self, stage: Stage) -> None:
        self._client = KazooClient(hosts=_ensemble(stage).connect_string, timeout=10.0)

    def __enter__(self) -> KazooClient:
        try:
            self._client.start(timeout=TOOL_S)
        except KazooTimeoutError:
            self._client.stop()
        return self._client

    def __exit__(self, *exc: object) -> None:
        self._client.stop()
        self._client.close()


def _owner(client: KazooClient, path: str) -> int | None:
    """The session that holds a node; 0 if there is no such node, None if nobody can be asked."""
    try:
        found = client.exists(path)
    except (KazooException, KazooTimeoutError):
        return None
    return 0 if found is None else int(found.ephemeralOwner)


async def delete_leader_node(stage: Stage, step: Step, chance: random.Random) -> None:
    if not await stage.working():
        return
    before = stage.epoch()
    async with stage.fault(step.kind, "zookeeper", ("leader-changed",)) as doing:
        with _tool(stage) as tool:
            try:
                await _thread(tool.delete, f"{stage.chroot}/feeds/{FEED}/leader")
            except (NoNodeError, KazooException, KazooTimeoutError):
                doing.effect("missed")
                return
        await stage.leader_changed(doing, before)


async def wipe_zookeeper(stage: Stage, step: Step, chance: random.Random) -> None:
    """Everything that it knew is gone; the log still knows the epoch."""
    ensemble = _ensemble(stage)
    async with stage.fault(step.kind, "zookeeper", ("coordinator-lost-its-data",)) as doing:
        await _thread(ensemble.wipe)
        with _tool(stage) as tool:
            id = await _thread(_value, tool, f"{stage.chroot}/id")
        doing.effect("coordinator-lost-its-data", coordinator_id=id)
        await stage.working(20.0)


def _value(client: KazooClient, path: str) -> str:
    try:
        return str(client.get(path)[0].decode())
    except (KazooException, KazooTimeoutError):
        return ""


async def restore_zookeeper(stage: Stage, step: Step, chance: random.Random) -> None:
    """Stop all servers, copy their data, go on; later put the copy back."""
    ensemble = _ensemble(stage)
    async with stage.fault(step.kind, "zookeeper", ("coordinator-went-back",)) as doing:
        copies = stage.folder / "zookeeper-copies"
        await _thread(ensemble.kill_all)
        await _thread(_copy_data, ensemble, copies, False)
        await _thread(ensemble.restart_all)
        await stage.working()
        before = stage.epoch()
        leader = stage.leader()
        if leader is not None:
            # So that what is put back is behind.
            leader.kill()
            await stage.until(lambda: stage.epoch() > before and stage.leader() is not None, LEADER_S)
        await _thread(ensemble.kill_all)
        await _thread(_copy_data, ensemble, copies, True)
        await _thread(ensemble.restart_all)
        doing.effect("coordinator-went-back" if stage.epoch() > before else "missed", from_epoch=stage.epoch())
        await stage.working(20.0)


def _copy_data(ensemble: ZookeeperEnsemble, copies: Path, back: bool) -> None:
    for number in range(1, ensemble.size + 1):
        data, copy = ensemble.folder / f"server-{number}" / "data" / "version-2", copies / f"{number}"
        source, target = (copy, data) if back else (data, copy)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


async def tear_record(stage: Stage, step: Step, chance: random.Random) -> None:
    """The file coordinator's record of the leader is cut in half, or gone."""
    if not await stage.working():
        return
    path = stage.folder / "coordinator" / "feeds" / f"{FEED}.json"
    before = stage.epoch()
    torn = chance.random() < 0.5
    async with stage.fault(step.kind, path.name, ("leader-changed",), torn=torn) as doing:
        if torn:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2])
        else:
            path.unlink()
        await stage.leader_changed(doing, before)


FAULTS: Final = {
    "kill-zookeeper": kill_zookeeper,
    "quorum-lost": quorum_lost,
    "expire-session": expire_session,
    "delete-leader-node": delete_leader_node,
    "wipe-zookeeper": wipe_zookeeper,
    "restore-zookeeper": restore_zookeeper,
    "tear-record": tear_record,
}
