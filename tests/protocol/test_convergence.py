"""Peers converge, nothing acknowledged is lost and nothing removed comes back, whatever happens on the way.

The promises themselves are checked by `replicas.cluster` after every step and after healing.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicas.histories import History, histories
from replicas.stores import STORES, StoreKind

HISTORIES_SHARE = 10
"""Histories for each case the profile asks for: this is the test the rules stand on."""

every_store = pytest.mark.parametrize("kind", STORES, ids=str)


def histories_of(kind: StoreKind) -> int:
    return kind.cases(settings().max_examples * HISTORIES_SHARE)


@every_store
def test_peers_converge_after_any_history(kind: StoreKind) -> None:
    @settings(max_examples=histories_of(kind))
    @given(histories())
    def converge(history: History) -> None:
        cluster = history.run(kind)
        cluster.heal()
        cluster.close()

    converge()
