"""Becoming one of a cluster: asking for it, telling its peers of this one, and waiting until they answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

import httpx
import trio

from peer.config import Address
from peer.gossip.client import CONNECT_TIMEOUT_S, PeerUnreachable, said_in, translated
from peer.gossip.peers import Peers
from peer.world.env import Env
from protocol import messages
from protocol.errors import MalformedMessage
from protocol.identity import Member

log = logging.getLogger("minidfs.joining")

RETRY_S = 1.0
MEET_TIMEOUT_S = 3.0
MEET_POLL_S = 0.05


async def join(env: Env, address: Address, cluster_id: str, me: Member | None) -> tuple[str, tuple[Member, ...]]:
    """Ask a peer at this address for its cluster's id and members, telling it of `me`.

    `cluster_id` is empty for a peer that takes any. Raises PeerUnreachable, also when it belongs to another one.
    """
    body = messages.encode_join(cluster_id, me)
    async with httpx.AsyncClient(transport=env.http_transport(), trust_env=False, timeout=CONNECT_TIMEOUT_S) as http:
        with translated(str(address)):
            response = await http.post(f"http://{address}/peer/join", content=body)
    if response.status_code != httpx.codes.OK:
        raise PeerUnreachable(f"{address} refused: {said_in(response)}")
    try:
        return messages.decode_join(response.content)
    except MalformedMessage as error:
        raise PeerUnreachable(f"{address} does not answer as a peer does: {error}") from None


async def ask_cluster_id(env: Env, addresses: tuple[Address, ...]) -> str:
    """Ask peers for the cluster to join, one after the other, until one answers."""
    while True:
        for address in addresses:
            try:
                cluster_id, _ = await join(env, address, "", None)
            except PeerUnreachable as error:
                log.warning("joining: %s", error)
            else:
                return cluster_id
        await trio.sleep(RETRY_S)


async def announce(
    env: Env, addresses: tuple[Address, ...], others: Peers, learn: Callable[[tuple[Member, ...]], None]
) -> None:
    """Tell peers of this one until one has answered, unless it knows others already."""
    while len(others.membership.members()) == 1 and addresses:
        for address in addresses:
            try:
                _, members = await join(env, address, others.cluster_id, others.membership.me)
            except PeerUnreachable as error:
                log.info("joining: %s", error)
            else:
                learn(members)
        await trio.sleep(RETRY_S)


async def meet_others(others: Peers, expected: int) -> None:
    """Give the others, `expected` at least, a moment to answer: who waits for us to be ready finds us among them."""
    membership = others.membership
    with trio.move_on_after(MEET_TIMEOUT_S):
        # Both sides of this change; for a few seconds at most, looking is simpler than being told.
        while len(membership.reachable()) < max(len(membership.members()) - 1, expected):  # noqa: ASYNC110
            await trio.sleep(MEET_POLL_S)
