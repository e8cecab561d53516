"""The one shape of work that runs without being asked."""

from __future__ import annotations

import math

import trio
import trio.testing

from peer.worker import Worker
from peer.world.env import StoreError


class Digger(Worker):
    name = "digger"

    def __init__(self, pace_s: float = math.inf, settle_s: float = 0.0, failures: int = 0) -> None:
        super().__init__()
        self._settle_s = settle_s
        self.at: list[float] = []
        self._pace_s = pace_s
        self._failures = failures

    def pace_s(self) -> float:
        return self._pace_s

    def settle_s(self) -> float:
        return self._settle_s

    def backlog(self) -> int:
        return 3

    async def step(self) -> None:
        self.at.append(trio.current_time())
        await trio.sleep(1)
        if len(self.at) <= self._failures:
            raise StoreError("the shovel is broken")


def times_of(worker: Digger, wake_at: tuple[float, ...] = (), until: float = 100.0) -> list[float]:
    """When a worker took its steps, woken at these moments, up to one."""

    async def main() -> None:
        start = trio.current_time()
        with trio.move_on_after(until):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run)
                for moment in wake_at:
                    await trio.sleep_until(start + moment)
                    worker.wake()
        worker.at = [moment - start for moment in worker.at]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return worker.at


def test_a_worker_steps_when_woken_and_not_otherwise() -> None:
    assert times_of(Digger(), (5.0, 20.0)) == [5.0, 20.0]


def test_being_woken_during_a_step_brings_one_more() -> None:
    assert times_of(Digger(), (5.0, 5.2, 5.4, 5.6)) == [5.0, 6.0]


def test_a_worker_steps_at_its_own_pace_too() -> None:
    assert times_of(Digger(pace_s=10.0), (13.0,), until=40.0) == [10.0, 13.0, 24.0, 35.0]


def test_what_comes_while_it_settles_shares_a_step() -> None:
    assert times_of(Digger(settle_s=2.0), (5.0, 6.0, 6.9)) == [7.0]


def test_a_step_that_fails_is_told_and_the_next_one_is_taken() -> None:
    worker = Digger(failures=1)
    assert times_of(worker, (5.0,)) == [5.0]
    assert str(worker.status()) == "worker='digger' steps=1 backlog=3 error='the shovel is broken'"
    assert times_of(worker, (5.0,))[1:] == [5.0]
    assert str(worker.status()) == "worker='digger' steps=2 backlog=3"
