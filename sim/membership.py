"""`sim membership`: how soon peers notice, agree and forgive, in clusters of any size; the protocol's rules alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import click

from protocol.datagrams import Accusation, Gossip
from protocol.identity import Member, NodeId, Status
from protocol.member_events import Received, StatusChanged
from protocol.membership import GOSSIP_S, Timing
from sim.bench import machine
from sim.crowd import Crowd, One

WARM_S = 5.0
"""Before anything is measured."""
LIMIT_S = 120.0
IDLE_S = 30.0
STARVED_FOR_S = 120.0
STARVED_SHARE = 0.04
STARVED_S = (0.02, 0.5)
"""How long a starved peer takes for one datagram or timer; one that is well takes well under a millisecond."""
AGREE_SHARE = 0.99
STARVED_MAX, LOSSY_MAX = 100, 300
"""In larger crowds it is not measured what starved peers, and losses, do: it takes very long."""
CRASHES = (3, 200)
"""The fewest and the most of one size."""
CRASHES_TIMES_PEERS = 4000
"""In between, large crowds have fewer."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Some measurements of one thing."""

    values: Sequence[float]

    def __str__(self) -> str:
        ordered = sorted(self.values)
        if not ordered:
            return "never"
        p99 = ordered[min(len(ordered) - 1, math.ceil(0.99 * len(ordered)) - 1)]
        return f"{statistics.median(ordered):.1f} / {p99:.1f}"


@dataclass(frozen=True, slots=True)
class Noticed:
    """How long after a crash the first peer held it for down, and how long after that so many did; in seconds."""

    first_s: Spread
    most_s: Spread


class _Witnesses:
    """Who holds one peer for down, and since when."""

    def __init__(self, crowd: Crowd, victim: One) -> None:
        self._crowd = crowd
        self._victim = victim.node_id
        self.since: dict[NodeId, float] = {}
        crowd.on_status = self._note

    def _note(self, one: One, changed: StatusChanged) -> None:
        if changed.node_id == self._victim and changed.status is Status.DOWN:
            self.since.setdefault(one.node_id, self._crowd.now)

    def are(self, count: int) -> bool:
        """Whether they are so many."""
        return len(self.since) >= count


def crashes(seed: int, peers: int, times: int, timing: Timing, loss: float = 0.0) -> Noticed:
    """Let peers crash, each in a crowd of that many, and see who notices when."""
    first: list[float] = []
    most: list[float] = []
    wanted = math.ceil(AGREE_SHARE * (peers - 1))
    for number in range(times):
        crowd = Crowd(Random(f"crash {seed} {peers} {number}"), loss)
        ones = crowd.formed(peers, timing)
        crowd.run(WARM_S + crowd.chance.uniform(0, timing.round_s))
        victim = crowd.chance.choice(ones)
        witnesses, began = _Witnesses(crowd, victim), crowd.now
        crowd.crash(victim)
        if crowd.run(began + LIMIT_S, partial(witnesses.are, wanted)):
            known = sorted(witnesses.since.values())
            first.append(known[0] - began)
            most.append(known[wanted - 1] - known[0])
    return Noticed(Spread(first), Spread(most))


def false_downs(seed: int, peers: int, timing: Timing) -> tuple[int, int]:
    """How often a peer that is well is held for down, by any and by one that is well, while a few get no time."""
    crowd = Crowd(Random(f"starved {seed} {peers}"))
    ones = crowd.formed(peers, timing)
    crowd.run(WARM_S)
    starved = crowd.chance.sample(ones, max(1, round(STARVED_SHARE * peers)))
    ill = {one.node_id for one in starved}
    downs: list[bool] = []

    def note(one: One, changed: StatusChanged) -> None:
        if changed.status is Status.DOWN and changed.node_id not in ill:
            downs.append(one.node_id not in ill)

    crowd.on_status = note
    for one in starved:
        one.event_s = STARVED_S
    crowd.run(crowd.now + STARVED_FOR_S)
    return len(downs), sum(downs)


def idle_bytes(seed: int, peers: int, timing: Timing) -> float:
    """Bytes of datagrams a peer sends in a second while nothing happens."""
    crowd = Crowd(Random(f"idle {seed} {peers}"))
    ones = crowd.formed(peers, timing)
    crowd.run(WARM_S)
    crowd.counts_bytes = True
    crowd.run(WARM_S + IDLE_S)
    return sum(one.bytes_sent for one in ones) / peers / IDLE_S


