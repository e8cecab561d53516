"""What can be wrong with what somebody else says."""

from __future__ import annotations


class ProtocolError(Exception):
    """A message breaks the rules: drop it, count it, keep running."""


class MalformedMessage(ProtocolError):
    """Bytes that are no message, or a value outside its limits."""


class WrongCluster(ProtocolError):
    """A message from a peer of another cluster."""


class WrongVersion(ProtocolError):
    """A message of a wire version this release does not speak."""


class NotAuthentic(ProtocolError):
    """Something that does not prove that a peer of this cluster says it."""


class NotFresh(ProtocolError):
    """A peer of this cluster said it, but not now: somebody says it again."""
