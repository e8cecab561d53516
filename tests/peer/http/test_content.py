"""Names, ranges and conditions of downloads."""

from __future__ import annotations

from email.message import Message
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from peer.http.content import (
    RANGES_MAX,
    Span,
    _date_in,
    clean_filename,
    disposition_of,
    guess_content_type,
    head_of,
    is_current,
    parse_ranges,
)
from peer.http.errors import HttpError
from peer.world.wire import format_head
from protocol.codec import CONTENT_TYPE_CHARS_MAX, FILENAME_CHARS_MAX, MS_MAX
from protocol.identity import NodeId
from protocol.ops import Manifest

ETAG = '"abc"'
ODD = "\u202f\u3000\xa0\u200c\U0001f469\u200d\U0001f680"
"""Spaces and joiners, as names have them."""
HOSTILE = [
    'a"b.txt', "a\r\nSet-Cookie: x=1", "a\\b\\c.txt", "../../etc/passwd", "100%.txt", "%0d%0a.txt", "\U0001f600.png",
    "é.txt",
    "n" * 500, "", ".", "..", "/", "a\0b", "\u202egpj.exe", "\x7f", "a;filename=b", "日本語" * 100, "'; DROP", "a b",
]  # fmt: skip


# --- names ---


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(HOSTILE))
@example("\x85\u2028")
def test_every_name_makes_a_header_field_that_reads_back(name: str) -> None:
    filename = clean_filename(name)
    assert "/" not in filename
    assert "\\" not in filename
    assert len(filename) <= FILENAME_CHARS_MAX
    value = disposition_of(filename)
    assert value.isascii()
    assert value.isprintable()
    # What the server writes may hold nothing that ends the field early.
    head = format_head(200, [(b"content-disposition", value.encode("latin-1"))])
    assert head.count(b"\r\n") == 3
    assert unquote(value.partition("filename*=UTF-8''")[2]) == (filename or "file")
    message = Message()
    message["content-disposition"] = value
    assert message.get_content_disposition() == "attachment"
    plain = message.get_param("filename", header="content-disposition")
    assert plain


PLAIN_TEXT = st.characters(exclude_categories=["Cs"])


@given(
    st.text(PLAIN_TEXT, max_size=FILENAME_CHARS_MAX),
    st.text(PLAIN_TEXT, max_size=CONTENT_TYPE_CHARS_MAX) | st.just("text/plain"),
    st.integers(0, MS_MAX),
)
@example("a", "text/plain\r\nSet-Cookie: x=1", 0)
@example("a", "日本/語", MS_MAX)
def test_whatever_another_peer_says_of_a_file_can_be_sent_as_a_head(name: str, content_type: str, at_ms: int) -> None:
    file = Manifest(
        file_key="k",
        filename=name,
        size_bytes=1,
        sha256=bytes(32),
        content_type=content_type,
        uploaded_at_ms=at_ms,
        copies=1,
        chunks=None,
    )
    head = head_of(file, (NodeId("n"), 1))
    sent = format_head(200, [(field.encode("latin-1"), value.encode("latin-1")) for field, value in head.items()])
    assert sent.count(b"\r\n") == 2 + len(head)
    assert head["content-type"] in (content_type, "application/octet-stream")


@pytest.mark.parametrize("name", [".", "..", "..."])
def test_a_name_of_dots_stays_a_name_and_is_never_raw_in_a_header(name: str) -> None:
    assert clean_filename(name) == name
    assert '"."' not in disposition_of(name)
    assert ".." not in disposition_of(name)
    assert unquote(disposition_of(name).partition("filename*=UTF-8''")[2]) == name


@pytest.mark.parametrize("name", HOSTILE)
def test_the_plain_name_is_safe_to_save_under(name: str) -> None:
    plain = disposition_of(clean_filename(name)).split('"')[1]
    assert plain
    assert not set(plain) & set('"\\/%\r\n\0')
    assert all(" " <= char <= "~" for char in plain)


@pytest.mark.parametrize(
    ("claimed_name", "expected"),
    [
        ("a.txt", "a.txt"), ("C:\\temp\\a.txt", "a.txt"), ("/etc/passwd", "passwd"), ("../..", ".."), ("a/", ""),
        ("a\nb", "ab"), ("\ud800a", "a"), ("a\u2028b\x85", "ab"),
        (ODD, ODD), ("a" * 2000, "a" * FILENAME_CHARS_MAX),
    ],
)  # fmt: skip
def test_a_path_is_cut_down_to_its_last_part(claimed_name: str, expected: str) -> None:
    assert clean_filename(claimed_name) == expected


@pytest.mark.parametrize(
    ("filename", "claimed", "expected"),
    [
        ("a.txt", "", "text/plain"), ("a.txt", "application/octet-stream", "text/plain"), ("a.txt", "image/png",
        "image/png"),
        ("a", "", "application/octet-stream"), ("a.png", "no type", "image/png"), ("a.png", "a/b\r\nx: y", "image/png"),
        ("a.html", "text/html; charset=utf-8", "text/html"), ("a.unknown-ending", "", "application/octet-stream"),
        ("a.txt", "é/x", "text/plain"), ("", "", "application/octet-stream"), ("a.tar.gz", "", "application/x-tar"),
    ],
)  # fmt: skip
def test_the_clients_type_counts_unless_it_says_nothing(filename: str, claimed: str, expected: str) -> None:
    assert guess_content_type(filename, claimed) == expected


