"""Three hosts with their own addresses, cut off from one another: the deployment of docs/how-to/three-hosts.md, harmed.

    python simulations/postgres_hosts.py [--cuts NAME,NAME] [--hold S] [--defaults] [--rate N] [--keep DIR]
                                         [--json FILE]

Each host is a network namespace: an instance, a ZooKeeper server, a publisher and a subscriber on each; PostgreSQL on
the first, which asks for passwords. One host after the other is cut off as CUTS says, for `--hold` seconds, and healed.
Said of each cut: who leads, how long nobody got receipts, and after how long all was well again; at the end the log and
what every subscriber got are judged by the checkers of changefeed.history.

Needs root. Everything runs in namespaces of its own and goes with them, on Ctrl-C too; its folder is removed. Exit 1 if
a cut went otherwise than it must, or a checker speaks; 2 where the network cannot be made.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))

from changefeed.history.facts import entry_facts  # noqa: E402
from changefeed.history.records import read_file  # noqa: E402
from changefeed.log.postgresql.connections import Server  # noqa: E402
from changefeed.log.postgresql.layout import lay_out  # noqa: E402
from changefeed.log.urls import open_log  # noqa: E402
from changefeed.settings import Settings  # noqa: E402
from changefeed.testing import zookeeper_ensemble  # noqa: E402
from changefeed.testing.postgresql_server import NoPostgresql, PostgresqlServer, programs  # noqa: E402
from changefeed.testing.zookeeper_ensemble import ZookeeperEnsemble  # noqa: E402
from simulations.chaos import sandbox  # noqa: E402
from simulations.chaos.dump import write_effects  # noqa: E402
from simulations.chaos.judge import judged  # noqa: E402
from simulations.chaos.nodes import instance, publisher, subscriber  # noqa: E402
from simulations.chaos.processes import Node  # noqa: E402
from simulations.chaos.recorder import Recorder  # noqa: E402
from simulations.chaos.sandbox import Network, Rule  # noqa: E402
from simulations.postgres_hosts_report import Report, Seen, longest  # noqa: E402

FEED: Final = "vmapi"
HOSTS: Final = ("h1", "h2", "h3")
#: Where PostgreSQL runs.
DATABASE_HOST: Final = "h1"
PORT: Final = 7557
DATABASE_PORT: Final = 5432
PASSWORD: Final = "three hosts"
#: Set on the instances, which announce it to their clients: a client whose server was cut off notices after 3 s. With
#: the defaults it takes 25 s.
DEPLOYED: Final[dict[str, Any]] = {"heartbeat_s": 1.0, "heartbeat_dead_s": 3.0}
NOT_HERE: Final = 2
#: How long all may take to be well again once everything is healed: time-outs of clients, and elections behind them.
HEALED_S: Final = 60.0
LOOK_S: Final = 0.005
#: syncLimit of the ensemble: after so long its servers give up one that led them and is silent. initLimit: a server
#: that voted for an unreachable one tries to reach it for so long. Until then there may be no quorum, and so no new
#: leader of ours either. With ZooKeeper's usual 20 s and more, that is how long a cut-off host can cost.
ZOOKEEPER_SYNC_S: Final = 2.0
ZOOKEEPER_INIT_S: Final = 5.0
#: A receipt that was on its way when a cut began is with its publisher by then.
ON_ITS_WAY_S: Final = 1.0
#: What this machine may add to a time-out: two cores for some fifteen processes.
SLACK_S: Final = 2.0


@dataclass(frozen=True)
class Cut:
    """says: for people. of: whose host is cut off: "leader" (which then is on no host of PostgreSQL), "follower" (as
    well), "database". moves: the lead must go to another host meanwhile.
    with_zookeeper: the server that leads ZooKeeper is on that host, too; else on another one (None: wherever)."""

    says: str
    of: str
    moves: bool
    rules: Callable[[Deployment, str], list[Rule]]
    with_zookeeper: bool | None = None

    @property
    def must(self) -> str:
        """What is asked of the lead."""
        if self.of == "database":
            return "nobody can publish meanwhile"
        if self.moves:
            return "another host leads meanwhile, in time"
        return "the lead stays" if self.of == "follower" else "it leads on until its session expires; no gap then"


CUTS: Final[dict[str, Cut]] = {
    "both": Cut("the leader's host, both ways", "leader", True, lambda d, h: d.network.cut_both(h), False),
    "both-leaders": Cut(
        "the leader's host, both ways, with ZooKeeper's leader",
        "leader",
        True,
        lambda d, h: d.network.cut_both(h),
        True,
    ),
    "out": Cut("the leader's host, nothing of it arrives", "leader", True, lambda d, h: d.network.cut_out(h), False),
    "in": Cut("the leader's host, nothing arrives there", "leader", True, lambda d, h: d.network.cut_in(h), False),
    "zookeeper": Cut("the leader's host, from ZooKeeper only", "leader", False, lambda d, h: d.cut_zookeeper(h), False),
    "postgresql": Cut("the leader's host, from PostgreSQL only", "leader", True, lambda d, h: d.cut_postgresql(h)),
    "follower": Cut("a follower's host, both ways", "follower", False, lambda d, h: d.network.cut_both(h)),
    "database": Cut("PostgreSQL's host, both ways", "database", False, lambda d, h: d.network.cut_both(h)),
}


class Deployment:
    """Everything that stands: inside of the run's namespaces. Made by `deployed`."""

    def __init__(self, folder: Path, network: Network, settings: dict[str, Any], rate: float) -> None:
        self.folder = folder
        self.network = network
        self.history = folder / "history"
        self.history.mkdir()
        self.records = Recorder(self.history / "nemesis.jsonl", "nemesis", 1, "")
        self.settings = settings
        self.rate = rate
        for host in HOSTS:
            network.add(host)
        self.zookeeper = ZookeeperEnsemble(
            init_s=ZOOKEEPER_INIT_S,
            sync_s=ZOOKEEPER_SYNC_S,
            folder=folder / "zookeeper",
            hosts=[network.nodes[host] for host in HOSTS],
            within=lambda index: network.within(HOSTS[index]),
        )
        self.database = PostgresqlServer(
            folder / "postgresql",
            host=network.nodes[DATABASE_HOST],
            prefix=tuple(network.within(DATABASE_HOST)),
        )
        self.database.port = DATABASE_PORT
        self.instances: dict[str, Node] = {}
        self.publishers: dict[str, Node] = {}
        self.subscribers: dict[str, Node] = {}

    # ---- made

    def begin(self) -> None:
        """Start everything; returns when receipts and deliveries flow on every host."""
        self.zookeeper.start()
        self._begin_database()
        for host in HOSTS:
            self.instances[host] = self._instance(host)
            self.instances[host].start()
        self.until(self.all_ready, "the instances are ready")
        for number, host in enumerate(HOSTS):
            self.publishers[host] = self._publisher(host, number)
            self.subscribers[host] = self._subscriber(host)
            self.publishers[host].start()
            self.subscribers[host].start()
        self.until(self.flowing([*HOSTS]), "receipts and deliveries on every host")

    def _begin_database(self) -> None:
        """Only the instances may in, with a password and the least privileges; and this harness, from the router."""
        database, addresses = self.database, self.network.nodes
        database.create()
        router = addresses[DATABASE_HOST].rpartition(".")[0] + ".1"
        lines = [f"host all postgres {router}/32 trust"]
        lines += [f"host feeds changefeed {addresses[host]}/32 scram-sha-256" for host in HOSTS]
        (database.data / "pg_hba.conf").write_text("".join(f"{line}\n" for line in lines))
        database.start()
        database.execute("CREATE DATABASE feeds")
        lay_out(Server(database.url("feeds"), 10.0))
        database.execute(
            f"CREATE ROLE changefeed LOGIN PASSWORD '{PASSWORD}'",
            "GRANT USAGE ON SCHEMA changefeed TO changefeed",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA changefeed TO changefeed",
            "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA changefeed TO changefeed",
            database="feeds",
        )

    @property
    def servers(self) -> str:
        return ",".join(f"ws://{self.network.nodes[host]}:{PORT}" for host in HOSTS)

    def _node(self, host: str, name: str, module: str, gauges: tuple[str, ...], given: dict[str, Any]) -> Node:
        told = {"feed": FEED, **given}
        return Node(
            name, f"simulations.chaos.nodes.{module}", self.history, gauges, lambda life: told,
            within=self.network.within(host), environment={"PGPASSWORD": PASSWORD},
        )  # fmt: skip

    def _instance(self, host: str) -> Node:
        given = {
            "log": self.database.url("feeds", "changefeed"),
            "coordinator": self.zookeeper.url("/changefeed"),
            "listen": f"{self.network.nodes[host]}:{PORT}",
            "advertise": None,
            "settings": self.settings,
        }
        return self._node(host, f"i{host[1:]}", "instance", instance.GAUGES, given)

    def _publisher(self, host: str, seed: int) -> Node:
        """The first two are named, the third numbers by itself."""
        given = {"servers": self.servers, "seed": seed, "named": seed < 2, "per_s": self.rate, "sizes": [1, 12],
                 "ahead": 16}  # fmt: skip
        return self._node(host, f"p{host[1:]}", "publisher", publisher.GAUGES, given)

    def _subscriber(self, host: str) -> Node:
        name = f"s{host[1:]}"
        given = {"servers": self.servers, "kind": "sqlite", "store": str(self.folder / f"{name}.db")}
        return self._node(host, name, "subscriber", subscriber.GAUGES, given)

    def end(self) -> None:
        """Stop whatever runs."""
        for node in self.nodes:
            node.kill()
        self.zookeeper.close()
        self.database.stop(signal.SIGQUIT)

    # ---- cuts that a network does not know by itself

    def cut_zookeeper(self, host: str) -> list[Rule]:
        """Nothing of ZooKeeper passes between the host and the others, so the server on it serves nobody either."""
        ports = sorted(self.zookeeper.ports)
        return self._cut_ports(host, ports)

    def cut_postgresql(self, host: str) -> list[Rule]:
        return self._cut_ports(host, [DATABASE_PORT])

    def _cut_ports(self, host: str, ports: Sequence[int]) -> list[Rule]:
        match = ("-p", "tcp", "-m", "multiport", "--ports", ",".join(map(str, ports)))
        address = self.network.nodes[host]
        return [self.network.drop("-s", address, *match), self.network.drop("-d", address, *match)]

    # ---- seen

    @property
    def nodes(self) -> list[Node]:
        return [*self.publishers.values(), *self.subscribers.values(), *self.instances.values()]

    def epoch(self) -> int:
        return max(node.gauge.get("epoch") for node in self.instances.values())

    def leads(self, host: str) -> bool:
        node = self.instances[host]
        return node.running and bool(node.gauge.get("leading"))

    def leader(self) -> str:
        """The host whose instance leads in the highest epoch; "" if none says so."""
        epoch = self.epoch()
        for host in HOSTS:
            if self.leads(host) and self.instances[host].gauge.get("epoch") == epoch:
                return host
        return ""

    def all_ready(self) -> bool:
        return all(node.running and node.gauge.get("ready") for node in self.instances.values()) and bool(self.leader())

    def flowing(self, hosts: Sequence[str]) -> Callable[[], bool]:
        """Whether, from now on, the publishers of these hosts have had receipts, and the subscribers what was in the
        log at that time."""
        acked = {host: self.publishers[host].gauge.get("acked") for host in hosts}
        tail = self.tail()
        return lambda: all(
            self.publishers[host].gauge.get("acked") > acked[host]
            and self.subscribers[host].gauge.get("seq") >= max(tail, 1)
            for host in hosts
        )

    def acked(self) -> int:
        return sum(node.gauge.get("acked") for node in self.publishers.values())

    def tail(self) -> int:
        return max(node.gauge.get("tail") for node in self.instances.values())

    def until(self, reached: Callable[[], bool], what: str, within_s: float = HEALED_S) -> None:
        """Raises TimeoutError that says what did not come true in time."""
        deadline = time.monotonic() + within_s
        while not reached():
            if time.monotonic() > deadline:
                said = "; ".join(f"{node.name} {node.said(2)}" for node in self.instances.values())
                raise TimeoutError(f"not within {within_s:g} s: {what}. {said}")
            time.sleep(LOOK_S)

    # ---- cut off, healed

    def place(self, cut: Cut) -> str:
        """The host to cut off, after the lead is where the cut wants it: not where PostgreSQL is."""
        for _ in range(3):
            leader = self.leader()
            if leader and leader != DATABASE_HOST:
                break
            self.until(lambda: bool(self.leader()), "somebody leads")
            node = self.instances[self.leader()]
            node.terminate()  # it drains and names its successor
            self.until(lambda node=node: not node.running, f"{node.name} has drained")
            node.start()
            self.until(self.all_ready, "the instances are ready")
        leader = self.leader()
        if cut.of == "database":
            return DATABASE_HOST
        return leader if cut.of == "leader" else next(h for h in HOSTS if h not in (leader, DATABASE_HOST))

    def place_zookeeper(self, host: str, wanted: bool) -> None:
        """Restart the server that leads ZooKeeper until one leads on that host, or on another."""
        index = HOSTS.index(host)
        for _ in range(6):
            self.wait_zookeeper()
            if (self.zookeeper.leader() == index) == wanted:
                return
            self.zookeeper.restart(self.zookeeper.leader())
        raise TimeoutError(f"the server on {host} {'never led' if wanted else 'always led'} ZooKeeper")

    def wait_zookeeper(self) -> None:
        """Until all its servers serve: with one of them still joining, a cut would be of two."""
        self.until(lambda: all(self.zookeeper.mode(n) for n in range(len(HOSTS))), "all ZooKeeper servers serve")
        self.until(self.all_ready, "the instances are ready")

    def run_cut(self, name: str, hold_s: float, limits: Settings) -> Seen:
        """Cut off, hold, heal, and wait until all is well. What went otherwise than it must is in `wrong`."""
        cut = CUTS[name]
        host = self.place(cut)
        if cut.with_zookeeper is not None:
            self.place_zookeeper(host, cut.with_zookeeper)
        self.wait_zookeeper()
        self.until(self.flowing(HOSTS), "receipts and deliveries on every host")
        before, epoch = self.leader(), self.epoch()
        if cut.of == "leader" and host != before:
            raise TimeoutError(f"the lead went from {host} to {before} before the cut")
        seen = Seen(name, cut.says, host, before, begun_ns=time.monotonic_ns())
        kind = f"hosts-{name}"
        target = self.instances[host].name
        self.records.write("fault", id=name, kind=kind, target=target, on={"lasts": hold_s}, expects=["packets-lost"])
        rules = cut.rules(self, host)
        try:
            self._hold(seen, epoch, hold_s)
        finally:
            seen.packets = self.network.mend(rules)
        seen.healed_ns = time.monotonic_ns()
        self.records.write("effect", id=name, what="packets-lost" if seen.packets else "missed", packets=seen.packets)
        self.records.write("over", id=name)
        seen.after, seen.epochs = self.leader() or before, self.epoch() - epoch
        try:
            self.until(self.flowing(HOSTS), "receipts and deliveries on every host after the healing")
            self.until(self.all_ready, "all instances are ready after the healing")
        except TimeoutError as error:
            seen.wrong.append(str(error))
        seen.well_ns = time.monotonic_ns()
        seen.healed_s = (seen.well_ns - seen.healed_ns) / 1e9
        pauses(self, [seen])
        self._judge(seen, cut, limits)
        return seen

    def _hold(self, seen: Seen, epoch: int, hold_s: float) -> None:
        """Look who leads for so long."""
        deadline = seen.begun_ns + int(hold_s * 1e9)
        acked = None
        while (now := time.monotonic_ns()) < deadline:
            after_s = (now - seen.begun_ns) / 1e9
            if seen.given_up_s is None and not self.leads(seen.before):
                seen.given_up_s = after_s
            if seen.led_s is None and self.epoch() > epoch and self.leader() not in ("", seen.before):
                seen.led_s = after_s
            if acked is None and after_s > ON_ITS_WAY_S:
                acked = self.acked()
            time.sleep(LOOK_S)
        if CUTS[seen.cut].of == "database" and acked != self.acked():
            seen.wrong.append("receipts came while PostgreSQL's host was cut off")

    def _judge(self, seen: Seen, cut: Cut, limits: Settings) -> None:
        """Who must lead, and by when."""
        log_s = limits.log_timeout_s + limits.suspect_after_s + limits.log_look_s + SLACK_S
        silent_s = 2 * limits.suspect_after_s + SLACK_S
        if cut.with_zookeeper:
            silent_s += 2 * (ZOOKEEPER_SYNC_S + ZOOKEEPER_INIT_S)  # a first try may go to the silent one
        if not seen.packets:
            seen.wrong.append("no packet met the cut: nothing was shown")
        if cut.moves and (seen.led_s is None or seen.after in ("", seen.before)):
            seen.wrong.append("no other host led while the leader's was cut off")
        if seen.cut == "zookeeper":
            # Its session expires there, and then another may take the empty seat: from a leader that still serves.
            session_s = limits.coordinator_session_s
            if seen.led_s is not None and seen.led_s < session_s / 2:
                seen.wrong.append(f"another led after {seen.led_s:.2f} s; its session lasts {session_s:g} s")
            if seen.elsewhere_s > SLACK_S:
                seen.wrong.append(f"no receipts elsewhere for {seen.elsewhere_s:.2f} s; it held the log's fence")
        elif seen.cut == "follower" and (seen.epochs or seen.elsewhere_s > SLACK_S):
            seen.wrong.append(f"a follower was missed: led by {seen.after}, no receipts for {seen.elsewhere_s:.2f} s")
        if seen.cut == "postgresql" and (seen.given_up_s is None or seen.given_up_s > log_s):
            seen.wrong.append(f"given up after {seen.given_up_s} s; log_timeout, suspect_after and a look: {log_s:g} s")
        if seen.cut in ("both", "both-leaders", "out", "in") and seen.led_s is not None:
            receipts_s = silent_s + limits.heartbeat_dead_s
            if seen.led_s > silent_s:
                seen.wrong.append(f"another led after {seen.led_s:.2f} s; the limit is {silent_s:g} s")
            if seen.elsewhere_worst_s > receipts_s:
                seen.wrong.append(f"a publisher elsewhere had no receipt for more than {receipts_s:g} s")

    # ---- the end

    def finish(self) -> None:
        """All outcomes, all deliveries, then a clean end of everything; raises TimeoutError."""
        self.records.write("heal", bound_s=HEALED_S)
        self._stop(list(self.publishers.values()))
        tail = self.tail()
        self.until(
            lambda: all(node.gauge.get("seq") >= tail for node in self.subscribers.values()), "all have read to the end"
        )
        self.records.write("converged")
        self._stop(list(self.subscribers.values()))
        self._stop(list(self.instances.values()))

    def _stop(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            node.terminate()
        self.until(lambda: not any(node.running for node in nodes), f"{', '.join(n.name for n in nodes)} have ended")

    async def dump(self) -> None:
        """The log, as PostgreSQL holds it; and the subscribers' own databases."""
        records = Recorder(self.history / "end.jsonl", "end", 1, FEED)
        store = open_log(self.database.url("feeds"))
        log = await store.open(FEED, create=False)
        try:
            look = await log.look()
            records.write("log", lineage=look.lineage, tail=look.tail.seq, floor=look.floor.seq)
            after = look.floor.seq
            while entries := await log.read(after, 4 * 2**20):
                records.write_all(("entry", entry_facts(entry, look.lineage)) for entry in entries)
                after = entries[-1].last_seq
        finally:
            await log.aclose()
            await store.aclose()
        for node in self.subscribers.values():
            write_effects(records, node, f"{look.lineage}.0.00000000.0")


def pauses(deployment: Deployment, cuts: Sequence[Seen]) -> None:
    """From the publishers' histories: for how long they had no receipts, from each cut until all was well."""
    acks: dict[str, list[int]] = {}
    for host, node in deployment.publishers.items():
        acks[host] = [record["t"] for record in read_file(node.history) if record["f"] == "acked"]
    for seen in cuts:
        elsewhere = [acks[host] for host in HOSTS if host != seen.host]
        seen.there_s = longest(acks[seen.host], seen.begun_ns, seen.well_ns)
        seen.elsewhere_worst_s = max(longest(times, seen.begun_ns, seen.well_ns) for times in elsewhere)
        seen.elsewhere_s = longest(sorted(t for times in elsewhere for t in times), seen.begun_ns, seen.well_ns)


@contextmanager
def deployed(folder: Path, settings: dict[str, Any], rate: float) -> Iterator[Deployment]:
    """All of it, gone with the block."""
    network = Network(own=True)
    network.begin()
    deployment = Deployment(folder, network, settings, rate)
    try:
        deployment.begin()
        yield deployment
    finally:
        deployment.end()


def run(options: argparse.Namespace, say: Callable[[str], None] = print) -> Report:
    """Inside of the run's namespaces."""
    begun = time.monotonic()
    settings = {} if options.defaults else DEPLOYED
    limits = Settings(**settings)
    shown = ("log_timeout_s", "log_look_s", "suspect_after_s", "heartbeat_s", "heartbeat_dead_s")
    report = Report({name: getattr(limits, name) for name in shown}, options.hold)
    with ExitStack() as stack:
        if options.keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="changefeed-hosts-")))
        else:
            folder = options.keep
            folder.mkdir(parents=True)
        folder.chmod(0o755)  # PostgreSQL's user must reach its own
        with deployed(folder, settings, options.rate) as deployment:
            say(f"three hosts stand after {time.monotonic() - begun:.1f} s; {report.settings}")
            deployment.records.write("want", name="acks", count=100)
            try:
                for name in options.cuts:
                    report.cuts.append(deployment.run_cut(name, options.hold, limits))
                    say(f"{name:10} {report.cuts[-1].line()}")
                deployment.finish()
            except TimeoutError as error:
                report.wrong.append(str(error))
            trio.run(deployment.dump)
            for node in deployment.nodes:
                report.wrong += [f"{node.name} printed a traceback: {line}" for line in node.tracebacks()]
        found = judged(deployment.history)
        report.broken = [f"{one['promise']}: {one['says']}" for one in found["broken"]]
        report.acked, report.delivered = found["counts"].get("acked-events", 0), found["counts"].get("events", 0)
    report.seconds = time.monotonic() - begun
    return report


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--cuts", default=",".join(CUTS), help=f"of {', '.join(CUTS)} (default: all)")
    made.add_argument("--hold", type=float, default=25.0, metavar="S", help="how long each cut lasts (25)")
    made.add_argument("--defaults", action="store_true", help="nothing is set: clients notice silence after 25 s")
    made.add_argument("--rate", type=float, default=60.0, help="changes a second, of each publisher (60)")
    made.add_argument("--keep", type=Path, help="a new folder that everybody can reach, and that stays")
    made.add_argument("--json", type=Path, help="write the report there too")
    return made


