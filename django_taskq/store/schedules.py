"""Schedules and their ticks: find what is due, lock one, note ticks exactly once, keep what the code declares."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Q

from django_taskq.domain.schedules import TickKind
from django_taskq.models import Schedule, ScheduleTick, Task
from django_taskq.store.vendors import vendor_for

__all__ = [
    "add",
    "add_one",
    "change",
    "due",
    "due_key",
    "from_code",
    "hand_run_since",
    "live_tasks",
    "lock",
    "mark_seen",
    "note_ticks",
    "noted",
    "remove",
]

# So many of a schedule's last tasks are asked about when it must not run beside itself.
_LAST_TASKS = 100


def due(alias: str, now: datetime, *, limit: int) -> list[int]:
    """Return the schedules to be looked at now, longest due first."""
    found = Schedule.objects.using(alias).filter(due_at__lte=now)
    return list(found.order_by("due_at").values_list("pk", flat=True)[:limit])


def due_key(alias: str, name: str, now: datetime) -> int | None:
    """Return the key of a schedule that has to be looked at now, None for one that has not."""
    found = Schedule.objects.using(alias).filter(name=name, due_at__lte=now)
    return found.values_list("pk", flat=True).first()


def lock(alias: str, **which: Any) -> Schedule | None:
    """Lock one schedule until the caller's transaction ends, and return it as it is now; None where there is none."""
    found = Schedule.objects.using(alias).filter(**which)
    if vendor_for(alias).connection.features.has_select_for_update:
        found = found.select_for_update()
    return found.first()


def change(alias: str, key: int, **changes: Any) -> None:
    """Write these columns of a schedule, which the caller has locked."""
    Schedule.objects.using(alias).filter(pk=key).update(**changes)


def add(alias: str, rows: Sequence[Schedule]) -> None:
    """Add schedules; those whose name is taken are left out."""
    with vendor_for(alias).atomic():
        Schedule.objects.using(alias).bulk_create(rows, ignore_conflicts=True)


def add_one(alias: str, row: Schedule) -> bool:
    """Add a schedule, in the caller's transaction; return False where its name is taken."""
    try:
        with transaction.atomic(using=alias):
            row.pk = None
            row.save(using=alias, force_insert=True)
    except IntegrityError:
        return False
    return True


def remove(alias: str, key: int) -> None:
    """Delete a schedule with its ticks."""
    ScheduleTick.objects.using(alias).filter(schedule_id=key).delete()
    Schedule.objects.using(alias).filter(pk=key).delete()


def from_code(alias: str, names: Iterable[str]) -> list[Schedule]:
    """Return the schedules that the code declared once, and those of these names."""
    return list(Schedule.objects.using(alias).filter(Q(source="code") | Q(name__in=list(names))))


def mark_seen(alias: str, keys: Sequence[int], now: datetime) -> None:
    """Note that these schedules stand in the code of a worker that runs."""
    Schedule.objects.using(alias).filter(pk__in=keys).update(seen_at=now)


def noted(alias: str, key: int, moments: Sequence[datetime]) -> set[datetime]:
    """Return those of the moments that have a row already."""
    ticks = ScheduleTick.objects.using(alias).filter(schedule_id=key, at__in=moments)
    return set(ticks.values_list("at", flat=True))


def note_ticks(
    alias: str, key: int, rows: Sequence[tuple[datetime, datetime | None, TickKind, uuid.UUID | None]], now: datetime
) -> None:
    """
    Keep what became of ticks: (at, since, kind, task).

    Raise IntegrityError where one of the moments has a row; then the caller's transaction must not commit.
    """
    ScheduleTick.objects.using(alias).bulk_create(
        ScheduleTick(schedule_id=key, at=at, since=since, kind=int(kind), task_id=task_id, made_at=now)
        for at, since, kind, task_id in rows
    )


def live_tasks(alias: str, key: int) -> list[uuid.UUID]:
    """Return those of a schedule's last tasks that have not ended."""
    made = ScheduleTick.objects.using(alias).filter(schedule_id=key, task_id__isnull=False)
    ids = list(made.order_by("-at").values_list("task_id", flat=True)[:_LAST_TASKS])
    return list(Task.objects.using(alias).filter(pk__in=ids).values_list("pk", flat=True)) if ids else []


def hand_run_since(alias: str, key: int, moment: datetime) -> datetime | None:
    """Return when a schedule was last run by hand later than a moment, None if it was not."""
    ticks = ScheduleTick.objects.using(alias).filter(schedule_id=key, kind=TickKind.MANUAL, made_at__gt=moment)
    return ticks.order_by("-made_at").values_list("made_at", flat=True).first()
