"""Every metric of the operator. Labels are bounded: no label holds the name of an object."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

API_REQUESTS = Counter(
    "servewright_operator_api_requests",
    "Requests to the API server. code 0: it did not answer.",
    ["verb", "kind", "code"],
    registry=REGISTRY,
)
API_SECONDS = Histogram(
    "servewright_operator_api_request_seconds",
    "How long the API server took to answer.",
    ["verb", "kind"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
RECONCILES = Counter(
    "servewright_operator_reconciles",
    "Passes over one ModelService, by how they ended.",
    ["result"],
    registry=REGISTRY,
)
RECONCILE_SECONDS = Histogram(
    "servewright_operator_reconcile_seconds",
    "How long a pass over one ModelService took.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
QUEUE_ADDS = Counter(
    "servewright_operator_queue_adds",
    "ModelServices put into the queue, those that already waited in it included.",
    registry=REGISTRY,
)
QUEUE_RETRIES = Counter(
    "servewright_operator_queue_retries",
    "ModelServices put back after a failed pass.",
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge(
    "servewright_operator_queue_depth",
    "ModelServices that wait for a worker.",
    registry=REGISTRY,
)
QUEUE_SECONDS = Histogram(
    "servewright_operator_queue_seconds",
    "How long a ModelService waited for a worker.",
    buckets=_SECONDS,
    registry=REGISTRY,
)
EVENTS_WAITING = Gauge(
    "servewright_operator_events_waiting",
    "Events that are still to be posted.",
    registry=REGISTRY,
)
EVENTS_DROPPED = Counter(
    "servewright_operator_events_dropped",
    "Events left out because too many waited, or that the API server did not take.",
    registry=REGISTRY,
)
REPAIRS = Counter(
    "servewright_operator_repairs",
    "Children applied anew because somebody had edited or deleted them.",
    ["kind"],
    registry=REGISTRY,
)
GHOSTS = Counter(
    "servewright_operator_ghosts",
    "Objects that the operator knew but a LIST no longer held: a watch missed their end.",
    ["kind"],
    registry=REGISTRY,
)
RESYNCED = Gauge(
    "servewright_operator_last_resync_timestamp_seconds",
    "When all kinds were last listed in full.",
    registry=REGISTRY,
)
LEADER = Gauge(
    "servewright_operator_leader",
    "1 while this replica holds the Lease.",
    registry=REGISTRY,
)
CONDITIONS = Gauge(
    "servewright_operator_modelservices",
    "ModelServices by a condition's type and status.",
    ["condition", "status"],
    registry=REGISTRY,
)


def render() -> bytes:
    """All metrics in Prometheus' text form."""
    return generate_latest(REGISTRY)
