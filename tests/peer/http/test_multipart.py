"""The `file` field of uploads, taken apart while it arrives, and forms that are none."""

from __future__ import annotations

import pytest
from forms import BOUNDARY, field, form, parse
from hypothesis import given, settings
from hypothesis import strategies as st
from multipart import MultipartError
from starlette.requests import ClientDisconnect

from peer.http.errors import HttpError
from peer.http.multipart import OTHER_FIELD_BYTES_MAX, SEGMENTS_MAX


def cut(body: bytes, *sizes: int) -> list[bytes]:
    """The body in pieces of these sizes, the last one as often as it takes."""
    pieces, at, number = [], 0, 0
    while at < len(body):
        size = max(1, sizes[min(number, len(sizes) - 1)])
        pieces.append(body[at : at + size])
        at, number = at + size, number + 1
    return pieces


@settings(max_examples=60)
@given(st.binary(max_size=300), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_content_arrives_as_it_was_sent_however_it_is_cut(content: bytes, sizes: list[int]) -> None:
    body = form(
        field("before", b"1"), field("file", content, "a.txt", "Content-Type: text/x"), field("after", b"2" * 50)
    )
    assert parse(cut(body, *sizes)) == ("a.txt", "text/x", content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        b"--",
        b"\r\n--",
        f"--{BOUNDARY}".encode(),
        f"\r\n--{BOUNDARY[:-1]}\r\n".encode(),
        b"\r" * 50,
        b"\0" * 5000,
    ],
)
@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_content_that_looks_like_a_boundary_is_content(content: bytes, size: int) -> None:
    assert parse(cut(form(field("file", content, "a")), size))[2] == content


@pytest.mark.parametrize("name", ["a b.txt", "é.txt", "日本.txt", "a;b", "a%22b", "C:\\temp\\x", "n" * 500])
def test_names_arrive(name: str) -> None:
    assert parse([form(field("file", b"x", name))])[0].rpartition("\\")[2] == name.rpartition("\\")[2].replace(
        "%22", '"'
    )


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("é.txt".encode(), "é.txt"),
        ("é “x” €.txt".encode("cp1252"), "é “x” €.txt"),
        (b"a\x81b", "a\ufffdb"),
        ("\u202f\u3000\xa0.txt".encode(), "\u202f\u3000\xa0.txt"),
    ],
)
def test_names_arrive_in_whatever_encoding_they_were_sent(raw: bytes, name: str) -> None:
    body = form(field("file", b"x", "NAME")).replace(b"NAME", raw)
    assert parse([body]) == (name, "", b"x")


def test_a_form_in_which_no_file_was_chosen_is_refused() -> None:
    with pytest.raises(HttpError, match="no file was chosen") as caught:
        parse([form(field("file", b"", "", "Content-Type: application/octet-stream"))])
    assert caught.value.status == 400


def test_a_field_without_a_file_name_is_a_file_without_a_name() -> None:
    assert parse([form(field("file", b"x"))]) == ("", "", b"x")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (form(), 400),
        (form(field("other", b"x")), 400),
        (form(field("File", b"x", "a")), 400),
        (form(field("file", b"1", "a"), field("file", b"2", "b")), 400),
        (form(field("file", b"1", "a"), field("other", b"x"), field("file", b"2", "b")), 400),
        (form(field("other", b"x" * (OTHER_FIELD_BYTES_MAX + 1)), field("file", b"1", "a")), 413),
        (form(field("file", b"1", "a"), field("other", b"x" * (OTHER_FIELD_BYTES_MAX + 1))), 413),
    ],
    ids=["no fields", "no file", "case", "two files", "two files apart", "huge field before", "huge field behind"],
)
@pytest.mark.parametrize("size", [500, 10**6])
def test_a_form_without_exactly_one_file_of_sound_size_is_refused(body: bytes, status: int, size: int) -> None:
    with pytest.raises(HttpError) as caught:
        parse(cut(body, size))
    assert caught.value.status == status


@pytest.mark.parametrize(
    "body",
    [
        b"", b"junk", b"junk" * 10_000, b"--", form(field("file", b"x", "a"))[:-4], field("file", b"x" * 1000, "a"),
        f"--{BOUNDARY}\r\n\r\nno head\r\n--{BOUNDARY}--".encode(), f"--{BOUNDARY}\r\n".encode() + b"a" * 100_000,
        f'--{BOUNDARY}\r\nContent-Disposition: attachment; name="file"\r\n\r\nx\r\n--{BOUNDARY}--'.encode(),
        f"--{BOUNDARY}\r\nContent-Disposition: form-data\r\n\r\nx\r\n--{BOUNDARY}--".encode(),
        f"--{BOUNDARY}\r\nno colon\r\n\r\nx\r\n--{BOUNDARY}--".encode(),
        form(*[field(f"f{number}", b"") for number in range(SEGMENTS_MAX + 1)], field("file", b"x", "a")),
        form(field("file", b"x", "a")).replace(b"\r\n", b"\n"),
    ],
    ids=["empty", "junk", "much junk", "dashes", "cut off", "no end", "no head", "endless head", "no form-data",
    "no name",
         "no colon", "too many", "bare LF"],
)  # fmt: skip
@pytest.mark.parametrize("size", [50, 10**6])
def test_what_is_no_form_is_refused(body: bytes, size: int) -> None:
    with pytest.raises((MultipartError, HttpError)):
        parse(cut(body, size))


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(1, 50))
def test_a_damaged_form_is_a_form_or_refused(junk: bytes, at: int, size: int) -> None:
    body = form(field("before", b"1"), field("file", b"content", "a"))
    at = min(at, len(body))
    for damaged in (body[:at] + junk + body[at:], body[:at], junk + body, body[:at] + junk):
        try:
            parse(cut(damaged, size))
        except (MultipartError, HttpError):
            continue


def test_a_client_that_leaves_in_the_middle_is_noticed() -> None:
    body = form(field("file", b"x" * 1000, "a"))
    for length in (0, 10, 200, len(body) - 10):
        with pytest.raises(ClientDisconnect):
            parse(cut(body[:length], 100), breaks_off=True)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (None, 415), ("", 415), ("text/plain", 415), ("application/x-www-form-urlencoded", 415),
         ("multipart/mixed; boundary=b", 415),
        ("multipart/form-data", 400), ("multipart/form-data; boundary=", 400),
        ("multipart/form-data; boundary=" + "b" * 2000, 400),
        ('multipart/form-data; boundary=""', 400), ("multipart/form-data; bound=x", 400),
        ("multipart/form-data; boundary=\xe9\xff", 400), ("multipart/form-data; boundary=a\tb", 400),
    ],
)  # fmt: skip
def test_a_content_type_that_is_no_form_is_refused_before_the_body_is_read(kind: str | None, status: int) -> None:
    with pytest.raises((HttpError, MultipartError)) as caught:
        parse([], kind)
    if isinstance(caught.value, HttpError):
        assert caught.value.status == status


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_any_content_type_is_understood_or_refused(kind: str) -> None:
    for whole in (kind, f"multipart/form-data; {kind}", f"multipart/form-data; boundary={kind}"):
        try:
            parse([form(field("file", b"x", "a"))], whole)
        except (HttpError, MultipartError):
            continue
