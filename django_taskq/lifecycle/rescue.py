"""
Settle the tasks of workers that fell silent.

A lost worker is one more outcome: the same decision, the same write, fenced by
the dead worker's own leases. Whoever is late, the rescuer or the worker that
woke up again, matches no row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from django.db import IntegrityError

from django_taskq import clock, events
from django_taskq.domain import lease as leases
from django_taskq.domain.outcomes import ErrorInfo, Lost, fingerprint
from django_taskq.lifecycle.settle import Ended, settle
from django_taskq.models import Task, Worker
from django_taskq.store import workers as store
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import CLAIM_FIELDS

__all__ = ["bury", "rescue", "rescue_worker"]

logger = logging.getLogger("django_taskq")

CHUNK = 1000


def rescue(alias: str, *, now: datetime, watched: Callable[[Sequence[Worker]], Collection[int]] | None = None) -> int:
    """
    Declare silent workers dead and settle all they held; return how many tasks that were.

    ``watched`` is told of every worker's last beat and returns the ids of those that may be judged.
    """
    count = 0
    workers = store.not_dead(alias)
    judged = None if watched is None else watched(workers)
    for worker in workers:
        if not store.is_silent(worker, now=now) or (judged is not None and worker.pk not in judged):
            continue
        if store.declare_dead(alias, worker):
            if events.wanted(events.WorkerLost):
                events.emit(events.WorkerLost(worker_id=worker.pk, name=worker.name, alias=alias))
            count += rescue_worker(alias, worker.pk, now=now)
    # A rescuer that died half-way leaves rows of a worker that is dead already, or whose row is gone.
    for worker_id in _orphans(alias):
        count += rescue_worker(alias, worker_id, now=now)
    return count


def bury(alias: str, worker_id: int, *, now: datetime) -> int:
    """
    Settle what a worker held whose process is known to have ended; return how many tasks that were.

    Only for the parent of that process: nobody else can know it before the lease is over.
    """
    worker = Worker.objects.using(alias).filter(pk=worker_id).exclude(state=Worker.State.DEAD).first()
    if worker is not None and store.declare_dead(alias, worker):
        if events.wanted(events.WorkerLost):
            events.emit(events.WorkerLost(worker_id=worker.pk, name=worker.name, alias=alias))
        return rescue_worker(alias, worker_id, now=now)
    return 0


def _orphans(alias: str) -> list[int]:
    """Return ids of workers that hold tasks although they are dead or unknown, without reading every lease."""
    held = Task.objects.using(alias).filter(lease__isnull=False).order_by("lease").values_list("lease", flat=True)
    holders: list[int] = []
    lease = held.first()
    while lease is not None:
        holders.append(leases.worker_of(lease))
        lease = held.filter(lease__gt=leases.span_of(holders[-1])[1]).first()
    if not holders:
        return []
    # Asked last: a worker that comes meanwhile has its row before its first lease.
    alive = set(Worker.objects.using(alias).exclude(state=Worker.State.DEAD).values_list("pk", flat=True))
    return [worker_id for worker_id in holders if worker_id not in alive]


def rescue_worker(alias: str, worker_id: int, *, now: datetime) -> int:
    """Settle everything a dead worker held as lost; return how many tasks that were."""
    low, high = leases.span_of(worker_id)
    vendor = vendor_for(alias)
    held = Task.objects.using(alias).filter(lease__gte=low, lease__lte=high).order_by("lease")
    count = 0
    left: list[Any] = []
    while True:
        rows = list(held.exclude(pk__in=left).values_list(*CLAIM_FIELDS, "lease", "started_at")[:CHUNK])
        if not rows:
            return count
        ended = clock.timestamp()
        batch = [
            Ended(
                Claim(vendor.key_of(row[0]), *row[1:-1]),
                Lost(error=_lost(worker_id)),
                None if row[-1] is None else row[-1].timestamp(),
                ended,
            )
            for row in rows
        ]
        settled, refused = _settle(batch, alias, now)
        count += settled
        left += refused
        if not settled and not refused:
            # Somebody else rescues the same rows; what is left is theirs.
            return count


def _settle(batch: Sequence[Ended], alias: str, now: datetime) -> tuple[int, list[Any]]:
    """Settle a batch; return how many that were, and the keys of those that hold up the others if not left alone."""
    vendor = vendor_for(alias)
    try:
        return settle(batch, alias=alias, worker_id=0, now=now).count, []
    except Exception as error:
        if not isinstance(error, IntegrityError) and not vendor.refuses_value(error):
            raise
        if len(batch) == 1:
            claim = batch[0].claim
            logger.critical("Task %s of a lost worker cannot be settled; it is tried again", claim.name, exc_info=True)
            return 0, [claim.key]
    middle = len(batch) // 2
    first, second = (_settle(part, alias, now) for part in (batch[:middle], batch[middle:]))
    return first[0] + second[0], first[1] + second[1]


def _lost(worker_id: int) -> ErrorInfo:
    path = "django_taskq.exceptions.WorkerLost"
    message = f"worker {worker_id} stopped beating while it held the task"
    return ErrorInfo(class_path=path, message=message, traceback="", fingerprint=fingerprint(path, message, ""))
