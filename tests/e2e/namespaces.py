"""Two network namespaces, as two machines, and what is between them: a cable, or a wire that loses and delays."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random

import pytest
import trio

HOSTS = ("10.77.0.1", "10.77.0.2")
PACKET_BYTES_MAX = 2048


def _can_make_namespaces() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"):
        return False
    made = subprocess.run(["ip", "netns", "add", "minidfs-probe"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", "minidfs-probe"], capture_output=True, check=False)
    return made.returncode == 0


needs_namespaces = pytest.mark.skipif(
    not _can_make_namespaces(), reason="network namespaces need Linux, root and the ip command"
)
needs_tun = pytest.mark.skipif(
    not (_can_make_namespaces() and os.path.exists("/dev/net/tun")),
    reason="a wire between namespaces needs Linux, root, the ip command and /dev/net/tun",
)


async def ip(*words: str) -> None:
    await trio.run_process(["ip", *words])


@asynccontextmanager
async def _namespaces() -> AsyncIterator[tuple[str, str]]:
    names = (f"minidfs-{os.getpid()}-a", f"minidfs-{os.getpid()}-b")
    try:
        for name in names:
            await ip("netns", "add", name)
            await ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        with trio.CancelScope(shield=True):
            for name in names:
                await trio.run_process(["ip", "netns", "delete", name], check=False, capture_stderr=True)


@asynccontextmanager
async def two_namespaces() -> AsyncIterator[tuple[str, str]]:
    """Two of them with a cable in between; they have the addresses HOSTS."""
    async with _namespaces() as names:
        devices = tuple(f"m{os.getpid()}{end}" for end in "ab")
        cable = ["name", devices[0], "netns", names[0], "type", "veth", "peer"]
        await ip("link", "add", *cable, "name", devices[1], "netns", names[1])
        for name, device, host in zip(names, devices, HOSTS, strict=True):
            await ip("-n", name, "addr", "add", f"{host}/24", "dev", device)
            await ip("-n", name, "link", "set", device, "up")
        yield names


@dataclass
class Wire:
    """What becomes of packets between two namespaces; seconds, one way."""

    names: tuple[str, str]
    chance: Random
    loss: float
    delay_s: tuple[float, float]
    carried: int = 0
    lost: int = 0

    async def carry(self, source: int, target: int) -> None:
        """Take what comes out of one end to the other, each packet in its own time: they overtake each other."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(source)
                with suppress(BlockingIOError):
                    packet = os.read(source, PACKET_BYTES_MAX)
                    if self.chance.random() < self.loss:
                        self.lost += 1
                    else:
                        nursery.start_soon(self._deliver, packet, target)

    async def _deliver(self, packet: bytes, target: int) -> None:
        await trio.sleep(self.chance.uniform(*self.delay_s))
        # A full queue loses it, as a real one does; a device that is not up yet takes nothing.
        with suppress(OSError):
            os.write(target, packet)
            self.carried += 1


@asynccontextmanager
async def bad_wire(loss: float, delay_s: tuple[float, float]) -> AsyncIterator[Wire]:
    """Two namespaces, HOSTS, between which packets are lost and take their time (there need be no `netem` for it)."""
    async with _namespaces() as names, trio.open_nursery() as nursery:
        ends = []
        try:
            for name, host, other in zip(names, HOSTS, reversed(HOSTS), strict=True):
                device = f"t{os.getpid()}{len(ends)}"
                ends.append(_open_tun(device))
                await ip("link", "set", device, "netns", name)
                await ip("-n", name, "addr", "add", host, "peer", other, "dev", device)
                await ip("-n", name, "link", "set", device, "up")
            wire = Wire(names, Random(1), loss, delay_s)
            nursery.start_soon(wire.carry, ends[0], ends[1])
            nursery.start_soon(wire.carry, ends[1], ends[0])
            yield wire
            nursery.cancel_scope.cancel()
        finally:
            for end in ends:
                os.close(end)


def _open_tun(device: str) -> int:
    """One end of a wire: a network device whose packets are read from and written to a file (Linux's `tun`)."""
    import fcntl

    tunsetiff, iff_tun, iff_no_pi = 0x400454CA, 0x0001, 0x1000
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, tunsetiff, struct.pack("16sH", device.encode(), iff_tun | iff_no_pi))
    return end
