"""The command line as people use it: real processes, real pipes, exit statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from changefeed.testing.processes import ServeProcess, free_port

pytestmark = pytest.mark.processes

CHANGEFEED = [sys.executable, "-m", "changefeed.cli"]
PATIENCE_S = 60


def clean_environment(**more: str) -> dict[str, str]:
    return {**{key: value for key, value in os.environ.items() if not key.startswith("CHANGEFEED_")}, **more}


def run(*arguments: str, input: str = "", cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHANGEFEED, *arguments],
        input=input,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=cwd,
        env=clean_environment(**env),
    )


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def start(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*CHANGEFEED, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=clean_environment(**env),
    )


def next_record(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    record: dict[str, Any] = json.loads(line)
    return record


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
    return process.returncode


def change(id: str, **more: Any) -> str:
    return json.dumps({"resource": "vm", "id": id, "op": "update", **more}) + "\n"


class Place:
    """A running instance of the feeds a, b and declared; each test uses ids or publishers of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = f"sqlite:{folder / 'log'}"
        self.instance = ServeProcess(
            ["vmapi", "napi"], log=self.log, coordinator=f"file:{folder / 'c'}", name="one", folder=folder
        )

    def run(self, *arguments: str, input: str = "") -> subprocess.CompletedProcess[str]:
        return run(*arguments, input=input, CHANGEFEED_URL=self.instance.url)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return start(*arguments, CHANGEFEED_URL=self.instance.url)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("place"))
    place.instance.start()
    try:
        wait_for(place.instance.ready, place.instance.tail)
        yield place
    finally:
        place.instance.kill()