def missing() -> str:
    """Why this cannot run here: a sentence; "" if it can."""
    if os.geteuid() != 0:
        return "hosts are network namespaces, and PostgreSQL has a user of its own in one: that takes root"
    try:
        programs()
    except NoPostgresql as error:
        return str(error)
    return zookeeper_ensemble.missing() or sandbox.missing()


def _end_with(descriptor: int) -> None:
    """End as by Ctrl-C when whoever started us is gone, however it went."""
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    made = parser()
    options = made.parse_args(arguments)
    options.cuts = [name for name in options.cuts.split(",") if name]
    unknown = [name for name in options.cuts if name not in CUTS]
    if unknown or not options.cuts:
        made.error(f"no cut {', '.join(unknown)}; there are {', '.join(CUTS)}")
    lacking = missing()
    if lacking:
        print(f"not here: {lacking}")
        return NOT_HERE
    if not sandbox.inside():
        leash, _mine = os.pipe()  # closes with this process: the run inside then ends, too
        os.dup2(leash, 0)
        return sandbox.enter([sys.executable, str(Path(__file__).resolve()), *arguments])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    threading.Thread(target=_end_with, args=(0,), daemon=True).start()
    try:
        report = run(options, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("interrupted; everything is removed", flush=True)
        return 130
    print("\n".join(report.lines()), flush=True)
    if options.json:
        options.json.write_text(report.json())
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
