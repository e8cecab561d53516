"""Nothing is believed that somebody without the key says, and nothing that a peer said to another one or before."""

from __future__ import annotations

import copy
from base64 import b64decode, b64encode
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from protocol import sessions
from protocol.errors import NotAuthentic, NotFresh
from protocol.keyring import OPEN, Keyring
from protocol.sessions import (
    SEAL_BYTES,
    SENT_MAX,
    WINDOW,
    Again,
    Fresh,
    Proof,
    Sessions,
    Stale,
    StaleRequest,
    Window,
    hash_of,
)

RING = Keyring((b"k" * 32,))
OTHER_RING = Keyring((b"x" * 32,))
BODIES = st.binary(max_size=60)


def peer(number: int, ring: Keyring = RING) -> Sessions:
    """A life of a peer."""
    return Sessions(ring, Random(number))


def met(ring: Keyring = RING) -> tuple[Sessions, Sessions]:
    """Two peers, of which the first knows the second, at `b`."""
    one, other = peer(1, ring), peer(2, ring)
    deliver(one.seal("b", b"hello"), one, other)
    return one, other


def deliver(datagram: bytes, sender: Sessions, receiver: Sessions) -> list[bytes]:
    """What a datagram comes to, with what is said back and forth because of it: the bodies that are believed."""
    opened = receiver.open(datagram)
    if isinstance(opened, Fresh):
        return [opened.body]
    assert isinstance(opened, Stale)
    again = sender.open(opened.answer)
    assert isinstance(again, Again)
    return deliver(again.datagram, sender, receiver)


# --- the window ---


@given(st.lists(st.integers(0, 60) | st.integers(WINDOW - 9, WINDOW + 9) | st.integers(0, 5 * WINDOW)))
def test_a_count_is_admitted_once_and_unless_it_is_too_old_at_all(counts: list[int]) -> None:
    window, admitted, highest = Window(), set[int](), -1
    for count in counts:
        expected = count not in admitted and count > highest - WINDOW
        assert window.admit(count) == expected, count
        admitted |= {count} if expected else set()
        highest = max(highest, count)


# --- datagrams ---


@given(BODIES)
def test_what_a_peer_says_to_a_stranger_is_believed_at_the_second_attempt_and_then_at_once(body: bytes) -> None:
    one, other = peer(1), peer(2)
    assert not one.knows("b")
    assert isinstance(other.open(one.seal("b", body)), Stale)
    assert deliver(one.seal("b", body), one, other) == [body]
    assert one.knows("b")
    opened = other.open(one.seal("b", body))
    assert isinstance(opened, Fresh)
    assert opened.body == body
    other.note("a", opened.session)
    assert isinstance(one.open(other.seal("a", body)), Fresh)


