"""The history that is replayed leads to the tree that git has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from changefeed.demo.history import History, make_up, owner, parse_log, path_id, read_git, read_plan, write_plan
from changefeed.errors import BadConfig


def rebuilt(history: History) -> dict[str, tuple[str, str]]:
    tree: dict[str, tuple[str, str]] = {}
    for commit in history.commits:
        for change in commit:
            if change.op == "delete":
                del tree[change.path]
            else:
                assert (change.path in tree) == (change.op == "update")
                tree[change.path] = (change.mode, change.blob)
    return tree


def git(folder: Path, *arguments: str) -> None:
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    for who in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{who}_NAME": "t", f"GIT_{who}_EMAIL": "t@example.org", f"GIT_{who}_DATE": "1700000000 +0000"}
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, env=env)


def commit_all(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "step\n\n:100644 100644 not a change")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Files that are added, changed, renamed, made executable, turned into a link and deleted; a merge; odd names."""
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "kept").write_text("1")
    (tmp_path / "moved").write_text("long enough to be seen as a rename\n" * 10)
    (tmp_path / "new\nline \t ünï").write_text("odd")
    (tmp_path / os.fsdecode(b"not-utf8-\xff")).write_text("bytes")
    commit_all(tmp_path)
    git(tmp_path, "checkout", "-q", "-b", "side")
    (tmp_path / "from-side").write_text("side")
    commit_all(tmp_path)
    git(tmp_path, "checkout", "-q", "main")
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    (tmp_path / "kept").chmod(0o755)
    commit_all(tmp_path)
    git(tmp_path, "merge", "-q", "--no-ff", "-m", "merge", "side")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "nothing")
    (tmp_path / "kept").unlink()
    (tmp_path / "kept").symlink_to("elsewhere")
    (tmp_path / "new\nline \t ünï").unlink()
    commit_all(tmp_path)
    return tmp_path


def test_a_repository_is_read_as_git_sees_it(repository: Path) -> None:
    """Replaying the changes gives exactly `git ls-tree -r HEAD`; a merge counts as what it brought."""
    history = read_git(repository)
    assert rebuilt(history) == history.tree
    assert history.tree["kept"][0] == "120000"
    assert "elsewhere" in history.tree and "from-side" in history.tree
    assert [change.path for change in history.commits[2]] == ["from-side"]
    assert any(path.startswith("sha256:") for path in history.tree)


def test_what_git_cannot_read_is_said(tmp_path: Path) -> None:
    """No repository, and a repository without a commit, are errors in one sentence."""
    with pytest.raises(BadConfig, match="git cannot read"):
        read_git(tmp_path / "nowhere")
    git(tmp_path, "init", "-q")
    with pytest.raises(BadConfig):
        read_git(tmp_path)


def test_commits_without_changes_have_none() -> None:
    """The reading of git's output does not take a commit for a change."""
    log = b"commit 1\0commit 2\0:000000 100644 0 abc A\0path\0:100644 000000 abc 0 D\0gone\0"
    assert [len(commit) for commit in parse_log(log)] == [0, 2]
    assert list(parse_log(b"")) == []


def test_a_made_up_history_is_the_same_for_the_same_seed() -> None:
    """It has the size that was asked for, leads to its tree, and does not change from run to run."""
    history = make_up(3000, seed=7)
    assert 3000 <= history.changes < 3500
    assert rebuilt(history) == history.tree
    assert history == make_up(3000, seed=7) != make_up(3000, seed=8)
    assert {change.op for commit in history.commits for change in commit} == {"create", "update", "delete"}


def test_each_path_has_one_publisher_and_keeps_its_order(tmp_path: Path) -> None:
    """The plans of all publishers together are the history, each path in one of them."""
    history = make_up(500)
    write_plan(tmp_path, history, 3)
    tree: dict[str, tuple[str, str]] = {}
    count = 0
    for index in range(3):
        for step in read_plan(tmp_path / f"plan-{index}.jsonl"):
            for path, op, mode, blob in step:
                count += 1
                assert owner(path, 3) == index
                if op == "delete":
                    del tree[path]
                else:
                    tree[path] = (mode, blob)
    assert count == history.changes and tree == history.tree


def test_paths_become_ids() -> None:
    """An id is UTF-8 of 1 to 512 bytes; other paths are told by their hash."""
    assert path_id("ü".encode()) == "ü"
    assert path_id(b"x" * 513).startswith("sha256:")
    assert path_id(b"\xff") != path_id(b"\xfe")
