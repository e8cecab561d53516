"""Proving to other peers that one knows the cluster's key, and that what one says is said now.

Each life of a peer draws a number, its session, and counts what it sends. A message names the session of the receiver,
that of the sender and the count, and its authentication code covers them: what was recorded is of an older session, or
has a count that was there before (the window of RFC 4303, 3.4.3). No clock has a part in it. Who does not know the
receiver's session is told it, in an answer that is authenticated itself and bound to what it answers; then it says the
same again. The answer also tells the highest count there was: who is told of more than it remembers was set back, as a
machine whose image was resumed, and goes on under a new session of its own.

A datagram: version, session of the receiver, of the sender, count, body, code. The proof of a request, in a header
field: the same without the body, for which its hash stands, and the code covers method and target too.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import Counter
from random import Random
from typing import NamedTuple

from blake3 import blake3

from protocol.errors import NotAuthentic, NotFresh
from protocol.keyring import MAC_BYTES, Keyring, is_same, is_same_text, mac

SESSION_BYTES = 8
COUNT_BYTES = 6
HASH_BYTES = 32

WINDOW = 8192
"""Messages of one peer, to whomever, that may overtake another one."""
SENDERS_MAX = 4096
"""Sessions heard from in one of ours; with more of them a new one begins, and all windows with it."""
ADDRESSES_MAX = 4096
"""Whose sessions are remembered: another one costs a message more."""
SENT_MAX = 256
"""Datagrams remembered until it is known whether their receiver knows us."""

_NOBODY = bytes(SESSION_BYTES)
"""Stands for the session of a receiver that is not known."""

_SEALED, _NEWS = b"\xc1", b"\xc2"
"""What a datagram begins with: no version of those before, which began with a list."""
_OF_DATAGRAM, _OF_NEWS, _OF_REQUEST, _OF_ANSWER, _OF_HEAD, _OF_FRAME, _OF_SESSION = (bytes([tag]) for tag in range(7))
"""What a code is for: none can be taken for one of another kind."""

_HEAD_BYTES = 1 + 2 * SESSION_BYTES + COUNT_BYTES
_NEWS_BYTES = 1 + SESSION_BYTES + COUNT_BYTES + 2 * MAC_BYTES
SEAL_BYTES = _HEAD_BYTES + MAC_BYTES
"""What a datagram has beside its body."""
_PROOF_BYTES = 2 * SESSION_BYTES + COUNT_BYTES + HASH_BYTES + MAC_BYTES


class Window:
    """Which counts of one sender were there, of the last ones."""

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = -1
        self._seen = 0
        """A bit for each count, the highest in the lowest bit."""

    @property
    def highest(self) -> int:
        """The highest count there was; 0 before there was one."""
        return max(0, self._highest)

    def admit(self, count: int) -> bool:
        """Note a count; False if it was there before, or is too old to tell."""
        ahead = count - self._highest
        if ahead > 0:
            self._seen = (self._seen << min(ahead, WINDOW) | 1) & ((1 << WINDOW) - 1)
            self._highest = count
            return True
        if -ahead >= WINDOW or self._seen >> -ahead & 1:
            return False
        self._seen |= 1 << -ahead
        return True


class Fresh(NamedTuple):
    """A datagram that a peer of this cluster sent to this life of ours, and that was not there before."""

    body: bytes
    session: bytes
    """Of the sender."""


class Stale(NamedTuple):
    """One that is for another session, or came before: nothing it says may be believed; this is to be sent back."""

    answer: bytes


class Again(NamedTuple):
    """A datagram of ours was for another session than the receiver's: this is to be sent in its place."""

    datagram: bytes
    to: str


class Proof(NamedTuple):
    """What proves a request, and by which its answer is proven; both ends have the same."""

    key: bytes
    code: bytes
    field: str
    """As it stands in the header."""
    body_hash: bytes

    def of_answer(self, status: int, body: bytes) -> str:
        """Proves a whole answer."""
        return _as_text(mac(self.key, _OF_ANSWER, self.code, _status(status), hash_of(body)))

    def of_head(self, status: int) -> str:
        """Proves the beginning of an answer, for one whose body proves itself: by its hash, or frame by frame."""
        return _as_text(mac(self.key, _OF_HEAD, self.code, _status(status)))

    def of_frame(self, number: int, frame: bytes) -> bytes:
        """Proves a frame of such a body, and that it is the one of that number."""
        return mac(self.key, _OF_FRAME, self.code, number.to_bytes(8, "big"), frame)

    def of_news(self, news: bytes) -> str:
        """Tells who sent the request the receiver's session, and the highest count there was."""
        return _as_text(news + mac(self.key, _OF_SESSION, self.code, news))


