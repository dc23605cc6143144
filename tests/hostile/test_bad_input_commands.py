"""Rows of "On the command line": the real `changefeed` command, its exit status and what it says on stderr."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bad_input_page import Outcome, Page, normal
from hostile_arena import PATIENCE_S, Arena, clean_environment
from prepared_commands import PreparedCommands, prepared_commands

pytestmark = pytest.mark.processes

SECTION = "On the command line"
CHANGEFEED = [sys.executable, "-m", "changefeed.cli"]
#: Commands that are run as they are written; {…} are parts of the place.
PLAIN = [
    # what the command line itself finds
    "tial vmapi",
    "feed decalre vmapi",
    "tail",
    "tail vmapi --cuont 1",
    "tail vmapi --count x",
    "tail vmapi --since 10x",
    "tail vmapi --since 1h --start now",
    "tail vmapi --start nonsense",
    "tail vmapi --start 1.2.3.4",
    "tail vmapi --start 99999999999999999999999",
    "tail vmapi --resource ''",
    "tail vmapi --op 'a b'",
    "tail VMAPI",
    "tail vmapi --server 127.0.0.1:7557",
    "tail vmapi --server https://127.0.0.1:7557",
    "tail vmapi --server ftp://127.0.0.1:7557",
    "tail vmapi --server ws://127.0.0.1:99999",
    "tail vmapi --cursor {folder}",
    "tail vmapi --cursor {folder}/missing/cursor",
    "publish vmapi vm 1",
    "publish vmapi 'v m' 1 update",
    "publish vmapi vm 1 update --body '{{'",
    "publish vmapi vm 1 update --body @{folder}/missing.json",
    "publish vmapi vm 1 update --version x",
    "publish vmapi --file {folder}",
    "publish vmapi - --publisher outbox",
    "feed declare vmapi {folder}/broken.toml",
    "feed declare vmapi {folder}/typo.toml",
    "feed declare vmapi {folder}/text.toml",
    "feed declare vmapi {folder}/many.toml",
    "feed declare vmapi {folder}/missing.toml",
    "feed set vmapi",
    "feed set vmapj --retention-age 1d",
    "verify vmapj",
    "verify vmapi --log sqlite:{folder}/damaged",
    "demo --git {folder}",
    "demo --log memory:",
    "dev --instances 0",
    "conformance -- nosuchprogram",
    "serve",
    "serve vmapi vmapi",
    "serve vmapi --lisen 127.0.0.1:7557",
    "serve vmapi --listen 127.0.0.1:http",
    "serve vmapi --listen 0.0.0.0:7557",
    "serve vmapi --advertise broker-1:7557",
    "serve vmapi --set suspect_aftr=5s",
    "serve vmapi --set suspect_after=5x",
    "serve vmapi --config {folder}/config.toml",
    "serve vmapi --log sqlit:data",
    "serve vmapi --log postgresql://db/feeds?sslmod=on",
    "serve vmapi --log sqlite:/proc/nowhere",
    "serve vmapi --log sqlite:{folder}/broken.toml",
    "serve vmapi --coordinator zookeeper://zk1:2181",
    "serve vmapi --coordinator file:/proc/nowhere",
    # what a server says, or that none does
    "tail vmapj",
    "tail nosuchfeed",
    "tail vmapi --resource nik",
    "tail vmapi --resource vm:stat",
    "tail vmapi --start ffffffffffffffff.1.0badf00d.1",
    "tail vmapi --server ws://127.0.0.1:1 --timeout 500ms",
    "tail vmapi --server zk://127.0.0.1:1 --timeout 500ms",
    "tail vmapi --server {url}/elsewhere --timeout 500ms",
    "publish vmapj vm 1 update",
    "publish vmapi mv 1 update",
    "publish vmapi vm 1 update --fields rum",
    "status --server ws://127.0.0.1:1",
    "serve vmapi --coordinator zk://127.0.0.1:1/feeds",
]


@dataclass
class Place:
    """What commands are run on."""

    arena: Arena
    folder: Path
    commands: PreparedCommands
    futures: dict[str, Future[Outcome]] = field(default_factory=dict)
    lines: dict[str, Outcome] = field(default_factory=dict)

    def shown(self, command: str) -> str:
        """As it stands in the page."""
        return "`changefeed " + command.format(folder="DIR", url="ws://127.0.0.1:PORT") + "`"

    def environment(self, command: str = "", **more: str) -> dict[str, str]:
        ours = {"URL": self.arena.url}
        if command == "serve":
            ours |= {"LOG": "memory:", "COORDINATOR": "memory:", "LISTEN": "127.0.0.1:0"}
        elif command in ("feed", "verify"):
            ours |= {"LOG": self.arena.log}
        prefixed = {f"CHANGEFEED_{name}": value for name, value in ours.items()}
        return {**clean_environment(), **prefixed, **more}

    def run(self, command: str, input: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        arguments = shlex.split(command.format(folder=self.folder, url=self.arena.url))
        env = self.environment(arguments[0], **more)
        if not input:
            return self.commands.run(arguments, env=env, cwd=self.folder)
        return subprocess.run(
            [*CHANGEFEED, *arguments],
            input=input,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=self.folder,
            env=env,
        )

    def outcome(self, command: str) -> Outcome:
        done = self.run(command)
        return self.told(done.stderr, done.returncode)

    def told(self, stderr: str, status: int) -> Outcome:
        """The one sentence on stderr, which names the error's code."""
        said = [text for text in stderr.splitlines() if not text.startswith(("  earliest: ", "  head: "))]
        assert len(said) == 1, stderr
        assert said[0].startswith("changefeed: ") and said[0].endswith(")"), stderr
        sentence, _, code = said[0].removeprefix("changefeed: ")[:-1].rpartition(" (")
        return Outcome(code, sentence.replace(str(self.folder), "DIR"), f"exit {status}")


