"""Hypothesis strategies for everything a log can say."""

from __future__ import annotations

from hypothesis import strategies as st

from protocol.codec import CONTENT_TYPE_CHARS_MAX, FILENAME_CHARS_MAX, HASH_BYTES, MS_MAX, SIZE_MAX
from protocol.identity import EPOCH_BITS, SEQ_MAX, STAMP_MAX, Dot, NodeId, Origin, Stamp, VersionVector
from protocol.ops import COPIES_MAX, Chunk, Delete, Drop, Hold, HoldRun, LiveOp, Manifest, Op, Put

_NAME_START = "abzAZ09"
_NAME_REST = _NAME_START + "._-"


def _names(length_max: int) -> st.SearchStrategy[str]:
    rest = st.text(_NAME_REST, max_size=length_max - 1)
    return st.builds(str.__add__, st.sampled_from(_NAME_START), rest)


def _up_to(maximum: int, minimum: int = 0) -> st.SearchStrategy[int]:
    return st.integers(minimum, minimum + 3) | st.integers(minimum, maximum) | st.just(maximum)


node_ids = _names(64).map(NodeId)
file_keys = _names(128)
origins = st.builds(Origin, node_ids, _up_to((1 << EPOCH_BITS) - 1))
dots = st.builds(Dot, origins, _up_to(SEQ_MAX, 1))
dot_lists = st.lists(dots, max_size=3).map(tuple)
stamps = _up_to(STAMP_MAX).map(Stamp)
hashes = st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES)
version_vectors: st.SearchStrategy[VersionVector] = st.dictionaries(origins, _up_to(SEQ_MAX, 1), max_size=5)

# What UTF-8 cannot say, no message can.
_texts = st.characters(exclude_categories=("Cs",))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    chunks = draw(st.none() | st.lists(st.builds(Chunk, hashes, st.integers(0, 1 << 40)), max_size=3).map(tuple))
    return Manifest(
        file_key=draw(file_keys),
        filename=draw(st.text(_texts, max_size=20) | st.just("ä" * FILENAME_CHARS_MAX)),
        size_bytes=draw(_up_to(SIZE_MAX)) if chunks is None else sum(chunk.size for chunk in chunks),
        sha256=draw(hashes),
        content_type=draw(st.text(_texts, max_size=20) | st.just("x" * CONTENT_TYPE_CHARS_MAX)),
        uploaded_at_ms=draw(_up_to(MS_MAX)),
        copies=draw(st.integers(0, COPIES_MAX)),
        chunks=chunks,
        registered=draw(st.booleans()),
    )


puts = st.builds(Put, dots, stamps, manifests(), dot_lists, st.booleans())
deletes = st.builds(Delete, dots, stamps, file_keys, dot_lists)
holds = st.builds(Hold, dots, stamps, dots, st.booleans())
runs = st.builds(
    HoldRun,
    st.builds(Dot, origins, _up_to(SEQ_MAX - 3, 1)),
    stamps,
    st.lists(dots, min_size=2, max_size=4).map(tuple),
    st.booleans(),
)
drops = st.builds(Drop, dots, stamps, dot_lists, dot_lists)
live_ops: st.SearchStrategy[LiveOp] = puts | holds
all_ops: st.SearchStrategy[Op] = puts | deletes | holds | runs | drops
