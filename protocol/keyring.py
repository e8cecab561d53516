"""The cluster's key: who knows it is one of the cluster's peers, and nobody else is believed by them.

Messages are authenticated, not encrypted: keyed BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs, 2.6), cut to 128
bits. There may be several keys, so that one can take the place of another while the cluster runs.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from blake3 import blake3

KEY_BYTES = 32
MAC_BYTES = 16
KEYS_MAX = 8
"""Each is tried on what does not fit the others."""

_KEY = re.compile(r"[0-9a-fA-F]{64}")


class BadKey(ValueError):
    """A text has no keys in it; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True, repr=False)
class Keyring:
    """Keys that are accepted; the first of them is used for what is sent."""

    keys: tuple[bytes, ...]

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Read a key file: a key a line, in 64 hexadecimal digits; `#` begins a comment. Raises BadKey."""
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        keys = list(dict.fromkeys(filter(None, lines)))
        if not keys:
            raise BadKey("there is no key in it")
        if len(keys) > KEYS_MAX:
            raise BadKey(f"there are {len(keys)} keys in it; at most {KEYS_MAX} are accepted at a time")
        if not all(map(_KEY.fullmatch, keys)):
            raise BadKey("a key is a line of 64 hexadecimal digits")
        ring = cls(tuple(map(bytes.fromhex, keys)))
        if bytes(KEY_BYTES) in ring.keys:
            raise BadKey("a key of nothing but zeros keeps nobody out")
        return ring

    @property
    def is_open(self) -> bool:
        """Whether there is no secret: whoever reaches a peer can act as one."""
        return self == OPEN

    def __repr__(self) -> str:
        # Not the keys: it may stand in a log.
        return f"<{len(self.keys)} keys>"


def mac(key: bytes, *parts: bytes) -> bytes:
    """The authentication code of these bytes, one behind the other; what is of any length may only be the last."""
    return blake3(b"".join(parts), key=key).digest(length=MAC_BYTES)


def is_same(one: bytes, other: bytes) -> bool:
    """Compare in a time that says nothing of where they differ."""
    return hmac.compare_digest(one, other)


def is_same_text(one: str, other: str) -> bool:
    """The same for texts, of which somebody may have sent us one."""
    return is_same(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


OPEN = Keyring((bytes(KEY_BYTES),))
"""For peers that only their own machine reaches, and that were given no key."""
