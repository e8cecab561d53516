"""What goes wrong again and again is said once, and then rarely."""

from __future__ import annotations

import logging

import pytest

from peer.complaints import REMEMBERED_MAX, REMIND_S, Complaints

log = logging.getLogger("minidfs.test")


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_complaint_is_repeated_only_when_it_changes_or_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    complaints = Complaints(log, time)
    for _ in range(5):
        complaints.say("a", "it is down")
        time.now += 1
    complaints.say("b", "it is down")
    complaints.say("a", "it refuses", logging.ERROR)
    time.now += REMIND_S
    complaints.say("a", "it refuses")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "it is down"),
        ("WARNING", "it is down"),
        ("ERROR", "it refuses"),
        ("WARNING", "it refuses"),
    ]


def test_who_makes_up_things_to_complain_about_fills_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(log, Time())
    for number in range(3 * REMEMBERED_MAX):
        complaints.say(number, "it is down")
    assert len(complaints._said) == REMEMBERED_MAX


def test_what_strangers_bring_about_is_said_once_in_a_while_under_whatever_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    time = Time()
    complaints = Complaints(log, time)
    for number in range(500):
        complaints.say_rarely("datagrams", f"a datagram from {number} was refused")
    complaints.say_rarely("requests", "a request from 1 was refused")
    time.now += REMIND_S
    complaints.say_rarely("datagrams", "a datagram from x was refused")
    assert caplog.messages == [
        "a datagram from 0 was refused",
        "a request from 1 was refused",
        "a datagram from x was refused",
    ]
