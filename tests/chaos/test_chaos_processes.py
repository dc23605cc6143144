"""What the harness reads out of what processes print."""

from __future__ import annotations

from simulations.chaos.processes import errors_of
from simulations.chaos.rounds import unexpected

PLAIN = """2026-01-01 INFO all is well
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    1 / 0
ZeroDivisionError: division by zero
2026-01-01 WARNING append failed (disk I/O Error): it may be stored"""

GROUP = """  + Exception Group Traceback (most recent call last):
  |   File "a.py", line 252, in serve
  |     async with trio.open_nursery() as nursery:
  | ExceptionGroup: Exceptions from Trio nursery (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "b.py", line 1553, in read
    | MemoryError
    +---------------- 2 ----------------
    | Traceback (most recent call last):
    |   File "c.py", line 3, in write
    | trio.BrokenResourceError: gone
    +------------------------------------
2026-01-01 WARNING KeyError in a line of the log is no traceback"""


def test_the_error_of_a_traceback() -> None:
    """Not what the log says behind it."""
    assert errors_of(PLAIN.splitlines()) == ["ZeroDivisionError: division by zero"]


def test_the_errors_of_a_group() -> None:
    """Those of its parts, and not the group's own name."""
    assert errors_of(GROUP.splitlines()) == ["MemoryError", "trio.BrokenResourceError: gone"]


def test_both_one_after_the_other() -> None:
    assert errors_of([*GROUP.splitlines(), *PLAIN.splitlines()])[-1] == "ZeroDivisionError: division by zero"


def test_without_a_traceback_nothing_is_an_error() -> None:
    assert errors_of(["ValueError: said, not raised"]) == []


def test_what_a_lack_of_memory_explains() -> None:
    """Also trio's own word for it, but nothing else of trio's."""
    trio_says = "trio.TrioInternalError: internal error in Trio - please file a bug!"
    assert unexpected(["MemoryError", trio_says, "ValueError: x"]) == ["ValueError: x"]
    assert unexpected(["ValueError: x", trio_says]) == ["ValueError: x", trio_says]
    # kazoo's thread ends so when a server leaves an answer out; the instance takes another client.
    assert unexpected(["RuntimeError: ('xids do not match', 13, 14)", "RuntimeError: x"]) == ["RuntimeError: x"]
