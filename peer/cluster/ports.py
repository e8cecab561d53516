"""Ports of this machine: finding free ones, and saying who has those that are not."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

import httpx

from peer.cluster.layout import HOST, ClusterError, Layout
from peer.config import Address

HEALTH_TIMEOUT_S = 2.0

# Below the ports that Linux, macOS and Windows hand out to outgoing connections, so that no such connection takes one
# between our look and the peer's bind.
FREE_PORTS = range(10_000, 32_000)


def free_base_port(count: int) -> int:
    """Find `count` ports in a row that nothing uses; gives the first. For tests and experiments."""
    for _ in range(1000):
        base = FREE_PORTS.start + secrets.randbelow(len(FREE_PORTS) - count)
        if all(_is_free(port, with_datagrams=True) for port in range(base, base + count)):
            return base
    raise ClusterError(f"found no {count} free ports in a row")


def _is_free(port: int, *, with_datagrams: bool) -> bool:
    return (
        _can_bind(port, socket.SOCK_STREAM)
        and not _is_listening(port)
        and not (with_datagrams and not _can_bind(port, socket.SOCK_DGRAM))
    )


def _can_bind(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        # Connections of a cluster that ended a moment ago must not count. On Windows the option would steal the port,
        # and with datagrams it would share it.
        if os.name == "posix" and kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _is_listening(port: int) -> bool:
    # On macOS the bind succeeds beside a listener on all addresses.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(HEALTH_TIMEOUT_S)
        return probe.connect_ex((HOST, port)) == 0


async def check_ports(data: Path, layout: Layout, client: httpx.AsyncClient) -> None:
    """Raise a ClusterError that names the first taken port and, for peers left over from this cluster, who to stop."""
    wanted = [(layout.address_of(node_id), node_id, "--base-port") for node_id in layout.node_ids]
    wanted.append((layout.facade, "the shared facade", "--facade-port"))
    for address, needed_by, option in wanted:
        if _is_free(address.port, with_datagrams=needed_by in layout.node_ids):
            continue
        left_over = await _left_over_peers(data, layout, client)
        if left_over:
            raise ClusterError(_describe_left_over(address.port, left_over))
        raise ClusterError(
            f"port {address.port} is taken (needed by {needed_by}); stop what uses it or choose others with {option}"
        )


async def _left_over_peers(data: Path, layout: Layout, client: httpx.AsyncClient) -> dict[str, str]:
    """Peers of this cluster that outlived their supervisor: node id to process id, or '' where it is not known."""
    left_over = {}
    for node_id in layout.node_ids:
        health = await ask_health(client, layout.address_of(node_id))
        if health is not None and health.get("cluster_id") == layout.cluster_id:
            left_over[node_id] = _read_pid(data / node_id)
    return left_over


def _read_pid(folder: Path) -> str:
    try:
        return (folder / "peer.pid").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _describe_left_over(port: int, left_over: dict[str, str]) -> str:
    peers = ", ".join(f"{node_id} (process {pid or 'unknown'})" for node_id, pid in left_over.items())
    sentence = f"port {port} is taken by what a killed supervisor of this cluster left running: {peers}"
    stop = ("taskkill /F" + " /PID {}" * len(left_over)) if os.name == "nt" else ("kill" + " {}" * len(left_over))
    return f"{sentence}; stop it with: {stop.format(*left_over.values())}" if all(left_over.values()) else sentence


async def ask_health(client: httpx.AsyncClient, address: Address, path: str = "/health") -> dict[str, object] | None:
    try:
        answer = await client.get(f"http://{address}{path}")
        body = answer.json() if answer.is_success else None
    except (httpx.HTTPError, ValueError):
        return None
    return body if isinstance(body, dict) else None
