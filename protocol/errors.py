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
