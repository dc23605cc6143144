"""What people type: every mistake gets one sentence that says what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from changefeed.cli.command import TABLE, load
from changefeed.cli.parser import Help, every_variable, options_of, overview, parse, usage
from changefeed.errors import UsageError


def refused(*argv: str, **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(argv, environ)
    return str(caught.value)


def helped(*argv: str) -> str:
    with pytest.raises(Help) as caught:
        parse(argv, {})
    return str(caught.value)


def test_flags_and_words_may_be_mixed() -> None:
    """Flags may stand before, between and after the words; -- ends them."""
    for argv in (
        ["feed", "set", "vmapi", "--retention-age", "7d", "--json"],
        ["feed", "set", "--retention-age=7d", "--json", "vmapi"],
        ["feed", "set", "--json", "--retention-age", "7d", "--", "vmapi"],
    ):
        command, values = parse(argv, {})
        assert command.name == "feed set"
        assert (values.feed, values.retention_age, values.json) == ("vmapi", 604800.0, True)
        assert values.given == {"retention_age", "json"}


def test_flags_before_environment_before_file(tmp_path: Path) -> None:
    """serve reads a file, the environment and its flags, in the opposite order of their weight."""
    path = tmp_path / "c.toml"
    path.write_text(
        'feeds = ["a", "b"]\nname = "toml"\nlisten = "h:1"\n[settings]\ndrain = "1s"\nsuspect_after = "9s"\n'
    )
    _, values = parse(
        ["serve", "--config", str(path), "--set", "suspect_after=3s"],
        {"CHANGEFEED_NAME": "env", "CHANGEFEED_NO_CANDIDATE": "1", "CHANGEFEED_SUSPECT_AFTER": "4s"},
    )
    assert (values.feeds, values.name, values.listen, values.no_candidate) == (["a", "b"], "env", "h:1", True)
    assert (values.settings.suspect_after_s, values.settings.drain_s) == (3.0, 1.0)
    _, values = parse(["serve", "c", "--name", "flag"], {"CHANGEFEED_CONFIG": str(path), "CHANGEFEED_NAME": "env"})
    assert (values.feeds, values.name) == (["c"], "flag")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["srve"], "there is no command 'srve'; did you mean 'serve'?"),
        (["quux"], "there is no command 'quux' (changefeed --help"),
        (["--json"], "the command comes first"),
        (["feed"], "'feed' alone does nothing; there are: feed declare, feed set"),
        (["feed", "declar"], "did you mean 'declare'"),
        (["serve", "--lisen", "x"], "changefeed serve has no flag --lisen; did you mean '--listen'?"),
        (["serve", "-x"], "has no flag -x"),
        (["serve"], "FEEDS is missing; write: changefeed serve FEEDS…"),
        (["serve", "a", "--listen"], "--listen needs a value: --listen HOST:PORT"),
        (["serve", "a", "--insecure=1"], "--insecure takes no value"),
        (["feed", "set"], "FEED is missing"),
        (["feed", "set", "a", "b"], "'b' is one word too many"),
        (["feed", "set", "a", "--retention-age", "x"], "--retention-age: 'x' is not a duration"),
        (["feed", "set", "a", "--retention-count", "0"], "--retention-count: '0' is not a value for it"),
        (["feed", "set", "a", "--retention-count", "9" * 40], "write a whole number from 1 to 2**63 - 1"),
        (["tail", "a", "--count", "x"], "write a whole number from 1 to"),
        (["tail", "a", "--start", "9" * 23], "is none of beginning, now, snapshot, a position"),
        (["publish", "a", "vm", "1", "update", "--version", "x"], "write a whole number from 0 to"),
        (["publish", "a", "vm", "1", "update", "--fields", ","], "names no field"),
        (["dev", "--instances", "100"], "write a whole number from 1 to 26"),
        (["status", "--server", "wss://h"], "--server: 'wss://h'"),
        (["serve", "a", "--set", "suspekt=1s"], "there is no setting 'suspekt'"),
    ],
)
def test_a_mistake_gets_a_sentence(argv: list[str], sentence: str) -> None:
    """What was wrong, and what would be right."""
    assert sentence in refused(*argv)


def test_a_wrong_variable_is_refused_for_every_command() -> None:
    """The environment is checked against the variables of all commands, not only of this one."""
    assert "did you mean 'CHANGEFEED_COORDINATOR'" in refused("status", CHANGEFEED_CORDINATOR="x")
    parse(["status"], {"CHANGEFEED_COORDINATOR": "file:x"})
    for called_as_the_flag in ("CHANGEFEED_SERVER", "CHANGEFEED_SEVER"):
        assert "did you mean 'CHANGEFEED_URL'" in refused("status", **{called_as_the_flag: "x"})


def test_words_have_variables_too() -> None:
    """Where words are missing the environment stands in; words that are there win."""
    _, values = parse(["tail"], {"CHANGEFEED_FEED": "vmapi"})
    assert values.feed == "vmapi"
    _, values = parse(["tail", "napi"], {"CHANGEFEED_FEED": "vmapi"})
    assert values.feed == "napi"
    _, values = parse(["serve"], {"CHANGEFEED_FEEDS": "vmapi napi"})
    assert values.feeds == ["vmapi", "napi"]


def test_help_lists_every_command_and_every_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a narrow terminal, where no line is longer than the terminal is wide (names excepted)."""
    monkeypatch.setenv("COLUMNS", "50")
    text = helped("--help")
    assert text == overview() == helped() == helped("help")
    for name in TABLE:
        assert name in text
        command = load(name)
        shown = helped(*name.split(), "--help")
        assert shown == usage(command) == helped("help", *name.split())
        for option in options_of(command):
            assert f"--{option.name}" in shown and option.variable in shown
    assert "feed declare" in helped("feed", "--help")
    assert all(len(line) <= 50 for line in text.splitlines())
    assert helped("--version").startswith("changefeed ")


def test_names_of_flags_are_one_set() -> None:
    """A flag that two commands share means the same: one variable, one kind; no two flags share a variable."""
    kinds: dict[str, tuple[str, str]] = {}
    for name in TABLE:
        command = load(name)
        assert command.name == name
        keys = [option.key for option in options_of(command)] + [place.name for place in command.positionals]
        assert len(keys) == len(set(keys)), f"{name} uses a name twice"
        for option in options_of(command):
            assert kinds.setdefault(option.variable, (option.name, option.kind)) == (option.name, option.kind)
    assert "CHANGEFEED_URL" in every_variable()
