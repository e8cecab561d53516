"""What a peer makes of other peers' answers."""

from __future__ import annotations

import httpx
import pytest

from peer.gossip.client import SENTENCE_CHARS_MAX, said_in


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "the disk is full", "status": 507}', "the disk is full"),
        (b'{"error": "' + b"x" * 10_000 + b'"}', "x" * SENTENCE_CHARS_MAX),
        (b'{"error": "two\\nlines"}', "status 507"),
        (b'{"error": {"a": 1}}', "status 507"),
        (b'["error"]', "status 507"),
        (b"[" * 100_000, "status 507"),
        (b"\xff\xfe", "status 507"),
        (b"", "status 507"),
    ],
)
def test_a_refusal_is_told_in_its_own_sentence_or_by_its_status(body: bytes, said: str) -> None:
    assert said_in(httpx.Response(507, content=body)) == said
