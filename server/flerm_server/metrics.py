"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from flerm_server.version import version

SECONDS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)


class Metrics:
    """The counters of one server; `registry` renders them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.calls = Counter(
            "flerm_calls_total",
            "Answered calls",
            ["protocol", "method", "code"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "flerm_call_seconds",
            "Time to answer a call",
            ["protocol", "method"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "flerm_calls_in_flight", "Calls being answered", ["protocol"], registry=self.registry
        )
        self.turned_away = Counter(
            "flerm_turned_away_total",
            "Calls refused for their token or the lack of one",
            ["protocol", "code"],
            registry=self.registry,
        )
        self.event_streams = Gauge(
            "flerm_event_streams", "Pages that follow a recording", registry=self.registry
        )
        self.rows = Counter(
            "flerm_rows_committed_total",
            "Measurements committed, repeated ones not counted",
            registry=self.registry,
        )
        self.duplicates = Counter(
            "flerm_rows_repeated_total",
            "Measurements that were there already",
            registry=self.registry,
        )
        self.recordings = Counter(
            "flerm_recordings_started_total",
            "Recordings and attempts opened",
            registry=self.registry,
        )
        build = Gauge(
            "flerm_build",
            "The server's version, as a label of 1",
            ["version"],
            registry=self.registry,
        )
        build.labels(version()).set(1)
