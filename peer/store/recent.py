"""The contents of small files that came in a moment ago, and are likely to be wanted again soon."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from protocol.identity import Dot

Contents = Mapping[bytes, bytes]
"""Of chunks, by hash."""

BYTES_MAX = 16 * 1024 * 1024


class RecentContents:
    """Contents by put, those of the last puts; whoever gets them verifies them, as all that comes from a peer."""

    def __init__(self) -> None:
        self._contents: OrderedDict[Dot, Contents] = OrderedDict()
        self._size = 0

    def remember(self, put: Dot, contents: Contents) -> None:
        """Have the whole content of a put here for a while; the earliest make room for it."""
        self._forget(put)
        self._contents[put] = contents
        self._size += _size_of(contents)
        while self._size > BYTES_MAX:
            self._forget(next(iter(self._contents)))

    def of(self, put: Dot) -> Contents | None:
        """The whole content of a put, if it is still here."""
        return self._contents.get(put)

    def _forget(self, put: Dot) -> None:
        self._size -= _size_of(self._contents.pop(put, {}))


def _size_of(contents: Contents) -> int:
    return sum(map(len, contents.values()))
