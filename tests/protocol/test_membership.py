"""Who is a member and who answers: probes, silence, and records that contradict each other."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from protocol.identity import Life, Member, NodeId
from protocol.membership import (
    Doubled,
    Effect,
    Event,
    Learned,
    Membership,
    Met,
    Received,
    Send,
    SetTimer,
    Status,
    StatusChanged,
    Tick,
)
from protocol.messages import INCARNATION_MAX, Ack, Ping

A, B, C = (Member(NodeId(name), f"{name}:1", 1) for name in "abc")
INTERVAL_S, DOWN_AFTER_S = 1.0, 3.0
LIFE = Life(1000, 1)
NAMES = st.sampled_from(["a", "b", "c", "d"]).map(NodeId)
RECORDS = st.builds(Member, NAMES, st.sampled_from(["x:1", "y:2", ""]), st.integers(0, 6), st.sampled_from(["", "z"]))
ABSURD = st.builds(Member, NAMES, st.text(max_size=20), st.integers(0, INCARNATION_MAX), st.text(max_size=5))
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Tick),
    st.builds(Received, st.builds(Ping, st.integers(0, 9), ABSURD)),
    st.builds(Received, st.builds(Ack, st.integers(0, 9), ABSURD)),
    st.builds(Learned, st.lists(ABSURD, max_size=5).map(tuple)),
)


def membership_of(*members: Member, me: Member = A) -> Membership:
    return Membership(me, members, INTERVAL_S, DOWN_AFTER_S, LIFE)


def pings(effects: list[Effect]) -> dict[str, Ping]:
    return {
        effect.to: effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Ping)
    }


def answer(membership: Membership, effects: list[Effect], member: Member, now: float) -> list[Effect]:
    """The peer answers the ping it was just sent."""
    return membership.handle(Received(Ack(pings(effects)[member.address].number, member)), now)


# --- probing ---


def test_every_other_peer_is_probed_at_every_tick() -> None:
    membership = membership_of(A, B, C)
    for now in range(5):
        effects = membership.handle(Tick(), float(now))
        assert sorted(pings(effects)) == ["b:1", "c:1"]
        assert [effect for effect in effects if isinstance(effect, SetTimer)] == [SetTimer(INTERVAL_S)]


def test_a_ping_from_a_peer_taken_for_down_is_answered_with_a_probe_so_that_the_two_meet_at_once() -> None:
    membership = membership_of(B)
    effects = membership.handle(Received(Ping(7, B)), 0.0)
    assert [effect.message for effect in effects if isinstance(effect, Send)] == [
        Ack(7, A, LIFE),
        Ping(1, A, LIFE),
    ]
    assert Met(B.node_id) in answer(membership, effects, B, 0.001)
    assert membership.handle(Received(Ping(8, B)), 0.002) == [Send("b:1", Ack(8, A, LIFE))]


def test_a_ping_is_answered_with_its_number_to_the_address_the_sender_names() -> None:
    membership = membership_of(B)
    assert membership.handle(Received(Ping(7, B)), 0.0)[0] == Send("b:1", Ack(7, A, LIFE))
    stranger = Member(NodeId("d"), "d:1", 4)
    assert Send("d:1", Ack(1, A, LIFE)) in membership.handle(Received(Ping(1, stranger)), 0.0)
    assert membership.member(stranger.node_id) == stranger


def test_a_peer_is_met_when_it_answers_down_after_three_seconds_of_silence_and_met_again() -> None:
    membership = membership_of(B)
    assert membership.status(B.node_id) is Status.DOWN
    effects = answer(membership, membership.handle(Tick(), 0.0), B, 0.1)
    assert effects == [StatusChanged(B.node_id, Status.ALIVE), Met(B.node_id)]
    assert membership.reachable() == [B.node_id]
    seen = {}
    for tenth in range(1, 50):
        now = 0.1 + tenth / 10
        membership.handle(Tick(), now)
        seen.setdefault(membership.status(B.node_id), round(now - 0.1, 1))
    assert seen == {Status.ALIVE: 0.1, Status.SUSPECT: 1.5, Status.DOWN: 3.0}
    assert membership.reachable() == []
    probes = membership.handle(Tick(), 99.0)
    assert "b:1" in pings(probes), "a peer that is down is knocked at"
    assert Met(B.node_id) in answer(membership, probes, B, 99.1)
    assert membership.status(B.node_id) is Status.ALIVE


def test_a_suspect_that_answers_is_alive_again_and_was_never_away() -> None:
    membership = membership_of(B)
    answer(membership, membership.handle(Tick(), 0.0), B, 0.0)
    probes = membership.handle(Tick(), 2.0)
    assert membership.status(B.node_id) is Status.SUSPECT
    assert answer(membership, probes, B, 2.1) == [StatusChanged(B.node_id, Status.ALIVE)]


def test_a_ping_alone_does_not_make_its_sender_reachable() -> None:
    """It may hear nothing of what we send."""
    membership = membership_of(B)
    for now in range(10):
        membership.handle(Received(Ping(now, B)), float(now))
        membership.handle(Tick(), float(now))
    assert membership.status(B.node_id) is Status.DOWN


@given(st.lists(st.floats(0.001, 2.0), min_size=1, max_size=20))
def test_the_latency_lies_between_the_round_trips_seen(round_trips_s: list[float]) -> None:
    membership = membership_of(B)
    now = 0.0
    for round_trip_s in round_trips_s:
        now += 10
        answer(membership, membership.handle(Tick(), now), B, now + round_trip_s)
    latency_s = membership.latency_s(B.node_id)
    assert latency_s is not None
    assert min(round_trips_s) - 1e-9 <= latency_s <= max(round_trips_s) + 1e-9


def test_an_ack_of_another_ping_says_nothing_of_the_latency() -> None:
    membership = membership_of(B)
    old = membership.handle(Tick(), 0.0)
    membership.handle(Tick(), 1.0)
    answer(membership, old, B, 1.1)
    assert membership.status(B.node_id) is Status.ALIVE
    assert membership.latency_s(B.node_id) is None


# --- records ---


@given(st.lists(RECORDS, max_size=20), st.randoms(use_true_random=False))
def test_the_highest_incarnation_wins_in_whatever_order_records_come(heard: list[Member], rng: Random) -> None:
    # A peer writes one record for each of its incarnations.
    heard = list({(record.node_id, record.incarnation): record for record in heard if record.node_id != "a"}.values())
    ours, theirs = membership_of(), membership_of()
    for record in heard:
        ours.handle(Learned((record,)), 0.0)
    for record in rng.sample(heard, len(heard)):
        theirs.handle(Received(Ping(1, record)), 0.0)
    assert ours.members() == theirs.members()
    for record in heard:
        known = ours.member(record.node_id)
        assert known is not None
        assert known.incarnation == max(other.incarnation for other in heard if other.node_id == record.node_id)


@given(st.lists(RECORDS, max_size=20))
def test_nobody_elses_record_of_ourselves_outlives_ours(heard: list[Member]) -> None:
    membership = membership_of()
    for record in heard:
        membership.handle(Learned((record,)), 0.0)
    mine = [record for record in heard if record.node_id == "a"]
    assert membership.me.address == A.address
    assert membership.member(A.node_id) == membership.me
    for record in mine:
        assert record == membership.me or record.incarnation < membership.me.incarnation
    other = membership_of(*mine, me=B)
    other.handle(Received(Ping(1, membership.me)), 0.0)
    if mine:
        assert other.member(A.node_id) == membership.me or membership.me.incarnation == A.incarnation


def test_a_peer_on_an_emptied_disk_outranks_the_record_of_its_former_life() -> None:
    membership = membership_of()
    former = Member(A.node_id, "old:1", 17)
    membership.handle(Learned((former, B)), 0.0)
    assert membership.me == Member(A.node_id, "a:1", 18)
    assert pings(membership.handle(Tick(), 0.0))["b:1"].sender.incarnation == 18


@given(st.lists(st.tuples(EVENTS, st.floats(-1e9, 1e9)), max_size=60))
def test_absurd_events_never_raise_and_leave_ourselves_alive(events: list[tuple[Event, float]]) -> None:
    membership = membership_of(A, B)
    for event, now in events:
        membership.handle(event, now)
        names = [member.node_id for member in membership.members()]
        assert names == sorted(set(names))
        assert membership.status(A.node_id) is Status.ALIVE
        assert A.node_id not in membership.reachable()
        assert set(membership.reachable()) <= set(names)
        assert membership.latency_s(A.node_id) == 0.0


def test_a_thousand_absurd_events_in_a_row() -> None:
    chance = Random(1)
    membership = membership_of(B, C)
    for _ in range(1000):
        record = Member(NodeId(chance.choice("abcd")), "?" * chance.randrange(9), chance.getrandbits(40))
        message = chance.choice([Ping, Ack])(chance.randrange(-5, 2000), record)
        membership.handle(chance.choice([Tick(), Received(message), Learned((record,) * 3)]), chance.uniform(-9, 9))
    assert len(membership.members()) == 4


def test_of_strangers_nothing_is_believed() -> None:
    membership = membership_of()
    stranger = NodeId("nobody")
    assert membership.status(stranger) is Status.DOWN
    assert membership.member(stranger) is None
    assert membership.heard_at(stranger) is None
    assert membership.latency_s(stranger) is None


# --- two processes with one id ---


class Doubles:
    """Two processes that go by one id at two addresses, and the datagrams between them."""

    def __init__(self, first: Life, second: Life, incarnations: tuple[int, int]) -> None:
        self.ends = {
            f"a:{number}": Membership(Member(A.node_id, f"a:{number}", incarnation), (), INTERVAL_S, DOWN_AFTER_S, life)
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
            doubles.hear(address, Learned(records), float(now))
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
    (ping,) = pings(membership.handle(Learned((other,)), 0.0)).values()
    younger, ours = Life(999, 1), LIFE
    assert membership.handle(Received(Ack(ping.number + 1, other, younger)), 0.1) == []
    assert membership.handle(Received(Ack(ping.number, other, ours)), 0.1) == []
    assert membership.handle(Received(Ack(ping.number, other, younger)), 0.1) == [Doubled("a:9", must_stop=True)]
    assert membership.handle(Received(Ack(ping.number, other, younger)), 0.1) == []
