"""
Keys under which tasks were accepted: those with an expiry, and changes to the live task that holds a unique one.

The caller has opened a transaction, unless a function says otherwise.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models import F

from django_taskq.domain.parking import promised_key
from django_taskq.domain.states import State
from django_taskq.exceptions import StoreUnavailable
from django_taskq.models import IdempotencyKey, Task
from django_taskq.store import steps
from django_taskq.store.rows import NewTask
from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import Holder

__all__ = ["Record", "delete", "free", "held", "point", "promised_to", "replace", "reschedule", "take"]


# How often keys may change hands between the attempt to take them and the look at who holds them.
_TURNS = 50


class Record(NamedTuple):
    """A key with an expiry that a task wants. ``task_id`` is the UUID's integer."""

    key: str
    task_id: int
    fingerprint: str
    seconds: float


def take(alias: str, records: Sequence[Record], *, now: datetime) -> dict[str, IdempotencyKey]:
    """
    Take keys for tasks about to be stored; return those that others hold, with what is known of them.

    Of many that want a key at once one gets it. A key whose time is over is anybody's. They are taken in order.
    """
    wanted = {record.key: record for record in sorted(records)}
    rows = IdempotencyKey.objects.using(alias)
    taken: dict[str, IdempotencyKey] = {}
    has_locks = vendor_for(alias).connection.features.has_select_for_update
    for turn in range(_TURNS):
        # A look without a lock may be at a snapshot that is older than the key.
        look = rows.select_for_update() if turn > 1 and has_locks else rows
        present = look.in_bulk(list(wanted))
        for key, found in present.items():
            record = wanted[key]
            if found.task_id.int == record.task_id or (found.expires_at <= now and _take_over(alias, record, now)):
                del wanted[key]
            elif found.expires_at > now:
                taken[key] = found
                del wanted[key]
        if not wanted:
            return taken
        # An insert tells no more than that a key is there now; the next look tells whose.
        made = [_row(record, now) for key, record in wanted.items() if key not in present]
        rows.bulk_create(made, ignore_conflicts=True, batch_size=500)
    raise StoreUnavailable(f"the keys {sorted(wanted)} changed hands {_TURNS} times in a row")


def held(alias: str, keys: Sequence[str], *, now: datetime) -> set[str]:
    """Return those of the keys whose time is not over. Needs no transaction, and locks nothing."""
    found = IdempotencyKey.objects.using(alias).filter(key__in=keys, expires_at__gt=now)
    return set(found.values_list("key", flat=True))


def _row(record: Record, now: datetime) -> IdempotencyKey:
    return IdempotencyKey(
        key=record.key,
        task_id=uuid.UUID(int=record.task_id),
        fingerprint=record.fingerprint,
        created_at=now,
        expires_at=now + timedelta(seconds=record.seconds),
    )


def _take_over(alias: str, record: Record, now: datetime) -> bool:
    row = _row(record, now)
    expired = IdempotencyKey.objects.using(alias).filter(key=record.key, expires_at__lte=now)
    changed: int = expired.update(
        task_id=row.task_id, fingerprint=row.fingerprint, created_at=row.created_at, expires_at=row.expires_at
    )
    return changed > 0


def point(alias: str, key: str, *, owner: int, to: int) -> None:
    """Let a key of one task lead to another."""
    held = IdempotencyKey.objects.using(alias).filter(key=key, task_id=uuid.UUID(int=owner))
    held.update(task_id=uuid.UUID(int=to))


def delete(alias: str, keys: Sequence[str]) -> int:
    """Forget keys with an expiry before their time; return how many there were. Needs no transaction."""
    vendor = vendor_for(alias)
    rows = IdempotencyKey.objects.using(alias).filter(key__in=keys)
    return vendor.retrying(lambda: vendor.delete(rows))


def free(alias: str, number: int) -> None:
    """Take the unique key off a live task."""
    Task.objects.using(alias).filter(pk=uuid.UUID(int=number)).update(unique_key=None)


def promised_to(alias: str, holder: Holder) -> str | None:
    """Return the key of the limit that a locked task was released for, None if it was for none."""
    if holder.state != State.READY:
        return None
    rows = Task.objects.using(alias).filter(pk=uuid.UUID(int=holder.id))
    return promised_key(rows.values_list("slots", flat=True).first())


def replace(alias: str, holder: Holder, row: NewTask) -> None:
    """Make another call of a locked task that nobody runs; id and age stay."""
    key = uuid.UUID(int=holder.id)
    # Their results are those of the other arguments.
    steps.reset(alias, [key], from_start=True)
    Task.objects.using(alias).filter(pk=key).update(
        # Another one where tasks share their keys.
        name=row.name,
        queue=row.queue,
        rank=row.rank,
        state=row.state,
        # What it has used so far does not count against the new call.
        max_attempts=F("attempt") + row.max_attempts,
        ack=row.ack,
        run_after=row.run_after,
        deadline_at=row.deadline_at,
        expires_at=row.expires_at,
        args=row.args,
        options=row.options,
        metadata=row.metadata,
        limits=row.limits,
        fair_key=row.fair_key,
        parked_on=None,
        slots=None,
        # What was asked of an attempt before it is not asked of this call.
        cancel=False,
    )


def reschedule(alias: str, holder: Holder, row: NewTask) -> None:
    """Give a locked task that nobody runs the time of another call."""
    Task.objects.using(alias).filter(pk=uuid.UUID(int=holder.id)).update(
        state=row.state,
        run_after=row.run_after,
        deadline_at=row.deadline_at,
        expires_at=row.expires_at,
        parked_on=None,
        slots=None,
        cancel=False,
    )
