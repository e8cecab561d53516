"""What a chaos run looks like while it runs, in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sim.chaos.scene import Scene

if TYPE_CHECKING:
    from rich.console import Group

REFRESH_S = 0.25


def shown(scene: Scene, seconds: float) -> Group:
    """Peers, faults, operations and missing copies of this moment."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    journal = scene.journal
    sample = next((event for event in reversed(journal.events) if event["event"] == "sample"), None)
    peers = Table(title=f"{journal.now_s:.0f} of {seconds:.0f} s", title_justify="left")
    for heading in ("peer", "state", "what is done to it"):
        peers.add_column(heading)
    live, answering = scene.live(), set(sample["answer"]) if sample else set()
    for node_id in scene.node_ids:
        state = "down" if node_id not in live else "answers" if node_id in answering else "silent"
        faults = [fault.rpartition(" ")[0] for fault in journal.running if fault.endswith((f" {node_id}", " all"))]
        style = {"down": "red", "silent": "yellow", "answers": "green"}[state]
        peers.add_row(node_id, Text(state, style), ", ".join(faults))
    operations = ", ".join(f"{count} {kind}" for kind, count in sorted(journal.counted.items()))
    missing = "" if sample is None else f"{sample['files']} files, {sample['missing']} copies missing"
    return Group(peers, Text(missing), Text(operations))


async def watch(scene: Scene, seconds: float) -> None:
    """Show it until cancelled."""
    from rich.live import Live

    with Live(shown(scene, seconds), auto_refresh=False, transient=True) as live:
        while True:
            live.update(shown(scene, seconds), refresh=True)
            await trio.sleep(REFRESH_S)
