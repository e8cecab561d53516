"""Which peers should hold a file: the same everywhere and for ever, little moved, zones apart, weights kept."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.identity import Dot, NodeId, Origin
from protocol.ops import item_id
from protocol.placement import PARTITIONS, Place, partition_of, rank_all, rank_places

SOME_PARTITIONS = range(0, PARTITIONS, 41)
NODE_IDS = st.integers(0, 99).map(lambda number: NodeId(f"node-{number}"))
PLACES = st.lists(
    st.builds(Place, NODE_IDS, st.sampled_from(["", "a", "b", "c"]), st.sampled_from([0.5, 1.0, 2.0])),
    max_size=8,
    unique_by=lambda place: place.node_id,
)
PARTITION = st.integers(0, PARTITIONS - 1)


def nodes(count: int) -> list[Place]:
    return [Place(NodeId(f"node-{number}")) for number in range(1, count + 1)]


def numbers(ranked: list[NodeId]) -> str:
    return "".join(node_id[-1] for node_id in ranked)


# --- golden vectors: a change here moves every file of every cluster ---

KEYS = {
    "a": 1521,
    "file-1": 843,
    "file-2": 2212,
    "00000000-0000-4000-8000-000000000000": 2371,
    "X.y_z-0": 2389,
    "register": 1253,
}
FIVE_ALIKE = {
    0: "23154", 1: "42513", 2: "45123", 3: "31245", 5: "13425", 8: "53412", 13: "45231", 21: "53421", 34: "41235",
    55: "45213", 89: "45312", 144: "24351", 233: "42351", 377: "23415", 610: "53412", 987: "54213", 1597: "14235",
    2584: "21534", 4095: "41523",
}  # fmt: skip
ZONES_AABBC = {
    0: "236514", 1: "425613", 2: "451623", 3: "631524", 1000: "635241", 2000: "452631", 3000: "461523", 4095: "416523"
}  # fmt: skip
WEIGHTS_1234 = {0: "2341", 1: "4231", 2: "4213", 3: "3421", 1000: "3421", 2000: "4321", 3000: "4312", 4095: "4123"}


@pytest.mark.parametrize(("file_key", "partition"), KEYS.items())
def test_keys_stay_in_their_partitions(file_key: str, partition: int) -> None:
    assert partition_of(file_key) == partition


@pytest.mark.parametrize(("partition", "ranked"), FIVE_ALIKE.items())
def test_five_peers_stay_in_their_order(partition: int, ranked: str) -> None:
    assert numbers(rank_places(partition, nodes(5))) == ranked


@pytest.mark.parametrize(("partition", "ranked"), ZONES_AABBC.items())
def test_six_peers_in_zones_stay_in_their_order(partition: int, ranked: str) -> None:
    zones = ["a", "a", "b", "b", "c", ""]
    places = [Place(place.node_id, zone) for place, zone in zip(nodes(6), zones, strict=True)]
    assert numbers(rank_places(partition, places)) == ranked


@pytest.mark.parametrize(("partition", "ranked"), WEIGHTS_1234.items())
def test_four_peers_of_unequal_weight_stay_in_their_order(partition: int, ranked: str) -> None:
    places = [Place(place.node_id, weight=float(number)) for number, place in enumerate(nodes(4), 1)]
    assert numbers(rank_places(partition, places)) == ranked


def test_items_of_the_queue_keep_their_numbers() -> None:
    origin = Origin(NodeId("node-1"), 0x1234)
    assert item_id(Dot(origin, 7), NodeId("node-2")) == 2663608873443212
    assert item_id(Dot(origin, 7), NodeId("node-3")) == 4353337821173949
    assert item_id(Dot(origin, 8), NodeId("node-2")) == 327979019922257


# --- properties ---


@given(st.text(max_size=200).filter(str.isascii))
def test_every_key_has_a_partition(file_key: str) -> None:
    assert 0 <= partition_of(file_key) < PARTITIONS


@given(st.builds(Dot, st.builds(Origin, NODE_IDS, st.integers(0, 1 << 62)), st.integers(1, 1 << 62)), NODE_IDS)
def test_item_numbers_are_exact_in_a_json_readers_doubles(put: Dot, target: NodeId) -> None:
    assert int(float(item_id(put, target))) == item_id(put, target)


@given(PARTITION, PLACES, st.randoms(use_true_random=False))
def test_everybody_is_ranked_once_whatever_the_order_they_are_named_in(partition, places, rng) -> None:
    ranked = rank_places(partition, places)
    assert sorted(ranked) == sorted(place.node_id for place in places)
    assert rank_places(partition, rng.sample(places, len(places))) == ranked


@given(PARTITION, PLACES)
def test_the_first_copies_lie_in_different_zones_while_there_are_enough(partition: int, places: list[Place]) -> None:
    zone_of = {place.node_id: place.zone or place.node_id for place in places}
    ranked = rank_places(partition, places)
    for copies in range(1, len(places) + 1):
        used = {zone_of[node_id] for node_id in ranked[:copies]}
        assert len(used) == min(copies, len(set(zone_of.values())))


@given(PARTITION, PLACES, NODE_IDS)
def test_without_zones_a_leave_moves_nothing_but_what_the_leaver_had(
    partition: int, places: list[Place], leaver: NodeId
) -> None:
    flat = [Place(place.node_id, weight=place.weight) for place in places]
    rest = [place for place in flat if place.node_id != leaver]
    before, after = rank_places(partition, flat), rank_places(partition, rest)
    assert after == [node_id for node_id in before if node_id != leaver]


@given(PARTITION, PLACES, NODE_IDS)
def test_with_zones_a_join_never_moves_a_copy_between_those_who_were_there(
    partition: int, places: list[Place], joiner: NodeId
) -> None:
    old = [place for place in places if place.node_id != joiner]
    for copies in range(1, len(old) + 1):
        before = set(rank_places(partition, old)[:copies])
        after = set(rank_places(partition, [*old, Place(joiner, "a")])[:copies])
        gained = after - before
        assert len(gained) <= 1, "one new peer takes at most one copy of a partition"


@settings(max_examples=5)
@given(st.integers(2, 8), st.integers(1, 3))
def test_a_join_takes_its_share_and_no_more(count: int, copies: int) -> None:
    before = [rank_places(partition, nodes(count))[:copies] for partition in SOME_PARTITIONS]
    after = [rank_places(partition, nodes(count + 1))[:copies] for partition in SOME_PARTITIONS]
    newcomer = NodeId(f"node-{count + 1}")
    moved = 0
    for old, new in zip(before, after, strict=True):
        gained = set(new) - set(old)
        assert gained <= {newcomer}
        moved += len(gained)
    share = len(SOME_PARTITIONS) * min(copies, count + 1) / (count + 1)
    assert abs(moved - share) < 5 * share**0.5


def test_files_are_spread_by_weight() -> None:
    places = [Place(place.node_id, weight=float(number)) for number, place in enumerate(nodes(4), 1)]
    firsts = Counter(ranked[0] for ranked in rank_all(places))
    for place in places:
        assert firsts[place.node_id] == pytest.approx(PARTITIONS * place.weight / 10, rel=0.12)


def test_more_weight_never_gives_less() -> None:
    shares = []
    for weight in (0.25, 0.5, 1.0, 2.0, 4.0):
        places = [Place(NodeId("node-1"), weight=weight), *nodes(4)[1:]]
        shares.append(sum(rank_places(partition, places)[0] == "node-1" for partition in SOME_PARTITIONS))
    assert all(less <= more for less, more in pairwise(shares))


def test_keys_are_spread_over_the_partitions() -> None:
    counts = Counter(partition_of(f"file-{number}") for number in range(40_960))
    assert len(counts) > PARTITIONS * 0.99
    assert max(counts.values()) < 40
