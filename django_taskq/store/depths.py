"""Read how many tasks there are, from indexes only. Reading rooms (admin, commands, metrics) use this and snapshots."""

from __future__ import annotations

from datetime import datetime

from django.db.models import Count

from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Task

__all__ = ["dead_by_queue", "oldest_ready"]


def dead_by_queue(alias: str) -> dict[str, int]:
    """Count the dead letters of each queue that nobody discarded."""
    dead = FinishedTask.objects.using(alias).filter(state=State.DEAD, resolved_at__isnull=True)
    return dict(dead.order_by().values_list("queue").annotate(Count("pk")))


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
