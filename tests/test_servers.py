"""Which servers a client uses, in which order, and how long it waits between tries."""

from __future__ import annotations

from typing import NoReturn

import pytest
import trio

from changefeed.errors import BadUrl, ConnectionRefused, CoordinatorUnavailable, Unreachable
from changefeed.ports import SeededEntropy, World
from changefeed.rotation import Rotation
from changefeed.servers import Dialer, parse_servers
from changefeed.settings import Settings
from changefeed.transport.memory import MemoryNetwork


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("ws://a:1,http://b:2", ("ws://a:1", "ws://b:2")),
        (["ws://a:1", "ws://b:2,ws://a:1"], ("ws://a:1", "ws://b:2")),
        (" ws://a , ", ("ws://a:7557",)),
        ("WS://[::1]:5/prefix/", ("ws://[::1]:5/prefix",)),
        ("zk://a:1,b:2,c:3/feeds,ws://d:4", ("zk://a:1,b:2,c:3/feeds", "ws://d:4")),
        ("ws://d:4,zk://a:1,b:2", ("ws://d:4", "zk://a:1,b:2")),
    ],
)
def test_servers_are_parsed(given: str | list[str], want: tuple[str, ...]) -> None:
    assert parse_servers(given) == want


def test_the_default_is_the_environment_then_loopback() -> None:
    assert parse_servers(None, environ={"CHANGEFEED_URL": "ws://x:9"}) == ("ws://x:9",)
    assert parse_servers(None, environ={"CHANGEFEED_URL": ""}) == ("ws://127.0.0.1:7557",)
    assert parse_servers(None, environ={}) == ("ws://127.0.0.1:7557",)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "no server"),
        ([], "no server"),
        ("localhost:7557", "no URL"),
        ("wsx://a:1", "did you mean ws://"),
        ("htp://a:1", "did you mean http://"),
        ("zookeeper://a:1", "zk://"),
        ("ftp://a:1", "unknown scheme 'ftp'"),
        ("wss://a:1", "TLS"),
        ("ws://", "names no host"),
        ("zk://", "names no host"),
        ("ws://a:port", "no URL"),
        ("ws://user@a:1", "more than a host"),
    ],
)
def test_wrong_servers_are_explained(given: str | list[str], says: str) -> None:
    with pytest.raises(BadUrl, match=says):
        parse_servers(given)


def rotation(*servers: str, roll: float = 0.0) -> Rotation:
    made = Rotation(0.1, 15.0)
    made.use(servers, roll)
    return made


def bounds_of(made: Rotation, tries: int) -> list[float]:
    bounds = []
    for _ in range(tries):
        bounds.append(made.delay(1.0))
        made.trying()
        made.choose()
    return bounds


def test_the_first_retry_is_at_once_then_waits_grow_to_the_cap() -> None:
    made = rotation("a")

    bounds = bounds_of(made, 12)

    assert bounds[:6] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6]
    assert bounds[-1] == 15.0
    assert made.delay(0.0) == 0.0, "full jitter: any share of the bound"


def test_waits_grow_with_each_round_over_all_servers() -> None:
    """Three servers that refuse for a second must not make a client stay away for ten (seen: 14 s after a restart)."""
    bounds = bounds_of(rotation("a", "b", "c"), 10)

    assert bounds == [0.0, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.4, 0.4, 0.4]


def test_only_a_connection_that_served_for_a_while_makes_the_next_try_at_once() -> None:
    """A server that takes clients in and drops them again must not be hammered."""
    made = rotation("a")
    made.trying()
    made.welcomed(10.0)
    made.lost(10.5)
    assert made.delay(1.0) == 0.1
    made.trying()
    made.welcomed(20.0)
    made.lost(21.0)
    assert made.delay(1.0) == 0.0
    made.trying()
    made.lost(1000.0)
    assert made.delay(1.0) > 0, "it never took us in"


