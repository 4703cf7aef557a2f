"""The figures of each queue: how deep it is now, and what was settled in a window of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Sum

from django_taskq import clock
from django_taskq.domain.states import State
from django_taskq.models import Stat
from django_taskq.models.stats import BUCKETS_MS
from django_taskq.ops import snapshot
from django_taskq.store import depths
from django_taskq.store.vendors import vendor_for

__all__ = ["QueueFigures", "figures"]

# Where no worker keeps the snapshots fresh, ready tasks are counted here and now, and no further than this.
LIVE_CAP = 10_000
_COUNTERS = ("succeeded", "failed", "retried", "dead", "cancelled", "rescued", "run_ms")
_WAITS = tuple(f"wait_{number}" for number in range(len(BUCKETS_MS) + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """
    One queue. Depths are None where nobody looked lately; ``ready`` and ``oldest_ready`` are always of now.

    ``is_exact``: False where a depth is "at least". ``wait_p95_seconds``: 95 of 100 tasks waited
    at most this long, read off a histogram's bounds; None where nothing ran or the bound is open.
    """

    queue: str
    paused: bool
    workers: int
    ready: int
    scheduled: int | None
    running: int | None
    waiting: int | None
    parked: int | None
    dead: int | None
    oldest_ready: timedelta | None
    is_exact: bool
    looked_at: datetime | None
    settled: dict[str, int]
    wait_p95_seconds: float | None

    @property
    def run_mean_seconds(self) -> float | None:
        """The mean run time of the attempts that were settled in the window."""
        ended = sum(self.settled[name] for name in ("succeeded", "failed"))
        return self.settled["run_ms"] / 1000 / ended if ended else None


def figures(
    alias: str, *, window: timedelta, now: datetime | None = None, names: Sequence[str] | None = None
) -> list[QueueFigures]:
    """Return the figures of the registered queues, or those named, from small tables; no count goes beyond its cap."""
    now = now or clock.now()
    sums = _sums(alias, now - window)
    return [
        _of(alias, found, sums.get(found.queue.name, {}), now) for found in snapshot.queues(alias, now=now, names=names)
    ]


def _sums(alias: str, since: datetime) -> dict[str, dict[str, int]]:
    totals = {name: Sum(name) for name in (*_COUNTERS, *_WAITS)}
    rows = Stat.objects.using(alias).filter(minute__gte=since).order_by().values("queue").annotate(**totals)
    return {row["queue"]: {name: int(row[name] or 0) for name in totals} for row in map(dict[str, Any], rows)}


def _of(alias: str, found: snapshot.QueueDepth, sums: dict[str, int], now: datetime) -> QueueFigures:
    depth = None if found.is_outdated else found.depth
    name = found.queue.name
    if depth is None:
        ready = vendor_for(alias).depth(name, State.READY, cap=LIVE_CAP)
        since = depths.oldest_ready(alias, name)
        oldest = None if since is None else max(now - since, timedelta(0))
    else:
        ready, oldest = depth.ready, found.oldest_ready
    return QueueFigures(
        queue=name,
        paused=found.pause is not None,
        workers=found.workers,
        ready=ready,
        scheduled=None if depth is None else depth.scheduled,
        running=None if depth is None else depth.running,
        waiting=None if depth is None else depth.waiting,
        parked=None if depth is None else depth.parked,
        dead=None if depth is None else depth.dead,
        oldest_ready=oldest,
        is_exact=depth.exact if depth is not None else ready < LIVE_CAP,
        looked_at=None if depth is None else depth.at,
        settled={counter: sums.get(counter, 0) for counter in _COUNTERS},
        wait_p95_seconds=_p95([sums.get(column, 0) for column in _WAITS]),
    )


def _p95(counts: Sequence[int]) -> float | None:
    """Return the upper bound of the bucket in which 95 of 100 lie, None for no bucket or the open one."""
    total, seen = sum(counts), 0
    if not total:
        return None
    for bound, count in zip(BUCKETS_MS, counts, strict=False):
        seen += count
        if seen >= total * 0.95:
            return bound / 1000
    return None
