"""How many cases the property tests try, and which ports each worker takes.

`pytest` is for every commit, `pytest --hypothesis-profile=deep` for a long look, `other` for a second Python. `mutants`
is for sim/mutations.py: there a test only has to fail, and the smallest case is of no interest.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

from peer.cluster import ports

PORT_SLICES = 8

# A machine that is busy makes cases slow, not wrong.
_CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}

settings.register_profile("ci", max_examples=100, derandomize=True, database=None, print_blob=False, **_CALM)
settings.register_profile("other", max_examples=25, derandomize=True, database=None, print_blob=False, **_CALM)
settings.register_profile("deep", max_examples=5000, database=None, print_blob=True, **_CALM)
settings.register_profile(
    "mutants", max_examples=100, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate), **_CALM
)
settings.load_profile("ci")


def pytest_configure() -> None:
    """Tests know nothing of their user's settings, and none beside another picks the same free port at one moment."""
    for name in [name for name in os.environ if name.startswith("MINIDFS_") and not name.startswith("MINIDFS_E2E_")]:
        del os.environ[name]
    os.environ["MINIDFS_HOME"] = str(Path(tempfile.gettempdir()) / "minidfs has no home in tests")
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PORT_SLICES
    size = len(ports.FREE_PORTS) // PORT_SLICES
    start = ports.FREE_PORTS.start + worker * size
    ports.FREE_PORTS = range(start, start + size)
