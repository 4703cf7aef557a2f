"""
The Prometheus series: counted from events, and gauges that are read when somebody scrapes.

Its surprise: a label never comes from a row as it is. Task names are those of
definitions this process can load, everything else is "other"; queues are counted
up to ``MOST_QUEUES``. So no stored text can grow the registry.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.db import DEFAULT_DB_ALIAS, Error, connections
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from django_taskq import clock, conf, events
from django_taskq.domain.outcomes import Lost
from django_taskq.domain.states import FINAL, State
from django_taskq.lifecycle import definitions
from django_taskq.lifecycle.databases import database_for
from django_taskq.models import Limit
from django_taskq.models.stats import BUCKETS_MS
from django_taskq.ops import snapshot
from django_taskq.store.vendors import vendor_for
from django_taskq.worker.loop import workers_here

__all__ = ["Counters", "Gauges", "install"]

logger = logging.getLogger("django_taskq")

OTHER = "other"
MOST_QUEUES = 100
MOST_TASKS = 500
MOST_LIMITS = 200
# Where no worker keeps the snapshots fresh, a scrape counts for itself, and no further than this.
LIVE_CAP = 10_000

# The bounds of the statistics in the database, so that both tell the same story.
_BUCKETS = (0.001, 0.005, *(bound / 1000 for bound in BUCKETS_MS))
_OUTCOMES = {
    State.SUCCEEDED: "succeeded",
    State.DEAD: "dead",
    State.CANCELLED: "cancelled",
}
_WORKFLOW_EVENTS: dict[type[events.Event], str] = {
    events.WorkflowStarted: "started",
    events.WorkflowCompleted: "completed",
    events.WorkflowFailed: "failed",
    events.WorkflowCancelled: "cancelled",
    events.WorkflowReplayed: "replayed",
    events.WorkflowMended: "mended",
}
_DEPTHS = (State.READY, State.SCHEDULED, State.RUNNING, State.WAITING, State.PARKED)


@lru_cache(maxsize=1)
def install() -> None:
    """Register the series in the default registry and start to count; a second call changes nothing."""
    Counters(REGISTRY).subscribe()
    REGISTRY.register(Gauges())


class _Labels:
    """Turns names into label values, of which there are never more than ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, name: str) -> str:
        if name in self._known:
            return name
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(name)
        return name


def _definition_name(name: str) -> str:
    """Return what the definition a name leads to is called, "other" if it leads to none here."""
    try:
        task = definitions.find(name)
    except Exception:
        return OTHER
    return OTHER if task is None else definitions.stored_name(task)


class _Series:
    """The children of one pair of labels, looked up once."""

    __slots__ = ("latency", "queue", "run", "task", "wait")

    def __init__(self, counters: Counters, queue: str, task: str) -> None:
        self.queue = queue
        self.task = task
        self.run: Histogram = counters.run_seconds.labels(task)
        self.wait: Histogram = counters.wait_seconds.labels(queue)
        self.latency: Histogram = counters.latency_seconds.labels(queue)


def _outcome(transition: Any) -> str:
    return _OUTCOMES.get(transition.state) or ("released" if transition.error is None else "retried")


def _eligible(claim: Any) -> float:
    """Return since when a claimed task could have run."""
    return float((claim.run_after or claim.created_at).timestamp())


def _observe(histogram: Histogram, seconds: Sequence[float]) -> None:
    """
    Observe many values at once.

    ``Histogram.observe`` takes two locks for each value, which made counting cost a no-op
    task a tenth of its time; a batch takes two for each bucket it hits. The library has no
    public way to do that; a test compares the result with one ``observe`` after the other.
    """
    if not seconds:
        return
    # Two clocks may disagree by a little; nothing took less than no time.
    values = [max(value, 0.0) for value in seconds]
    bounds = histogram._upper_bounds
    for at, count in Tally([bisect_left(bounds, value) for value in values]).items():
        histogram._buckets[at].inc(count)
    histogram._sum.inc(sum(values))


