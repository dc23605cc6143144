"""Flags before environment before TOML before defaults; whatever is unknown is named, with the nearest known name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from changefeed.config import (
    Option,
    from_environment,
    from_toml,
    make_settings,
    merge,
    nearest,
    parse_count,
    parse_tunable,
    read_toml,
)
from changefeed.errors import BadConfig, UsageError
from changefeed.servers import parse_servers
from changefeed.settings import MIB, Settings, parse_duration, parse_size

OPTIONS = (
    Option("log", "", default="sqlite:x"),
    Option("retention-age", "", parse_duration),
    Option("resource", "", kind="many"),
    Option("json", "", kind="flag"),
    Option("server", "", parse_servers, env="CHANGEFEED_URL"),
    Option("start", "", choices=("now", "beginning")),
)


def environment(**variables: str) -> tuple[dict[str, Any], dict[str, float | int]]:
    return from_environment(OPTIONS, variables, {"CHANGEFEED_LISTEN"})


def test_flags_go_before_environment_before_toml_before_defaults() -> None:
    """The first layer that has a value gives it."""
    flags, env, toml = {"log": "f"}, {"log": "e", "retention_age": 5.0}, {"retention_age": 1.0, "resource": ["vm"]}
    assert merge(OPTIONS, flags, env, toml) == {
        "log": "f", "retention_age": 5.0, "resource": ["vm"], "json": False, "server": None, "start": None
    }  # fmt: skip
    assert merge(OPTIONS)["log"] == "sqlite:x"


def test_each_flag_has_a_twin_in_the_environment() -> None:
    """Values, lists, switches, and the one variable that is called otherwise."""
    values, tuned = environment(
        CHANGEFEED_RETENTION_AGE="1h30m",
        CHANGEFEED_RESOURCE="vm nic",
        CHANGEFEED_JSON="yes",
        CHANGEFEED_URL="ws://h:1,http://i:2",
        CHANGEFEED_SUSPECT_AFTER="5s",
        PATH="/bin",
    )
    assert values == {
        "retention_age": 5400.0, "resource": ["vm", "nic"], "json": True, "server": ("ws://h:1", "ws://i:2")
    }  # fmt: skip
    assert tuned == {"suspect_after_s": 5.0}


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("CHANGEFEED_RETENTION_AG", "1h", "did you mean 'CHANGEFEED_RETENTION_AGE'"),
        ("CHANGEFEED_SUSPECTAFTER", "1h", "did you mean 'CHANGEFEED_SUSPECT_AFTER'"),
        ("CHANGEFEED_RETENTION_AGE", "soon", "CHANGEFEED_RETENTION_AGE: 'soon' is not a duration"),
        ("CHANGEFEED_JSON", "maybe", "write 1 or 0"),
        ("CHANGEFEED_START", "nwo", "did you mean 'now'"),
        ("CHANGEFEED_URL", "wss://h", "TLS"),
    ],
)
def test_a_wrong_variable_is_an_error(variable: str, value: str, sentence: str) -> None:
    """A mistyped variable would otherwise be a default that nobody asked for."""
    with pytest.raises(UsageError, match=sentence):
        environment(**{variable: value})


def test_variables_of_other_commands_and_of_kubernetes_are_left_alone() -> None:
    """One environment serves all commands; a Service called changefeed adds variables of its own."""
    values, tuned = environment(
        CHANGEFEED_LISTEN="x",
        CHANGEFEED_SERVICE_HOST="10.0.0.1",
        CHANGEFEED_SERVICE_PORT="7557",
        CHANGEFEED_SERVICE_PORT_WS="7557",
        CHANGEFEED_PORT="tcp://10.0.0.1:7557",
        CHANGEFEED_PORT_7557_TCP_ADDR="10.0.0.1",
    )
    assert values == {} and tuned == {}


def test_toml_takes_the_same_names(tmp_path: Path) -> None:
    """A key is a flag's name, with - or _; tunables stand in [settings]."""
    path = tmp_path / "c.toml"
    path.write_text(
        'log = "memory:"\nretention_age = "2d"\nresource = ["vm"]\njson = true\n'
        '[settings]\nwindow = "1MiB"\nin_flight_max = 4\nsuspect_after_s = 2\n'
    )
    values, tuned = from_toml(OPTIONS, read_toml(str(path)), str(path))
    assert values == {"log": "memory:", "retention_age": 172800.0, "resource": ["vm"], "json": True}
    assert tuned == {"window_bytes": MIB, "in_flight_max": 4, "suspect_after_s": 2.0}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('lgo = "x"', "nothing here reads 'lgo'; did you mean 'log'"),
        ("json = 1", "write true or false"),
        ("resource = [1]", "a list of texts"),
        ("log = true", "a text or a number"),
        ("settings = 1", "must be a table"),
        ("[settings]\nsuspect = 1", "there is no setting 'suspect'"),
        ('[settings]\nwindow = "much"', "'much' is not a size"),
        ("[settings]\nin_flight_max = 1.5", "whole number"),
        ("[settings]\nin_flight_max = true", "takes a number"),
        ('[settings]\nin_flight_max = "x"', "is not a number"),
        ("log =", "is not TOML"),
    ],
)
def test_a_wrong_file_is_an_error(tmp_path: Path, content: str, sentence: str) -> None:
    """The sentence names the file and the key."""
    path = tmp_path / "c.toml"
    path.write_text(content)
    with pytest.raises(BadConfig, match=sentence) as caught:
        from_toml(OPTIONS, read_toml(str(path)), str(path))
    assert str(path) in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """It is not taken for an empty one."""
    with pytest.raises(BadConfig, match="No such file"):
        read_toml(str(tmp_path / "none.toml"))


