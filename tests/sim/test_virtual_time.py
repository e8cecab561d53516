"""The time of a world passes by itself, wakes in order, and is no longer than it has to be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

import pytest
import trio
import trio.testing

from sim.virtual_time import VirtualTime


def run(body: Callable[[VirtualTime], Awaitable[None]]) -> None:
    time = VirtualTime()
    trio.run(body, time, clock=time)


def test_waits_of_both_kinds_end_at_their_times_and_in_their_order() -> None:
    chance = Random(1)
    waits = [round(chance.uniform(0, 50), 1) for _ in range(200)]
    ended: list[tuple[float, float]] = []

    async def wait(time: VirtualTime, number: int) -> None:
        if number % 2:
            await time.pass_by(waits[number])
        else:
            await trio.sleep(waits[number])
        ended.append((waits[number], time.current_time()))

    async def body(time: VirtualTime) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(len(waits)):
                nursery.start_soon(wait, time, number)

    run(body)
    assert [due for due, _ in ended] == sorted(waits)
    assert all(at == due for due, at in ended)


def test_calls_for_one_moment_come_in_the_order_they_were_made() -> None:
    called: list[int] = []

    async def body(time: VirtualTime) -> None:
        for number in range(50):
            time.call_at(3.0, lambda number=number: called.append(number))
        await trio.sleep(2.9)
        assert called == []
        await trio.sleep(0.2)

    run(body)
    assert called == list(range(50))


def test_a_cancelled_wait_ends_at_once_and_wakes_nobody_later() -> None:
    async def body(time: VirtualTime) -> None:
        with trio.move_on_after(1) as limit:
            await time.pass_by(5)
        assert limit.cancelled_caught
        assert time.current_time() == 1
        # A task that waits for something else when the time of the first comes is not woken by it.
        with trio.move_on_after(10):
            await trio.sleep_forever()
        assert time.current_time() == 11

    run(body)


def test_a_shielded_wait_lasts_whoever_cancels_it() -> None:
    async def body(time: VirtualTime) -> None:
        with trio.move_on_after(1) as limit:
            await time.pass_by(5, shielded=True)
            await trio.lowlevel.checkpoint()
        assert limit.cancelled_caught
        assert time.current_time() == 5

    run(body)


def test_time_stands_still_for_who_waits_until_all_tasks_are_blocked() -> None:
    async def body(time: VirtualTime) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 3)
            nursery.start_soon(time.pass_by, 4)
            await trio.testing.wait_all_tasks_blocked()
            assert time.current_time() == 0
        assert time.current_time() == 4

    run(body)


def test_a_deadline_in_the_past_is_no_way_back() -> None:
    async def body(time: VirtualTime) -> None:
        await time.pass_by(2)
        with trio.move_on_at(1), pytest.raises(trio.Cancelled):
            await trio.sleep_forever()
        called: list[float] = []
        time.call_at(0.5, lambda: called.append(time.current_time()))
        await trio.sleep(1)
        assert called == [2]
        assert time.current_time() == 3

    run(body)
