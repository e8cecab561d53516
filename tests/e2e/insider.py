"""Somebody who has the key of a cluster of real peers, and proves it as they do."""

from __future__ import annotations

from pathlib import Path
from random import SystemRandom

import httpx

from peer.cluster.key_file import read_key_file
from peer.cluster.layout import KEY_FILE
from peer.gossip.requests import PROOF_HEADER, SESSION_HEADER
from protocol.sessions import Sessions, hash_of


class Insider:
    """Proves requests to the peers of the local cluster in a folder; they need not be proven in any order."""

    def __init__(self, data: Path) -> None:
        self.sessions = Sessions(read_key_file(data / KEY_FILE), SystemRandom())

    def meet(self, address: str) -> None:
        """Find out how a peer wants to be spoken to."""
        proof = self.sessions.prove(address, "POST", "/peer/chunks/renew", hash_of(b""))
        answer = httpx.post(
            f"http://{address}/peer/chunks/renew", headers={PROOF_HEADER: proof.field}, timeout=10, trust_env=False
        )
        assert self.sessions.learn(address, proof, answer.headers.get(SESSION_HEADER)), answer.text

    def field(self, address: str, method: str, target: str, body: bytes = b"") -> str:
        """What proves a request, as a line of its head."""
        return f"{PROOF_HEADER}: {self.sessions.prove(address, method, target, hash_of(body)).field}"
