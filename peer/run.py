"""Runs one peer in this process: logging, signals, exit code."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

import trio

from peer.config import Address, Config
from peer.node import Node
from peer.world.env import StartError, StoreError
from peer.world.sockets import own_host_towards, own_hosts
from peer.world.system import SystemEnv

log = logging.getLogger("minidfs")

HUNG_CALL_S = 4.0
"""After the grace for running requests: a disk call that hangs cannot be cancelled, only left behind, as in a crash."""

OPEN_FILES = 2048
"""Connections (see `peer.world.connection.Limits`) and twice as many files, chunks and sockets to other peers."""

SOMEWHERE_ELSE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of no machine (RFC 5737, RFC 3849): the way there is the way out of this one."""

TIME_FORMAT = "%Y-%m-%dT%H:%M:%S"

GARBAGE_MAX = 3000
"""Objects made and not freed before the collector looks at them; Python's own limit is 700 (docs/decisions.md)."""

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)]


def run_peer(config: Config) -> int:
    """Run a peer until a signal stops it; returns the exit code.

    Raises StartError when it cannot start, StoreError when its data folder cannot be read.
    """
    set_up_logging(config)
    allow_open_files()
    config = reachable(config)
    failures: list[Exception] = []
    _calm_collector()
    trio.run(_run, config, failures)
    if failures:
        raise failures[0]
    return 0


def _calm_collector() -> None:
    """What was imported stays and need not be looked through; what requests leave behind is mostly no cycle."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_MAX)


def reachable(config: Config) -> Config:
    """With the address at which others reach a peer that listens on all of them, when nobody said which."""
    if config.advertise is not None or not config.listen.is_wildcard:
        return config
    family = socket.AF_INET6 if ":" in config.listen.host else socket.AF_INET
    places = [*config.join, Address(SOMEWHERE_ELSE[family], 9)]
    hosts = [own_host_towards(place.host, place.port, family) for place in places]
    hosts += own_hosts() if family == socket.AF_INET else []
    host = next(filter(None, hosts), None)
    if host is None:
        raise StartError(
            f"cannot tell at which address others reach a peer on {config.listen.host}; say it with --advertise HOST"
        )
    log.info("others are told to reach this peer at %s; --advertise says otherwise", host)
    return replace(config, advertise=Address(host, config.listen.port))


def allow_open_files() -> None:
    """Let this process have as many files and connections open as it bounds itself to, where the system allows it."""
    try:
        import resource
    except ImportError:
        # Windows has no such limit.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = OPEN_FILES if hard == unlimited else min(OPEN_FILES, hard)
    if soft != unlimited and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft != unlimited and soft < OPEN_FILES:
        log.warning("only %d files and connections may be open here; ulimit -n %d would allow all", soft, OPEN_FILES)


def set_up_logging(config: Config) -> None:
    """One event a line, on standard error, in UTC."""
    if config.log_format == "json":
        formatter: logging.Formatter = _JsonFormatter(config.node_id)
    else:
        formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", TIME_FORMAT)
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler], force=True)
    # One line a request to another peer is no event.
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _JsonFormatter(logging.Formatter):
    """One object an event; `event` is what all events of a kind have in common, `message` the whole sentence."""

    def __init__(self, node_id: str) -> None:
        super().__init__(datefmt=TIME_FORMAT)
        self._node_id = node_id

    def format(self, record: logging.LogRecord) -> str:
        values = record.args if isinstance(record.args, tuple) else ()
        event = {
            "time": f"{self.formatTime(record, TIME_FORMAT)}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "node": self._node_id,
            "event": str(record.msg),
            "values": [str(value) for value in values],
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


async def _run(config: Config, failures: list[Exception]) -> None:
    node = Node(config, SystemEnv(config.data, syncs=config.durability == "fsync"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, node)
        try:
            await node.run()
        except* (StartError, StoreError) as group:
            failures.append(_first(group))
        nursery.cancel_scope.cancel()


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Exception)
    return found


async def _stop_on_signal(node: Node) -> None:
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async for number in signals:
            if node.is_stopping:
                log.warning("a second signal %d: ending at once", number)
                os._exit(1)
            node.stop()
            give_up = threading.Timer(node.config.shutdown_grace_s + HUNG_CALL_S, _leave_behind)
            give_up.daemon = True
            give_up.start()


def _leave_behind() -> None:
    # Whoever reads our log may hang too.
    last_resort = threading.Timer(1.0, os._exit, (1,))
    last_resort.daemon = True
    last_resort.start()
    log.error("a call to the disk hangs: ending without it, as in a crash; nothing acknowledged is lost")
    os._exit(1)
