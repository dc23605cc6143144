"""What is replayed: every file change of every commit of a repository's first-parent history, or a made-up one.

A *step* is the changes of one commit that one publisher owns: it becomes one group. Each path belongs to one publisher,
by its hash, so that the order of a path's changes is the order of one publisher's.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from changefeed.change import ID_BYTES_MAX
from changefeed.errors import BadConfig

#: A commit with more changes of one publisher than this becomes several groups: a group has a limit in bytes.
GROUP_CHANGES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file in one commit. op: create, update or delete; mode and blob: of the new file, "" for a delete."""

    path: str
    op: str
    mode: str
    blob: str

    def row(self) -> list[str]:
        return [self.path, self.op, self.mode, self.blob]


@dataclass(frozen=True, slots=True)
class History:
    """commits: their changes, oldest first. tree: path -> (mode, blob) at the end. source: for people."""

    source: str
    commits: tuple[tuple[FileChange, ...], ...]
    tree: dict[str, tuple[str, str]]

    @property
    def changes(self) -> int:
        return sum(len(commit) for commit in self.commits)

    def steps(self, publishers: int) -> list[list[list[FileChange]]]:
        """For each publisher its groups, in order."""
        mine: list[list[list[FileChange]]] = [[] for _ in range(publishers)]
        for commit in self.commits:
            parts: list[list[FileChange]] = [[] for _ in range(publishers)]
            for change in commit:
                parts[owner(change.path, publishers)].append(change)
            for steps, part in zip(mine, parts, strict=True):
                steps += [part[i : i + GROUP_CHANGES_MAX] for i in range(0, len(part), GROUP_CHANGES_MAX)]
        return mine


def owner(path: str, publishers: int) -> int:
    """The publisher to which a path belongs."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % publishers


def path_id(path: bytes) -> str:
    """A path as an id of at most 512 bytes of UTF-8; the few that are none are told by their hash."""
    if 0 < len(path) <= ID_BYTES_MAX:
        try:
            return path.decode()
        except UnicodeDecodeError:
            pass
    return "sha256:" + hashlib.sha256(path).hexdigest()


def _git(repository: Path, *arguments: str) -> bytes:
    command = ["git", "-c", "safe.directory=*", "-C", str(repository), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise BadConfig("git is not installed: the demo needs it to read a repository's history") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise BadConfig(f"git cannot read {repository}: {lines[0]}")
    return done.stdout


def read_git(repository: Path) -> History:
    """The first-parent history of HEAD; raises BadConfig if there is none or git cannot read it."""
    _git(repository, "rev-parse", "--verify", "HEAD^{commit}")
    log = _git(
        repository,
        *("-c", "log.showRoot=true", "-c", "diff.ignoreSubmodules=none", "-c", "core.quotePath=false"),
        *("log", "--first-parent", "-m", "--no-renames", "--reverse", "--raw", "-z", "--no-abbrev", "--no-color"),
        *("--no-ext-diff", "--format=commit %H", "HEAD"),
    )
    listing = _git(repository, "ls-tree", "-r", "-z", "--full-tree", "HEAD")
    tree = {}
    for line in filter(None, listing.split(b"\0")):
        head, _, path = line.partition(b"\t")
        mode, _, blob = head.decode().split(" ")
        tree[path_id(path)] = (mode, blob)
    commits = tuple(commit for commit in parse_log(log) if commit)
    if not commits:
        raise BadConfig(f"the history of {repository} changes no file")
    return History(f"git history of {repository.resolve().name}", commits, tree)


def parse_log(log: bytes) -> Iterator[tuple[FileChange, ...]]:
    """The commits of `git log --raw -z --format="commit %H"`: their changes, also where there are none."""
    words = iter(log.split(b"\0"))
    commit: list[FileChange] | None = None
    for word in words:
        word = word.lstrip(b"\n")
        if word.startswith(b"commit "):
            if commit is not None:
                yield tuple(commit)
            commit = []
        elif word.startswith(b":"):
            assert commit is not None
            _, mode, _, blob, status = word.decode().split(" ")
            path = path_id(next(words))
            if status == "D":
                commit.append(FileChange(path, "delete", "", ""))
            else:
                commit.append(FileChange(path, "create" if status == "A" else "update", mode, blob))
    if commit is not None:
        yield tuple(commit)


def make_up(changes: int, seed: int = 1) -> History:
    """A history of at least so many changes, the same for the same seed: mostly small commits, a few large ones."""
    draw = random.Random(seed)
    tree: dict[str, tuple[str, str]] = {}
    paths: list[str] = []
    commits: list[tuple[FileChange, ...]] = []
    total = 0
    while total < changes:
        size = 400 if draw.random() < 0.003 else 1 + min(int(draw.expovariate(0.4)), 40)
        commit: dict[str, FileChange] = {}
        for _ in range(size):
            if not paths or draw.random() < 0.3:
                path = "/".join(f"{draw.choice('abcdefgh')}{draw.randint(0, 9)}" for _ in range(draw.randint(1, 3)))
                path += f"/file-{len(paths)}.txt"
            else:
                path = draw.choice(paths)
            if path in commit:
                continue
            blob = f"{draw.getrandbits(160):040x}"
            if path not in tree:
                commit[path] = FileChange(path, "create", draw.choice(("100644", "100644", "100755")), blob)
                paths.append(path)
            elif draw.random() < 0.15:
                commit[path] = FileChange(path, "delete", "", "")
            else:
                commit[path] = FileChange(path, "update", tree[path][0], blob)
        for change in commit.values():
            if change.op == "delete":
                del tree[change.path]
            else:
                tree[change.path] = (change.mode, change.blob)
        commits.append(tuple(commit.values()))
        total += len(commit)
    return History(f"made-up history (seed {seed})", tuple(commits), tree)


def write_plan(folder: Path, history: History, publishers: int) -> None:
    """Write down what each publisher has to send, and the tree that must come out."""
    for index, steps in enumerate(history.steps(publishers)):
        with (folder / f"plan-{index}.jsonl").open("w") as file:
            for step in steps:
                file.write(json.dumps([change.row() for change in step]) + "\n")
    (folder / "tree.json").write_text(json.dumps(history.tree))


def read_plan(path: Path) -> Iterator[Sequence[Sequence[str]]]:
    with path.open() as file:
        for line in file:
            yield json.loads(line)