class Counters:
    """What happened in this process, since it started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queues = _Labels(MOST_QUEUES)
        self._tasks = _Labels(MOST_TASKS)
        self._series: dict[tuple[str, str], _Series] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"taskq_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"taskq_{name}", text, labels, registry=registry, buckets=_BUCKETS)

        self.scheduled = counter("tasks_scheduled_total", "Tasks enqueued, for now or for later", "queue")
        self.rejected = counter("enqueues_rejected_total", "Enqueues that failed and left no row", "queue")
        self.claimed = counter("tasks_claimed_total", "Tasks taken by workers of this process", "task")
        self.processed = counter(
            "tasks_processed_total",
            "Attempts settled: succeeded, retried, dead, cancelled, or released (attempt given back)",
            "task",
            "outcome",
        )
        self.completed = counter("tasks_completed_total", "Tasks that succeeded", "queue")
        self.failed = counter("tasks_failed_total", "Tasks that became dead letters", "queue")
        self.cancelled = counter("tasks_cancelled_total", "Tasks that ended as cancelled", "queue")
        self.retried = counter("retry_count_total", "Failed attempts that another attempt follows", "queue")
        self.attempts_failed = counter("attempts_failed_total", "Attempts that failed, whatever followed", "queue")
        self.rescued = counter("tasks_rescued_total", "Tasks taken from workers that fell silent", "queue")
        self.refused = counter("settlements_refused_total", "Ends not written because the lease was lost", "queue")
        self.replayed = counter("tasks_replayed_total", "Tasks sent back by operators", "queue")
        self.pruned = counter("tasks_pruned_total", "Finished tasks deleted by retention", "state")
        self.workflows = counter(
            "workflow_events_total",
            "What became of chains, batches and workflows: started, completed, failed, cancelled, replayed, mended",
            "kind",
            "event",
        )
        self.callbacks = counter(
            "workflow_callbacks_total", "Callbacks that were enqueued as tasks, and that died", "callback", "event"
        )
        self.workers_lost = counter("workers_lost_total", "Workers declared dead by this process")
        self.results_dropped = counter("results_dropped_total", "Outcomes that streams of results had no room for")
        self.run_seconds = histogram("task_duration_seconds", "How long attempts ran", "task")
        self.wait_seconds = histogram("task_wait_seconds", "From when a task could run to its start", "queue")
        self.latency_seconds = histogram("task_latency_seconds", "From when a task could run to its end", "queue")
        self._listeners: dict[type[events.Event], Callable[[Any], None]] = {
            events.TasksStored: self._stored,
            events.TasksClaimed: self._claimed,
            events.AttemptsSettled: self._settled,
            events.EnqueueRejected: self._rejected,
            events.EnqueueDropped: self._rejected,
            events.TaskDead: self._dead,
            events.TaskCancelled: self._cancelled,
            events.TaskReplayed: self._replayed,
            events.TasksPruned: self._pruned,
            events.WorkerLost: self._lost,
            events.CallbackEnqueued: self._called_back,
            events.CallbackDead: self._callback_died,
            **dict.fromkeys(_WORKFLOW_EVENTS, self._flowed),
            events.ResultsDropped: self._dropped,
        }

    def subscribe(self) -> None:
        """Start to count."""
        for kind, listener in self._listeners.items():
            events.subscribe(kind, listener)

    def unsubscribe(self) -> None:
        """Stop counting."""
        for kind, listener in self._listeners.items():
            events.unsubscribe(kind, listener)

    def _series_of(self, queue: str, name: str) -> _Series:
        found = self._series.get((queue, name))
        if found is None:
            if len(self._series) >= MOST_QUEUES * 10:
                # Names that lead nowhere must not fill this up.
                self._series.clear()
            found = _Series(self, self._queues.of(queue), self._tasks.of(_definition_name(name)))
            if found.task != OTHER:
                self._series[queue, name] = found
        return found

    def _stored(self, event: events.TasksStored) -> None:
        self.scheduled.labels(self._queues.of(event.queue)).inc(event.count)

    def _rejected(self, event: events.EnqueueRejected | events.EnqueueDropped) -> None:
        self.rejected.labels(self._queues.of(event.queue)).inc()

    def _claimed(self, event: events.TasksClaimed) -> None:
        for (queue, name), count in Tally((claim.queue, claim.name) for claim in event.claims).items():
            self.claimed.labels(self._series_of(queue, name).task).inc(count)

    def _settled(self, event: events.AttemptsSettled) -> None:
        groups: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
        for pair in event.settled:
            claim = pair[0].claim
            groups.setdefault((claim.queue, claim.name), []).append(pair)
        for (queue, name), pairs in groups.items():
            self._count(self._series_of(queue, name), pairs)
        for ended in event.refused:
            self.refused.labels(self._queues.of(ended.claim.queue)).inc()

    def _count(self, series: _Series, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Count what ended of one task on one queue. Bare loops: this is paid for every task."""
        outcomes = Tally([_outcome(transition) for _, transition in pairs])
        for outcome, count in outcomes.items():
            self.processed.labels(series.task, outcome).inc(count)
        if outcomes["succeeded"]:
            self.completed.labels(series.queue).inc(outcomes["succeeded"])
        if outcomes["retried"]:
            self.retried.labels(series.queue).inc(outcomes["retried"])
        failed = sum(transition.error is not None for _, transition in pairs)
        if failed:
            self.attempts_failed.labels(series.queue).inc(failed)
        rescued = sum(isinstance(ended.outcome, Lost) for ended, _ in pairs)
        if rescued:
            self.rescued.labels(series.queue).inc(rescued)
        begun = [
            (ended.started, ended.ended, _eligible(ended.claim), transition.state)
            for ended, transition in pairs
            if ended.started is not None
        ]
        _observe(series.run, [end - start for start, end, _, _ in begun])
        _observe(series.wait, [start - eligible for start, _, eligible, _ in begun])
        _observe(series.latency, [end - eligible for _, end, eligible, state in begun if state in FINAL])

    # Operators end tasks too, without a worker: these two are counted from the tasks' own events.

    def _dead(self, event: events.TaskDead) -> None:
        self.failed.labels(self._queues.of(event.queue)).inc()

    def _cancelled(self, event: events.TaskCancelled) -> None:
        self.cancelled.labels(self._queues.of(event.queue)).inc()

    def _replayed(self, event: events.TaskReplayed) -> None:
        self.replayed.labels(self._queues.of(event.queue)).inc()

    def _pruned(self, event: events.TasksPruned) -> None:
        self.pruned.labels(event.state).inc(event.count)

    def _flowed(self, event: events.WorkflowEvent) -> None:
        self.workflows.labels(event.kind, _WORKFLOW_EVENTS[type(event)]).inc()

    def _called_back(self, event: events.CallbackEnqueued) -> None:
        self.callbacks.labels(event.callback, "enqueued").inc()

    def _callback_died(self, event: events.CallbackDead) -> None:
        self.callbacks.labels(event.callback, "dead").inc()

    def _lost(self, event: events.WorkerLost) -> None:
        self.workers_lost.inc()

    def _dropped(self, event: events.ResultsDropped) -> None:
        self.results_dropped.inc(event.count)


