"""Times as clients read them."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(wall_ms: int | None) -> str | None:
    """Milliseconds since 1970 as RFC 3339 in UTC, to the second."""
    if wall_ms is None:
        return None
    return f"{datetime.fromtimestamp(wall_ms // 1000, tz=UTC).replace(tzinfo=None).isoformat()}Z"