def wait_for(condition: Any, told: Any = str) -> None:
    """Until another process has done its part; fails with what is told after a minute."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)


# ---- serve


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_without_flags_says_where_and_drains(tmp_path: Path, number: int) -> None:
    """A log and a coordinator under ./changefeed-data, a ready line, and exit status 0 after a signal."""
    process = start("serve", "vmapi", "--listen", f"127.0.0.1:{free_port()}", cwd=tmp_path)
    assert next_record(process) == {"event": "defaults", "data": "changefeed-data"}
    serving = next_record(process)
    assert serving["feeds"] == ["vmapi"] and serving["url"].startswith("ws://127.0.0.1:")
    ready = next_record(process)
    assert ready["event"] == "ready" and ready["leaders"] == {"vmapi": serving["instance"]}
    assert (tmp_path / "changefeed-data" / "log").exists()
    assert end(process, number) == 0


def test_serve_beyond_loopback_needs_to_be_told(tmp_path: Path) -> None:
    """There is no authentication: exit status 5, one sentence that names the flag."""
    done = run("serve", "vmapi", "--listen", f"0.0.0.0:{free_port()}", "--log", "memory:", "--coordinator", "memory:")
    assert done.returncode == 5
    assert "--insecure" in done.stderr and "(insecure-listen)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_serve_on_a_port_in_use_fails(place: Place, tmp_path: Path) -> None:
    """Exit status 1, and the one that was there goes on."""
    listen = f"127.0.0.1:{place.instance.port}"
    done = run("serve", "vmapi", "--listen", listen, "--log", "memory:", "--coordinator", "memory:")
    assert done.returncode == 1 and "(port-in-use)" in done.stderr
    assert place.instance.ready()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--log", "sqlit:x"], 2, "did you mean sqlite"),
        (["--coordinator", "zookeeper://x"], 2, "did you mean zk"),
        (["--name", "a b"], 2, "cannot name an instance"),
        (["--listen", "127.0.0.1:http"], 2, "HOST:PORT"),
    ],
)
def test_serve_refuses_what_cannot_be(tmp_path: Path, arguments: list[str], status: int, sentence: str) -> None:
    """A wrong URL or name is a usage mistake, told in one sentence."""
    given = ["--log", "memory:", "--coordinator", "memory:", "--listen", f"127.0.0.1:{free_port()}", *arguments]
    done = run("serve", "vmapi", *given, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (status, 1), done.stderr
    assert sentence in done.stderr


# ---- publish


def test_publish_one(place: Place) -> None:
    """One change in words; the receipt says where it is."""
    done = place.run(
        *("publish", "vmapi", "vm", "one", "update", "--fields", "state,ram", "--body", '{"state": "up"}'),
        *("--version", "7", "--meta", '{"trace": "x"}'),
    )
    assert done.returncode == 0, done.stderr
    (receipt,) = records(done.stdout)
    assert receipt["repeated"] is False and receipt["seq"] >= 1
    (event,) = records(place.run("tail", "vmapi", "--id", "one", "--start", "beginning", "--count", "1").stdout)
    assert event["position"] == receipt["position"]
    assert (event["fields"], event["body"], event["version"]) == (["state", "ram"], {"state": "up"}, 7)
    assert event["meta"] == {"trace": "x"}


def test_publish_takes_a_body_from_a_file(place: Place, tmp_path: Path) -> None:
    """@FILE; a file that is not there is a usage mistake."""
    path = tmp_path / "body.json"
    path.write_text('{"big": {"$int": "9007199254740993"}}')
    assert place.run("publish", "vmapi", "vm", "file", "create", "--body", f"@{path}").returncode == 0
    done = place.run("publish", "vmapi", "vm", "file", "create", "--body", "@/nowhere")
    assert done.returncode == 2 and "cannot read /nowhere" in done.stderr


def test_lines_get_receipts_in_order_and_a_rerun_gets_the_same(place: Place) -> None:
    """Bad lines are told with their number; a rerun answers with the receipts it had and publishes only the rest."""
    lines = change("r1") + "oops\n" + change("r2") + '{"resource": "vm"}\n' + change("r3")
    first = place.run("publish", "vmapi", "-", "--publisher", "rerun", input=lines)
    assert first.returncode == 1, first.stderr
    told = records(first.stdout)
    assert [(record["line"], record.get("error", "")) for record in told] == [
        (1, ""), (2, "bad-message"), (3, ""), (4, "invalid-change"), (5, "")
    ]  # fmt: skip
    assert not any(record.get("repeated") for record in told)

    again = place.run("publish", "vmapi", "-", "--publisher", "rerun", input=lines + change("r4"))
    retold = records(again.stdout)
    assert [record.get("repeated") for record in retold] == [True, None, True, None, True, False]
    assert [record.get("position") for record in retold[:5]] == [record.get("position") for record in told]
    seen = place.run("tail", "vmapi", "--until-caught-up", *(f"--id=r{n}" for n in range(1, 5)))
    assert [event["id"] for event in records(seen.stdout)] == ["r1", "r2", "r3", "r4"]


def test_an_edited_line_is_not_taken_for_the_old_one(place: Place) -> None:
    """The same number with other bytes is refused, and nothing is acknowledged that is nowhere."""
    assert place.run("publish", "vmapi", "-", "--publisher", "edited", input=change("e1")).returncode == 0
    done = place.run("publish", "vmapi", "-", "--publisher", "edited", input=change("e1", body=2))
    assert done.returncode == 1
    assert "number-reused" in done.stdout + done.stderr


def test_each_receipt_is_flushed_when_acknowledged(place: Place) -> None:
    """A program may write a line, read its receipt, and only then write the next one."""
    process = place.start("publish", "vmapi", "-")
    assert process.stdin is not None
    seqs = []
    for number in range(3):
        process.stdin.write(change(f"turn-{number}"))
        process.stdin.flush()
        record = next_record(process)
        assert record["line"] == number + 1
        seqs.append(record["seq"])
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0
    assert seqs == sorted(seqs)


def test_publishing_into_a_closed_pipe_is_quiet_but_not_done(place: Place) -> None:
    """Whoever read the receipts has left: no traceback, and exit status 1, as the rest was not told."""
    process = place.start("publish", "vmapi", "-")
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write(change("closed"))
    process.stdin.flush()
    assert next_record(process)["line"] == 1
    process.stdout.close()
    process.stdin.write(change("closed"))
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 1
    assert process.stderr.read() == ""


def test_a_file_of_lines(place: Place, tmp_path: Path) -> None:
    """--file, many lines, all of them in order."""
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(change(f"many-{number}") for number in range(3000)))
    done = place.run("publish", "napi", "--file", str(path), "--publisher", "many")
    assert done.returncode == 0, done.stderr
    told = records(done.stdout)
    assert [record["line"] for record in told] == list(range(1, 3001))
    assert [record["seq"] for record in told] == sorted(record["seq"] for record in told)
    assert "3000 lines acknowledged" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["vmapi"], "RESOURCE ID OP"),
        (["vmapi", "vm", "1"], "RESOURCE ID OP"),
        (["vmapi", "-", "--body", "1"], "--body does not go with JSON lines"),
        (["vmapi", "vm", "1", "update", "--file", "x"], "exclude each other"),
        (["vmapi", "vm", "1", "update", "--publisher", "x"], "--publisher numbers lines"),
        (["vmapi", "--file", "/nowhere"], "cannot read /nowhere"),
        (["vmapi", "v m", "1", "update"], "is not a word"),
        (["vmapi", "vm", "1", "update", "--body", "{"], "--body"),
        (["VMAPI", "vm", "1", "update"], "cannot name a feed"),
    ],
)
def test_publish_refuses_what_cannot_be(arguments: Sequence[str], sentence: str) -> None:
    """Usage mistakes are found before anything is connected: exit status 2."""
    done = run("publish", *arguments)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr


def test_an_unknown_feed_names_the_nearest(place: Place) -> None:
    """A typo in a feed's name is answered by the server."""
    for command in (["publish", "vmapj", "vm", "1", "update"], ["tail", "vmapj", "--count", "1"]):
        done = place.run(*command)
        assert done.returncode == 1, done.stderr
        assert "vmapi" in done.stderr and "(unknown-feed)" in done.stderr


