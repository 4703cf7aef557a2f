"""Read how many tasks there are, from indexes only. Reading rooms (admin, commands, metrics) use this and snapshots."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

from django.db.models import Count, QuerySet

from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Task

__all__ = ["dead_by_queue", "due", "oldest_ready", "running_by_queue", "scheduled_by_queue"]


def dead_by_queue(alias: str, *, cap: int) -> Counter[str]:
    """Count the dead letters of each queue that nobody discarded, looking at the ``cap`` oldest of all."""
    dead = FinishedTask.objects.using(alias).filter(state=State.DEAD, resolved_at__isnull=True)
    return _by_queue(dead.order_by("finished_at"), cap)


def scheduled_by_queue(alias: str, *, cap: int) -> Counter[str]:
    """Count the scheduled tasks of each queue, looking at the ``cap`` that are due first of all."""
    # Not queue by queue: the index on the due time would be read whole for each.
    scheduled = Task.objects.using(alias).filter(state=State.SCHEDULED, run_after__isnull=False)
    return _by_queue(scheduled.order_by("run_after"), cap)


def due(alias: str, queue: str, *, now: datetime, cap: int) -> int:
    """Count the tasks of a queue that are due and not yet made ready, looking at the ``cap`` oldest of all."""
    late = Task.objects.using(alias).filter(state=State.SCHEDULED, run_after__lte=now)
    return _by_queue(late.order_by("run_after"), cap)[queue]


def running_by_queue(alias: str) -> Counter[str]:
    """Count the running tasks of each queue; there are only as many as workers hold."""
    running = Task.objects.using(alias).filter(lease__isnull=False).order_by()
    return Counter(dict(running.values_list("queue").annotate(Count("pk"))))


def _by_queue(rows: QuerySet[Any], cap: int) -> Counter[str]:
    # Counted here, since no portable statement groups what a LIMIT cut off.
    return Counter(rows.values_list("queue", flat=True)[:cap])


def oldest_ready(alias: str, queue: str) -> datetime | None:
    """Return since when the first ready task of a queue could have run."""
    row = (
        Task.objects.using(alias)
        .filter(queue=queue, state=State.READY)
        .order_by("rank", "id")
        .values_list("created_at", "run_after")
        .first()
    )
    return None if row is None else row[1] or row[0]