FILES = {
    "broken.toml": "[vm\n",
    "typo.toml": '[vm]\nfeilds = ["state"]\n',
    "text.toml": '[vm]\nfields = "state"\n',
    "many.toml": "".join(f"[r{number}]\n" for number in range(2000)),
    "config.toml": 'lgo = "sqlite:data"\n',
    "damaged/vmapi.db": "this is no database" * 1000,
}


@pytest.fixture(scope="module")
def place(arena: Arena, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Place]:
    """Runs the plain commands of the selected tests beside each other: most of their time is Python's start."""
    folder = tmp_path_factory.mktemp("place")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    mine = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    wanted = {item.callspec.params.get("command") for item in mine}
    told = tmp_path_factory.mktemp("told")
    with prepared_commands(told, 4) as commands, ThreadPoolExecutor(4) as pool:
        made = Place(arena, folder, commands)
        # First what waits for a time-out.
        for command in sorted(wanted & set(PLAIN), key=lambda text: "zk://" not in text):
            made.futures[command] = pool.submit(made.outcome, command)
        yield made


MORE: dict[str, Callable[[Place], Outcome]] = {}


def row(input: str) -> Callable[[Callable[[Place], Outcome]], Callable[[Place], Outcome]]:
    def add(made: Callable[[Place], Outcome]) -> Callable[[Place], Outcome]:
        MORE[input] = made
        return made

    return add


def saved_cursor(place: Place, name: str) -> Path:
    """A cursor of feed vmapi that holds a position."""
    path = place.folder / name
    done = place.run(f"tail vmapi --cursor {path} --start beginning --count 1")
    assert done.returncode == 0, done.stderr
    return path


@row("`changefeed tail vmapi --start POSITION`, from the future")
def _(place: Place) -> Outcome:
    position = json.loads(place.run("tail vmapi --start beginning --count 1").stdout)["position"]
    return place.outcome(f"tail vmapi --start {position.rpartition('.')[0]}.99999999")


@row("`changefeed tail vmapi --cursor FILE`, truncated")
def _(place: Place) -> Outcome:
    path = saved_cursor(place, "truncated")
    os.truncate(path, 40)
    found = place.outcome(f"tail vmapi --cursor {path}")
    assert path.stat().st_size == 40
    return found


@row("`changefeed tail vmapi --cursor FILE`, edited")
def _(place: Place) -> Outcome:
    path = saved_cursor(place, "edited")
    path.write_text(path.read_text().replace('"seq', '"sqe').replace(".1.", ".2.", 1))
    return place.outcome(f"tail vmapi --cursor {path}")


@row("`changefeed tail free --cursor FILE`, of another feed")
def _(place: Place) -> Outcome:
    return place.outcome(f"tail free --cursor {saved_cursor(place, 'other')}")


BAD_LINES = {
    "a line that is not JSON": "nonsense",
    "a line with an unknown part": '{"resource": "vm", "id": "1", "op": "update", "bdoy": 1}',
    "a line without its op": '{"resource": "vm", "id": "1"}',
    "a line with NaN": '{"resource": "vm", "id": "1", "op": "update", "body": NaN}',
    "a line with an integer of 5,000 digits": '{"resource": "vm", "id": "1", "op": "update", "body": '
    + "9" * 5000
    + "}",
    "a line of more than 1 MiB": json.dumps({"resource": "vm", "id": "1", "op": "update", "body": "x" * 2**20}),
}