def test_servers_take_turns_and_redirects_come_first() -> None:
    made = rotation("a", "b", "c", roll=0.4)
    assert [made.choose() for _ in range(4)] == ["b", "c", "a", "b"]
    made.redirect(["x", "y"])
    assert [made.choose() for _ in range(3)] == ["x", "y", "c"]


def test_a_round_is_known_and_a_new_list_begins_one() -> None:
    made = rotation("a", "b")
    assert made.round_begins
    made.choose()
    assert not made.round_begins
    made.choose()
    assert made.round_begins
    made.choose()
    made.use(["a", "b"], 0.9)
    assert not made.round_begins, "the same list goes on"
    made.use(["c"], 0.9)
    assert made.round_begins
    assert made.choose() == "c"


def test_refused_for_good_means_by_all_in_a_row() -> None:
    made = rotation("a", "b")
    assert not made.refused_for_good()
    made.welcomed(0.0)
    assert not made.refused_for_good()
    assert made.refused_for_good()


async def test_zookeeper_members_are_asked_again_each_round(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    """While the ensemble is away, whoever was known before is still tried."""
    from changefeed import servers as module

    answers: list[tuple[str, ...] | None] = [("ws://127.0.0.1:1", "ws://127.0.0.1:2"), None, ("ws://127.0.0.1:3",)]
    asked = 0

    async def resolve(given: object) -> tuple[str, ...]:
        nonlocal asked
        answer = answers[min(asked, 2)]
        asked += 1
        if answer is None:
            raise CoordinatorUnavailable("no quorum")
        return answer

    monkeypatch.setattr(module, "resolve", resolve)
    world = World(entropy=SeededEntropy(3))
    dialer = Dialer("zk://z:1/feeds", None, MemoryNetwork(), Settings(), world)
    tried = []
    for _ in range(6):
        with pytest.raises((ConnectionRefused, Exception)):
            await dialer.dial()
        tried.append(dialer.server[-1])
    assert sorted(tried[:2]) == ["1", "2"]
    assert sorted(tried[2:4]) == ["1", "2"]
    assert tried[4:] == ["3", "3"]


async def test_nobody_is_known_while_the_ensemble_was_never_reached(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    from changefeed import servers as module

    async def resolve(given: object) -> tuple[str, ...]:
        raise CoordinatorUnavailable("no quorum")

    monkeypatch.setattr(module, "resolve", resolve)
    dialer = Dialer("zk://z:1/feeds", None, MemoryNetwork(), Settings(), World(entropy=SeededEntropy(3)))
    for _ in range(3):
        with pytest.raises(CoordinatorUnavailable):
            await dialer.dial()
    assert trio.current_time() > 0, "it waits between tries"


class Frozen(MemoryNetwork):
    """Every server accepts and says nothing."""

    async def connect(self, url: str, *, timeout_s: float, **options: object) -> NoReturn:  # type: ignore[override]
        await trio.sleep(timeout_s)
        raise Unreachable(f"{url} did not answer within {timeout_s:g} s")


@pytest.mark.parametrize(("servers", "waits"), [(1, [10, 10]), (3, [2, 2, 10, 10])])
async def test_a_frozen_server_is_left_soon_while_there_are_others(
    autojump_clock: trio.abc.Clock, servers: int, waits: list[float]
) -> None:
    """The last one to be tried, and all in later rounds, get their whole time: perhaps everybody is slow."""
    settings = Settings(reconnect_min_s=0, reconnect_max_s=0)
    urls = [f"ws://127.0.0.1:{port}" for port in range(1, servers + 1)]
    dialer = Dialer(urls, None, Frozen(), settings, World(entropy=SeededEntropy(1)))
    took = []
    for _ in waits:
        began = trio.current_time()
        with pytest.raises(Unreachable):
            await dialer.dial()
        took.append(trio.current_time() - began)
    assert took == pytest.approx(waits)
