"""Becoming one of a cluster: asking for it, telling its peers of this one, and waiting until they answer."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from contextlib import suppress

import httpx
import trio

from peer.complaints import Complaints
from peer.config import Address
from peer.gossip.client import PeerUnreachable, translated
from peer.gossip.peers import Peers
from peer.gossip.requests import CONNECT_TIMEOUT_S, PeerRequests, said_in
from peer.world.env import Clock, Env, StartError
from protocol import messages
from protocol.errors import MalformedMessage
from protocol.identity import Member
from protocol.messages import View

log = logging.getLogger("minidfs.joining")

RETRY_S, RETRY_S_MAX = 1.0, 15.0
"""Between two attempts; each pause is half as long again as the one before."""
MEET_TIMEOUT_S = 3.0
MEET_POLL_S = 0.05


class Seeds:
    """The peers that `--join` names. A name stands for all its addresses but those in `own`, which are this peer's."""

    def __init__(
        self,
        resolve: Callable[[Address], Awaitable[Sequence[Address]]],
        named: Iterable[Address],
        own: Container[Address],
    ) -> None:
        self._resolve = resolve
        self._named = tuple(named)
        self._own = own
        self._pause_s = RETRY_S

    async def addresses(self) -> list[Address]:
        """Where they may be now: names are looked up anew each time."""
        found: dict[Address, None] = {}
        for name in self._named:
            found |= dict.fromkeys(await self._resolve(name))
        return [address for address in found if address not in self._own]

    async def pause(self) -> None:
        """Wait before the next attempt."""
        await trio.sleep(self._pause_s)
        self._pause_s = min(1.5 * self._pause_s, RETRY_S_MAX)


async def join(
    requests: PeerRequests, address: Address, cluster_id: str, me: Member | None
) -> tuple[str, tuple[Member, ...]]:
    """Ask a peer at this address for its cluster's id and members, telling it of `me`.

    `cluster_id` is empty for a peer that takes any. Raises PeerUnreachable, also when it belongs to another one.
    """
    body = messages.encode_join(cluster_id, me)
    with translated(str(address)):
        answer = await requests.ask(str(address), "POST", "/peer/join", body, {}, CONNECT_TIMEOUT_S)
    if answer.status == httpx.codes.SERVICE_UNAVAILABLE:
        raise PeerUnreachable(
            f"{address} belongs to no cluster yet; if none of them does, start one of them without --join to found one"
        )
    if answer.status != httpx.codes.OK:
        raise PeerUnreachable(f"{address} refused: {said_in(answer.status, answer.content)}")
    try:
        return messages.decode_join(answer.content)
    except MalformedMessage as error:
        raise PeerUnreachable(f"{address} does not answer as a peer does: {error}") from None


async def cluster_at(env: Env, address: Address) -> object:
    """What a peer at this address says of its cluster, None while it has none. Raises PeerUnreachable."""
    transport = env.http_transport()
    async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=CONNECT_TIMEOUT_S) as http:
        with translated(str(address)):
            response = await http.get(f"http://{address}/health")
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or "cluster_id" not in answer:
        return "none at all"
    return answer["cluster_id"]


async def settle_cluster(
    requests: PeerRequests,
    clock: Clock,
    seeds: Seeds,
    known: str | None,
    *,
    knows_others: bool,
    rejoin: bool,
) -> str:
    """Find the cluster that a peer told to join these belongs to: the one its folder knows, or that of those peers.

    Waits, without one of its own or with `rejoin`, until one of them answers. Raises StartError when they belong to
    another cluster than the folder and the peer was not told to go over to it.
    """
    if known is None:
        return await _ask_until_answered(requests, clock, seeds)
    if knows_others and not rejoin:
        return known
    answers = await _ask_all(requests, await seeds.addresses())
    if known in answers.values():
        return known
    if not answers:
        return await _ask_until_answered(requests, clock, seeds) if rejoin and not knows_others else known
    address, theirs = next(iter(answers.items()))
    if knows_others:
        raise StartError(
            f"the data folder belongs to cluster {known}, which has other members, and cannot go over to that of "
            f"{address} ({theirs}); start without --rejoin, or use another folder"
        )
    if not rejoin:
        raise _other_cluster(known, address, theirs)
    log.warning("going over from cluster %s to %s, with all files", known, theirs)
    return theirs


def _other_cluster(known: str, address: Address, theirs: str) -> StartError:
    return StartError(
        f"this peer is alone in cluster {known}, and {address} belongs to another one ({theirs}); add --rejoin to go "
        "over to that one with all files, or use another data folder"
    )


async def _ask_all(requests: PeerRequests, addresses: Sequence[Address]) -> dict[Address, str]:
    """The clusters of those peers that answer within a moment."""
    answers: dict[Address, str] = {}

    async def ask(address: Address) -> None:
        with suppress(PeerUnreachable):
            answers[address], _ = await join(requests, address, "", None)

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(ask, address)
    return {address: answers[address] for address in addresses if address in answers}


async def _ask_until_answered(requests: PeerRequests, clock: Clock, seeds: Seeds) -> str:
    complaints = Complaints(log, clock.now)
    while True:
        addresses = await seeds.addresses()
        if not addresses:
            complaints.say("", "waiting for a cluster to join: --join leads to this peer alone")
        for address in addresses:
            try:
                cluster_id, _ = await join(requests, address, "", None)
            except PeerUnreachable as error:
                complaints.say(address, f"waiting for a cluster to join: {error}")
            else:
                return cluster_id
        await seeds.pause()


async def announce(
    requests: PeerRequests,
    clock: Clock,
    seeds: Seeds,
    others: Peers,
    learn: Callable[[View], None],
    on_stranger: Callable[[StartError], None] | None,
) -> None:
    """Tell peers of this one until it knows others; ask each once, whether it belongs to this cluster.

    `on_stranger` is told when one does not and this peer is alone; else, and without it, that is only logged.
    """
    complaints = Complaints(log, clock.now)

    def is_alone() -> bool:
        return len(others.membership.members()) == 1

    for turn in itertools.count():
        if turn and not is_alone():
            return
        for address in await seeds.addresses():
            try:
                theirs, _ = await join(requests, address, "", None)
                if theirs == others.cluster_id:
                    _, members = await join(requests, address, theirs, others.membership.me)
                    learn(View.of(*members))
                elif on_stranger is not None and is_alone():
                    on_stranger(_other_cluster(others.cluster_id, address, theirs))
                    return
                else:
                    sentence = f"{address} belongs to another cluster ({theirs}) than this peer ({others.cluster_id})"
                    complaints.say(address, f"{sentence}; take it out of --join", logging.ERROR)
            except PeerUnreachable as error:
                if is_alone():
                    complaints.say(address, f"not joined yet, this peer is alone: {error}")
        await seeds.pause()


async def meet_others(others: Peers, expected: int) -> None:
    """Give the others, `expected` at least, a moment to answer: who waits for us to be ready finds us among them."""
    membership = others.membership
    with trio.move_on_after(MEET_TIMEOUT_S):
        # Both sides of this change; for a few seconds at most, looking is simpler than being told.
        while len(membership.reachable()) < max(len(membership.members()) - 1, expected):  # noqa: ASYNC110
            await trio.sleep(MEET_POLL_S)