def test_settings_take_the_first_layer_and_are_checked_together() -> None:
    """A tunable that is impossible beside the others is refused."""
    settings = make_settings({"suspect_after_s": 5.0}, {"suspect_after_s": 6.0, "drain_s": 1.0})
    assert (settings.suspect_after_s, settings.drain_s) == (5.0, 1.0)
    assert make_settings() == Settings()
    with pytest.raises(BadConfig, match="group_bytes_max"):
        make_settings({"change_bytes_max": 10**9})


def test_the_largest_group_fits_into_a_frame_with_its_stamps() -> None:
    """A group that is accepted and can never be delivered would stop every subscriber."""
    assert Settings(group_bytes_max=8 * MIB, frame_bytes_max=9 * MIB).frame_bytes_max == 9 * MIB
    with pytest.raises(BadConfig, match="1 MiB for stamps"):
        Settings(group_bytes_max=8 * MIB, frame_bytes_max=9 * MIB - 1)
    with pytest.raises(BadConfig, match="group_bytes_max"):
        make_settings({"group_bytes_max": 9 * MIB})


def test_tunables_by_flag() -> None:
    """NAME=VALUE, with units."""
    assert parse_tunable("suspect-after=1.5s") == ("suspect_after_s", 1.5)
    assert parse_tunable("WINDOW=64MiB") == ("window_bytes", 64 * MIB)
    assert parse_tunable("min_free_share=0.1") == ("min_free_share", 0.1)
    with pytest.raises(BadConfig, match="NAME=VALUE"):
        parse_tunable("suspect_after")
    with pytest.raises(BadConfig, match="did you mean 'suspect_after'"):
        parse_tunable("suspect_afer=1s")


def test_counts_are_whole_and_positive() -> None:
    """Zero is not a count."""
    assert parse_count("3") == 3
    for wrong in ("0", "-1", "x"):
        with pytest.raises(ValueError):
            parse_count(wrong)


def test_the_nearest_name() -> None:
    """A letter too few or too many, another case, a beginning; nothing where nothing is near."""
    names = ["publish", "tail", "status", "serve"]
    assert [nearest(word, names) for word in ("publsh", "TAIL", "stat", "srve", "pub")] == [
        "publish", "tail", "status", "serve", "publish"
    ]  # fmt: skip
    assert nearest("quux", names) is None and nearest("", names) is None


def test_durations_and_sizes_have_one_parser() -> None:
    """The same forms everywhere."""
    assert parse_duration("1h30m") == 5400 and parse_duration("500ms") == 0.5
    assert parse_size("4GiB") == 4 * 2**30 and parse_size("1kb") == 1000
    for wrong in ("", "5", "1x", "1.5.s"):
        with pytest.raises(BadConfig):
            parse_duration(wrong)
