"""Every setting of a peer, with its unit, default and reason."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from protocol.keyring import OPEN, Keyring

INLINE_BYTES_MAX = 256 * 1024

EXIT_REMOVED = 78
"""The exit code of a peer that was removed from its cluster for good: to start it again changes nothing (EX_CONFIG of
sysexits.h)."""


class ConfigError(ValueError):
    """A setting makes no sense; the message says which and what to write instead."""


class Address(NamedTuple):
    """Where a peer listens; HTTP (TCP) and datagrams (UDP) share the port number."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `HOST:PORT` or `[V6]:PORT`.

        Raises ConfigError when the port is missing or out of range.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
            raise ConfigError(f"{text!r} is no address; write HOST:PORT, for example 127.0.0.1:8001")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_wildcard(self) -> bool:
        """True for addresses that stand for all of a machine's, at which nobody else can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    @property
    def is_loopback(self) -> bool:
        """True for addresses only this machine can reach."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@lru_cache(maxsize=4096)
def is_numeric(address: str) -> bool:
    """Whether `HOST:PORT` has a host that is an address and no name."""
    try:
        ipaddress.ip_address(Address.parse(address).host)
    except ValueError:
        return False
    return True


DURABILITIES = ("fsync", "os")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one peer; times in seconds, sizes in bytes."""

    node_id: str
    listen: Address
    data: Path
    advertise: Address | None = None
    """Where others reach this peer, with 0 for the port it listens on; None for the address it listens on."""
    facade: Address | None = None
    """The shared port of the naming service; None for a peer that does not serve it."""
    join: tuple[Address, ...] = ()
    """Peers to ask for the cluster; one that answers is enough, and none is needed once the data folder knows it."""
    rejoin: bool = False
    """Go over to the cluster of the peers in `join`, with all files, from one this peer founded and is alone in; join
    again a cluster this peer was removed from."""
    cluster_id: str | None = None
    """Found or join only this cluster. None: found one, or take over that of the first peer in `join` that answers."""
    keyring: Keyring = OPEN
    """The cluster's key, without which nothing is believed that comes from other peers, and the one that is to take its
    place."""
    copies: int = 3
    """Copies of a file uploaded here, unless the upload says otherwise."""
    heal_interval_s: float = 30.0
    """Between anti-entropy rounds with a random peer, and between looks at what this peer lacks."""
    probe_interval_s: float = 0.5
    """Between two rounds of probes, in each of which one other peer is asked whether it is there."""
    down_after_s: float = 2.5
    """A suspect has at least so long to answer for itself before it is taken for down; longer among more than ten."""
    out_after_s: float = 600.0
    """One that was down for so long is out: others hold its share, until it is back."""
    target_timeout_s: float = 1.0
    """An upload's target, or a peer asked before a delete, that makes no progress for this long counts as failed."""
    durability: str = "fsync"
    """Where a copy is before it is told of: `fsync`, on the disk; `os`, with the operating system, so that it outlives
    the process and no power cut."""
    reserve_bytes: int = 32 * 1024 * 1024
    """Set aside on the disk, so that files can still be deleted when it is full; 0 for nothing."""
    loop_look_s: float = 0.05
    """Between two looks at how late the event loop is."""
    shutdown_grace_s: float = 10.0
    """Requests that run when a peer is told to stop may finish for this long."""
    inline_bytes_max: int = INLINE_BYTES_MAX
    """Chunks up to this size live in the database; larger ones are files (measured: docs/decisions.md)."""
    chunk_bytes_max: int = 8 * 1024 * 1024
    file_bytes_max: int = 1 << 40
    names: tuple[str, ...] = ()
    """Host names this peer goes by, beside its addresses; a request to any other is refused."""
    origins: tuple[str, ...] = ()
    """Origins (`https://dash.example`) whose pages may use this peer, beside those of its members."""
    log_level: str = "info"
    log_format: str = "text"
    """`text`, or `json` for one object an event."""
    hostname: str = "localhost"