@pytest.mark.parametrize(
    "command", [["publish", "vmapi", "vm", "1", "update"], ["tail", "vmapi"], ["status"], ["feeds"]]
)
def test_nobody_there_is_exit_status_4(command: list[str]) -> None:
    """Each server that was tried is named; with --json it is an object."""
    url = f"ws://127.0.0.1:{free_port()}"
    done = run(*command, "--server", url, "--timeout", "500ms")
    assert done.returncode == 4, done.stderr
    assert url in done.stderr or url.removeprefix("ws://") in done.stderr
    done = run(*command, "--server", url, "--timeout", "500ms", "--json")
    assert json.loads(done.stderr)["error"] == "unreachable"


# ---- tail


def test_tail_follows_what_is_published(place: Place) -> None:
    """From now on, as it comes; Ctrl-C ends with 130."""
    process = place.start("tail", "vmapi", "--id", "live", "--name", "follower")
    wait_for(lambda: "follower" in place.run("status").stdout)
    place.run("publish", "vmapi", "vm", "live", "create")
    event = next_record(process)
    assert (event["id"], event["op"], event["last"]) == ("live", "create", True)
    assert end(process, signal.SIGINT) == 130


def test_tail_resumes_after_a_position_and_from_a_time(place: Place) -> None:
    """After the position that an event carries; --since and a time begin where they say."""
    place.run("publish", "vmapi", "-", input="".join(change(f"p{n}") for n in range(4)))
    ids = [f"--id=p{n}" for n in range(4)]
    events = records(place.run("tail", "vmapi", "--start", "beginning", "--count", "4", *ids).stdout)
    rest = records(place.run("tail", "vmapi", "--start", events[1]["position"], "--count", "2", *ids).stdout)
    assert rest == events[2:]
    since = records(place.run("tail", "vmapi", "--since", "1h", "--count", "4", *ids).stdout)
    assert since == events
    timed = records(place.run("tail", "vmapi", "--start", str(events[3]["time"] + 1), "--until-caught-up", *ids).stdout)
    assert timed == []


def test_tail_filters(place: Place) -> None:
    """Fields narrow updates only; resources and ops select."""
    lines = change("f", fields=["state"]) + change("f", fields=["ram"]) + change("f")
    lines += json.dumps({"resource": "nic", "id": "f", "op": "delete"}) + "\n"
    place.run("publish", "vmapi", "-", input=lines)
    told = place.run("tail", "vmapi", "--until-caught-up", "--id", "f", "--resource", "vm:state", "--resource", "nic")
    assert [(event["resource"], event.get("fields")) for event in records(told.stdout)] == [
        ("vm", ["state"]), ("vm", None), ("nic", None)
    ]  # fmt: skip
    told = place.run("tail", "vmapi", "--until-caught-up", "--id", "f", "--op", "delete")
    assert len(records(told.stdout)) == 1


