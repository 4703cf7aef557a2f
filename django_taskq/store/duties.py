"""
Who does a duty: a row per duty, moved by compare-and-set.

Model: the holder may work until ``until`` and renews while it works; when that
moment has passed, any worker may take the row by raising ``term``. Two workers
can believe to hold a duty at once (one was stopped in the middle), so each
duty is written to be harmless when done twice.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import F

from django_taskq.models import Duty
from django_taskq.store.vendors import vendor_for

__all__ = ["give_up", "report", "take"]


def take(alias: str, name: str, worker_id: int, *, now: datetime, hold: timedelta) -> bool:
    """Take or keep a duty until ``now + hold``; return whether this worker has it."""
    duties = Duty.objects.using(alias).filter(name=name)
    if duties.filter(worker_id=worker_id, until__gt=now).update(until=now + hold):
        return True
    row = duties.values("term", "until", "worker_id").first()
    if row is None:
        with vendor_for(alias).atomic():
            Duty.objects.using(alias).bulk_create([Duty(name=name)], ignore_conflicts=True)
        row = {"term": 0, "until": None, "worker_id": 0}
    if row["until"] is not None and row["until"] > now and row["worker_id"]:
        return False
    return duties.filter(term=row["term"]).update(worker_id=worker_id, term=F("term") + 1, until=now + hold) == 1


def give_up(alias: str, worker_id: int) -> None:
    """Let go of every duty of a worker, so that another need not wait for the time to pass."""
    Duty.objects.using(alias).filter(worker_id=worker_id).update(worker_id=0, until=None)


def report(alias: str, name: str, worker_id: int, *, now: datetime, took: timedelta, count: int, error: str) -> None:
    """Note when a duty last ran and what came of it."""
    facts = {
        "worker_id": worker_id,
        "ran_at": now,
        "took_ms": int(took / timedelta(milliseconds=1)),
        "count": count,
        "error": error[:300],
    }
    if not Duty.objects.using(alias).filter(name=name).update(**facts):
        with vendor_for(alias).atomic():
            Duty.objects.using(alias).bulk_create([Duty(name=name, **facts)], ignore_conflicts=True)
