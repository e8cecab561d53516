"""Who is a member and who answers: probes, suspicion, refutation, rumors, and records that contradict each other."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.datagrams import (
    DATAGRAM_BYTES_MAX,
    Accusation,
    Ack,
    Datagram,
    Gossip,
    IndirectAck,
    Nack,
    Ping,
    PingRequest,
    decode_datagram,
    encode_datagram,
)
from protocol.identity import Eviction, Life, Member, NodeId, Status
from protocol.member_events import (
    Doubled,
    Doubted,
    Drain,
    Effect,
    Event,
    Evict,
    Evicted,
    Learned,
    MemberChanged,
    MemberLeft,
    Met,
    Received,
    Rejoin,
    Send,
    SetTimer,
    StatusChanged,
    Tick,
)
from protocol.member_list import MemberList
from protocol.membership import DEAF_TIMES, HELD_UP_S, HELPERS, KNOCKS_MAX, LATE_S, Membership, Timing
from protocol.messages import INCARNATION_MAX, View
from protocol.rumors import RETRANSMIT, Rumors
from protocol.suspicion import CONFIRMATIONS, LONGEST, SCORE_MAX, Suspicion

A, B, C, D, E = (Member(NodeId(name), f"{name}:1", 1) for name in "abcde")
ROUND_S, SUSPICION_S = 0.5, 2.5
LIFE = Life(1000, 1)
NAMES = st.sampled_from(["a", "b", "c", "d"]).map(NodeId)
RECORDS = st.builds(Member, NAMES, st.sampled_from(["x:1", "y:2", ""]), st.integers(0, 6), st.sampled_from(["", "z"]))
EVICTIONS = st.builds(Eviction, NAMES, st.integers(0, 2))
ABSURD = st.builds(Member, NAMES, st.text(max_size=20), st.integers(0, INCARNATION_MAX), st.text(max_size=5))
STATUSES = st.sampled_from([Status.SUSPECT, Status.DOWN, Status.OUT])
ACCUSATIONS = st.builds(Accusation, NAMES, st.integers(0, 6), STATUSES, NAMES)
ABSURD_ACCUSATIONS = st.builds(Accusation, NAMES, st.integers(0, INCARNATION_MAX), STATUSES, NAMES)
ABSURD_EVICTIONS = st.builds(Eviction, NAMES, st.integers(0, INCARNATION_MAX))
RUMORS = st.lists(st.one_of(ABSURD, ABSURD_ACCUSATIONS, ABSURD_EVICTIONS), max_size=3).map(tuple)
NUMBERS = st.integers(0, 9)
DATAGRAMS: st.SearchStrategy[Datagram] = st.one_of(
    st.builds(Ping, NUMBERS, ABSURD, st.none(), RUMORS),
    st.builds(Ack, NUMBERS, ABSURD, st.none(), RUMORS),
    st.builds(PingRequest, NUMBERS, ABSURD, NAMES, RUMORS),
    st.builds(IndirectAck, NUMBERS, ABSURD, RUMORS),
    st.builds(Nack, NUMBERS, ABSURD, RUMORS),
    st.builds(Gossip, ABSURD, RUMORS),
)
VIEWS = st.lists(st.tuples(ABSURD, st.sampled_from([None, *Status])), max_size=5).map(
    lambda rows: View(b"", tuple(member for member, _ in rows), tuple(status for _, status in rows))
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Tick),
    st.builds(Received, DATAGRAMS),
    st.builds(Learned, VIEWS, st.one_of(st.none(), NAMES)),
    st.builds(Doubted, NAMES),
    st.builds(Evict, NAMES),
    st.builds(Rejoin),
    st.builds(Drain, st.booleans()),
)


def membership_of(*members: Member, me: Member = A, chance: int = 1) -> Membership:
    return Membership(MemberList(me), members, Timing(ROUND_S, SUSPICION_S), LIFE, Random(chance))


def sent(effects: list[Effect], kind: type[Datagram]) -> dict[str, Datagram]:
    """By address, the datagrams of a kind."""
    return {
        effect.to: effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)
    }


def pings(effects: list[Effect]) -> dict[str, Ping]:
    return {to: message for to, message in sent(effects, Ping).items() if isinstance(message, Ping)}


def answer(membership: Membership, effects: list[Effect], member: Member, now: float) -> list[Effect]:
    """The peer answers the ping it was just sent."""
    return membership.handle(Received(Ack(pings(effects)[member.address].number, member)), now)


class Told:
    """A membership with its timer, and peers that answer its pings and refute what they are told of themselves.

    Those that are `silent` do not; those that are `stubborn` answer only.
    """

    def __init__(self, *members: Member, silent: tuple[Member, ...] = (), now: float = 0.0) -> None:
        self.membership = membership_of(*members)
        self.members = {member.address: member for member in members}
        self.silent = {member.address for member in silent}
        self.stubborn: set[str] = set()
        self.now = now
        self.wake_at = now
        self.effects: list[Effect] = []

    def hear(self, event: Event) -> list[Effect]:
        effects = self.membership.handle(event, self.now)
        self.effects += effects
        for effect in effects:
            if isinstance(effect, SetTimer):
                self.wake_at = self.now + effect.after_s
        for address, ping in pings(effects).items():
            if address in self.members and address not in self.silent:
                self._refute(address, ping)
                self.hear(Received(Ack(ping.number, self.members[address])))
        return effects

    def _refute(self, address: str, ping: Ping) -> None:
        member = self.members[address]
        for rumor in ping.rumors:
            if isinstance(rumor, Accusation) and rumor.node_id == member.node_id and address not in self.stubborn:
                self.members[address] = replace(member, incarnation=rumor.incarnation + 1)

    def run(self, for_s: float) -> list[Effect]:
        """Let time go by; what came of it."""
        end, before = self.now + for_s, len(self.effects)
        while self.wake_at <= end:
            self.now = max(self.now, self.wake_at)
            self.hear(Tick())
        self.now = end
        return self.effects[before:]

    def status(self, member: Member) -> Status:
        return self.membership.known.status(member.node_id)

    def met(self) -> Told:
        """All have answered."""
        self.silent, silent = set(), self.silent
        self.run(2.0)
        self.silent = silent
        return self


# --- probing ---


@given(st.integers(1, 12), st.integers(0, 99))
def test_each_peer_is_probed_once_in_as_many_rounds_as_there_are_peers_twice_over(others: int, chance: int) -> None:
    members = [Member(NodeId(f"n{number}"), f"n{number}:1", 1) for number in range(others)]
    told = Told(*members).met()
    told.membership._order._chance.seed(chance)
    told.effects.clear()
    told.run(ROUND_S * (2 * others - 1) + 0.01)
    assert set(pings(told.effects)) == {member.address for member in members}
    assert len([effect for effect in told.effects if isinstance(effect, Send)]) <= 2 * others


def test_a_ping_from_a_peer_taken_for_down_is_answered_with_a_probe_so_that_the_two_meet_at_once() -> None:
    membership = membership_of(B)
    effects = membership.handle(Received(Ping(7, B)), 0.0)
    assert sent(effects, Ack) == {"b:1": Ack(7, A, LIFE)}
    assert pings(effects) == {"b:1": Ping(1, A, LIFE)}
    assert Met(B.node_id) in answer(membership, effects, B, 0.001)
    assert membership.handle(Received(Ping(8, B)), 0.002) == [Send("b:1", Ack(8, A, LIFE))]


def test_a_ping_is_answered_with_its_number_to_the_address_the_sender_names() -> None:
    membership = membership_of(B)
    assert membership.handle(Received(Ping(7, B)), 0.0)[0] == Send("b:1", Ack(7, A, LIFE))
    stranger = Member(NodeId("d"), "d:1", 4)
    (ack,) = sent(membership.handle(Received(Ping(1, stranger)), 0.0), Ack).items()
    assert ack == ("d:1", Ack(1, A, LIFE, (stranger,)))
    assert membership.known.member(stranger.node_id) == stranger


def test_a_ping_alone_does_not_make_its_sender_reachable() -> None:
    """It may hear nothing of what we send."""
    membership = membership_of(B)
    for now in range(10):
        membership.handle(Received(Ping(now, B)), float(now))
        membership.handle(Tick(), float(now))
    assert membership.known.status(B.node_id) is Status.DOWN


def test_who_does_not_answer_is_probed_by_way_of_others_and_one_that_answers_them_is_not_accused() -> None:
    told = Told(B, C, D, E, silent=(B,)).met()
    for _ in range(40):
        requests = sent(told.run(0.1), PingRequest)
        for address, request in requests.items():
            assert isinstance(request, PingRequest)
            assert request.target == B.node_id
            told.hear(Received(IndirectAck(request.number, told.members[address])))
        if requests:
            break
    assert set(requests) == {"c:1", "d:1", "e:1"}
    told.run(ROUND_S)
    assert told.status(B) is Status.ALIVE
    assert told.membership.known.peers[B.node_id].standing is None
    assert told.membership.health.score == 0


def test_a_helper_probes_for_another_peer_and_tells_it_either_way() -> None:
    told = Told(B, C, D, silent=(D,)).met()
    assert "c:1" in pings(told.hear(Received(PingRequest(70, B, C.node_id))))
    assert sent(told.effects, IndirectAck) == {"b:1": IndirectAck(70, A)}
    told.hear(Received(PingRequest(71, B, D.node_id)))
    assert Nack(71, A) in [replace(nack, rumors=()) for nack in sent(told.run(ROUND_S), Nack).values()]  # type: ignore[call-arg]
    assert not sent(told.hear(Received(PingRequest(72, B, NodeId("stranger")))), Ping), "nobody else is made to send"


@given(st.lists(st.floats(0.001, 0.2), min_size=1, max_size=20))
def test_the_latency_lies_between_the_round_trips_seen(round_trips_s: list[float]) -> None:
    membership = membership_of(B)
    now = 0.0
    for round_trip_s in round_trips_s:
        now += ROUND_S
        answer(membership, membership.handle(Tick(), now), B, now + round_trip_s)
    latency_s = membership.known.latency_s(B.node_id)
    assert latency_s is not None
    assert min(round_trips_s) - 1e-9 <= latency_s <= max(round_trips_s) + 1e-9


def test_a_late_ack_shows_that_a_peer_is_there_and_says_nothing_of_the_latency() -> None:
    membership = membership_of(B)
    membership.handle(Received(Ack(99, B)), 1.1)
    assert membership.known.status(B.node_id) is Status.ALIVE
    assert membership.known.latency_s(B.node_id) is None


def test_a_peer_that_is_doubted_is_probed_at_once_and_soon_known_not_to_answer() -> None:
    members = [Member(NodeId(f"n{number}"), f"n{number}:1", 1) for number in range(50)]
    told = Told(*members).met()
    told.run(20.0)
    told.silent = {"n7:1"}
    assert told.membership.known.answers(NodeId("n7"))
    assert "n7:1" in pings(told.hear(Doubted(NodeId("n7"))))
    told.run(ROUND_S)
    assert not told.membership.known.answers(NodeId("n7"))


# --- out, and leaving ---

OUT_S = 100.0


def told_of(*members: Member, silent: tuple[Member, ...], nacks: bool = True) -> Told:
    """Peers of which some fall silent; the others say so when they are asked, or say nothing of them."""
    told = Told(*members).met()
    told.membership._timing = replace(told.membership._timing, out_s=OUT_S)
    told.silent = {member.address for member in silent}
    hear = told.hear

    def hear_and_help(event: Event) -> list[Effect]:
        effects = hear(event)
        for address, request in sent(effects, PingRequest).items():
            if address not in told.silent and nacks and isinstance(request, PingRequest):
                hear(Received(Nack(request.number, told.members[address])))
        return effects

    told.hear = hear_and_help  # type: ignore[method-assign]
    return told


def is_out(told: Told, member: Member) -> bool:
    return told.membership.known.is_out(member.node_id)


def test_who_was_down_for_long_and_answers_no_helper_either_is_out_until_it_refutes_that() -> None:
    told = told_of(B, C, D, E, silent=(B,))
    told.run(OUT_S - 5)
    assert told.status(B) is Status.DOWN
    assert not is_out(told, B)
    effects = told.run(60)
    assert is_out(told, B)
    assert told.status(B) is Status.DOWN
    assert MemberChanged(B) in effects
    assert told.membership.known.placed() == (A, C, D, E)
    assert told.membership.known.members() == (A, B, C, D, E)
    said = [rumor for send in effects if isinstance(send, Send) for rumor in send.message.rumors]
    assert Accusation(B.node_id, 1, Status.OUT, A.node_id) in said
    told.silent, told.stubborn = set(), set()
    effects = told.run(20)
    assert told.status(B) is Status.ALIVE
    assert not is_out(told, B)
    assert MemberChanged(told.members["b:1"]) in effects
    assert B.node_id in {member.node_id for member in told.membership.known.placed()}


def test_nobody_is_out_on_the_word_of_one() -> None:
    told = told_of(B, C, D, E, silent=(B,), nacks=False)
    told.run(3 * OUT_S)
    assert told.status(B) is Status.DOWN
    assert not is_out(told, B)


@pytest.mark.parametrize(
    ("others", "silent", "out"),
    [((B,), (B,), False), ((B, C), (B,), True), ((B, C), (B, C), False), ((B, C, D, E), (B, C), False)],
)
def test_nobody_is_out_while_more_than_a_third_looks_down(
    others: tuple[Member, ...], silent: tuple[Member, ...], out: bool
) -> None:
    told = told_of(*others, silent=silent)
    told.run(3 * OUT_S)
    assert [is_out(told, member) for member in silent] == [out] * len(silent)


def test_what_others_say_of_who_is_out_counts_from_rumors_and_lists_alike() -> None:
    for said in (
        Received(Gossip(C, (Accusation(B.node_id, 1, Status.OUT, C.node_id),))),
        Learned(View(b"", (B,), (Status.OUT,)), C.node_id),
    ):
        told = Told(B, C).met()
        effects = told.hear(said)
        assert is_out(told, B)
        assert told.status(B) is Status.DOWN
        assert MemberChanged(B) in effects
        # Nothing graver is there to be said, and nothing lighter changes it.
        assert not told.hear(Received(Gossip(C, (Accusation(B.node_id, 1, Status.DOWN, C.node_id),))))
        told.hear(Received(Ack(99, B)))
        assert told.status(B) is Status.DOWN, "its answer is of the life in which it was given up"


def test_who_was_out_when_this_peer_stopped_is_out_when_it_starts() -> None:
    known = MemberList(A)
    Membership(known, (B, C), Timing(), LIFE, Random(1), {B.node_id})
    assert known.placed() == (A, C)


def test_who_leaves_says_so_by_its_record_and_files_are_placed_on_others_unless_there_are_none() -> None:
    told = Told(B).met()
    effects = told.hear(Drain(leaves=True))
    leaving = replace(A, incarnation=2, is_draining=True)
    assert told.membership.me == leaving
    assert MemberChanged(leaving) in effects
    assert told.membership.known.placed() == (B,)
    assert not told.hear(Drain(leaves=True)), "that is no news"
    assert MemberChanged(replace(B, incarnation=2, is_draining=True)) in told.hear(
        Received(Gossip(B, (replace(B, incarnation=2, is_draining=True),)))
    )
    assert len(told.membership.known.placed()) == 2
    told.hear(Drain(leaves=False))
    assert told.membership.known.placed() == (replace(A, incarnation=3),)


def test_who_was_removed_hears_of_it_at_its_start_and_stays_when_it_joins_again() -> None:
    known = MemberList(replace(A, is_draining=True), [Eviction(A.node_id, 0)])
    membership = Membership(known, (B,), Timing(), LIFE, Random(1))
    assert Evicted() in membership.handle(Tick(), 0.0)
    membership.handle(Rejoin(), 0.0)
    assert membership.me == replace(A, incarnation=2, joined=1)


# --- suspicion ---


def test_a_peer_that_falls_silent_is_suspect_then_down_and_met_again_when_it_answers() -> None:
    told = Told(B).met()
    assert told.status(B) is Status.ALIVE
    told.silent = {"b:1"}
    seen: dict[Status, float] = {}
    for tenth in range(60):
        told.run(0.1)
        seen.setdefault(told.status(B), tenth / 10)
    assert list(seen) == [Status.ALIVE, Status.SUSPECT, Status.DOWN]
    assert SUSPICION_S <= seen[Status.DOWN] - seen[Status.SUSPECT] <= SUSPICION_S + 0.2
    assert told.membership.known.reachable() == []
    told.run(60.0)
    told.silent = set()
    effects = told.run(10.0)
    assert Met(B.node_id) in effects
    assert told.status(B) is Status.ALIVE


def test_one_that_answers_in_the_life_it_was_accused_in_is_told_so_and_believed_when_it_refutes() -> None:
    told = Told(B, C).met()
    told.stubborn = {"b:1"}
    accusation = Accusation(B.node_id, 1, Status.DOWN, C.node_id)
    told.hear(Received(Gossip(C, (accusation,))))
    assert told.status(B) is Status.DOWN
    # Until it has been told as often as a rumor is.
    told.run(10.0)
    (ack,) = [message for to, message in sent(told.hear(Received(Ping(5, B))), Ack).items() if to == "b:1"]
    assert accusation in ack.rumors
    told.run(5.0)
    assert told.status(B) is Status.DOWN, "its answers are of the life it was accused in"
    told.members["b:1"] = refuted = replace(B, incarnation=2)
    effects = told.hear(Received(Ping(6, refuted))) + told.run(1.0)
    assert told.status(B) is Status.ALIVE
    assert Met(B.node_id) in effects


@pytest.mark.parametrize("status", [Status.SUSPECT, Status.DOWN])
def test_who_is_accused_refutes_with_a_higher_incarnation_which_is_kept(status: Status) -> None:
    told = Told(B).met()
    for incarnation in (1, 4):
        effects = told.hear(Received(Gossip(B, (Accusation(A.node_id, incarnation, status, B.node_id),))))
        assert told.membership.me == replace(A, incarnation=incarnation + 1)
        assert MemberChanged(told.membership.me) in effects
    (gossip, *_) = sent(told.run(0.3), Gossip).values()
    assert told.membership.me in gossip.rumors
    before = told.membership.me
    told.hear(Received(Gossip(B, (Accusation(A.node_id, 3, status, B.node_id),))))
    assert told.membership.me == before, "what is refuted already needs no answer"


def test_what_stands_on_another_peers_list_as_down_is_suspect_here_at_most() -> None:
    told = Told(B, C).met()
    told.hear(Learned(View(b"", (B,), (Status.DOWN,)), C.node_id))
    assert told.status(B) is Status.SUSPECT
    told.hear(Learned(View(b"", (replace(B, incarnation=2),), (Status.ALIVE,)), C.node_id))
    assert told.status(B) is Status.ALIVE


@given(st.integers(0, 9), st.lists(st.sampled_from("bcdefgh").map(NodeId), max_size=9))
def test_a_suspect_has_less_time_with_each_accuser_and_never_less_than_the_shortest(
    others: int, accusers: list[NodeId]
) -> None:
    suspicion = Suspicion(A.node_id, 10.0, SUSPICION_S, others)
    ends = [suspicion.ends_at]
    for accuser in accusers:
        was_news = suspicion.accuse(accuser)
        assert was_news == (suspicion.ends_at < ends[-1])
        ends.append(suspicion.ends_at)
    assert ends == sorted(ends, reverse=True)
    assert ends[0] == 10 + SUSPICION_S * (LONGEST if others >= CONFIRMATIONS else 1)
    assert ends[-1] >= 10 + SUSPICION_S
    if len(set(accusers)) >= CONFIRMATIONS:
        assert ends[-1] == pytest.approx(10 + SUSPICION_S)


def test_accusers_of_their_own_shorten_a_suspicion_and_hearsay_does_not() -> None:
    told = Told(B, C, D, E, silent=(B,)).met()
    told.hear(Received(Gossip(C, (Accusation(B.node_id, 1, Status.SUSPECT, C.node_id),))))
    for _ in range(9):
        told.hear(Received(Gossip(D, (Accusation(B.node_id, 1, Status.SUSPECT, C.node_id),))))
    told.silent, told.stubborn = set(), {"b:1"}
    told.run(SUSPICION_S * 2)
    assert told.status(B) is Status.SUSPECT
    for accuser in (D, E):
        told.hear(Received(Gossip(D, (Accusation(B.node_id, 1, Status.SUSPECT, accuser.node_id),))))
    told.run(0.1)
    assert told.status(B) is Status.DOWN


def test_a_peer_that_others_reach_and_we_do_not_is_down_to_us_and_nobody_is_told() -> None:
    told = Told(B, C, D, silent=(B,)).met()
    end = told.now + DEAF_TIMES * SUSPICION_S + 4.0
    while told.now < end:
        for address, request in sent(told.run(0.05), PingRequest).items():
            assert isinstance(request, PingRequest)
            told.hear(Received(IndirectAck(request.number, told.members[address])))
    assert told.status(B) is Status.DOWN
    assert told.membership.known.peers[B.node_id].standing is None
    told.hear(Learned(View(b"", (B,), (Status.ALIVE,)), C.node_id))
    told.run(1.0)
    assert told.status(B) is Status.DOWN, "we still do not reach it"
    told.silent = set()
    assert Met(B.node_id) in told.run(2.0)
    assert told.status(B) is Status.ALIVE


# --- how well this peer is itself ---


def test_helpers_that_say_nothing_make_a_peer_doubt_itself_and_those_that_answer_do_not() -> None:
    for says_nack in (True, False):
        told = Told(B, C, D, E, silent=(B,)).met()
        assert told.membership.health.score == 0
        while told.status(B) is Status.ALIVE:
            for address, request in sent(told.run(0.05), PingRequest).items():
                assert isinstance(request, PingRequest)
                if says_nack:
                    told.hear(Received(Nack(request.number, told.members[address])))
        assert told.membership.health.score >= HELPERS - 1 or says_nack
        assert told.membership.health.score == 0 or not says_nack


def test_a_peer_that_doubts_itself_probes_less_often_until_it_is_answered_again() -> None:
    told = Told(B).met()
    told.membership.health.worse(SCORE_MAX + 5)
    assert told.membership.health.stretch == SCORE_MAX + 1
    told.run(ROUND_S)
    assert len(pings(told.run(ROUND_S * SCORE_MAX))) <= 1
    told.run(60.0)
    assert told.membership.health.score == 0


def test_a_peer_that_was_held_up_judges_nobody_before_it_has_heard_what_waited() -> None:
    told = Told(B, C).met()
    told.silent = {"b:1", "c:1"}
    told.run(1.2)
    # The machine sleeps: all timers are long due when it wakes.
    told.now += 100.0
    told.hear(Tick())
    told.run(HELD_UP_S / 2)
    assert Status.DOWN not in (told.status(B), told.status(C))
    told.silent = set()
    told.run(10.0)
    assert [told.status(B), told.status(C)] == [Status.ALIVE, Status.ALIVE]
    assert told.now > LATE_S


def test_a_peer_that_slept_for_hours_soon_judges_again() -> None:
    told = Told(B, C).met()
    told.now += 8 * 3600.0
    told.silent = {"b:1"}
    told.hear(Tick())
    told.run(90.0)
    assert [told.status(B), told.status(C)] == [Status.DOWN, Status.ALIVE]


def test_those_that_are_down_are_knocked_at_ever_more_rarely_and_never_too_many_at_once() -> None:
    members = tuple(Member(NodeId(f"n{number}"), f"n{number}:1", 1) for number in range(3 * KNOCKS_MAX))
    told = Told(*members, silent=members)
    for rounds in (1, 2, 3):
        told.run(0.01)
        assert len(pings(told.effects)) == rounds * KNOCKS_MAX
        told.run(ROUND_S - 0.01)
    told.hear(Received(Ack(0, members[0])))
    told.silent = {member.address for member in members[1:]}
    told.run(3600.0)
    sends = [effect for effect in told.run(600.0) if isinstance(effect, Send)]
    knocks = [send for send in sends if send.to == "n9:1" and isinstance(send.message, Ping)]
    assert 60 <= len(knocks) <= 121


# --- rumors ---


@given(st.lists(st.sampled_from("bcdefgh"), min_size=1, max_size=30), st.integers(1, 5000))
def test_each_rumor_is_told_a_bounded_number_of_times(names: list[str], peers: int) -> None:
    rumors = Rumors()
    for name in names:
        rumors.add(Member(NodeId(name), f"{name}:1", 1))
    told = 0
    while taken := rumors.take(100, peers):
        told += len(taken)
        assert told < 10_000
    assert told % len(set(names)) == 0
    assert told // len(set(names)) <= RETRANSMIT * len(str(peers))


@given(st.lists(DATAGRAMS, min_size=1, max_size=30))
def test_no_datagram_is_too_large_and_all_can_be_read(messages: list[Datagram]) -> None:
    long = Member(NodeId("n" * 64), "h" * 249 + ":65535", INCARNATION_MAX, "z" * 63)
    membership = membership_of(B, C, D, me=long)
    membership.handle(Tick(), 0.0)
    for number in range(40):
        wordy = Member(NodeId(f"{number:064}"), "x" * 255, 1 << 39, "z" * 63)
        membership.handle(Received(Gossip(B, (wordy,))), 0.0)
    now = 0.0
    for message in messages:
        now += 0.3
        for effect in [*membership.handle(Received(message), now), *membership.handle(Tick(), now)]:
            if isinstance(effect, Send):
                raw = encode_datagram("c" * 64, effect.message)
                assert len(raw) <= DATAGRAM_BYTES_MAX
                assert decode_datagram("c" * 64, raw) == effect.message


# --- records ---


@given(st.lists(st.one_of(RECORDS, ACCUSATIONS, EVICTIONS), max_size=20), st.randoms(use_true_random=False))
def test_peers_that_heard_the_same_in_any_order_know_the_same(
    heard: list[Member | Accusation | Eviction], rng: Random
) -> None:
    # A peer writes one record for each of its incarnations, of which those after it came back are the later ones.
    records = {
        (record.node_id, record.incarnation): replace(record, joined=record.incarnation // 3)
        for record in heard
        if isinstance(record, Member)
    }
    evictions = [claim for claim in heard if isinstance(claim, Eviction)]
    removed = {eviction.node_id for eviction in evictions}
    # What is said of a member goes with it, also what was said of a life to come.
    accusations = [claim for claim in heard if isinstance(claim, Accusation) and claim.node_id not in removed]
    claims = [claim for claim in [*records.values(), *accusations, *evictions] if claim.node_id != "a"]
    ours, theirs = membership_of(B, C, D), membership_of(B, C, D)
    for claim in claims:
        ours.handle(Received(Gossip(E, (claim,))), 0.0)
    for claim in rng.sample(claims, len(claims)):
        theirs.handle(Received(Gossip(E, (claim,))), 0.0)
    assert ours.known.members() == theirs.known.members()
    for node_id, peer in ours.known.peers.items():
        one, two = peer.standing, theirs.known.peers[node_id].standing
        assert (one and (one.incarnation, one.status)) == (two and (two.incarnation, two.status))
    assert ours.known.digest == theirs.known.digest
    for record in records.values():
        known = ours.known.member(record.node_id)
        lasting = max(
            eviction.joined
            for eviction in [Eviction(record.node_id, -1), *evictions]
            if eviction.node_id == record.node_id
        )
        if record.node_id != "a" and record.joined > lasting:
            assert known is not None
            assert known.incarnation >= record.incarnation
        assert known is None or record.node_id == "a" or known.joined > lasting


@given(st.lists(RECORDS, max_size=20))
def test_nobody_elses_record_of_ourselves_outlives_ours(heard: list[Member]) -> None:
    membership = membership_of()
    for record in heard:
        membership.handle(Learned(View.of(record)), 0.0)
    mine = [record for record in heard if record.node_id == "a"]
    assert membership.me.address == A.address
    assert membership.known.member(A.node_id) == membership.me
    for record in mine:
        assert record == membership.me or record.incarnation < membership.me.incarnation
    other = membership_of(*mine, me=B)
    other.handle(Received(Ping(1, membership.me)), 0.0)
    if mine:
        assert other.known.member(A.node_id) == membership.me or membership.me.incarnation == A.incarnation


def test_a_peer_on_an_emptied_disk_outranks_the_record_of_its_former_life() -> None:
    membership = membership_of()
    former = Member(A.node_id, "old:1", 17)
    membership.handle(Learned(View.of(former, B)), 0.0)
    assert membership.me == Member(A.node_id, "a:1", 18)
    assert pings(membership.handle(Tick(), 0.0))["b:1"].sender.incarnation == 18


def test_who_was_removed_for_good_is_gone_and_no_refutation_brings_it_back() -> None:
    told = Told(B, C).met()
    effects = told.hear(Evict(B.node_id))
    assert MemberLeft(Eviction(B.node_id, 0)) in effects
    assert told.membership.known.members() == (A, C)
    for incarnation in (1, 2, 50):
        back = replace(B, incarnation=incarnation)
        effects = told.hear(Received(Ping(5, back)))
        assert effects[0] == Send("b:1", Gossip(A, (Eviction(B.node_id, 0),)))
        told.hear(Received(Gossip(C, (back, Accusation(B.node_id, incarnation, Status.SUSPECT, C.node_id)))))
        told.hear(Learned(View.of(back), C.node_id))
    assert told.membership.known.members() == (A, C)
    assert "b:1" not in pings(told.run(60.0))
    told.members["b:1"] = again = replace(B, incarnation=51, joined=1)
    told.hear(Received(Ping(6, again)))
    assert told.membership.known.members() == (A, again, C)
    told.hear(Received(Gossip(C, (Eviction(B.node_id, 0),))))
    assert told.membership.known.members() == (A, again, C), "that it had been removed once is heard late"


def test_a_member_is_removed_in_the_midst_of_everything() -> None:
    told = Told(B, C, D, silent=(B,)).met()
    told.hear(Received(PingRequest(7, B, C.node_id)))
    told.hear(Received(PingRequest(8, C, B.node_id)))
    told.run(0.4)
    told.hear(Received(Gossip(C, (Accusation(B.node_id, 1, Status.SUSPECT, C.node_id), Eviction(B.node_id, 0)))))
    told.run(60.0)
    assert told.membership.known.members() == (A, C, D)
    assert told.membership.known.up == 3


def test_who_is_removed_itself_is_told_and_joins_again_only_when_it_is_to() -> None:
    told = Told(B).met()
    assert Evicted() in told.hear(Received(Gossip(B, (Eviction(A.node_id, 0),))))
    assert told.membership.me == A
    assert told.hear(Received(Gossip(B, (Eviction(A.node_id, 0),)))).count(Evicted()) == 0
    effects = told.hear(Rejoin())
    assert told.membership.me == replace(A, joined=1, incarnation=2)
    assert MemberChanged(told.membership.me) in effects
    assert MemberChanged(told.membership.me) not in told.hear(Rejoin())


def test_a_list_is_told_to_those_alone_who_have_another() -> None:
    told, other = Told(B, C).met(), Told(B, C).met()
    assert told.membership.known.view(None).members == (A, B, C)
    assert told.membership.known.view(None).statuses == (Status.ALIVE,) * 3
    digest = other.membership.known.digest
    assert told.membership.known.view(digest) == View(digest)
    told.hear(Received(Gossip(C, (Accusation(B.node_id, 1, Status.DOWN, C.node_id),))))
    view = told.membership.known.view(digest)
    assert view.statuses == (Status.ALIVE, Status.DOWN, Status.ALIVE)
    assert view.digest != digest


@given(st.lists(st.tuples(EVENTS, st.floats(-1e9, 1e9)), max_size=60))
def test_absurd_events_never_raise_and_leave_ourselves_alive(events: list[tuple[Event, float]]) -> None:
    membership = membership_of(A, B)
    for event, now in events:
        membership.handle(event, now)
        known = membership.known
        names = [member.node_id for member in known.members()]
        assert names == sorted(set(names))
        assert known.status(A.node_id) is Status.ALIVE
        assert A.node_id not in known.reachable()
        assert set(known.reachable()) <= set(names)
        assert known.up == 1 + len(known.reachable())
        assert known.latency_s(A.node_id) == 0.0


def test_a_thousand_absurd_events_in_a_row() -> None:
    chance = Random(1)
    membership = membership_of(B, C)
    for _ in range(1000):
        record = Member(NodeId(chance.choice("abcd")), "?" * chance.randrange(9), chance.getrandbits(40))
        message = chance.choice([Ping, Ack])(chance.randrange(-5, 2000), record)
        event: Event = chance.choice([Tick(), Received(message), Learned(View.of(record, record, record))])
        membership.handle(event, chance.uniform(-9, 9))
    assert len(membership.known.members()) == 4


def test_of_strangers_nothing_is_believed() -> None:
    known = membership_of().known
    stranger = NodeId("nobody")
    assert known.status(stranger) is Status.DOWN
    assert known.member(stranger) is None
    assert known.heard_at(stranger) is None
    assert known.latency_s(stranger) is None
    assert not known.answers(stranger)


def test_believing_something_else_is_told_once() -> None:
    told = Told(B)
    told.run(30.0)
    assert [effect for effect in told.effects if isinstance(effect, StatusChanged)] == [
        StatusChanged(B.node_id, Status.ALIVE)
    ]
    assert told.effects.count(Met(B.node_id)) == 1


# --- two processes with one id ---


class Doubles:
    """Two processes that go by one id at two addresses, and the datagrams between them."""

    def __init__(self, first: Life, second: Life, incarnations: tuple[int, int]) -> None:
        self.ends = {
            f"a:{number}": Membership(
                MemberList(Member(A.node_id, f"a:{number}", incarnation)), (), Timing(), life, Random(number)
            )
            for number, (life, incarnation) in enumerate(zip((first, second), incarnations, strict=True), 1)
        }
        self.must_stop: dict[str, set[bool]] = {address: set() for address in self.ends}
        self.datagrams = 0

    def hear(self, address: str, event: Event, now: float) -> None:
        for effect in self.ends[address].handle(event, now):
            if isinstance(effect, Doubled):
                self.must_stop[address].add(effect.must_stop)
            elif isinstance(effect, Send) and effect.to in self.ends:
                self.datagrams += 1
                assert self.datagrams < 100, "they never stop asking each other"
                self.hear(effect.to, Received(effect.message), now)


LIVES = st.builds(Life, st.integers(0, 3), st.integers(0, 1 << 40))


@given(LIVES, LIVES, st.integers(1, 9), st.integers(1, 9), st.sampled_from(["a:1", "a:2"]))
def test_of_two_processes_with_one_id_the_one_that_started_later_finds_out_and_has_to_stop(
    first: Life, second: Life, one: int, other: int, told: str
) -> None:
    doubles = Doubles(first, second, (one, other))
    records = tuple(membership.me for membership in doubles.ends.values())
    for now in range(4):
        for address in (told, *doubles.ends):
            doubles.hear(address, Learned(View.of(*records)), float(now))
            records += (doubles.ends[address].me,)
    if first == second:
        return
    later = "a:2" if second > first else "a:1"
    earlier = "a:1" if later == "a:2" else "a:2"
    assert doubles.must_stop[later] == {True}
    assert doubles.must_stop[earlier] <= {False}


def test_a_late_datagram_of_an_earlier_run_stops_nobody() -> None:
    membership = membership_of(B)
    earlier = Member(A.node_id, "a:9", 1)
    effects = membership.handle(Received(Ack(0, earlier, Life(1, 1))), 0.0)
    effects += membership.handle(Received(Ack(1, earlier, Life(5000, 1))), 0.0)
    effects += membership.handle(Received(Ping(1, earlier, Life(1, 1))), 0.0)
    effects += membership.handle(Received(Ping(1, earlier, None)), 0.0)
    assert not [effect for effect in effects if isinstance(effect, Doubled)]


def test_an_answer_counts_once_and_only_to_the_question_it_is_of() -> None:
    membership = membership_of(B)
    other = Member(A.node_id, "a:9", 7)
    (ping,) = pings(membership.handle(Learned(View.of(other)), 0.0)).values()
    younger, ours = Life(999, 1), LIFE
    assert membership.handle(Received(Ack(ping.number + 1, other, younger)), 0.1) == []
    assert membership.handle(Received(Ack(ping.number, other, ours)), 0.1) == []
    assert membership.handle(Received(Ack(ping.number, other, younger)), 0.1) == [Doubled("a:9", must_stop=True)]
    assert membership.handle(Received(Ack(ping.number, other, younger)), 0.1) == []