def test_a_cursor_goes_on_where_the_last_run_ended(place: Place, tmp_path: Path) -> None:
    """Nothing twice and nothing left out over runs that end by count, by a signal and by catching up."""
    cursor = ["--cursor", str(tmp_path / "cursor"), "--start", "beginning"]
    ids = [f"--id=c{n}" for n in range(9)]
    place.run("publish", "vmapi", "-", input="".join(change(f"c{n}") for n in range(9)))
    seen = [event["id"] for event in records(place.run("tail", "vmapi", *cursor, *ids, "--count", "2").stdout)]
    assert seen == ["c0", "c1"]
    process = place.start("tail", "vmapi", *cursor, *ids, "--count", "4")
    seen += [next_record(process)["id"] for _ in range(4)]
    process.communicate(timeout=PATIENCE_S)
    seen += [event["id"] for event in records(place.run("tail", "vmapi", *cursor, *ids, "--until-caught-up").stdout)]
    assert seen == [f"c{n}" for n in range(9)]
    assert place.run("tail", "vmapi", *cursor, *ids, "--until-caught-up").stdout == ""
    other = place.run("tail", "napi", *cursor, "--until-caught-up")
    assert other.returncode == 3 and "(cursor-other-feed)" in other.stderr
    (tmp_path / "cursor").write_text("garbage")
    damaged = place.run("tail", "vmapi", *cursor, "--until-caught-up")
    assert damaged.returncode == 3 and "(cursor-damaged)" in damaged.stderr


def test_two_processes_on_one_cursor(place: Place, tmp_path: Path) -> None:
    """The second one is refused; the first one goes on."""
    cursor = ["--cursor", str(tmp_path / "cursor"), "--start", "beginning"]
    place.run("publish", "vmapi", "vm", "two", "create")
    process = place.start("tail", "vmapi", *cursor, "--id", "two")
    assert next_record(process)["id"] == "two"
    done = place.run("tail", "vmapi", *cursor, "--count", "1")
    assert done.returncode == 1 and "(cursor-in-use)" in done.stderr
    assert process.poll() is None
    end(process)


def test_a_position_of_another_log_cannot_be_resumed(place: Place) -> None:
    """Exit status 3; what can be resumed is told."""
    done = place.run("tail", "vmapi", "--start", "0123456789abcdef.1.01234567.5")
    assert done.returncode == 3 and "(other-lineage)" in done.stderr
    assert "earliest: " in done.stderr and "head: " in done.stderr
    done = place.run("tail", "vmapi", "--start", "0123456789abcdef.1.01234567.5", "--json")
    told = json.loads(done.stderr)
    assert told["error"] == "other-lineage" and told["head"] and told["earliest"]


def test_a_closed_pipe_ends_quietly(place: Place) -> None:
    """Whoever read has seen enough: no traceback, also while nothing happens in the feed."""
    place.run("publish", "vmapi", "vm", "piped", "create")
    process = place.start("tail", "vmapi", "--id", "piped", "--start", "beginning")
    assert process.stdout is not None and process.stderr is not None
    assert next_record(process)["id"] == "piped"
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 0
    assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--start", "yesterday"], "is none of beginning, now"),
        (["--start", "begining"], "did you mean 'beginning'"),
        (["--start", "1.2.3.4"], "is not a position"),
        (["--start", "now", "--since", "1h"], "exclude each other"),
        (["--since", "soon"], "is not a duration"),
        (["--count", "0"], "--count"),
    ],
)
def test_tail_refuses_what_cannot_be(arguments: list[str], sentence: str) -> None:
    """Usage mistakes are found before anything is connected: exit status 2."""
    done = run("tail", "vmapi", *arguments)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr


# ---- status, feeds, verify


def test_status_names_leaders_heads_and_who_does_not_answer(place: Place) -> None:
    """One object; per feed leader, epoch, head and seq; each silent server is named, and that is no failure."""
    silent = f"ws://127.0.0.1:{free_port()}"
    done = run("status", "--json", "--elections", "--server", f"{place.instance.url},{silent}")
    assert done.returncode == 0, done.stderr
    (status,) = records(done.stdout)
    feed = status["feeds"]["vmapi"]
    assert (feed["leader"], feed["epoch"]) == ("one", 1)
    assert feed["head"].endswith(f".{feed['seq']}")
    assert feed["elections"][0]["why"] == "start"
    assert status["unreachable"] == [silent]
    done = run("status", "--server", f"{place.instance.url},{silent}")
    assert f"{silent} does not answer" in done.stderr


def test_feeds_are_listed(place: Place) -> None:
    """One line per feed."""
    told = records(place.run("feeds").stdout)
    assert [record["feed"] for record in told] == ["napi", "vmapi"]
    assert all(record["leader"] == "one" for record in told)