class StaleRequest(Exception):
    """A request of a peer of this cluster that is for another life, or came before; `field` is to be told."""

    def __init__(self, field: str) -> None:
        super().__init__("the request is for another life of this peer, or came before; send it again")
        self.field = field


class Sessions:
    """What one life of a peer knows of the sessions of others, and they of its own."""

    def __init__(self, keyring: Keyring, chance: Random) -> None:
        self._keyring = keyring
        self._chance = chance
        self._session = self._drawn()
        self._count = 0
        self._windows: dict[bytes, Window] = {}
        self._known: dict[str, bytes] = {}
        """Of others, by address."""
        self._sent: dict[bytes, tuple[str, bytes, bytes]] = {}
        """Datagrams sent last, by their code: to whom, the session they named, and the body."""
        self.refused: Counter[str] = Counter()
        """What was not believed: `forged` by who has no key, or `repeated`."""

    def _drawn(self) -> bytes:
        return self._chance.randrange(1, 1 << 8 * SESSION_BYTES).to_bytes(SESSION_BYTES, "big")

    def knows(self, address: str) -> bool:
        """Whether what is sent there will be believed, unless that peer has started again."""
        return address in self._known

    def note(self, address: str, session: bytes) -> None:
        """The session of whoever is at an address, as it said itself."""
        self._known[address] = session
        if len(self._known) > ADDRESSES_MAX:
            del self._known[next(iter(self._known))]

    # --- datagrams ---

    def seal(self, to: str, body: bytes) -> bytes:
        """A datagram with this body for the peer at an address."""
        named, *ends = self._ends(to)
        said = b"".join((_SEALED, named, *ends, body))
        datagram = said + mac(self._keyring.keys[0], _OF_DATAGRAM, said)
        self._sent[datagram[-MAC_BYTES:]] = to, named, body
        if len(self._sent) > SENT_MAX:
            del self._sent[next(iter(self._sent))]
        return datagram

    def _ends(self, to: str) -> tuple[bytes, bytes, bytes]:
        """The sessions of receiver and sender, and the count."""
        self._count += 1
        return self._known.get(to, _NOBODY), self._session, self._count.to_bytes(COUNT_BYTES, "big")

    def open(self, raw: bytes) -> Fresh | Stale | Again:
        """What a datagram brings. Raises NotAuthentic, NotFresh."""
        if raw[:1] == _NEWS:
            return self._open_news(raw)
        if raw[:1] != _SEALED or len(raw) < SEAL_BYTES:
            raise self._forged("a datagram that is not sealed")
        said, code = raw[:-MAC_BYTES], raw[-MAC_BYTES:]
        key = self._key_of(code, _OF_DATAGRAM, said)
        to, sender = raw[1 : 1 + SESSION_BYTES], raw[1 + SESSION_BYTES : 1 + 2 * SESSION_BYTES]
        if self._is_ours(to, sender) and self._is_new(sender, raw[_HEAD_BYTES - COUNT_BYTES : _HEAD_BYTES]):
            return Fresh(said[_HEAD_BYTES:], sender)
        news = b"".join((_NEWS, self._news_for(sender), code))
        return Stale(news + mac(key, _OF_NEWS, news))

    def _open_news(self, raw: bytes) -> Again:
        if len(raw) != _NEWS_BYTES:
            raise self._forged("a datagram that is not sealed")
        said, code = raw[:-MAC_BYTES], raw[-MAC_BYTES:]
        self._key_of(code, _OF_NEWS, said)
        sent = self._sent.pop(said[-MAC_BYTES:], None)
        if sent is None:
            raise NotFresh("an answer to no datagram that was sent of late")
        to, named, body = sent
        is_set_back = self._take_news(to, said[1:-MAC_BYTES])
        if named == self._known[to] and not is_set_back:
            raise NotFresh("an answer to a datagram that somebody sent twice")
        return Again(self.seal(to, body), to)

    # --- requests ---

    def prove(self, to: str, method: str, target: str, body_hash: bytes) -> Proof:
        """The proof of a request to the peer at an address."""
        said = b"".join((*self._ends(to), body_hash))
        key = self._keyring.keys[0]
        code = mac(key, _OF_REQUEST, said, _request(method, target))
        return Proof(key, code, _as_text(said + code), body_hash)

    def check(self, field: str | None, method: str, target: str) -> Proof:
        """The proof that came with a request, whose body has yet to be compared. Raises NotAuthentic, StaleRequest."""
        raw = _as_bytes(field or "")
        if len(raw) != _PROOF_BYTES:
            raise self._forged("no proof that the request comes from a peer of this cluster")
        said, code = raw[:-MAC_BYTES], raw[-MAC_BYTES:]
        key = self._key_of(code, _OF_REQUEST, said, _request(method, target))
        proof = Proof(key, code, field or "", said[-HASH_BYTES:])
        to, sender = said[:SESSION_BYTES], said[SESSION_BYTES : 2 * SESSION_BYTES]
        count = said[2 * SESSION_BYTES : 2 * SESSION_BYTES + COUNT_BYTES]
        if not (self._is_ours(to, sender) and self._is_new(sender, count)):
            raise StaleRequest(proof.of_news(self._news_for(sender)))
        return proof

    def learn(self, to: str, proof: Proof, field: str | None) -> bool:
        """Take in what was answered to a request that was stale: whether it tells the receiver's session."""
        news = _as_bytes(field or "")[:-MAC_BYTES]
        if len(news) != SESSION_BYTES + COUNT_BYTES or not is_same_text(field or "", proof.of_news(news)):
            return False
        self._take_news(to, news)
        return True

    # --- both ---

    def _key_of(self, code: bytes, *said: bytes) -> bytes:
        """The key that gives this code. Raises NotAuthentic."""
        for key in self._keyring.keys:
            if is_same(code, mac(key, *said)):
                return key
        raise self._forged("a message of somebody who does not have this cluster's key")

    def _is_ours(self, to: bytes, sender: bytes) -> bool:
        """Whether something is for this session of ours, in which there is a window for the sender's."""
        if not is_same(to, self._session):
            return False
        if sender not in self._windows:
            if len(self._windows) >= SENDERS_MAX:
                self._session = self._drawn()
                self._windows.clear()
                return False
            self._windows[sender] = Window()
        return True

    def _is_new(self, sender: bytes, count: bytes) -> bool:
        if self._windows[sender].admit(int.from_bytes(count, "big")):
            return True
        self.refused["repeated"] += 1
        return False

    def _news_for(self, sender: bytes) -> bytes:
        """Our session, and the highest count there was of a sender in it."""
        window = self._windows.get(sender)
        return self._session + (window.highest if window else 0).to_bytes(COUNT_BYTES, "big")

    def _take_news(self, to: str, news: bytes) -> bool:
        """Take in the session of the peer at an address; whether it has heard what this life does not remember."""
        self.note(to, news[:SESSION_BYTES])
        is_set_back = int.from_bytes(news[SESSION_BYTES:], "big") > self._count
        if is_set_back:
            # What is counted from here on was counted before.
            self._session = self._drawn()
            self._windows.clear()
        return is_set_back

    def _forged(self, what: str) -> NotAuthentic:
        self.refused["forged"] += 1
        return NotAuthentic(what)


def hash_of(body: bytes) -> bytes:
    """The hash that stands for a body."""
    return blake3(body).digest()


def _request(method: str, target: str) -> bytes:
    return f"{method} {target}".encode("ascii", "replace")


def _status(status: int) -> bytes:
    return status.to_bytes(2, "big")


def _as_text(raw: bytes) -> str:
    return b64encode(raw).decode("ascii")


def _as_bytes(field: str) -> bytes:
    try:
        return b64decode(field.encode("ascii"), validate=True)
    except ValueError:
        return b""
