"""What a seed's life is like: which faults come, how often, and what clients do; drawn from the seed, as a swarm.

Each seed leaves some kinds of faults out and has its own rates, for a fault that comes all the time hides what another
one would show (Groce et al., "Swarm Testing", 2012).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

POWER, PAUSES, CLOCKS = ("crash",), ("pause",), ("clock",)
FAILING_DISKS, FULL_DISKS = ("fail",), ("fill",)
ROT = ("flip", "damage")
LOST_DISKS = ("lose disk", "restore image")
DISKS = (*FAILING_DISKS, *FULL_DISKS, *ROT, *LOST_DISKS)
CUTS, WEATHER = ("cut",), ("weather",)
NETWORK = (*CUTS, *WEATHER)
MEMBERS = ("join", "evict", "leave")

SCENARIOS: dict[str, tuple[str, ...]] = {
    "storm": (*POWER, *PAUSES, *DISKS, *NETWORK, *CLOCKS),
    "power": POWER,
    "pauses": PAUSES,
    "disks": DISKS,
    "failing-disks": FAILING_DISKS,
    "full-disks": FULL_DISKS,
    "rot": ROT,
    "lost-disks": LOST_DISKS,
    "network": NETWORK,
    "cuts": CUTS,
    "weather": WEATHER,
    "clocks": CLOCKS,
    "members": (*MEMBERS, *POWER, *NETWORK),
    "calm": (),
}
"""Names of scenarios, and the kinds of faults that may come in them."""

ALWAYS = ("crash", "cut", "join", "evict", "leave")
"""Kinds that no seed of a scenario with them leaves out."""
KIND_SHARE = 0.7
"""Of seeds that have some other kind."""

FAULTS, OPERATIONS = (20, 50), (220, 340)
"""How many there are about in one life, the fewest and the most."""
OPERATIONS_PER_S_MAX = 6.0
FAULT_S_MAX = 40.0

SETTINGS: dict[str, Any] = {"inline_bytes_max": 1000, "chunk_bytes_max": 4000, "reserve_bytes": 6 * 1024 * 1024}


@dataclass(frozen=True, slots=True)
class Life:
    """One seed's life; times in virtual seconds."""

    faults: tuple[str, ...]
    """Kinds, as often as they are in here."""
    fault_pause_s: float
    """The longest between two faults."""
    fault_s: float
    """The longest that one lasts."""
    clients: int
    client_pause_s: float
    """The longest between two operations of one client."""
    keys: int
    settings: dict[str, Any]
    """Of the peers."""


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault to come. What it draws on its way is its own: the others stay what they are without it."""

    number: int
    at_s: float
    """Since the storm began."""
    kind: str
    peer: int
    """Which one, by its place among all."""
    lasts_s: float
    """At most."""
    seed: str


def draw_faults(seed: int, life: Life, peers: int, storm_s: float) -> tuple[PlannedFault, ...]:
    """All faults of a seed, in their order; the kinds that no seed leaves out come first."""
    chance = Random(f"{seed} faults")
    first = [kind for kind in dict.fromkeys(life.faults) if kind in ALWAYS]
    faults: list[PlannedFault] = []
    at_s = chance.uniform(0.2, life.fault_pause_s)
    while life.faults and at_s < storm_s:
        kind = first.pop() if first else chance.choice(life.faults)
        lasts_s = chance.uniform(min(0.5, life.fault_s), life.fault_s)
        number = len(faults)
        faults.append(PlannedFault(number, at_s, kind, chance.randrange(peers), lasts_s, f"{seed} fault {number}"))
        at_s += lasts_s + chance.uniform(0.2, life.fault_pause_s)
    return tuple(faults)


def draw_life(seed: int, scenario: str, copies: int, storm_s: float) -> Life:
    """The life of a seed in a scenario. A shorter storm has as many operations and faults, closer to each other."""
    chance = Random(f"{seed} life of {scenario}")
    kinds = SCENARIOS[scenario]
    chosen = [kind for kind in kinds if kind in ALWAYS or chance.random() < KIND_SHARE]
    weights = [chance.choice((1, 1, 2, 3)) for _ in chosen]
    fault_s = min(max(storm_s / 20, 1.5), FAULT_S_MAX)
    clients = chance.randint(6, 10)
    return Life(
        faults=tuple(kind for kind, weight in zip(chosen, weights, strict=True) for _ in range(weight)),
        fault_pause_s=max(0.5, 2 * storm_s / chance.randint(*FAULTS) - fault_s),
        fault_s=fault_s,
        clients=clients,
        client_pause_s=2 * storm_s * clients / min(chance.randint(*OPERATIONS), OPERATIONS_PER_S_MAX * storm_s),
        keys=chance.choice((4, 10, 25)),
        settings={
            **SETTINGS,
            "copies": copies,
            "heal_interval_s": chance.choice((10.0, 30.0)),
            "probe_interval_s": (probe := chance.choice((1.0, 2.0, 5.0))),
            "down_after_s": 3 * probe,
            "rejoin": "evict" in kinds,
            "out_after_s": chance.choice((30.0, 600.0)),
        },
    )