class Gauges(Collector):
    """
    How things stand when somebody scrapes.

    Depths come from the snapshots that the leading worker writes; where none is fresh, that is where no worker
    is alive, ready tasks are counted up to ``LIVE_CAP``. A database that does not answer shows as
    ``taskq_database_up`` 0 and without depths; the scrape goes through.
    """

    def describe(self) -> list[Metric]:
        """Return the gauges without values: registering must not ask the database."""
        return list(_families().values())

    def collect(self) -> Iterator[Metric]:
        """Read the gauges."""
        families = _families()
        here = workers_here()
        if here:
            families["in_flight"].add_metric([], sum(worker.in_flight for worker in here))
            running: Tally[str] = Tally()
            for worker in here:
                running.update(worker.running_by_queue())
            for queue, count in _clamped(running).items():
                families["running"].add_metric([queue], count)
        for alias in _databases():
            try:
                _read_database(alias, families)
                is_up = True
            except Error:
                logger.warning("The database %s did not answer a scrape", alias, exc_info=True)
                is_up = False
            families["database_up"].add_metric([alias], int(is_up))
        yield from families.values()


def _families() -> dict[str, GaugeMetricFamily]:
    def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"taskq_{name}", text, labels=labels)

    return {
        "in_flight": gauge("tasks_in_flight", "Tasks that workers of this process hold and have not settled"),
        "running": gauge("tasks_running", "Tasks that run in this process just now", "queue"),
        "depth": gauge("queue_depth", "Ready tasks, waiting for a worker", "queue"),
        "tasks": gauge("queue_tasks", "Tasks that have not ended or are dead, by state", "queue", "state"),
        "oldest": gauge("queue_oldest_ready_seconds", "How long the first ready task could have run", "queue"),
        "paused": gauge("queue_paused", "1 where a queue is paused", "queue"),
        "age": gauge("snapshot_age_seconds", "Age of what the depths were read from, 0 if counted now", "queue"),
        "limit": gauge(
            "limit_amount", "What a limit allows, at once or per time; none without a bound", "limit", "kind"
        ),
        "held": gauge("limit_held", "Slots of a concurrency limit that are taken", "limit"),
        "parked": gauge("limit_parked", "Tasks that are parked until a limit has room", "limit", "kind"),
        "workers": gauge("workers_alive", "Workers whose heartbeat is younger than their lease", "database"),
        "database_up": gauge("database_up", "1 where the database answered this scrape", "database"),
    }


