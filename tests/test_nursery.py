"""What leaves a block that owns tasks: the user's exception as it was raised, a task's as itself."""

from __future__ import annotations

import pytest
import trio

from changefeed.nursery import open_owned_nursery


async def fails() -> None:
    raise KeyError("task")


async def fails_deep() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails)


async def test_the_blocks_exception_leaves_as_itself_with_its_own_context() -> None:
    """Nothing of ours appears in its traceback's story."""
    with pytest.raises(ValueError, match="mine") as caught:
        async with open_owned_nursery():
            try:
                raise KeyError("before")
            except KeyError:
                raise ValueError("mine")  # noqa: B904  # its context is what is tested
    assert isinstance(caught.value.__context__, KeyError)
    assert not caught.value.__suppress_context__


async def test_a_group_of_the_users_own_stays_a_group() -> None:
    """An `except*` or a nursery of the user's inside the block is none of our business."""
    with pytest.raises(ExceptionGroup, match="users") as caught:
        async with open_owned_nursery():
            raise ExceptionGroup("users", [ValueError("one")])
    assert caught.group_contains(ValueError, depth=1)


async def test_a_tasks_exception_leaves_as_itself_out_of_all_its_nurseries() -> None:
    with pytest.raises(KeyError, match="task") as caught:
        async with open_owned_nursery() as nursery:
            nursery.start_soon(fails_deep)
            await trio.sleep_forever()
    assert caught.value.__context__ is None


async def test_several_exceptions_stay_a_group() -> None:
    """None of them may be lost."""
    with pytest.raises(ExceptionGroup) as caught:
        async with open_owned_nursery() as nursery:
            nursery.start_soon(fails)
            raise ValueError("mine")
    assert caught.group_contains(KeyError)
    assert caught.group_contains(ValueError)


async def test_a_cancellation_is_none_of_its_business() -> None:
    with trio.CancelScope() as scope:
        async with open_owned_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
