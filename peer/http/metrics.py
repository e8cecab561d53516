"""`GET /metrics`: what a peer counts, in the exposition format of Prometheus.

Names and units follow its conventions (https://prometheus.io/docs/practices/naming/). A peer counts in plain numbers,
which are put into the format when somebody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from peer.http.requests import services_of
from peer.http.services import Services
from peer.http.traffic import SECONDS, Durations, Traffic
from peer.store.lookups import Totals, totals
from peer.world.env import Work
from protocol.identity import BELIEFS


@dataclass(frozen=True, slots=True)
class _Measured:
    """What it takes a while to find out."""

    totals: Totals
    disk_free_bytes: int
    disk_total_bytes: int


async def metrics(request: Request) -> Response:
    """`GET /metrics`: everything a peer counts, of itself and of what it believes of the others."""
    services = services_of(request)
    me, disk = services.others.me, services.env.disk
    measured = _Measured(
        await services.here.database.read(lambda connection: totals(connection, me)),
        await services.env.run_blocking(Work.DISK, disk.free_bytes),
        await services.env.run_blocking(Work.DISK, disk.total_bytes),
    )
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Peer(services, request.app.state.traffic, measured))
    return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


class _Peer(Collector):
    """All metrics of one peer, at one moment."""

    def __init__(self, services: Services, traffic: Traffic, measured: _Measured) -> None:
        self._services = services
        self._traffic = traffic
        self._measured = measured

    def collect(self) -> Iterator[Metric]:
        yield from self._itself()
        yield from self._http()
        yield from self._files()
        yield from self._others()
        yield from self._work()

    def _itself(self) -> Iterator[Metric]:
        services, measured = self._services, self._measured
        labels = {"node_id": services.others.me, "version": services.env.version}
        yield _gauge("minidfs_build_info", "This peer and its version.", [(labels, 1)])
        lag = "Longest delay of the event loop within the last minute."
        yield _gauge("minidfs_event_loop_lag_seconds", lag, [({}, services.loop_lag.longest.seconds())])
        held = "Longest time a transaction kept the database's writer within the last minute."
        longest_s = services.here.database.longest_hold.seconds()
        yield _gauge("minidfs_writer_hold_seconds", held, [({}, longest_s)])
        yield _gauge("minidfs_disk_free_bytes", "What can still be written.", [({}, measured.disk_free_bytes)])
        yield _gauge("minidfs_disk_size_bytes", "The file system's size.", [({}, measured.disk_total_bytes)])
        damaged = "1 while rows of the catalog are damaged and no other peer's state has taken their place."
        yield _gauge("minidfs_damaged", damaged, [({}, services.here.is_damaged)])
        verified = "1 once it is known whether the catalog's rows were damaged when this peer started."
        yield _gauge("minidfs_verified", verified, [({}, services.here.verified.is_set())])
        inventoried = "1 once it is known which chunk files were missing when this peer started."
        yield _gauge("minidfs_inventoried", inventoried, [({}, services.here.inventoried.is_set())])
        disputed = "Logs of a node that this one has otherwise, since a machine's image was resumed."
        yield _gauge("minidfs_disputed_logs", disputed, self._disputed())
        yield _counter("minidfs_forks_ended", "Logs brought in line again after that.", [({}, services.forks.ended)])
        is_full = services.here.space.reason is not None
        yield _gauge("minidfs_read_only", "1 while the disk is full and no content is taken.", [({}, is_full)])

    def _disputed(self) -> list[tuple[dict[str, str], float]]:
        counted = Counter(node_id for node_id, _ in self._services.forks.disputed)
        return [({"node": node_id}, count) for node_id, count in counted.items()]

    def _http(self) -> Iterator[Metric]:
        traffic = self._traffic
        requests = [
            ({"method": method, "route": route, "status": str(status)}, count)
            for (method, route, status), count in traffic.requests.items()
        ]
        yield _counter("minidfs_http_requests", "Requests answered; status 0: the answer never began.", requests)
        yield _gauge("minidfs_http_requests_running", "Requests being answered now.", [({}, traffic.running)])
        yield _durations(traffic.durations)
        received = [({"route": route}, count) for route, count in traffic.received_bytes.items()]
        yield _counter("minidfs_http_received_bytes", "Bytes of request bodies.", received)
        sent = [({"route": route}, count) for route, count in traffic.sent_bytes.items()]
        yield _counter("minidfs_http_sent_bytes", "Bytes of response bodies.", sent)

    def _files(self) -> Iterator[Metric]:
        counted, repair = self._measured.totals, self._services.repair
        yield _gauge("minidfs_files", "Files in the catalog.", [({}, counted.files)])
        yield _gauge("minidfs_copies", "Files this peer holds.", [({}, counted.copies)])
        missing: list[tuple[dict[str, str], float]] = [({"node": node}, n) for node, n in counted.missing.items()]
        yield _gauge("minidfs_missing_copies", "Copies that a node should hold and does not.", missing)
        yield _counter("minidfs_repaired_copies", "Copies this peer fetched later.", [({}, repair.copies_made)])
        yield _counter("minidfs_repaired_bytes", "Their bytes.", [({}, repair.bytes_made)])

    def _others(self) -> Iterator[Metric]:
        services, membership = self._services, self._services.others.membership
        node_ids = [member.node_id for member in membership.members()]
        states = [
            ({"node": node_id, "state": state.value}, membership.status(node_id) is state)
            for node_id in node_ids
            for state in BELIEFS
        ]
        yield _gauge("minidfs_peer_state", "1 for what is believed of each peer.", states)
        latencies = {node_id: membership.latency_s(node_id) for node_id in node_ids}
        known = [({"node": node_id}, latency) for node_id, latency in latencies.items() if latency is not None]
        yield _gauge("minidfs_peer_latency_seconds", "Mean round trip of a probe.", known)
        gossip = services.gossip
        datagrams = {"sent": gossip.datagrams_sent, "received": gossip.datagrams_received}
        datagrams["dropped"] = gossip.datagrams_dropped
        counted = [({"kind": kind}, count) for kind, count in datagrams.items()]
        yield _counter("minidfs_probe_datagrams", "Probes and their answers; dropped: no message of ours.", counted)
        exchanges: list[tuple[dict[str, str], float]] = []
        for link in services.exchanger.links():
            exchanges.append(({"node": link.node_id, "result": "ok"}, link.done))
            exchanges.append(({"node": link.node_id, "result": "failed"}, link.failed))
        refused = [({"reason": reason}, count) for reason, count in services.sessions.refused.items()]
        yield _counter("minidfs_refused_messages", "Datagrams and requests that did not prove to be a peer's.", refused)
        yield _counter("minidfs_exchanges", "Log exchanges this peer began.", exchanges)

    def _work(self) -> Iterator[Metric]:
        statuses = [worker.status() for worker in self._services.workers]
        steps = [({"worker": status.name}, status.steps) for status in statuses]
        yield _counter("minidfs_worker_steps", "Steps of work done in the background.", steps)
        backlog = [({"worker": status.name}, status.backlog) for status in statuses]
        yield _gauge("minidfs_worker_backlog", "What waits to be done.", backlog)
        failures = [({"task": name}, count) for name, count in self._services.keeper.failures.items()]
        yield _counter("minidfs_task_failures", "Tasks that failed and were started again; the log says why.", failures)
        failing = [({"worker": status.name}, status.error is not None) for status in statuses]
        yield _gauge("minidfs_worker_failing", "1 if the last step failed; the log says why.", failing)


_Samples = Iterable[tuple[Mapping[str, str], float]]


def _gauge(name: str, help_text: str, samples: _Samples) -> Metric:
    return _filled(GaugeMetricFamily, name, help_text, samples)


def _counter(name: str, help_text: str, samples: _Samples) -> Metric:
    return _filled(CounterMetricFamily, name, help_text, samples)


def _filled(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, help_text: str, samples: _Samples
) -> Metric:
    found = list(samples)
    labels = list(found[0][0]) if found else []
    family = kind(name, help_text, labels=labels)
    for values, number in found:
        family.add_metric([values[label] for label in labels], float(number))
    return family


def _durations(by_route: dict[str, Durations]) -> Metric:
    help_text = "How long requests took, to the end of the answer."
    family = HistogramMetricFamily("minidfs_http_request_duration_seconds", help_text, labels=["route"])
    bounds = [*map(str, SECONDS), "+Inf"]
    for route, durations in by_route.items():
        family.add_metric([route], list(zip(bounds, accumulate(durations.counts), strict=True)), durations.total_s)
    return family
