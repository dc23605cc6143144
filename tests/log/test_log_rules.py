"""Rules that every store shares: stored settings, room on small and large disks, the turn and the stamp."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from changefeed.change import FeedSettings, Resource
from changefeed.log.rules import dump_settings, load_settings, room_needed
from changefeed.log.sqlite_io import Turn
from changefeed.settings import GIB, MIB, Settings

_TEXT = st.text(max_size=8)
_RESOURCES = st.builds(Resource, _TEXT, st.none() | st.lists(_TEXT, max_size=3).map(tuple), st.none() | _TEXT)
_NUMBERS = st.none() | st.integers(0, 2**53)


@given(st.builds(FeedSettings, st.lists(_RESOURCES, max_size=3).map(tuple), _NUMBERS, _NUMBERS, _NUMBERS))
def test_settings_survive_storage(settings: FeedSettings) -> None:
    """What is stored is read back equal, whatever the names hold."""
    assert load_settings(dump_settings(settings), 0) == settings


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"resources": 1}', "null", '{"resources": [{}]}'])
def test_unreadable_settings_are_one_error(text: str) -> None:
    """Anything else is a ValueError, which a store turns into LogDamaged."""
    with pytest.raises(ValueError):
        load_settings(text, 1)


def test_settings_of_a_later_release_are_read() -> None:
    """Unknown keys are left out."""
    text = dump_settings(FeedSettings())
    assert load_settings(text[:-1] + ', "later": 1}', 3) == FeedSettings(version=3)


def test_room_is_the_smaller_of_bytes_and_share() -> None:
    """256 MiB of a large disk, 5 % of a small one."""
    assert room_needed(100 * GIB, Settings()) == 256 * MIB
    assert room_needed(100 * MIB, Settings()) == 5 * MIB


def test_stamps_are_of_one_fence(tmp_path: Path) -> None:
    """A stamp counts only for its epoch and term; nonsense in the file counts for nothing."""
    path = tmp_path / "turn"
    turn, other = Turn(str(path)), Turn(str(path))
    assert other.stamped(1, "aaaaaaaa") == 0
    turn.stamp(1, "aaaaaaaa", 1234567890123)
    assert other.stamped(1, "aaaaaaaa") == 1234567890123
    assert other.stamped(2, "aaaaaaaa") == other.stamped(1, "bbbbbbbb") == 0
    turn.stamp(2, "aaaaaaaa", 5)
    assert other.stamped(2, "aaaaaaaa") == 5
    path.write_bytes(b"\xff\x00 nonsense here")
    assert other.stamped(2, "aaaaaaaa") == 0
    turn.close()
    turn.stamp(2, "aaaaaaaa", 6)
    assert turn.stamped(2, "aaaaaaaa") == 0
    other.close()


def test_a_turn_is_one_fences(tmp_path: Path) -> None:
    """Who claims it makes others give way until it is released; who waits in vain ignores the wish for a while."""
    path = str(tmp_path / "turn")
    fence, appender = Turn(path), Turn(path)
    fence.claim()
    assert not appender._lock(2)
    appender.give_way()
    assert appender._ignored_until > 0
    fence.release()
    appender.give_way()
    assert appender._lock(2)
    fence.close()
    appender.close()
