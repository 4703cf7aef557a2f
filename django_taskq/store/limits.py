"""
The rows of limits: lock, count, save; send parked tasks back.

Whoever changes ``held`` or ``tokens`` holds the row's lock until the transaction that starts or
settles the tasks has ended, so that nobody parks a task behind the back of the one that frees its slot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

from django.db.models import Q

from django_taskq.domain.limit_columns import LIMIT_CHANGING, LIMIT_FIELDS
from django_taskq.domain.limits import Room, is_shared
from django_taskq.domain.parking import paused_type_key, promise_mark
from django_taskq.domain.states import State
from django_taskq.models import Limit, Task
from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import Vendor

__all__ = [
    "due",
    "has_parked",
    "held_by_key",
    "locked",
    "look_at",
    "next_look",
    "parked_keys",
    "prune",
    "release_without",
    "reset_bound",
    "set_bound",
    "shared",
    "suspicious",
    "write_back",
]

# How many parked tasks are looked at for one that does not need another limit.
_LOOK_MOST = 100
_HELD = LIMIT_CHANGING.index("held")
_SET = ("set_amount", "set_per_seconds", "set_burst", "set_until")


def locked(vendor: Vendor, keys: Iterable[str], *, make: bool = False) -> dict[str, Room]:
    """Lock limits, in key order, and return them; with ``make`` those that have no row yet get one."""
    wanted = sorted(keys)
    rooms = {row[0]: Room(*row) for row in vendor.lock_limits(wanted)} if wanted else {}
    if make and len(rooms) < len(wanted):
        missing = [key for key in wanted if key not in rooms]
        vendor.make_limits(missing)
        rooms.update({row[0]: Room(*row) for row in vendor.lock_limits(missing)})
    return rooms


def write_back(vendor: Vendor, rooms: Iterable[Room]) -> None:
    """Write what changed in locked limits."""
    held: list[tuple[str, int]] = []
    whole: list[tuple[Any, ...]] = []
    for room in rooms:
        changing = room.changing
        if changing == room.before:
            continue
        if changing[_HELD + 1 :] == room.before[_HELD + 1 :]:
            held.append((room.key, room.held))
        else:
            whole.append((room.key, *changing))
        room.before = changing
    if held:
        vendor.save_held(held)
    if whole:
        vendor.save_limits(whole)


def shared(alias: str) -> list[Room]:
    """Return, unlocked, the limits of queues and of everything."""
    # A range of the primary key: the limits of tasks, which may be many, lie behind it.
    rows = Limit.objects.using(alias).filter(key__gte="0", key__lt="2").order_by("key")
    return [Room(*row) for row in rows.values_list(*LIMIT_FIELDS)]


def due(alias: str, now: datetime, limit: int) -> list[str]:
    """Return keys of limits that have to be looked at, those that wait longest first."""
    rows = Limit.objects.using(alias).filter(next_at__lte=now).order_by("next_at")
    return list(rows.values_list("key", flat=True)[:limit])


def next_look(alias: str) -> datetime | None:
    """Return when a limit has to be looked at next."""
    rows = Limit.objects.using(alias).filter(next_at__isnull=False).order_by("next_at")
    return rows.values_list("next_at", flat=True).first()


def parked_keys(alias: str) -> list[str]:
    """Return each key that tasks are parked on, without reading each task."""
    parked = Task.objects.using(alias).filter(parked_on__isnull=False).order_by("parked_on")
    found: list[str] = []
    key = parked.values_list("parked_on", flat=True).first()
    while key is not None:
        found.append(key)
        key = parked.filter(parked_on__gt=key).values_list("parked_on", flat=True).first()
    return found


def look_at(alias: str, key: str, *, now: datetime) -> None:
    """Let somebody look at a limit that tasks are parked on."""
    Limit.objects.using(alias).filter(key=key, waits=True).update(next_at=now)


def has_parked(alias: str, key: str) -> bool:
    """Return whether a task is parked on a key."""
    return Task.objects.using(alias).filter(parked_on=key).exists()


def release_without(vendor: Vendor, key: str, other: str) -> str | None:
    """
    Make the first task that is parked on a key and has not to wait for another one ready; return its queue.

    None where none of the most urgent is so, or somebody has it under lock. The caller has locked the key.
    """
    parked = Task.objects.using(vendor.alias).filter(parked_on=key, state=State.PARKED).order_by("rank", "id")
    found = next(
        (
            (number, queue)
            for number, queue, name, limits in parked.values_list("pk", "queue", "name", "limits")[:_LOOK_MOST]
            if other not in [paused_type_key(name), *(limits or "").split("\n")]
        ),
        None,
    )
    if found is None:
        return None
    number, queue = found
    fit = Task.objects.using(vendor.alias).filter(pk=number, parked_on=key, state=State.PARKED)
    features = vendor.connection.features
    if features.has_select_for_update:
        fit = fit.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
        if not fit.values_list("pk", flat=True):
            return None
    changed = Task.objects.using(vendor.alias).filter(pk=number, parked_on=key, state=State.PARKED)
    return queue if changed.update(state=State.READY, parked_on=None, slots=promise_mark(key)) else None


def suspicious(alias: str) -> list[str]:
    """Return keys of limits whose counters say that tasks hold or wait for them."""
    rows = Limit.objects.using(alias).filter(Q(held__gt=0) | Q(waits=True) | Q(promised__gt=0))
    return list(rows.order_by("key").values_list("key", flat=True))


def held_by_key(alias: str, keys: Collection[str]) -> dict[str, int]:
    """Count the slots that running tasks really hold. Exact for limits that the caller has locked."""
    counts = dict.fromkeys(keys, 0)
    running = Task.objects.using(alias).filter(lease__isnull=False, slots__isnull=False)
    for slots in running.values_list("slots", flat=True).iterator(chunk_size=2000):
        for key in (slots or "").split("\n"):
            if key in counts:
                counts[key] += 1
    return counts


def set_bound(alias: str, key: str, *, now: datetime, make: bool, **values: Any) -> bool:
    """
    Write what an operator set for a limit, and let it be looked at at once; return False if it has no row.

    With ``make`` it gets one. ``values`` are the columns ``set_…``. What comes into a bucket until now comes at the
    old rate.
    """
    vendor = vendor_for(alias)

    def work() -> bool:
        with vendor.atomic():
            room = locked(vendor, [key], make=make).get(key)
            if room is None:
                return False
            if room.bound(now)[0] is None:
                # Nobody counted while there was no bound: a bucket begins full.
                room.tokens = room.refilled_at = None
            else:
                room.free(now)
            room.used_at = room.next_at = now
            write_back(vendor, [room])
            Limit.objects.using(alias).filter(key=key).update(**values)
            return True

    return vendor.retrying(work)


def reset_bound(alias: str, key: str, *, now: datetime) -> bool:
    """Forget what an operator set for a limit, and let it be looked at at once; return False if nothing was set."""
    vendor = vendor_for(alias)

    def work() -> bool:
        with vendor.atomic():
            room = locked(vendor, [key]).get(key)
            if room is None or room.set_amount is None:
                return False
            room.free(now)
            room.next_at = now
            write_back(vendor, [room])
            rows = Limit.objects.using(alias).filter(key=key)
            rows.update(**dict.fromkeys(_SET), set_by="", set_reason="")
            if is_shared(key):
                # What only an operator had made is gone with what was set. Tasks are never parked on it.
                rows.filter(amount__isnull=True, held=0).delete()
            return True

    return vendor.retrying(work)


def prune(alias: str, *, now: datetime, before: datetime, limit: int) -> int:
    """
    Delete up to ``limit`` limits that nobody used since a moment, and that would be made again just so.

    Nothing is held, set, or waited for, and buckets are full.
    """
    is_over = Q(set_amount__isnull=True) | Q(set_until__lte=now)
    idle = Limit.objects.using(alias).filter(is_over, held=0, waits=False, promised=0, used_at__lt=before)
    rooms = [Room(*row) for row in idle.order_by("used_at").values_list(*LIMIT_FIELDS)[:limit]]
    keys = [room.key for room in rooms if room.is_as_new(now)]
    # Asked again by the statement that deletes: a task may have come meanwhile.
    return vendor_for(alias).delete(idle.filter(key__in=keys)) if keys else 0
