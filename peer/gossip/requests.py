"""Requests to other peers, each with the proof that a peer of this cluster sends it; answers must prove the same.

What is asked and answered as a whole goes over connections of our own (`peer/world/outgoing.py`), which cost an upload
least; what is streamed goes through httpx. httpx 0.28.1 on trio loses pool slots when requests are cancelled, so its
own pool limit is off and who asks limits himself.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache

import httpx

from peer.config import Address
from peer.world.env import Env, HttpAnswer, HttpRequest, RequestFailed
from protocol import codec
from protocol.keyring import is_same_text
from protocol.sessions import Proof, Sessions, hash_of

CONNECT_TIMEOUT_S = 2.0
SILENCE_TIMEOUT_S = 10.0
"""No answer and no byte of one for this long: the peer is taken for unreachable."""

SENTENCE_CHARS_MAX = 300
"""Of what a peer says when it refuses."""

PROOF_HEADER = "x-minidfs-proof"
"""Of a request."""
HEAD_HEADER, ANSWER_HEADER = "x-minidfs-head-proof", "x-minidfs-answer-proof"
"""Of an answer: of its beginning, and of all of it where it is sent as a whole."""
SESSION_HEADER = "x-minidfs-session"
"""Of an answer to a request that was stale: what the next one has to name."""

STALE = httpx.codes.UNAUTHORIZED
ATTEMPTS_MAX = 3
"""A request that was stale is sent again with what came back, and once more in case a new session began just then."""


class NotProven(RequestFailed):
    """The answer does not prove that it is of a peer of this cluster."""

    def __init__(self, status: int, content: bytes) -> None:
        super().__init__(f"its answer is not that of a peer of this cluster: {said_in(status, content)}")


class PeerRequests:
    """Sends what one peer asks of others."""

    def __init__(self, env: Env, sessions: Sessions, headers: Mapping[str, str]) -> None:
        self.sessions = sessions
        self._headers = tuple(headers.items())
        self._whole = env.http_requests()
        self.http = httpx.AsyncClient(
            transport=env.http_transport(),
            trust_env=False,
            follow_redirects=False,
            headers=dict(headers),
            timeout=httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )
        """For what is no request of a peer, and proves nothing: clients' uploads that are handed on, health."""

    async def aclose(self) -> None:
        """Close all connections."""
        self._whole.close()
        await self.http.aclose()

    async def ask(
        self,
        address: str,
        method: str,
        target: str,
        body: bytes,
        headers: Mapping[str, str],
        silence_timeout_s: float | None = SILENCE_TIMEOUT_S,
    ) -> HttpAnswer:
        """The whole answer to a whole request, whatever its status. Raises RequestFailed, ConfigError."""
        where, body_hash = _parsed(address), hash_of(body)
        for _ in range(ATTEMPTS_MAX):
            proof = self.sessions.prove(address, method, target, body_hash)
            request = HttpRequest(
                method=method,
                target=target,
                headers=(*self._headers, *headers.items(), (PROOF_HEADER, proof.field)),
                body=body,
                connect_timeout_s=CONNECT_TIMEOUT_S,
                silence_timeout_s=silence_timeout_s,
                answer_bytes_max=codec.MESSAGE_BYTES_MAX,
            )
            answer = await self._whole.request(where, request)
            if not self._was_stale(address, proof, answer.status, answer.headers):
                break
        expected = proof.of_answer(answer.status, answer.content)
        if not is_same_text(answer.headers.get(ANSWER_HEADER, ""), expected):
            raise NotProven(answer.status, answer.content)
        return answer

    @asynccontextmanager
    async def stream(
        self, address: str, method: str, target: str, headers: Mapping[str, str]
    ) -> AsyncIterator[tuple[httpx.Response, Proof]]:
        """The beginning of an answer whose body comes by and by, and what proves it. Raises as httpx, RequestFailed.

        The body has to prove itself, by a hash that is known or frame by frame; an answer other than 200 is not proven.
        """
        for _ in range(ATTEMPTS_MAX):
            proof = self.sessions.prove(address, method, target, hash_of(b""))
            fields = {**headers, PROOF_HEADER: proof.field}
            async with self.http.stream(method, f"http://{address}{target}", headers=fields) as response:
                if self._was_stale(address, proof, response.status_code, response.headers):
                    continue
                if response.is_success:
                    _check_begun(response, proof)
                yield response, proof
                return
        raise NotProven(STALE, b"")

    async def send(
        self,
        address: str,
        method: str,
        target: str,
        body_hash: bytes,
        content: AsyncIterable[bytes],
        headers: Mapping[str, str],
    ) -> tuple[int, bytes]:
        """Status and content of the whole answer to a request whose body is made piece by piece, once.

        The session of the peer should be known, for the request cannot be sent again. Raises as httpx, RequestFailed.
        """
        proof = self.sessions.prove(address, method, target, body_hash)
        fields = {**headers, PROOF_HEADER: proof.field}
        response = await self.http.request(method, f"http://{address}{target}", content=content, headers=fields)
        if self._was_stale(address, proof, response.status_code, response.headers):
            raise RequestFailed("it has started again meanwhile")
        expected = proof.of_answer(response.status_code, response.content)
        if not is_same_text(response.headers.get(ANSWER_HEADER, ""), expected):
            raise NotProven(response.status_code, response.content)
        return response.status_code, response.content

    def _was_stale(self, address: str, proof: Proof, status: int, headers: Mapping[str, str]) -> bool:
        """Whether a request was not known for fresh, and may be if it is sent again."""
        return status == STALE and self.sessions.learn(address, proof, headers.get(SESSION_HEADER))


def _check_begun(response: httpx.Response, proof: Proof) -> None:
    if not is_same_text(response.headers.get(HEAD_HEADER, ""), proof.of_head(response.status_code)):
        raise NotProven(response.status_code, b"")


def said_in(status: int, content: bytes) -> str:
    """The sentence in a peer's refusal, or its status when there is none we can read."""
    try:
        sentence = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        sentence = None
    if not isinstance(sentence, str) or not sentence.isprintable():
        return f"status {status}"
    return sentence[:SENTENCE_CHARS_MAX]


@lru_cache(maxsize=1024)
def _parsed(address: str) -> Address:
    return Address.parse(address)