def _databases() -> list[str]:
    try:
        return list(dict.fromkeys(database_for(conf.options(alias)) for alias in conf.aliases()))
    except Exception:
        logger.warning("The settings do not say which databases to look at", exc_info=True)
        return []


def _clamped(values: Tally[str]) -> dict[str, int]:
    kept: Tally[str] = Tally()
    for at, (queue, value) in enumerate(sorted(values.items())):
        kept[queue if at < MOST_QUEUES else OTHER] += value
    return dict(kept)


def _read_database(alias: str, families: dict[str, GaugeMetricFamily]) -> None:
    connection = connections[alias]
    was_open = connection.connection is not None
    try:
        now = clock.now()
        alive = [worker for worker in snapshot.workers(alias) if not snapshot.is_stale(worker, now)]
        families["workers"].add_metric([alias], len(alive))
        _read_queues(alias, snapshot.queues(alias, now=now), families)
        if Limit.objects.using(alias).exists():
            _read_limits(alias, now, families)
    finally:
        # A scrape may come in a thread that nobody tidies up.
        if not was_open and not connection.in_atomic_block:
            connection.close()


def _read_queues(alias: str, queues: Sequence[snapshot.QueueDepth], families: dict[str, GaugeMetricFamily]) -> None:
    # The same queue may live in several databases; the alias sets all but the default apart.
    prefix = "" if alias == DEFAULT_DB_ALIAS else f"{alias}:"
    tasks: Tally[tuple[str, str]] = Tally()
    for at, found in enumerate(queues):
        name = found.queue.name
        label = f"{prefix}{name}" if at < MOST_QUEUES else f"{prefix}{OTHER}"
        if found.depth is None or found.is_outdated:
            # Ready tasks only: no index leads to the others by queue.
            tasks[label, "ready"] += vendor_for(alias).depth(name, State.READY, cap=LIVE_CAP)
            age = 0.0
        else:
            for state in _DEPTHS:
                tasks[label, state.name.lower()] += getattr(found.depth, state.name.lower())
            tasks[label, "dead"] += found.depth.dead
            age = max((found.now - found.depth.at).total_seconds(), 0.0)
        if at < MOST_QUEUES:
            families["age"].add_metric([label], age)
            families["paused"].add_metric([label], int(found.pause is not None))
            if found.oldest_ready is not None and not found.is_outdated:
                families["oldest"].add_metric([label], found.oldest_ready.total_seconds())
    for (label, state_name), count in tasks.items():
        families["tasks"].add_metric([label, state_name], count)
        if state_name == "ready":
            families["depth"].add_metric([label], count)


def _read_limits(alias: str, now: datetime, families: dict[str, GaugeMetricFamily]) -> None:
    # Loaded by those who have limits.
    from django_taskq.domain.limits import LimitKind
    from django_taskq.ops import limits

    prefix = "" if alias == DEFAULT_DB_ALIAS else f"{alias}:"
    for view in limits.fixed(alias, limit=MOST_LIMITS, now=now):
        label = f"{prefix}{view.name}"
        if view.bound is not None:
            families["limit"].add_metric([label, view.kind], view.bound.amount)
        if view.kind == LimitKind.CONCURRENCY:
            families["held"].add_metric([label], view.held)
        families["parked"].add_metric([label, view.kind], view.parked)