def bad_lines(place: Place) -> dict[str, Outcome]:
    """Each is told with its number, and the lines around it are published; one run for all of them."""
    if not place.lines:
        good = '{"resource": "vm", "id": "line", "op": "update"}\n'
        done = place.run("publish vmapi -", good + "".join(f"{bad}\n{good}" for bad in BAD_LINES.values()))
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert [answer["line"] for answer in told] == list(range(1, 2 * len(BAD_LINES) + 2))
        seqs = [answer["seq"] for answer in told[::2]]
        assert seqs == sorted(set(seqs))
        assert done.stderr == f"{len(BAD_LINES) + 1} lines acknowledged; {len(BAD_LINES)} refused\n"
        for what, answer in zip(BAD_LINES, told[1::2], strict=True):
            ends = f"told with the line's number; exit {done.returncode}"
            place.lines[what] = Outcome(answer["error"], answer["message"], ends)
    return place.lines


for what in BAD_LINES:
    MORE[f"`changefeed publish vmapi -`, {what}"] = lambda place, what=what: bad_lines(place)[what]


@row("`CHANGEFEED_SUSPCT_AFTER=5s changefeed serve vmapi`")
def _(place: Place) -> Outcome:
    done = place.run("serve vmapi", CHANGEFEED_SUSPCT_AFTER="5s")
    return place.told(done.stderr, done.returncode)


@row("`changefeed tail vmapi | head -1`")
def _(place: Place) -> Outcome:
    return piped(place, "tail vmapi --start beginning")


@row("`changefeed publish vmapi - | head -1`")
def _(place: Place) -> Outcome:
    return piped(place, "publish vmapi - < lines")


def piped(place: Place, command: str) -> Outcome:
    """Nothing on stderr; how the command before the pipe ended."""
    (place.folder / "lines").write_text('{"resource": "vm", "id": "piped", "op": "update"}\n' * 3000)
    script = f"{shlex.join(CHANGEFEED)} {command} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=place.folder,
        env=place.environment(),
    )
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1
    return Outcome("", "(nothing: whoever read has seen enough)", f"exit {done.returncode}")


@pytest.mark.parametrize("input", MORE)
def test_a_row(place: Place, page: Page, input: str) -> None:
    """What takes more than a command line."""
    page.holds(SECTION, input, MORE[input](place))


@pytest.mark.parametrize("command", PLAIN)
def test_a_command(place: Place, page: Page, command: str) -> None:
    """One sentence, no traceback, the exit status of the page."""
    page.holds(SECTION, place.shown(command), place.futures[command].result(PATIENCE_S))


@pytest.mark.parametrize(
    "command",
    [
        "tail vmapi --server ws://127.0.0.1:{port}",
        "publish vmapi vm 1 update --server ws://127.0.0.1:{port}",
        "status --server ws://127.0.0.1:{port}",
        "serve vmapi --log memory: --listen 127.0.0.1:0 --coordinator zk://127.0.0.1:{port}",
    ],
)
def test_ctrl_c_while_nobody_answers(command: str) -> None:
    """Whoever waits for a server that takes the connection and says nothing can be stopped: 130, without a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        arguments = shlex.split(command.format(port=server.getsockname()[1]))
        process = subprocess.Popen(
            [*CHANGEFEED, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        taken, _ = server.accept()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
        taken.close()
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_standard_stream_is_not_taken_by_a_file(place: Place, number: int) -> None:
    """The next file that is opened would get its number, and be written to: it is /dev/null instead."""
    script = f"{shlex.join(CHANGEFEED)} verify vmapi {number}>&-"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, env=place.environment("verify")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert number == 1 or json.loads(done.stdout)["whole"]


def test_the_section_is_whole(page: Page) -> None:
    """The page has these rows, in this order, and no other."""
    shown = Place(None, Path(), None).shown  # type: ignore[arg-type]
    page.expects(SECTION, [*map(shown, PLAIN), *MORE])


def test_what_differs_from_run_to_run_is_not_in_the_page() -> None:
    """Ports, positions, places."""
    text = "127.0.0.1:34711 5e1d3c7a90b24f68.7.c0ffee42.43 (seq 12)"
    assert normal(text) == "127.0.0.1:PORT POSITION (seq SEQ)"
