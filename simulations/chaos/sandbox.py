"""A world of its own for a run: namespaces of network, mounts and process ids; cut, lossy and slow links; a small disk.

`enter()` runs this program again inside of new namespaces (as root, or in a user namespace where those are allowed).
There every node of the run has a network namespace and an address of its own, joined by a router (the namespace of this
process): so each way between two nodes passes one place, where iptables can drop it. When the program ends, however
it ends, the kernel takes all of it away: processes, namespaces, rules, mounts.

Without that the run has loopback only: what needs a network of its own is then reported as not available.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

INSIDE: Final = "CHANGEFEED_CHAOS_INSIDE"
_TOOLS: Final = ("unshare", "nsenter", "ip", "tc", "iptables", "mount")


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        raise SandboxError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class SandboxError(RuntimeError):
    """A namespace, link or rule could not be made."""


def _unshare() -> list[str]:
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
    return command if os.geteuid() == 0 else [*command, "--user", "--map-root-user"]


def missing() -> str:
    """Why there can be no network of our own on this machine: a sentence; "" if there can."""
    if os.environ.get(INSIDE):
        return ""
    if sys.platform != "linux":
        return "namespaces are Linux's"
    lacking = [tool for tool in _TOOLS if shutil.which(tool, path=_path()) is None]
    if lacking:
        return f"{', '.join(lacking)} missing (Debian: util-linux, iproute2, iptables)"
    probe = "mount -t tmpfs tmpfs /run && mkdir /run/netns && ip netns add probe && iptables -L -n"
    done = subprocess.run([*_unshare(), "sh", "-c", probe], capture_output=True, text=True, env=_environment())
    return f"no namespaces for this user: {done.stderr.strip()[:200]}" if done.returncode else ""


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _path()}


def enter(command: Sequence[str]) -> int:
    """Run `command` inside; its exit status. Call it only where `missing()` says nothing."""
    process = subprocess.Popen([*_unshare(), *command], env={**_environment(), INSIDE: "1"})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # it has had the same Ctrl-C, and tidies up


def inside() -> bool:
    return bool(os.environ.get(INSIDE))


@dataclass(frozen=True)
class Rule:
    """A rule of the router that is in force. text: as iptables takes it, without -I or -D. mark: by which its counters
    are found (one text with several addresses makes several rules in the kernel)."""

    text: tuple[str, ...]
    mark: str


@dataclass
class Network:
    """The nodes of a run and the links between them. Made once, inside; everything goes with the process.

    Without a network of its own (`own` is False) every node is at 127.0.0.1, and nothing can be cut.
    """

    own: bool
    nodes: dict[str, str] = field(default_factory=dict)
    _devices: dict[str, str] = field(default_factory=dict)
    _marks: int = 0

    def begin(self) -> None:
        if not self.own:
            return
        _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        os.makedirs("/run/netns", exist_ok=True)
        _run("ip", "link", "set", "lo", "up")
        with open("/proc/sys/net/ipv4/ip_forward", "w") as switch:
            switch.write("1")

    def add(self, node: str) -> str:
        """Give a node its address; returns it."""
        if node in self.nodes:
            return self.nodes[node]
        if not self.own:
            self.nodes[node] = "127.0.0.1"
            return "127.0.0.1"
        number = len(self.nodes) + 1
        address, gateway, device = f"10.77.{number}.2", f"10.77.{number}.1", f"v{number}"
        _run("ip", "netns", "add", node)
        _run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", node)
        _run("ip", "addr", "add", f"{gateway}/24", "dev", device)
        _run("ip", "link", "set", device, "up")
        _run("ip", "-n", node, "addr", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", node, "link", "set", "eth0", "up")
        _run("ip", "-n", node, "link", "set", "lo", "up")
        _run("ip", "-n", node, "route", "add", "default", "via", gateway)
        self.nodes[node], self._devices[node] = address, device
        return address

    def within(self, node: str) -> list[str]:
        """What a command is prefixed with to run at that node; the process id stays that of the command."""
        return ["nsenter", f"--net=/run/netns/{node}"] if self.own else []

    # ---- cuts: rules of the router, which all traffic between nodes passes; each returns what `mend` takes

    def cut_out(self, node: str) -> list[Rule]:
        """Nothing that the node sends arrives anywhere."""
        return [self.drop("-s", self.nodes[node])]

    def cut_in(self, node: str) -> list[Rule]:
        """Nothing arrives at the node."""
        return [self.drop("-d", self.nodes[node])]

    def cut_both(self, node: str) -> list[Rule]:
        return self.cut_out(node) + self.cut_in(node)

    def cut_between(self, node: str, others: Iterable[str]) -> list[Rule]:
        """Nothing passes between the node and those."""
        ends = ",".join(self.nodes[other] for other in others)
        return [self.drop("-s", self.nodes[node], "-d", ends), self.drop("-s", ends, "-d", self.nodes[node])]

    def lose(self, node: str, share: float) -> list[Rule]:
        """Lose a share of all that comes from and goes to a node."""
        random = ("-m", "statistic", "--mode", "random", "--probability", f"{share:.3f}")
        return [self.drop("-s", self.nodes[node], *random), self.drop("-d", self.nodes[node], *random)]

    def drop(self, *match: str, jump: Sequence[str] = ("DROP",)) -> Rule:
        """Drop (or reject) what matches."""
        self._marks += 1
        mark = f"chaos-{self._marks}"
        rule = Rule((*match, "-m", "comment", "--comment", mark, "-j", *jump), mark)
        _run("iptables", "-w", "-I", "FORWARD", *rule.text)
        return rule

    def mend(self, rules: Iterable[Rule]) -> int:
        """Take rules away again; returns how many packets met them."""
        rules = list(rules)
        met = self.met(rules)
        for rule in rules:
            _run("iptables", "-w", "-D", "FORWARD", *rule.text)
        return met

    def met(self, rules: Iterable[Rule]) -> int:
        """Packets that met these rules so far."""
        marks = {rule.mark for rule in rules}
        lines = _run("iptables-save", "-c", "-t", "filter").splitlines()
        return sum(int(line[1 : line.index(":")]) for line in lines if marks & set(line.split()))

    # ---- slow links

    def throttle(self, node: str, kbit: int) -> None:
        """Let no more than that into a node."""
        _run("tc", "qdisc", "replace", "dev", self._devices[node], "root", "tbf", "rate", f"{kbit}kbit",
             "burst", "4k", "limit", "64k")  # fmt: skip

    def unthrottle(self, node: str) -> int:
        """As before; returns how many packets had to wait or were lost meanwhile."""
        shown = _run("tc", "-s", "qdisc", "show", "dev", self._devices[node])
        _run("tc", "qdisc", "del", "dev", self._devices[node], "root", check=False)
        words = shown.replace(",", " ").replace(")", " ").split()
        return sum(int(words[i + 1]) for i, word in enumerate(words[:-1]) if word in ("overlimits", "(dropped"))


def time_namespaces() -> bool:
    """Whether a process can have a monotonic clock of its own."""
    return subprocess.run(["unshare", "-T", "--monotonic=1", "true"], capture_output=True).returncode == 0


def small_disk(folder: str, mebibytes: int) -> None:
    """Mount a disk of that size on a folder; only inside."""
    os.makedirs(folder, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", folder)


def unmount(folder: str) -> None:
    _run("umount", "-l", folder, check=False)
