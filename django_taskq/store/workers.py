"""Workers and their heartbeats: announce, beat, say good-bye, be declared dead."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django_taskq.domain import lease as leases
from django_taskq.models import Task, TaskType, Worker
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import CLAIM_FIELDS

__all__ = [
    "announce",
    "announce_task_types",
    "beat",
    "cancel_requests",
    "declare_dead",
    "forget",
    "held_since",
    "is_silent",
    "mark_stopping",
    "not_dead",
    "silent",
]


def announce(alias: str, *, now: datetime, **facts: Any) -> int:
    """Add a heartbeat row and return the worker's id, which was never used before."""
    row = Worker.objects.using(alias).create(started_at=now, beat_at=now, **facts)
    return int(row.pk)


def beat(alias: str, worker_id: int, *, now: datetime, running: int) -> bool:
    """Renew all leases of a worker. Return False if it was declared dead: it holds nothing any more."""
    alive = Worker.objects.using(alias).filter(pk=worker_id).exclude(state=Worker.State.DEAD)
    return alive.update(beat_at=now, running=running) == 1


def mark_stopping(alias: str, worker_id: int) -> None:
    """Show that a worker claims no more. It goes on beating until it has settled all it holds."""
    Worker.objects.using(alias).filter(pk=worker_id, state=Worker.State.ALIVE).update(state=Worker.State.STOPPING)


def forget(alias: str, worker_id: int) -> None:
    """Delete the row of a worker that holds nothing any more."""
    vendor_for(alias).delete(Worker.objects.using(alias).filter(pk=worker_id))


def not_dead(alias: str) -> list[Worker]:
    """Return the workers that nobody has declared dead, longest silent first."""
    return list(Worker.objects.using(alias).exclude(state=Worker.State.DEAD).order_by("beat_at"))


def is_silent(worker: Worker, *, now: datetime) -> bool:
    """Return whether a worker has not beaten for longer than its lease."""
    # The lease length is each worker's own, so that two releases with other settings get along.
    return worker.beat_at < now - timedelta(seconds=worker.lease_seconds)


def silent(alias: str, *, now: datetime) -> list[Worker]:
    """Return the workers that have not beaten for longer than their lease, longest silent first."""
    return [worker for worker in not_dead(alias) if is_silent(worker, now=now)]


def declare_dead(alias: str, worker: Worker) -> bool:
    """
    Take a silent worker's right to beat; return False if it beat, or somebody else was faster.

    From here on none of its writes can match: it cannot renew, and its leases are being rescued.
    """
    same = Worker.objects.using(alias).filter(pk=worker.pk, beat_at=worker.beat_at).exclude(state=Worker.State.DEAD)
    return same.update(state=Worker.State.DEAD) == 1


def cancel_requests(alias: str, worker_id: int) -> list[str]:
    """Return the public ids of this worker's tasks that somebody asked to stop."""
    low, high = leases.span_of(worker_id)
    asked = Task.objects.using(alias).filter(lease__gte=low, lease__lte=high, cancel=True)
    vendor = vendor_for(alias)
    return [vendor.public_id(key) for key in asked.values_list("id", flat=True)]


def held_since(alias: str, worker_id: int, *, before: datetime | None) -> list[Claim]:
    """Return what the books say this worker claimed, before a moment if one is given, and still holds."""
    low, high = leases.span_of(worker_id)
    held = Task.objects.using(alias).filter(lease__gte=low, lease__lte=high)
    if before is not None:
        held = held.filter(started_at__lt=before)
    vendor = vendor_for(alias)
    rows = held.values_list(*CLAIM_FIELDS, "lease")
    return [Claim(vendor.key_of(row[0]), *row[1:]) for row in rows]


def announce_task_types(alias: str, types: Mapping[str, str], *, now: datetime) -> None:
    """Remember task paths and the queue each goes to by default."""
    rows = [TaskType(name=name, queue=queue, seen_at=now) for name, queue in types.items()]
    with vendor_for(alias).atomic():
        TaskType.objects.using(alias).bulk_create(rows, ignore_conflicts=True)
    TaskType.objects.using(alias).filter(name__in=list(types)).update(seen_at=now)
