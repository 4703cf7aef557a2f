"""
Locks that tasks hold while they run: the only room that writes their rows.

Model: a row says which attempt has a key: a task and its lease, for tasks that were claimed together share
one. It holds while the live row of that task carries that lease, and no longer. No attempt ever gets
the lease of an earlier one, so a lock that was free once is free for ever, and taking it is one
compare-and-set on both.

Failure cases: a worker that is killed keeps its lock until its task is rescued, which takes the
lease away. One that was suspended past its lease and wakes up cannot take a lock any more, and releases
only a row that still has its own lease. An answer that was lost is asked for again: whoever has the
row already has it.
"""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from django.db.models import Exists, OuterRef

from django_taskq.exceptions import LeaseLost
from django_taskq.models import Lock, Task
from django_taskq.store.vendors import vendor_for

__all__ = ["release", "sweep", "take"]

_TRIES = 3


def take(alias: str, key: str, *, task_id: uuid.UUID, lease: int, ttl: timedelta | None = None) -> bool:
    """
    Let an attempt hold a key, until it loses its lease or ``ttl`` has passed; return whether it has it now.

    Raise LeaseLost if the attempt itself holds its task no more.
    """
    vendor = vendor_for(alias)
    if not vendor.retrying(lambda: _take(alias, key, task_id, lease, ttl)):
        return False
    # Last, since it must have been true while the lock was held.
    if not _is_held(alias, task_id, lease):
        release(alias, key, task_id=task_id, lease=lease)
        raise LeaseLost(f"task {task_id} is not this attempt's any more, so it cannot lock {key!r}")
    return True


def _take(alias: str, key: str, task_id: uuid.UUID, lease: int, ttl: timedelta | None) -> bool:
    locks = Lock.objects.using(alias).filter(key=key)
    now = vendor_for(alias).now()
    mine = {"task_id": task_id, "lease": lease, "taken_at": now, "until": None if ttl is None else now + ttl}
    for _ in range(_TRIES):
        row = locks.values("task_id", "lease", "until").first()
        if row is None:
            with vendor_for(alias).atomic():
                Lock.objects.using(alias).bulk_create([Lock(key=key, **mine)], ignore_conflicts=True)
            row = locks.values("task_id", "lease", "until").first()
            if row is None:
                # Released by another one between the two statements.
                continue
        owner = (row["task_id"], row["lease"])
        if owner == (task_id, lease):
            return True
        is_over = row["until"] is not None and row["until"] <= now
        if not is_over and _is_held(alias, *owner):
            return False
        if locks.filter(task_id=owner[0], lease=owner[1]).update(**mine):
            return True
    return False


def _is_held(alias: str, task_id: uuid.UUID, lease: int) -> bool:
    return Task.objects.using(alias).filter(pk=task_id, lease=lease).exists()


def release(alias: str, key: str, *, task_id: uuid.UUID, lease: int) -> None:
    """Free a key if this attempt has it still."""
    mine = Lock.objects.using(alias).filter(key=key, task_id=task_id, lease=lease)
    vendor = vendor_for(alias)
    vendor.retrying(lambda: vendor.delete(mine))


def sweep(alias: str, *, before: datetime, limit: int) -> int:
    """Delete locks taken before a moment whose attempts are over; return how many."""
    live = Task.objects.using(alias).filter(pk=OuterRef("task_id"), lease=OuterRef("lease"))
    old = Lock.objects.using(alias).filter(~Exists(live), taken_at__lt=before)
    count = 0
    for key, task_id, lease in list(old.values_list("key", "task_id", "lease")[:limit]):
        # By its owner, too: another attempt may have taken it meanwhile.
        count += vendor_for(alias).delete(Lock.objects.using(alias).filter(key=key, task_id=task_id, lease=lease))
    return count