@given(st.text(), st.text())
def test_every_type_is_fit_for_a_header(filename: str, claimed: str) -> None:
    found = guess_content_type(filename, claimed)
    assert found.isascii()
    assert found.isprintable()
    assert len(found) < 255


# --- ranges ---


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None), ("", None), ("bytes=0-0", Span(0, 1)), ("bytes=0-9", Span(0, 10)), ("bytes=3-", Span(3, 7)),
        ("bytes=3-99", Span(3, 7)), ("bytes=-3", Span(7, 3)), ("bytes=-99", Span(0, 10)), (" bytes=0-1 ", Span(0, 2)),
        ("bytes=5-3", None), ("bytes=-", None), ("items=0-1", None), ("bytes=a-b", None),
        ("bytes=1", None), ("bytes=--1", None), ("bytes 0-1", None), ("bytes=0-1;", None),
        ("bytes=9-9", Span(9, 1)), ("bytes=0-9999999999999999999", Span(0, 10)), ("bytes=0-" + "9" * 30, Span(0, 10)),
        ("bytes=-" + "9" * 6000, Span(0, 10)), ("bytes=" + "0" * 5000 + "3-5", Span(3, 3)), ("bytes=٣-", None),
    ],
)  # fmt: skip
def test_a_range_is_understood_or_ignored(header: str | None, expected: Span | None) -> None:
    assert parse_ranges(header, 10) == (() if expected is None else (expected,))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0,5-6", [Span(0, 1), Span(5, 2)]),
        ("bytes= 7-8 , 0-1,", [Span(7, 2), Span(0, 2)]),
        ("bytes=0-3,2-5", [Span(0, 4), Span(2, 4)]),
        ("bytes=0-1,10-,99-", [Span(0, 2)]),
        ("bytes=-1,0-0", [Span(9, 1), Span(0, 1)]),
        # All of the file instead: not one of them is no range, nor may they be more than the file has, or too many.
        ("bytes=0-1,x", []),
        ("bytes=0-1,3-2", []),
        ("bytes=0-9,0-0", []),
        ("bytes=0-,0-,0-", []),
        ("bytes=" + ",".join(["0-0"] * (RANGES_MAX + 1)), []),
        ("bytes=" + ",".join(["0-"] * 2000), []),
        ("bytes=,,,", []),
    ],
)
def test_a_list_of_ranges_is_met_as_far_as_it_makes_sense(header: str, expected: list[Span]) -> None:
    assert parse_ranges(header, 10) == tuple(expected)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("bytes=10-", 10),
        ("bytes=" + "9" * 30 + "-", 10),
        ("bytes=10-12", 10),
        ("bytes=10-12,11-,-0", 10),
        ("bytes=-0", 10),
        ("bytes=0-", 0),
        ("bytes=-1", 0),
    ],
)
def test_a_range_that_cannot_be_met_is_416(header: str, size: int) -> None:
    with pytest.raises(HttpError) as caught:
        parse_ranges(header, size)
    assert caught.value.status == 416
    assert caught.value.headers == {"content-range": f"bytes */{size}"}


RANGE_LISTS = st.from_regex(r"bytes=[0-9]{0,21}-[0-9]{0,21}(,[0-9]{0,9}-[0-9]{0,9}){0,3}", fullmatch=True)


@given(st.text(max_size=40) | RANGE_LISTS, st.integers(0, 1 << 63))
def test_every_range_lies_within_the_file(header: str, size: int) -> None:
    try:
        spans = parse_ranges(header, size)
    except HttpError:
        return
    for span in spans:
        assert span.count > 0
        assert span.first >= 0
        assert span.first + span.count <= size


# --- conditions ---


@given(st.text(st.characters(max_codepoint=255), max_size=40) | st.datetimes().map(str))
@example("Thu, 01 Jan 0001 00:00:00 +2359")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@example("Thu, 01 Jan 2026 00:00:00")
def test_any_date_is_understood_or_ignored(text: str) -> None:
    found = _date_in(Headers({"if-modified-since": text}), "if-modified-since")
    assert found is None or isinstance(found, float)


@pytest.mark.parametrize(
    ("header", "strong", "weak"),
    [
        (None, False, False), ("", False, False), ("*", True, True), (ETAG, True, True), (f"W/{ETAG}", False, True),
        ('"x", "abc"', True, True), ('"x",W/"abc" ', False, True), ('"x"', False, False), ("abc", False, False),
         ('"abc', False, False),
    ],
)  # fmt: skip
def test_entity_tags_are_compared_strongly_or_weakly(header: str | None, strong: bool, weak: bool) -> None:
    assert is_current(header, ETAG, weak=False) is strong
    assert is_current(header, ETAG, weak=True) is weak
