"""Reading the cluster's key, and not telling it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.keyring import KEY_BYTES, KEYS_MAX, OPEN, BadKey, Keyring, is_same_text, mac

KEYS = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES).filter(any)
NOISE = st.sampled_from(["", "   ", "# a comment", "\t# ab" + "00" * 32])


@given(st.lists(KEYS, min_size=1, max_size=KEYS_MAX, unique=True), st.lists(NOISE, max_size=4), st.booleans())
def test_a_key_file_gives_its_keys_in_their_order(keys: list[bytes], noise: list[str], upper: bool) -> None:
    lines = [*noise, *(f"  {key.hex().upper() if upper else key.hex()}  # of that day" for key in keys), *noise]
    ring = Keyring.parse("\r\n".join(lines))
    assert ring.keys == tuple(keys)
    assert not ring.is_open


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no key in it"),
        ("# only words\n\n", "no key in it"),
        ("ab" * 31, "64 hexadecimal digits"),
        ("ab" * 33, "64 hexadecimal digits"),
        ("xy" * 32, "64 hexadecimal digits"),
        ("ab" * 32 + " " + "cd" * 32, "64 hexadecimal digits"),
        ("\n".join(f"{number:064x}" for number in range(1, KEYS_MAX + 2)), "at most 8"),
        ("00" * 32, "keeps nobody out"),
        ("ab" * 32 + "\n" + "00" * 32, "keeps nobody out"),
    ],
)
def test_what_is_no_key_file_is_refused_with_a_reason(text: str, said: str) -> None:
    with pytest.raises(BadKey, match=said):
        Keyring.parse(text)


@given(KEYS)
def test_keys_never_stand_in_what_is_shown_of_them(key: bytes) -> None:
    ring = Keyring((key,))
    assert key.hex() not in f"{ring} {ring!r} {ring!s}"
    assert repr(key) not in repr(ring)


def test_without_a_key_a_ring_is_open() -> None:
    assert OPEN.is_open


@given(KEYS, KEYS, st.binary(max_size=80), st.binary(max_size=80))
def test_a_code_is_of_one_key_and_of_one_text(key: bytes, other: bytes, said: bytes, else_said: bytes) -> None:
    assert mac(key, said) == mac(key, said[:3], said[3:])
    assert (mac(key, said) == mac(other, said)) == (key == other)
    assert (mac(key, said) == mac(key, else_said)) == (said == else_said)


@given(st.text(), st.text())
def test_texts_are_compared_whatever_is_in_them(one: str, other: str) -> None:
    assert is_same_text(one, one)
    assert is_same_text(one, other) == (one.encode("utf-8", "replace") == other.encode("utf-8", "replace"))