@given(BODIES, st.data())
def test_a_datagram_of_which_a_bit_is_another_is_of_nobody(body: bytes, data: st.DataObject) -> None:
    one, other = met()
    for raw in (one.seal("b", body), one.seal("c", body), _answer(other.open(peer(3).seal("b", body)))):
        at = data.draw(st.integers(0, len(raw) * 8 - 1))
        changed = bytearray(raw)
        changed[at // 8] ^= 1 << at % 8
        for receiver in (one, other):
            with pytest.raises(NotAuthentic):
                receiver.open(bytes(changed))
    assert other.refused["forged"]


def _answer(opened: object) -> bytes:
    assert isinstance(opened, Stale)
    return opened.answer


@given(BODIES, st.data())
def test_a_piece_of_a_datagram_or_more_than_one_is_of_nobody(body: bytes, data: st.DataObject) -> None:
    one, other = met()
    for raw in (one.seal("b", body), _answer(other.open(peer(3).seal("b", body)))):
        for changed in (raw[: data.draw(st.integers(0, len(raw) - 1))], raw + data.draw(st.binary(min_size=1))):
            with pytest.raises(NotAuthentic):
                other.open(changed)


@given(BODIES)
def test_who_has_another_key_is_neither_believed_nor_answered(body: bytes) -> None:
    one, _ = met()
    for ring in (OTHER_RING, OPEN):
        stranger = peer(3, ring)
        stranger.note("a", one._session)
        for raw in (stranger.seal("a", body), stranger.seal("b", body)):
            with pytest.raises(NotAuthentic):
                one.open(raw)


@given(BODIES, st.integers(0, 5))
def test_a_datagram_is_believed_once_by_the_one_life_it_is_for(body: bytes, between: int) -> None:
    one, other = met()
    raw = one.seal("b", body)
    assert isinstance(other.open(raw), Fresh)
    for _ in range(between):
        assert isinstance(other.open(one.seal("b", b"")), Fresh)
    with pytest.raises(NotFresh):
        one.open(_answer(other.open(raw)))
    later, third = peer(4), peer(5)
    for elsewhere in (later, third, one):
        assert isinstance(elsewhere.open(raw), Stale)


def test_what_is_said_to_a_peer_that_started_again_is_said_again_to_its_new_life() -> None:
    one, _ = met()
    later = peer(4)
    assert deliver(one.seal("b", b"news"), one, later) == [b"news"]
    assert isinstance(later.open(one.seal("b", b"more")), Fresh)


def test_somebody_elses_word_on_a_session_is_heard_once_and_about_what_was_sent_of_late_alone() -> None:
    one, other = peer(1), peer(2)
    first = _answer(other.open(one.seal("b", b"first")))
    assert isinstance(one.open(first), Again)
    with pytest.raises(NotFresh):
        one.open(first)
    old = _answer(peer(3).open(one.seal("c", b"old")))
    for number in range(SENT_MAX):
        one.seal("b", b"%d" % number)
    with pytest.raises(NotFresh):
        one.open(old)
    assert not one.knows("c")


@given(st.integers(2, 2 * WINDOW), st.integers(0, 3 * WINDOW), st.booleans())
@settings(max_examples=20)
def test_who_was_set_back_in_time_is_soon_believed_again(heard: int, lost: int, over_http: bool) -> None:
    one, other = met()
    image = copy.deepcopy(one)
    image._chance = Random(99)
    one._count += lost
    for _ in range(min(heard, 50)):
        one._count += heard // 50
        assert isinstance(other.open(one.seal("b", b"before")), Fresh)
    if over_http:
        assert settled(image.prove("b", "GET", "/", hash_of(b"")), "GET", "/", image, other)
    believed = list[bytes]()
    for number in range(5):
        with suppress(NotFresh):
            believed += deliver(image.seal("b", b"%d" % number), image, other)
    # One may be taken for a copy of the very last that was heard before.
    assert len(believed) >= 4
    assert believed[-1] == b"4"


def test_an_answer_is_no_longer_than_what_it_answers() -> None:
    raw = peer(1).seal("b", b"x")
    assert len(raw) == SEAL_BYTES + 1
    assert len(_answer(peer(2).open(raw))) <= len(raw) + 7


def test_more_senders_than_are_remembered_begin_a_new_session_that_forgets_nothing_it_must_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "SENDERS_MAX", 3)
    other, senders, recorded = peer(100), [peer(number) for number in range(5)], list[bytes]()
    for turn in range(4):
        for sender in senders:
            raw = sender.seal("b", b"%d" % turn)
            assert deliver(raw, sender, other) == [b"%d" % turn]
            recorded.append(sender.seal("b", b"recorded"))
            assert deliver(recorded[-1], sender, other) == [b"recorded"]
            assert len(other._windows) <= 3
    for raw in recorded:
        assert isinstance(other.open(raw), Stale)


def test_addresses_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "ADDRESSES_MAX", 3)
    one = peer(1)
    for number in range(5):
        one.note(f"{number}", b"%08d" % number)
    assert [one.knows(f"{number}") for number in range(5)] == [False, False, True, True, True]


# --- requests ---


def settled(proof: Proof, method: str, target: str, sender: Sessions, receiver: Sessions) -> Proof:
    """A proof that is believed, at the second attempt if need be."""
    try:
        return receiver.check(proof.field, method, target)
    except StaleRequest as error:
        sender.learn("b", proof, error.field)
    return receiver.check(sender.prove("b", method, target, proof.body_hash).field, method, target)


@given(BODIES, st.sampled_from(["GET", "POST"]), st.text(st.characters(codec="ascii"), min_size=1))
def test_a_request_is_believed_once_and_both_ends_have_the_same_proof(body: bytes, method: str, target: str) -> None:
    one, other = met()
    proof = one.prove("b", method, target, hash_of(body))
    assert other.check(proof.field, method, target) == proof
    assert proof.body_hash == hash_of(body)
    with pytest.raises(StaleRequest) as again:
        other.check(proof.field, method, target)
    assert one.learn("b", proof, again.value.field)
    with pytest.raises(StaleRequest):
        peer(4).check(proof.field, method, target)


@given(st.data())
def test_a_proof_is_of_one_request_of_one_method_target_and_body(data: st.DataObject) -> None:
    one, other = met()
    proof = one.prove("b", "POST", "/peer/x", hash_of(b"body"))
    raw = bytearray(b64decode(proof.field))
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    junk = data.draw(st.none() | st.text() | st.binary().map(lambda noise: b64encode(noise).decode()))
    for field, method, target in [
        (b64encode(raw).decode(), "POST", "/peer/x"), (proof.field, "PUT", "/peer/x"), (proof.field, "POST", "/peer/y"),
        (proof.field, "POST", "/peer/x?"), (proof.field + "A", "POST", "/peer/x"), (junk, "POST", "/peer/x"),
    ]:  # fmt: skip
        with pytest.raises(NotAuthentic):
            other.check(field, method, target)
    assert other.check(proof.field, "POST", "/peer/x") == proof


