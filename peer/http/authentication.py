"""What stands before everything under `/peer/`: only requests that prove to come from a peer of this cluster get there.

Answers prove the same, and which request they answer: a whole one by its status and body; one whose body comes piece by
piece by its status, for such a body proves itself (`protocol/sessions.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from blake3 import blake3
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peer.complaints import Complaints
from peer.gossip.requests import ANSWER_HEADER, HEAD_HEADER, PROOF_HEADER, SESSION_HEADER, STALE
from peer.http.errors import error_response
from peer.world.env import FROM_PEER, PEER_PATHS
from protocol.errors import MalformedMessage, NotAuthentic
from protocol.keyring import is_same
from protocol.sessions import Proof, Sessions, StaleRequest

log = logging.getLogger("minidfs.http")

PROOF = "proof"
"""Where in `scope["state"]` the proof of a request is, for answers that come by and by."""

NO_PEER = "only peers of this cluster may ask this: a peer needs its --cluster-key-file"
CHALLENGE = {"www-authenticate": "Minidfs-Cluster-Key"}
"""What a 401 has to have (RFC 9110, 15.5.2)."""


class Authentication:
    """The app, for those who may use what of it they ask for."""

    def __init__(self, app: ASGIApp, sessions: Sessions, now: Callable[[], float]) -> None:
        self._app = app
        self._sessions = sessions
        self._complaints = Complaints(log, now)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or not scope["path"].startswith(PEER_PATHS):
            await self._app(scope, receive, send)
            return
        try:
            proof = self._sessions.check(Headers(scope=scope).get(PROOF_HEADER), scope["method"], _target_of(scope))
        except StaleRequest as error:
            headers = {**CHALLENGE, SESSION_HEADER: error.field}
            await error_response(STALE, str(error), headers)(scope, receive, send)
        except NotAuthentic as error:
            sender = (scope.get("client") or ("somebody", 0))[0]
            self._complaints.say_rarely("requests", f"a request from {sender} was refused: {error}")
            await error_response(STALE, NO_PEER, CHALLENGE)(scope, receive, send)
        else:
            scope["state"] |= {PROOF: proof, FROM_PEER: True}
            # A chunk's bytes are verified by its hash, which its address has and the proof covers.
            checked = receive if scope["method"] == "PUT" else _Body(receive, proof.body_hash).receive
            await self._app(scope, checked, _Answer(send, proof).send)


def _target_of(scope: Scope) -> str:
    query = scope["query_string"]
    target = scope["raw_path"] + b"?" + query if query else scope["raw_path"]
    return str(target.decode("latin-1"))


class _Body:
    """A request's body as it comes in, which has to be the one the proof is for."""

    def __init__(self, receive: Receive, body_hash: bytes) -> None:
        self._receive = receive
        self._wanted = body_hash
        self._hash = blake3()

    async def receive(self) -> Message:
        """ASGI's. Raises MalformedMessage with the last piece of another one."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._hash.update(message.get("body", b""))
            if not message.get("more_body", False) and not is_same(self._hash.digest(), self._wanted):
                raise MalformedMessage("the body is not the one that was sent")
        return message


class _Answer:
    """An answer that is proven: its head waits until it is known whether the body comes as a whole."""

    def __init__(self, send: Send, proof: Proof) -> None:
        self._send = send
        self._proof = proof
        self._head: Message | None = None

    async def send(self, message: Message) -> None:
        """ASGI's."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        if self._head is not None:
            head, self._head = self._head, None
            await self._send({**head, "headers": [*head.get("headers", ()), *self._proofs(head["status"], message)]})
        await self._send(message)

    def _proofs(self, status: int, first: Message) -> Iterator[tuple[bytes, bytes]]:
        yield HEAD_HEADER.encode(), self._proof.of_head(status).encode()
        if first["type"] == "http.response.body" and not first.get("more_body", False):
            yield ANSWER_HEADER.encode(), self._proof.of_answer(status, first.get("body", b"")).encode()
