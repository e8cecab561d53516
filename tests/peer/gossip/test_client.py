"""What a peer makes of other peers' answers."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio

from peer.gossip.client import SENTENCE_CHARS_MAX, PeerClient, PeerUnreachable, said_in
from peer.world.system import SystemEnv


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


@pytest.mark.parametrize(
    "address", [f"{'a' * 64}.invalid:1", "a..invalid:1", "\xad:1", "[::1", ":1", "a b:1", "127.0.0.1:x"]
)
def test_an_address_that_can_be_none_is_unreachable_and_no_other_error(address: str, tmp_path: Path) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            client = PeerClient(SystemEnv(tmp_path), "0" * 32)
            with pytest.raises(PeerUnreachable):
                await client.health(address)
            await client.aclose()

    trio.run(main)