@given(st.none() | st.text() | st.binary().map(lambda noise: b64encode(noise).decode()))
def test_only_who_was_asked_tells_his_session(field: str | None) -> None:
    one, other = peer(1), peer(2)
    proof, another = one.prove("b", "GET", "/", hash_of(b"")), one.prove("b", "GET", "/", hash_of(b""))
    assert not one.learn("b", proof, field)
    with pytest.raises(StaleRequest) as told:
        other.check(another.field, "GET", "/")
    assert not one.learn("b", proof, told.value.field)
    assert not one.learn("b", another, another.of_news(b"short"))
    assert not one.knows("b")
    assert one.learn("b", another, told.value.field)


@given(st.integers(100, 599), st.integers(100, 599), BODIES, BODIES, st.integers(0, 9), st.integers(0, 9))
def test_what_proves_an_answer_is_of_that_answer_alone(
    status: int, another: int, body: bytes, other_body: bytes, number: int, other_number: int
) -> None:
    one, _ = met()
    proof, later = (one.prove("b", "GET", "/", hash_of(b"")) for _ in range(2))
    assert (proof.of_answer(status, body) == proof.of_answer(another, other_body)) == (
        (status, body) == (another, other_body)
    )
    assert (proof.of_frame(number, body) == proof.of_frame(other_number, other_body)) == (
        (number, body) == (other_number, other_body)
    )
    assert (proof.of_head(status) == proof.of_head(another)) == (status == another)
    assert len({proof.of_answer(status, b""), later.of_answer(status, b""), proof.of_head(status)}) == 3
    assert proof.of_frame(number, body) != later.of_frame(number, body)


# --- two keys ---

OLD, NEW = b"o" * 32, b"n" * 32
STEPS = [Keyring((OLD,)), Keyring((OLD, NEW)), Keyring((NEW, OLD)), Keyring((NEW,))]


@pytest.mark.parametrize("step", range(len(STEPS) - 1))
@pytest.mark.parametrize("forward", [True, False])
def test_while_a_key_takes_the_place_of_another_peers_before_and_behind_understand_each_other(
    step: int, forward: bool
) -> None:
    rings = STEPS[step : step + 2] if forward else STEPS[step : step + 2][::-1]
    one, other = peer(1, rings[0]), peer(2, rings[1])
    assert deliver(one.seal("b", b"news"), one, other) == [b"news"]
    proof = settled(one.prove("b", "GET", "/", hash_of(b"")), "GET", "/", one, other)
    assert proof.key == rings[0].keys[0]
    fresh = peer(3, rings[0])
    assert settled(fresh.prove("b", "GET", "/", hash_of(b"")), "GET", "/", fresh, other)


def test_a_key_that_was_taken_out_lets_nobody_in() -> None:
    one, other = peer(1, STEPS[0]), peer(2, STEPS[-1])
    with pytest.raises(NotAuthentic):
        other.open(one.seal("b", b"news"))
    with pytest.raises(NotAuthentic):
        other.check(one.prove("b", "GET", "/", hash_of(b"")).field, "GET", "/")


# --- all of it, with somebody in the middle ---


class Replays(RuleBasedStateMachine):
    """Peers that start again, and a network that keeps everything and delivers it when and where it likes."""

    PEERS = ("a", "b", "c")
    recorded = Bundle("recorded")

    @initialize()
    def start(self) -> None:
        self.lives = 0
        self.peers: dict[str, Sessions] = {}
        self.believed: dict[tuple[str, int], list[bytes]] = {}
        self.life_of: dict[str, int] = {}
        self.said = 0
        self.told: dict[bytes, str] = {}
        """To whom a body was said."""
        for name in self.PEERS:
            self._start(name)

    def _start(self, name: str) -> None:
        self.lives += 1
        self.peers[name] = peer(self.lives)
        self.life_of[name] = self.lives
        self.believed[name, self.lives] = []

    @rule(name=st.sampled_from(PEERS))
    def restart(self, name: str) -> None:
        self._start(name)

    @rule(target=recorded, sender=st.sampled_from(PEERS), receiver=st.sampled_from(PEERS))
    def say(self, sender: str, receiver: str) -> bytes:
        self.said += 1
        body = b"%d" % self.said
        self.told[body] = receiver
        return self.peers[sender].seal(receiver, body)

    @rule(target=recorded, raw=recorded, receiver=st.sampled_from(PEERS))
    def deliver(self, raw: bytes, receiver: str) -> bytes:
        try:
            opened = self.peers[receiver].open(raw)
        except NotFresh:
            return raw
        if isinstance(opened, Stale):
            return opened.answer
        if isinstance(opened, Again):
            return opened.datagram
        self.believed[receiver, self.life_of[receiver]].append(opened.body)
        return raw

    @invariant()
    def nothing_is_believed_twice_in_a_life_or_by_somebody_else(self) -> None:
        for (name, _), bodies in getattr(self, "believed", {}).items():
            assert len(bodies) == len(set(bodies))
            assert {self.told[body] for body in bodies} <= {name}


TestReplays = Replays.TestCase
TestReplays.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
