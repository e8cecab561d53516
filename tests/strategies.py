"""What messages between peers can say: right ones, absurd ones, and ones that are none."""

from __future__ import annotations

from hypothesis import strategies as st

from protocol.codec import LOG_HASH_BYTES, MS_MAX
from protocol.datagrams import Accusation, Ack, Datagram, Gossip, IndirectAck, Nack, Ping, PingRequest
from protocol.identity import (
    EPOCH_BITS,
    SEQ_MAX,
    Dot,
    Eviction,
    Life,
    Member,
    NodeId,
    Origin,
    Status,
)
from protocol.messages import (
    ADDRESS_CHARS_MAX,
    INCARNATION_MAX,
    ZONE_CHARS_MAX,
    ExchangeReply,
    ExchangeRequest,
    ItemStatus,
    RepairAttempt,
    View,
)

CLUSTER = "00" * 16
NODE_IDS = st.sampled_from(["a", "node-1", "N" * 64, "0._-x"]).map(NodeId)
ORIGINS = st.builds(Origin, NODE_IDS, st.integers(0, (1 << EPOCH_BITS) - 1))
DOTS = st.builds(Dot, ORIGINS, st.integers(1, SEQ_MAX))
VECTORS = st.dictionaries(ORIGINS, st.integers(1, SEQ_MAX), max_size=5)
SUMS = st.integers(0, (1 << 128) - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FINGERPRINTS = st.dictionaries(DOTS, st.binary(min_size=LOG_HASH_BYTES, max_size=LOG_HASH_BYTES), max_size=5)
GAVE_UP = st.lists(ORIGINS, max_size=3).map(tuple)
MEMBERS = st.builds(
    Member,
    NODE_IDS,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=ADDRESS_CHARS_MAX),
    st.integers(0, INCARNATION_MAX),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=ZONE_CHARS_MAX),
    st.integers(0, INCARNATION_MAX),
    st.booleans(),
)
EVICTIONS = st.builds(Eviction, NODE_IDS, st.integers(0, INCARNATION_MAX))
BLOBS = st.lists(st.binary(max_size=50), max_size=5).map(tuple)
MANY_MEMBERS = st.lists(MEMBERS, max_size=5).map(tuple)
LIVES = st.builds(Life, st.integers(0, MS_MAX), st.integers(0, SEQ_MAX))
NUMBERS = st.integers(0, SEQ_MAX)
ACCUSATIONS = st.builds(
    Accusation,
    NODE_IDS,
    st.integers(0, INCARNATION_MAX),
    st.sampled_from([Status.SUSPECT, Status.DOWN, Status.OUT]),
    NODE_IDS,
)
RUMORS = st.lists(st.one_of(MEMBERS, ACCUSATIONS, EVICTIONS), max_size=3).map(tuple)
DATAGRAMS: st.SearchStrategy[Datagram] = st.one_of(
    st.builds(Ping, NUMBERS, MEMBERS, st.one_of(st.none(), LIVES), RUMORS),
    st.builds(Ack, NUMBERS, MEMBERS, st.one_of(st.none(), LIVES), RUMORS),
    st.builds(PingRequest, NUMBERS, MEMBERS, NODE_IDS, RUMORS),
    st.builds(IndirectAck, NUMBERS, MEMBERS, RUMORS),
    st.builds(Nack, NUMBERS, MEMBERS, RUMORS),
    st.builds(Gossip, MEMBERS, RUMORS),
)
VIEWS = st.builds(
    lambda digest, rows, evictions: View(
        digest, tuple(member for member, _ in rows), tuple(status for _, status in rows), tuple(evictions)
    ),
    st.binary(max_size=8),
    st.lists(st.tuples(MEMBERS, st.sampled_from([None, *Status])), max_size=5),
    st.lists(EVICTIONS, max_size=3),
)
REQUESTS = st.builds(
    ExchangeRequest,
    sender=MEMBERS,
    view=VIEWS,
    vv=VECTORS,
    state_sum=SUMS,
    ops=BLOBS,
    hold=st.lists(DOTS, max_size=5).map(tuple),
    chunks=BLOBS,
    behind=st.booleans(),
    fingerprints=FINGERPRINTS,
    gave_up=GAVE_UP,
)
REPLIES = st.builds(
    ExchangeReply,
    view=VIEWS,
    vv=VECTORS,
    state_sum=SUMS,
    ops=BLOBS,
    more=st.booleans(),
    behind=st.booleans(),
    fingerprints=FINGERPRINTS,
    gave_up=GAVE_UP,
    disputed=st.booleans(),
)
COUNTS = st.integers(0, (1 << 63) - 1)
ATTEMPTS = st.builds(
    RepairAttempt,
    COUNTS,
    st.sampled_from(ItemStatus),
    COUNTS,
    st.none() | st.integers(0, (1 << 47) - 1),
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=100),
    st.none() | st.integers(0, (1 << 47) - 1),
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | TEXT | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(TEXT | st.binary(), inner, max_size=3),
    max_leaves=15,
)
