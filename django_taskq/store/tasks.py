"""Single tasks: find, cancel, replay, discard, move to the dead letters; progress of a running one."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django_taskq.domain import payload
from django_taskq.domain.parking import promised_key
from django_taskq.domain.states import DeadReason, State
from django_taskq.models import Attempt, AuditEntry, FinishedTask, Progress, Task
from django_taskq.models.tasks import TaskRow
from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import CARRIED

__all__ = [
    "attempts_of",
    "audit",
    "bring_back",
    "discard",
    "end_waiting",
    "find",
    "find_many",
    "replay",
    "request_cancel",
    "request_requeue",
    "save_progress",
    "take_requeues",
    "to_uuid",
    "wants_requeue",
]

# The mark in the options of a running task that was asked to stop and come back.
_REQUEUE = "requeue"
_REQUEUE_TEXT = '"requeue":true'


def to_uuid(public_id: object) -> uuid.UUID | None:
    """Return the UUID that a public id stands for, None for anything malformed."""
    if isinstance(public_id, uuid.UUID):
        return public_id
    try:
        return uuid.UUID(str(public_id))
    except ValueError:
        return None


def find(alias: str, public_id: object) -> Task | FinishedTask | None:
    """Return a task, live or finished. A malformed id is not found."""
    key = to_uuid(public_id)
    if key is None:
        return None
    # A task may move between the two looks, in either direction (a settle, a replay): look at the first again.
    for model in (Task, FinishedTask, Task):
        row: Task | FinishedTask | None = model._default_manager.using(alias).filter(pk=key).first()
        if row is not None:
            return row
    return None


def find_many(alias: str, public_ids: Sequence[object]) -> dict[object, Task | FinishedTask]:
    """Return those of the tasks that exist, by the id as given."""
    keys = {public_id: key for public_id in public_ids if (key := to_uuid(public_id)) is not None}
    live = Task.objects.using(alias).in_bulk(list(keys.values()))
    rest = [key for key in keys.values() if key not in live]
    ended = FinishedTask.objects.using(alias).in_bulk(rest) if rest else {}
    found = {public_id: live.get(key) or ended.get(key) for public_id, key in keys.items()}
    return {public_id: row for public_id, row in found.items() if row is not None}


def attempts_of(alias: str, key: uuid.UUID) -> list[Attempt]:
    """Return the recorded attempts of a task, oldest first."""
    return list(Attempt.objects.using(alias).filter(task_id=key).order_by("id"))


def _finished(row: dict[str, Any], *, state: State, reason: DeadReason | None, now: datetime) -> FinishedTask:
    return FinishedTask(**row, state=int(state), finished_at=now, reason=reason)


def end_waiting(
    alias: str,
    keys: Sequence[uuid.UUID],
    *,
    state: State,
    now: datetime,
    reason: DeadReason | None = None,
    error_line: str | None = None,
) -> tuple[list[FinishedTask], Counter[str]]:
    """
    End tasks that nobody runs; return those that were ended, and how many of them each limit had made a promise.

    A task that is claimed at the same moment is either ended here or left to its worker, never both.
    """
    vendor = vendor_for(alias)

    def work() -> tuple[list[FinishedTask], Counter[str]]:
        promised: Counter[str] = Counter()
        with vendor.atomic():
            live = Task.objects.using(alias).filter(pk__in=keys).exclude(state=State.RUNNING).order_by("pk")
            if vendor.connection.features.has_select_for_update:
                live = live.select_for_update()
            rows: list[FinishedTask] = []
            for values in live.values(*CARRIED, "attempt", "started_at", "slots"):
                key = promised_key(values.pop("slots"))
                if key is not None:
                    promised[key] += 1
                row = _finished(values, state=state, reason=reason, now=now)
                row.error_line = error_line
                rows.append(row)
            FinishedTask.objects.using(alias).bulk_create(rows)
            Task.objects.using(alias).filter(pk__in=[row.pk for row in rows]).delete()
            if state == State.CANCELLED:
                from django_taskq.store import steps

                steps.cancel(alias, [row.pk for row in rows], now=now)
            return rows, promised

    return vendor.retrying(work)


def request_cancel(alias: str, keys: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """
    Ask running tasks to stop; return the ids of the rows that carry the request now.

    It stays with a row that is put back: the next claim of it ends it. It takes the place of a request
    to stop and come back.
    """
    tasks = Task.objects.using(alias).filter(pk__in=keys)
    vendor = vendor_for(alias)

    def ask() -> None:
        with vendor.atomic():
            tasks.filter(state=State.RUNNING).update(cancel=True)
            for row in tasks.filter(cancel=True, options__contains=_REQUEUE_TEXT):
                tasks.filter(pk=row.pk).update(options=_without_requeue(row))

    vendor.retrying(ask)
    return set(tasks.filter(cancel=True).values_list("pk", flat=True))


def request_requeue(alias: str, keys: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """
    Ask running tasks to stop and come back; return the ids of the rows that carry this request now.

    One that somebody asked to stop for good is left alone.
    """
    vendor = vendor_for(alias)

    def ask() -> set[uuid.UUID]:
        asked: set[uuid.UUID] = set()
        with vendor.atomic():
            running = Task.objects.using(alias).filter(pk__in=keys, state=State.RUNNING).order_by("pk")
            if vendor.connection.features.has_select_for_update:
                running = running.select_for_update()
            for row in running:
                if not row.cancel:
                    options = payload.encode_value({**row.option_values, _REQUEUE: True}, limit=None)
                    Task.objects.using(alias).filter(pk=row.pk).update(cancel=True, options=options)
                elif not wants_requeue(row):
                    continue
                asked.add(row.pk)
        return asked

    return vendor.retrying(ask)


def wants_requeue(row: Task) -> bool:
    """Return whether the task was asked to stop and come back."""
    return row.cancel and row.options is not None and _REQUEUE_TEXT in row.options


def take_requeues(alias: str, held: Mapping[uuid.UUID, int]) -> dict[uuid.UUID, str | None]:
    """
    Take the requests to come back off rows that these leases hold; return the options that each is left with.

    The caller has opened the transaction that settles them.
    """
    vendor = vendor_for(alias)
    # Not only those with a request: one that comes now waits until the options are written back.
    rows = Task.objects.using(alias).filter(pk__in=list(held)).order_by("pk")
    if vendor.connection.features.has_select_for_update:
        rows = rows.select_for_update()
    taken: dict[uuid.UUID, str | None] = {}
    for row in rows:
        if row.lease == held[row.pk] and wants_requeue(row):
            taken[row.pk] = options = _without_requeue(row)
            Task.objects.using(alias).filter(pk=row.pk).update(cancel=False, options=options)
    return taken


def _without_requeue(row: Task) -> str | None:
    values = {name: value for name, value in row.option_values.items() if name != _REQUEUE}
    return payload.encode_value(values, limit=None) if values else None


def replay(
    alias: str,
    keys: Sequence[uuid.UUID],
    *,
    now: datetime,
    attempts: int | None = None,
    from_start: bool = False,
) -> list[Task]:
    """
    Send dead and cancelled tasks back as ready, under the same ids; return the live rows.

    The attempt number goes on where it was, with ``attempts`` more allowed (as
    many as the task had, without). Its budget starts anew; an expiry is lifted.
    Steps that succeeded are not run again, unless ``from_start``.
    Two replays at once send a task back once. One whose unique key a live task holds stays where it is.
    """
    vendor = vendor_for(alias)

    def work() -> list[Task]:
        with vendor.atomic():
            ended = FinishedTask.objects.using(alias).filter(pk__in=keys).exclude(state=State.SUCCEEDED).order_by("pk")
            if vendor.connection.features.has_select_for_update:
                ended = ended.select_for_update()
            return bring_back(alias, list(ended), now=now, attempts=attempts, from_start=from_start)

    return vendor.retrying(work)


def bring_back(
    alias: str,
    ended: Sequence[FinishedTask],
    *,
    now: datetime,
    attempts: int | None = None,
    waits: Mapping[uuid.UUID, int] | None = None,
    from_start: bool = False,
) -> list[Task]:
    """
    Make finished rows live again and return them, without those whose unique key is taken; the caller has locked them.

    Ready, or with ``waits`` waiting for so many others. ``from_start`` forgets their steps.
    """
    from django_taskq.store import steps

    rows = [_live_again(row, attempts, now) for row in ended]
    for row in rows:
        if waits is not None:
            row.state, row.waits_for = int(State.WAITING), waits.get(row.pk, 0)
            row.run_after = row.deadline_at = None
    keyed = [row for row in rows if row.unique_key is not None]
    Task.objects.using(alias).bulk_create([row for row in rows if row.unique_key is None], batch_size=500)
    if keyed:
        taken = _taken(alias, keyed)
        rows = [row for row in rows if row.pk not in taken]
    for at in range(0, len(rows), 1000):
        keys = [row.pk for row in rows[at : at + 1000]]
        FinishedTask.objects.using(alias).filter(pk__in=keys).delete()
        steps.reset(alias, keys, from_start=from_start)
    return rows


def _taken(alias: str, rows: Sequence[Task]) -> set[uuid.UUID]:
    """Store rows with unique keys; return the ids of those whose key a live task holds, which are not stored."""
    rows = sorted(rows, key=lambda row: row.unique_key)
    Task.objects.using(alias).bulk_create(rows, batch_size=500, ignore_conflicts=True)
    made = set(Task.objects.using(alias).filter(pk__in=[row.pk for row in rows]).values_list("pk", flat=True))
    return {row.pk for row in rows} - made


_CARRIED_BACK = (
    "id",
    "queue",
    "rank",
    "ack",
    "created_at",
    "name",
    "args",
    "metadata",
    "parent_id",
    "workflow_id",
    "role",
    "limits",
    "fair_key",
    "unique_key",
)


def _live_again(row: FinishedTask, attempts: int | None, now: datetime) -> Task:
    values = row.option_values
    # How many attempts the task is worth, before replays added to its maximum.
    worth = values.setdefault("attempts", row.max_attempts)
    values.pop("unknown_since", None)
    budget = values.get("max_time")
    carried = {name: getattr(row, name) for name in _CARRIED_BACK}
    return Task(
        **carried,
        options=payload.encode_value(values, limit=None),
        state=int(State.READY),
        attempt=row.attempt,
        max_attempts=row.attempt + (attempts or worth),
        replays=row.replays + 1,
        run_after=now,
        started_at=row.started_at,
        deadline_at=None if budget is None else now + timedelta(seconds=budget),
    )


def discard(alias: str, keys: Sequence[uuid.UUID], *, now: datetime) -> list[uuid.UUID]:
    """Give dead tasks up: they stay dead, but leave the list of dead letters. Return the ids that changed."""
    open_ = FinishedTask.objects.using(alias).filter(pk__in=keys, state=State.DEAD, resolved_at__isnull=True)
    vendor = vendor_for(alias)
    changed: list[uuid.UUID] = []
    for key in list(open_.values_list("pk", flat=True)):
        if vendor.retrying(lambda key=key: open_.filter(pk=key).update(resolved_at=now)):  # type: ignore[misc]
            changed.append(key)
    return changed


def save_progress(alias: str, public_id: str, *, done: float, total: float | None, note: str, now: datetime) -> None:
    """Store how far a running task is."""
    facts = {"done": done, "total": total, "note": note[:200], "at": now}
    with vendor_for(alias).atomic():
        Progress.objects.using(alias).update_or_create(task_id=uuid.UUID(public_id), defaults=facts)


def audit(
    alias: str,
    *,
    actor: str,
    action: str,
    now: datetime,
    reason: str = "",
    target: str = "",
    key: uuid.UUID | None = None,
    rows: Sequence[TaskRow] = (),
    detail: dict[str, Any] | None = None,
) -> None:
    """Record who did what and why, one entry per task, or one for ``target``, found again by ``key``."""
    shared = {"at": now, "actor": actor[:150], "action": action, "reason": reason[:300], "detail": detail or {}}
    entries = [AuditEntry(**shared, task_id=row.pk, target=row.name[:200]) for row in rows]
    entries = entries or [AuditEntry(**shared, task_id=key, target=target[:200])]
    with vendor_for(alias).atomic():
        AuditEntry.objects.using(alias).bulk_create(entries, batch_size=500)
