"""One seed, one run: across processes, hash seeds and heaps. And the check itself is shown to be able to fail."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from random import Random

import pytest
import trio
from worlds import few_partitions

from sim.run import Plan, run_seed
from sim.smoke import run_smoke
from sim.world import World, deterministic_trio, run_world

DEADLINE_S = 100
SEED = 7

# The heap is another one in each process: what is ordered by addresses comes out differently.
PERTURB = """
import os, random
garbage = random.Random(os.urandom(16))
kept = [bytearray(garbage.randrange(1, 5000)) for _ in range(garbage.randrange(20_000, 60_000))]
garbage.shuffle(kept)
del kept[:: 2]
"""
SMOKE = PERTURB + "import sys; from sim.smoke import run_smoke; print(run_smoke(int(sys.argv[1])))"
STORM = (
    PERTURB
    + """
import sys
from sim.run import Plan, run_seed
verdict = run_seed(Plan(peers=3, minutes=0.5), int(sys.argv[1]))
print(verdict.digest, verdict.objection)
"""
)


def start(program: str, hash_seed: int, *args: str) -> subprocess.Popen[str]:
    """A process of its own, with its own hash seed."""
    env = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    return subprocess.Popen([sys.executable, "-c", program, *args], env=env, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    return output.strip()


def digests_in_two_processes(program: str, *args: str) -> list[str]:
    return [said(process) for process in [start(program, 1, *args), start(program, 4242, *args)]]


def test_the_smoke_run_is_the_same_in_every_process_and_with_hypothesis_imported() -> None:
    importlib.import_module("hypothesis")
    digests = digests_in_two_processes(SMOKE, str(SEED))
    assert digests == [run_smoke(SEED)] * 2


@pytest.mark.once
def test_a_storm_is_the_same_in_every_process() -> None:
    verdict = run_seed(Plan(peers=3, minutes=0.5), SEED)
    assert digests_in_two_processes(STORM, str(SEED)) == [f"{verdict.digest} None"] * 2


def test_another_seed_is_another_run() -> None:
    async def scenario(world: World) -> None:
        await world.start_all()

    with few_partitions():
        digests = [run_world(seed, scenario)[0] for seed in (1, 1, 2, 3)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_keeping_the_events_changes_nothing_and_tells_where_two_runs_part() -> None:
    async def scenario(world: World) -> None:
        await world.start_all()
        await world.upload("node-1", "a", b"x" * 50_000)

    with few_partitions():
        (quiet, none), (loud, events), (_, again) = [
            run_world(1, scenario, keep_events=keep) for keep in (False, True, True)
        ]
    assert (quiet, none) == (loud, [])
    assert events == again
    assert any("POST" in event for event in events)


# --- the check can fail ---

# One event that differs is enough; the scenarios take no time.
SCENARIOS = (
    PERTURB
    + """
import sys
from sim.world import run_world

def scenario_of(expression):
    async def scenario(world):
        world.trace("test", "saw", str(eval(expression, globals() | {"world": world})))
    return scenario

for expression in sys.argv[1:]:
    print(run_world(1, scenario_of(expression))[0])
"""
)
DIFFERENT = [
    "os.urandom(4)",
    "id(object())",
    "hash('key') % 4096",
    "list({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j'})",
    "random.random()",
    "__import__('uuid').uuid4()",
    "__import__('time').time_ns()",
]
ALIKE = ["world.chance.random()", "__import__('trio').current_time()", "sorted({'a', 'b', 'c'})"]


@pytest.fixture(scope="module")
def digests() -> dict[str, tuple[str, str]]:
    """What two processes made of a scenario that traces the value of an expression."""
    expressions = DIFFERENT + ALIKE
    one, other = (output.splitlines() for output in digests_in_two_processes(SCENARIOS, *expressions))
    return {expression: pair for expression, *pair in zip(expressions, one, other, strict=True)}  # type: ignore[misc]


@pytest.mark.parametrize("expression", DIFFERENT)
def test_what_differs_from_process_to_process_is_noticed(expression: str, digests: dict[str, tuple[str, str]]) -> None:
    one, other = digests[expression]
    assert one != other


@pytest.mark.parametrize("expression", ALIKE)
def test_what_is_the_same_everywhere_is_no_false_alarm(expression: str, digests: dict[str, tuple[str, str]]) -> None:
    one, other = digests[expression]
    assert one == other


# --- trio's private parts ---


def test_trio_still_has_the_private_names_we_set() -> None:
    trio_run = importlib.import_module("trio._core._run")
    assert isinstance(trio_run._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert isinstance(trio_run._r, Random)


def order_of_tasks() -> list[int]:
    """In which order trio ran tasks that were all ready."""
    order: list[int] = []

    async def main() -> None:
        async def task(number: int) -> None:
            for _ in range(3):
                order.append(number)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(task, number)

    trio.run(main)
    return order


def test_the_seed_decides_the_order_of_tasks() -> None:
    orders = []
    for seed in (1, 1, 2):
        with deterministic_trio(seed):
            orders.append(order_of_tasks())
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_after_a_world_trio_is_as_it_was_before() -> None:
    trio_run = importlib.import_module("trio._core._run")
    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()

    async def fails(world: World) -> None:
        await trio.sleep(1)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        run_world(1, fails)
    assert caught.group_contains(ZeroDivisionError)
    assert (trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()) == before


def test_private_names_that_have_moved_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    trio_run = importlib.import_module("trio._core._run")
    monkeypatch.delattr(trio_run, "_r")
    with pytest.raises(AttributeError), deterministic_trio(1):
        pass


def test_a_scenario_never_waits_for_real_time() -> None:
    async def scenario(world: World) -> None:
        await trio.sleep(80_000)

    started: Callable[[], float] = importlib.import_module("time").monotonic
    before = started()
    run_world(1, scenario)
    assert started() - before < 5
