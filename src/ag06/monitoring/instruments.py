"""The project's own metrics, declared and bound once. The runtime and the stores count on these objects.

Constants without labels are children; those with labels are families: bind `FAMILY.labels(...)` once and keep it.
"""

from __future__ import annotations

import os
from pathlib import Path

from ag06.monitoring.merging import join_group
from ag06.monitoring.metrics import Registry
from ag06.settings import located, variable

DIRECTORY_VARIABLE = "AG06_METRICS_DIR"
"""Where the processes of a workflow count together; a supervisor sets it."""
STRICT_VARIABLE = "AG06_METRICS_STRICT"
"""`0`: a mistake is a counted warning; anything else: it raises. Not set: it raises until a workflow runs."""


def shared_directory() -> Path | None:
    """Return the directory that `AG06_METRICS_DIR` names, `None` if it is not set.

    The variable is made absolute: it names the same directory after `chdir`, and in processes started from here.
    """
    value = variable(DIRECTORY_VARIABLE)
    if value is None:
        return None
    os.environ[DIRECTORY_VARIABLE] = path = located(value)
    return Path(path)


_directory = shared_directory()

REGISTRY = Registry(join_group(_directory) if _directory else None, strict=os.environ.get(STRICT_VARIABLE) != "0")

_MILLISECONDS = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000)
_AGE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3_600)
_OPERATION = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)

# The eight that dashboards rely on; without labels.
EVENTS_PROCESSED = REGISTRY.counter(
    "events_processed", "Deliveries that a step processed and whose acknowledgement is stored."
).labels()
ERRORS = REGISTRY.counter("errors", "Attempts of steps that failed: an exception, a timeout, or a rejection.").labels()
PROCESSING_DURATION = REGISTRY.histogram(
    "processing_duration_seconds", "Time a step's function took for one call, whatever came of it.", exemplars=True
).labels()
LATENCY = REGISTRY.histogram(
    "latency_milliseconds",
    "Time from an event's entry into the log until a step had settled it, in milliseconds.",
    buckets=_MILLISECONDS,
    exemplars=True,
).labels()
ACTIVE_CONNECTIONS = REGISTRY.gauge("active_connections", "Connections to the store that are open now.").labels()
QUEUE_SIZE = REGISTRY.gauge(
    "queue_size", "Events that wait for a step or are with one now, over all steps.", aggregate="max"
).labels()
MEMORY_USAGE = REGISTRY.gauge("memory_usage_mb", "Resident memory in megabytes, of all processes together.").labels()
CPU_USAGE = REGISTRY.gauge(
    "cpu_usage_percent", "Processor time used in the last interval, 100 for one core, of all processes together."
).labels()

EVENTS = REGISTRY.counter(
    "events", "Deliveries by what became of them: processed, retried, delayed, dead or fenced.", ("type", "outcome")
)
PUBLISHED = REGISTRY.counter(
    "published",
    "Events handed in by what became of them: stored, repeated (their id is there), duplicate, refused or unknown.",
    ("type", "outcome"),
)
STEP_DURATION = REGISTRY.histogram(
    "step_duration_seconds", "Time a step's function took for one call.", ("step",), exemplars=True
)
EVENT_AGE = REGISTRY.histogram(
    "event_age_seconds",
    "Time from an event's entry into the log until the step had settled it.",
    ("step",),
    _AGE,
    exemplars=True,
)
GROUP_BACKLOG = REGISTRY.gauge(
    "group_backlog", "Events in the log that the step has not settled.", ("step",), aggregate="max"
)
GROUP_OLDEST_AGE = REGISTRY.gauge(
    "group_oldest_age_seconds", "Age of the oldest event that the step has not settled.", ("step",), aggregate="max"
)
IN_FLIGHT = REGISTRY.gauge("in_flight", "Deliveries that workers hold for the step now.", ("step",))
RETRIES = REGISTRY.counter("retries", "Attempts that will be made again.", ("step",))
DEAD_LETTERS = REGISTRY.counter("dead_letters", "Events put among the dead letters, by reason.", ("step", "reason"))
WORKER_RESTARTS = REGISTRY.counter(
    "worker_restarts", "Worker processes that ended unasked; their supervisor starts others in their place."
).labels()
WORKER_STALLS = REGISTRY.counter(
    "worker_stalls", "Worker processes that were replaced because their event loop did not turn for too long."
).labels()
WORKER_RECYCLES = REGISTRY.counter(
    "worker_recycles", "Worker processes that were replaced gracefully after a number of events or of megabytes."
).labels()
TAKEOVERS = REGISTRY.counter("takeovers", "Deliveries taken over from a worker that was gone or silent.", ("step",))
DUPLICATES = REGISTRY.counter("duplicates", "Events that were refused as duplicates of one in the log.").labels()
JOURNAL_EVENTS = REGISTRY.gauge("journal_events", "Events in local journals that wait for the store.").labels()
JOURNAL_OLDEST_AGE = REGISTRY.gauge(
    "journal_oldest_age_seconds", "Age of the oldest event in a local journal.", aggregate="max"
).labels()
JOURNAL_DEAD_LETTERS = REGISTRY.gauge(
    "journal_dead_letters", "Events in local journals that the store refused for good.", aggregate="max"
).labels()
BREAKER_STATE = REGISTRY.gauge(
    "breaker_state",
    "State of the circuit breaker: 0 closed, 1 half open, 2 open, 3 forced open, 4 disabled, 5 metrics only.",
    ("breaker",),
    aggregate="max",
)
BREAKER_REFUSED = REGISTRY.counter("breaker_refused", "Calls that the circuit breaker refused.", ("breaker",))
STORE_OPERATION = REGISTRY.histogram(
    "store_operation_seconds", "Time one operation of the store took.", ("operation",), _OPERATION
)
BATCH_SIZE = REGISTRY.histogram(
    "batch_size", "How many events went through together: append, fetch, commit or step.", ("kind",), _SIZES
)
LOOP_LAG = REGISTRY.histogram(
    "loop_lag_seconds", "How late the event loop ran what was due.", buckets=_OPERATION
).labels()
KNOB_VALUE = REGISTRY.gauge("knob_value", "Value of the knob now.", ("knob",), aggregate="max")
EXPERIMENT_STATE = REGISTRY.gauge(
    "experiment_state", "State of the experiment: 0 ended, 1 running.", ("experiment",), aggregate="max"
)
OPTIMIZER_DECISIONS = REGISTRY.counter("optimizer_decisions", "Decisions of the optimizer.", ("kind",))
# Bound when there is a first score: until then there is no series, for 0 would say that nothing works any more.
OPTIMIZER_SCORE = REGISTRY.gauge(
    "optimizer_score_ratio", "How good the last window was beside the baseline, of which 1 is as good.", aggregate="max"
)
LOG_DROPPED = REGISTRY.counter("log_dropped", "Log lines that were dropped: whatever takes them is too slow.").labels()
SPANS_DROPPED = REGISTRY.counter(
    "spans_dropped", "Recorded spans that no collector has got: it is away, refuses them, or is too slow."
).labels()

REGISTRY.shorten(REGISTRY.families())
