"""Tasks that are kept running."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
import trio
import trio.testing

from peer.tasks import CALM_S, RESTART_PAUSE_MAX_S, RESTART_PAUSE_S, Keeper


def in_virtual_time(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_task_that_fails_is_logged_counted_and_started_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started: list[float] = []

    async def fail() -> None:
        started.append(trio.current_time())
        raise ZeroDivisionError

    async def main() -> None:
        keeper = Keeper()
        with trio.move_on_after(200):
            await keeper.keep("sums", fail)
        assert keeper.failures["sums"] == len(started)

    with caplog.at_level(logging.ERROR):
        in_virtual_time(main)
    pauses = [later - earlier for earlier, later in pairwise(started)]
    assert pauses[:3] == pytest.approx([RESTART_PAUSE_S, 2 * RESTART_PAUSE_S, 4 * RESTART_PAUSE_S])
    assert pauses[-1] == pytest.approx(RESTART_PAUSE_MAX_S)
    assert all("sums failed" in record.getMessage() for record in caplog.records)
    assert all(record.exc_info for record in caplog.records)


def test_after_a_long_calm_a_failure_counts_as_the_first() -> None:
    started: list[float] = []

    async def fail_at_last() -> None:
        started.append(trio.current_time())
        await trio.sleep(0 if len(started) < 5 else CALM_S + 1)
        raise ZeroDivisionError

    async def main() -> None:
        with trio.move_on_after(200):
            await Keeper().keep("sums", fail_at_last)

    in_virtual_time(main)
    assert started[5] - started[4] == pytest.approx(CALM_S + 1 + RESTART_PAUSE_S)


def test_a_task_that_ends_is_over_and_one_that_is_cancelled_stays_so() -> None:
    async def main() -> None:
        keeper = Keeper()
        await keeper.keep("nothing", trio.lowlevel.checkpoint)
        with trio.move_on_after(1):
            await keeper.keep("for ever", trio.sleep_forever)
        assert not keeper.failures

    in_virtual_time(main)