def test_declarations_are_kept_in_the_log(tmp_path: Path) -> None:
    """Declared resources and fields bind publishers and subscribers; the nearest name is told."""
    log = f"sqlite:{tmp_path / 'log'}"
    declaration = tmp_path / "feed.toml"
    declaration.write_text('[vm]\nfields = ["state", "ram"]\nlist = "https://vmapi/vms"\n[nic]\n')
    done = run("feed", "declare", "fwapi", str(declaration), "--log", log)
    assert done.returncode == 0, done.stderr
    (told,) = records(done.stdout)
    assert [resource["name"] for resource in told["resources"]] == ["vm", "nic"]
    instance = ServeProcess(["fwapi"], log=log, coordinator=f"file:{tmp_path / 'c'}", name="one", folder=tmp_path)
    instance.start()
    try:
        wait_for(instance.ready, instance.tail)
        done = run("publish", "fwapi", "vmm", "1", "update", "--server", instance.url)
        assert done.returncode == 1 and "'vm'" in done.stderr and "(unknown-resource)" in done.stderr, done.stderr
        done = run("publish", "fwapi", "vm", "1", "update", "--fields", "stat", "--server", instance.url)
        assert done.returncode == 1 and "state" in done.stderr and "(unknown-field)" in done.stderr, done.stderr
        done = run("tail", "fwapi", "--resource", "vm:stat", "--count", "1", "--server", instance.url)
        assert done.returncode == 1 and "(unknown-field)" in done.stderr, done.stderr
    finally:
        instance.kill()


def test_a_wrong_declaration_is_refused(tmp_path: Path) -> None:
    """The sentence names the file, the table and the key."""
    path = tmp_path / "feed.toml"
    log = f"sqlite:{tmp_path / 'log'}"
    for content, sentence in (
        ('[vm]\nfeilds = ["a"]\n', "did you mean 'fields'"),
        ('vm = "x"\n', "write [vm]"),
        ('[vm]\nfields = ["a b"]\n', "without spaces"),
        ('["v m"]\n', "a resource is a word"),
    ):
        path.write_text(content)
        done = run("feed", "declare", "fwapi", str(path), "--log", log)
        assert done.returncode == 2 and sentence in done.stderr, done.stderr


def test_retention_is_set_in_the_log(place: Place) -> None:
    """Bounds that are given change, the others stay; an unknown feed names the nearest."""
    done = run("feed", "set", "napi", "--retention-count", "1000000", "--retention-age", "none", "--log", place.log)
    (told,) = records(done.stdout)
    assert (told["retention_count"], told["retention_age_s"], told["retention_bytes"]) == (1_000_000, None, 4 * 2**30)
    done = run("feed", "set", "nap", "--retention-count", "5", "--log", place.log)
    assert done.returncode == 1 and "did you mean 'napi'" in done.stderr
    done = run("feed", "set", "napi", "--log", place.log)
    assert done.returncode == 2 and "nothing to set" in done.stderr


def test_verify_walks_the_log(place: Place) -> None:
    """Exit status 0 for a whole log, also while it is being written."""
    place.run("publish", "vmapi", "vm", "verified", "create")
    done = run("verify", "vmapi", "--log", place.log)
    assert done.returncode == 0, done.stderr
    (found,) = records(done.stdout)
    assert found["whole"] is True and found["events"] >= 1 and found["fault"] is None
    done = run("verify", "vmapj", "--log", place.log)
    assert done.returncode == 1 and "did you mean 'vmapi'" in done.stderr


def test_verify_tells_the_first_fault(tmp_path: Path) -> None:
    """A byte of the log that is not as it was written: exit status 1."""
    import sqlite3

    log = f"sqlite:{tmp_path / 'log'}"
    instance = ServeProcess(["vmapi"], log=log, coordinator=f"file:{tmp_path / 'c'}", name="one", folder=tmp_path)
    instance.start()
    try:
        wait_for(instance.ready, instance.tail)
        lines = "".join(change(f"v{n}", body="here") for n in range(5))
        assert run("publish", "vmapi", "-", "--server", instance.url, input=lines).returncode == 0
        instance.terminate()
        assert instance.wait(PATIENCE_S) == 0
    finally:
        instance.kill()
    connection = sqlite3.connect(tmp_path / "log" / "vmapi.db")
    connection.execute("UPDATE entries SET payload = CAST(replace(CAST(payload AS TEXT), 'here', 'gone') AS BLOB)")
    connection.commit()
    connection.close()
    done = run("verify", "vmapi", "--log", log)
    assert done.returncode == 1, done.stdout
    (found,) = records(done.stdout)
    assert found["whole"] is False and found["fault"]["seq"] == 1
    assert "bytes do not match their digest" in found["fault"]["what"]
