"""What clients may expect to read after what was acknowledged, by simulated peers or by real ones."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from enum import Enum

import httpx


class Promise(Enum):
    """What peers promise to clients and to each other, as far as it is checked from outside; see `docs/design.md`."""

    ACKNOWLEDGED = "acknowledged uploads are there"
    BYTES = "the bytes are those that were sent"
    DELETED = "what was deleted stays away"
    RECEIPTS = "receipts are true"
    REFUSED = "what is not what its checksum says is refused"
    LISTED = "what is listed is served"
    ALIKE = "peers become alike"
    COPIES = "copies are as many as wanted"
    KEPT = "no copy goes while there are too few"
    CLAIMS = "who says it holds a file has it"
    LOGS = "logs have no gaps, and each dot one meaning"
    ROT = "bad chunks are found and replaced"
    TIDY = "nothing piles up or is left behind"
    STARTS = "a peer starts on a disk that is well"
    TASKS = "no task fails as nobody foresaw"


class PromiseBroken(Exception):
    """The peers did not keep a promise; the message says what was expected and what was seen."""

    def __init__(self, promise: Promise, what: str) -> None:
        super().__init__(what)
        self.promise = promise

    def at(self, where: str) -> PromiseBroken:
        """The same, and where it was seen."""
        return PromiseBroken(self.promise, f"{where}: {self}")


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """One body that was sent, and who said to have it on disk; nobody for one that was never acknowledged."""

    seed: int
    size: int
    sha256: str
    holders: frozenset[str] = frozenset()

    def is_live(self, live: frozenset[str]) -> bool:
        """Whether a peer that promised to have it is up."""
        return bool(self.holders & live)


@dataclass(slots=True)
class FileModel:
    """What may be seen under one file id.

    A peer that had a version on its disk has heard of it, so a write or delete through that peer removes it; through
    another one it may survive as a sibling, and come to light when the version above it is deleted.
    """

    file_key: str
    shown: list[Version | None] = field(default_factory=lambda: [None])
    """What a read may find, one of these; None is 404."""
    beneath: list[Version] = field(default_factory=list)
    """Versions that may be live under the one that is shown."""
    busy: bool = False
    retired: bool = False
    """An operation on it was given up and may still happen: nothing can be said of it any more."""

    @property
    def must_exist(self) -> bool:
        """Whether every version that can be shown is one."""
        return None not in self.shown

    def acknowledged_put(self, version: Version, via: str, rivals: Collection[str] = ()) -> None:
        """A receipt came; `rivals` are checksums of versions that rank above it, and its peer had not heard of."""
        self.beneath = self._unknown_to(via)
        self.shown = [version, *(other for other in self.beneath if other.sha256 in rivals)]

    def acknowledged_delete(self, via: str) -> None:
        """200 to a DELETE."""
        self.beneath = self._unknown_to(via)
        self.shown = [None, *self.beneath]

    def uncertain_put(self, version: Version) -> None:
        """No answer: it may have happened."""
        self.shown.append(version)

    def uncertain_delete(self) -> None:
        """No answer: it may have happened."""
        self.shown += [None, *self.beneath]

    def may_be_unknown_to(self, via: str) -> bool:
        """Whether a peer may answer 404."""
        return not all(version is not None and via in version.holders for version in self.shown)

    def _unknown_to(self, via: str) -> list[Version]:
        versions = [version for version in self.shown if version is not None] + self.beneath
        return [version for version in dict.fromkeys(versions) if via not in version.holders]

    def forget_holder(self, name: str) -> None:
        """A peer's disk is not what it was: it may not have what it said it has, nor have heard of it."""

        def without(version: Version) -> Version:
            return replace(version, holders=version.holders - {name})

        self.shown = [version and without(version) for version in self.shown]
        self.beneath = [without(version) for version in self.beneath]

    def objection(self, status: int, sha256: str, live: frozenset[str], *, all_up: bool) -> PromiseBroken | None:
        """Why an answer to GET breaks a promise; None when it is fine."""
        versions = [version for version in self.shown if version is not None]
        if status == httpx.codes.OK:
            if any(version.sha256 == sha256 for version in versions):
                return None
            promise = Promise.BYTES if versions else Promise.DELETED
            return PromiseBroken(promise, f"{self.file_key}: content {sha256[:12]} instead of {self._expected()}")
        # A peer that knows nothing of the id and finds nobody to ask says so.
        nothing = (httpx.codes.NOT_FOUND,) if all_up else (httpx.codes.NOT_FOUND, httpx.codes.SERVICE_UNAVAILABLE)
        if None in self.shown and status in nothing:
            return None
        if not all_up and not all(version.is_live(live) for version in versions):
            return None
        return PromiseBroken(Promise.ACKNOWLEDGED, f"{self.file_key}: answered {status} instead of {self._expected()}")

    def _expected(self) -> str:
        return " or ".join(
            "404" if version is None else f"{version.sha256[:12]} ({version.size} bytes on {sorted(version.holders)})"
            for version in self.shown
        )


def content_of(seed: int, size: int) -> bytes:
    """The body of a version; a different one for each seed."""
    return random.Random(seed).randbytes(size)