def rumor_rounds(seed: int, peers: int, times: int, timing: Timing) -> Spread:
    """Rounds of gossip until news of one peer is everywhere: it refutes what it is accused of."""
    crowd = Crowd(Random(f"rumor {seed} {peers}"))
    ones = crowd.formed(peers, timing)
    crowd.run(WARM_S)
    rounds: list[float] = []
    for _ in range(times):
        one = crowd.chance.choice(ones)
        began = crowd.now
        accused = one.membership.me
        accuser = crowd.chance.choice([other for other in ones if other is not one]).membership.me
        accusation = Accusation(accused.node_id, accused.incarnation, Status.SUSPECT, accuser.node_id)
        crowd.tell(one, Received(Gossip(accuser, (accusation,))))
        while not _have_all(ones, one.membership.me) and crowd.now < began + LIMIT_S:
            crowd.run(crowd.now + GOSSIP_S)
        rounds.append((crowd.now - began) / GOSSIP_S)
        crowd.run(crowd.now + WARM_S)
    return Spread(rounds)


def _have_all(ones: Sequence[One], news: Member) -> bool:
    return all(one.membership.known.member(news.node_id) == news for one in ones)


def full_view(seed: int, peers: int, timing: Timing) -> float:
    """Seconds from when all start, knowing one of them only, until all hold all for alive."""
    crowd = Crowd(Random(f"start {seed} {peers}"))
    ones = [crowd.add(number, timing) for number in range(peers)]
    for one in ones:
        crowd.start(one, crowd.chance.uniform(0, timing.round_s))
        if one is not ones[0]:
            crowd.after(crowd.chance.uniform(0, timing.round_s), partial(crowd.join, one, ones[0]))
    while not all(one.membership.known.up == peers for one in ones) and crowd.now < LIMIT_S:
        crowd.run(crowd.now + GOSSIP_S)
    return crowd.now


@click.command()
@click.option(
    "--peers",
    "sizes",
    type=click.IntRange(3, 4000),
    multiple=True,
    default=(3, 10, 30, 100, 300, 1000),
    show_default=True,
    help="How many; may be given several times.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="What is drawn.")
def membership(sizes: tuple[int, ...], seed: int) -> None:
    """Let crowds of peers notice crashes, forgive slow peers and spread news.

    It is the protocol alone in virtual time; "median / p99" of a number of crashes, or rumors, each.
    """
    click.echo(f"# {machine.describe()}", err=True)
    click.echo("\n".join("| " + " | ".join(line) + " |" for line in (_HEADS, ["---"] * len(_HEADS))))
    for peers in sizes:
        click.echo("| " + " | ".join(_row(seed, peers)) + " |")


_HEADS = (
    "peers",
    "first `down` after a crash, s",
    "99 % know, s after the first",
    "that with 30 % loss",
    "false `down` with 4 % starved: in all, at those that are well",
    "that with SWIM alone",
    "bytes /s a peer sends, idle",
    "rounds until news is everywhere",
    "full view from an empty start, s",
)


def _row(seed: int, peers: int) -> list[str]:
    timing = Timing()
    fewest, most = CRASHES
    times = max(fewest, min(most, CRASHES_TIMES_PEERS // peers))
    noticed = crashes(seed, peers, times, timing)
    return [
        str(peers),
        str(noticed.first_s),
        str(noticed.most_s),
        _lossy(seed, peers, max(3, times // 4), timing),
        _false_downs(seed, peers, timing),
        _false_downs(seed, peers, Timing(is_lifeguard=False)),
        f"{idle_bytes(seed, peers, timing):.0f}",
        str(rumor_rounds(seed, peers, times, timing)),
        f"{full_view(seed, peers, timing):.1f}",
    ]


def _lossy(seed: int, peers: int, times: int, timing: Timing) -> str:
    return str(crashes(seed, peers, times, timing, loss=0.3).most_s) if peers <= LOSSY_MAX else "not measured"


def _false_downs(seed: int, peers: int, timing: Timing) -> str:
    return "{}, {}".format(*false_downs(seed, peers, timing)) if peers <= STARVED_MAX else "not measured"
