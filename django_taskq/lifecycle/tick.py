"""
Make the tasks that schedules are due for.

Model: one transaction per schedule. It locks the schedule's row, decides about all ticks up to now, stores
their tasks and a row for each tick, and moves the schedule on. Whoever comes second finds it moved on; where
nothing could be locked, the second of two equal tick rows is refused by the database, with all that
came with it. So a fault at any point leaves either everything or nothing, and the next look
does what is missing.
Times: a failure puts the next look off and leaves the tick where it was.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import DatabaseError, IntegrityError, InterfaceError

from django_taskq import conf, events
from django_taskq.domain.schedules import Due, TickKind, jitter_of, latest, next_after, plan
from django_taskq.exceptions import InvalidOptions, UnknownTask
from django_taskq.lifecycle import databases, declarations, definitions
from django_taskq.lifecycle import enqueue as enqueueing
from django_taskq.lifecycle.calls import typed_arguments
from django_taskq.models import Schedule
from django_taskq.store import schedules as store
from django_taskq.store.vendors import vendor_for

__all__ = [
    "catch_up",
    "due_moment",
    "follow_rule",
    "make_task",
    "replace_tasks",
    "skip_is_ahead",
    "tell_ticked",
    "tick_due",
    "ticks_until",
]

logger = logging.getLogger("django_taskq")

MOST_SCHEDULES = 500
MOST_TICKS = 100
# A worker of another release leads, which does not have this schedule: the next leader may.
_NOT_MINE = timedelta(seconds=30)
_INSTANT = timedelta(microseconds=1)
_AGAIN_FIRST, _AGAIN_MOST = timedelta(seconds=5), timedelta(minutes=5)

_WHY = {
    TickKind.OVERLAP: "overlap",
    TickKind.PAUSED: "paused",
    TickKind.MISSED: "missed",
    TickKind.SKIPPED: "skipped",
}
Note = tuple[datetime, datetime | None, TickKind, uuid.UUID | None]


class _Late(Exception):
    """Somebody else dealt with one of these ticks first."""


def tick_due(alias: str, *, now: datetime) -> int:
    """
    Deal with all schedules that are due; return how many tasks were made.

    One that fails is told, noted in its row and tried again later; the others go on. What a lost connection
    raises is raised.
    """
    return sum(_look_at(alias, key, now) for key in store.due(alias, now, limit=MOST_SCHEDULES))


def _look_at(alias: str, key: int, now: datetime) -> int:
    vendor = vendor_for(alias)
    try:
        return vendor.retrying(partial(_tick, alias, key, now))
    except _Late:
        logger.info("A tick of schedule %d was dealt with by another worker", key)
    except Exception as error:
        if isinstance(error, DatabaseError | InterfaceError) and vendor.is_lost_connection(error):
            raise
        vendor.retrying(partial(_put_off, alias, key, error, now))
    return 0


def catch_up(alias: str, name: str, *, now: datetime) -> None:
    """
    Deal with what one schedule is due for, as a leader would have done by now; for whoever changes the schedule.

    So a change counts from now on, however late the leader is. One that fails is put off.
    """
    key = store.due_key(alias, name, now)
    if key is not None:
        _look_at(alias, key, now)


def due_moment(row: Schedule, next_at: datetime | None, now: datetime) -> datetime | None:
    """Return when a leader has to look at a schedule whose next tick is this one; None for never."""
    if next_at is None or not row.is_on:
        return None
    return row.paused_until if row.is_paused(now) else next_at


def follow_rule(row: Schedule, now: datetime) -> bool:
    """
    Move a schedule to the first tick of a rule that has just been changed; return whether that is to be skipped.

    It counts from now on. Where a tick of the old rule is overdue it counts from there, so that nobody's absence or
    failure loses one. Never behind the last tick, whatever the clock says.
    """
    is_late = row.is_on and row.next_at is not None and row.next_at <= now
    skips = row.skip_next and (skip_is_ahead(row, now) or (is_late and not row.is_paused(now)))
    since = now
    if is_late and row.next_at is not None:
        since = row.next_at - _INSTANT
    row.next_at = next_after(row.rule_value, max(since, row.last_at or since)) if row.is_on or skips else None
    return skips


def skip_is_ahead(row: Schedule, now: datetime) -> bool:
    """Return whether the tick that an operator wants left out is still to come: it passes by a pause, too."""
    return row.skip_next and row.next_at is not None and row.next_at > now


def _tick(alias: str, key: int, now: datetime) -> int:
    with vendor_for(alias).atomic():
        row = store.lock(alias, pk=key)
        if row is None or row.due_at is None or row.due_at > now:
            return 0
        if row.source == "code" and row.name not in declarations.declared():
            store.change(alias, key, due_at=now + _NOT_MINE)
            return 0
        if row.is_paused(now):
            store.change(alias, key, due_at=row.paused_until)
            return 0
        return _Ticking(alias, row, now).run()


class _Ticking:
    """One locked schedule while its ticks are dealt with."""

    def __init__(self, alias: str, row: Schedule, now: datetime) -> None:
        self.alias = alias
        self.row = row
        self.now = now
        self.rule = row.rule_value
        self.notes: list[Note] = []
        self.changes: dict[str, Any] = {"last_error": ""}
        self.live: list[uuid.UUID] | None = None

    def run(self) -> int:
        """Deal with the ticks up to now; return how many tasks were made."""
        first = self._skip(self._end_pause(self.row.next_at))
        if first is not None and first <= self.now:
            planned = plan(self.rule, self.row.policy, first, self.now, most=MOST_TICKS)
            first = planned.next_at
            if planned.missed is not None:
                self._note_once(planned.missed, TickKind.MISSED)
            noted = store.noted(self.alias, self.row.pk, [due.at for due in planned.make])
            for due in planned.make:
                if due.at not in noted:
                    self._deal_with(due)
        try:
            store.note_ticks(self.alias, self.row.pk, self.notes, self.now)
        except IntegrityError as error:
            raise _Late from error
        if self.notes:
            self.changes["last_at"] = max(at for at, *_ in self.notes)
        store.change(self.alias, self.row.pk, next_at=first, due_at=first, **self.changes)
        self._tell()
        return sum(kind == TickKind.MADE for _, _, kind, _ in self.notes)

    def _end_pause(self, first: datetime | None) -> datetime | None:
        """Note the ticks of a pause that is over; return the first one after it."""
        until = self.row.paused_until
        if self.row.paused_at is None or until is None:
            return first
        self.changes |= {"paused_at": None, "paused_until": None, "paused_by": "", "pause_reason": ""}
        left_out = ticks_until(self.row, first, until)
        if left_out is None:
            return first
        self._note_once(left_out, TickKind.PAUSED)
        # The tick that was to be skipped is the first of these.
        self.row.skip_next = self.changes["skip_next"] = False
        return next_after(self.rule, left_out.at)

    def _skip(self, first: datetime | None) -> datetime | None:
        """Note the tick that an operator wants left out, and no other with it; return the first one after it."""
        if not self.row.skip_next or first is None or first > self.now:
            return first
        self.changes["skip_next"] = False
        self._note_once(Due(at=first), TickKind.SKIPPED)
        return next_after(self.rule, first)

    def _deal_with(self, due: Due) -> None:
        if self._overlaps():
            self._note(due, TickKind.OVERLAP)
        else:
            key = make_task(self.alias, self.row, due, now=self.now)
            self.changes["last_task_id"] = key
            self.live = [key]
            self.notes.append((due.at, due.since, TickKind.MADE, key))

    def _overlaps(self) -> bool:
        """Return whether the tick has to be left out because of earlier tasks; end those that are to be replaced."""
        overlap = self.row.policy.overlap
        if overlap == "queue":
            return False
        if self.live is None:
            self.live = store.live_tasks(self.alias, self.row.pk)
        if overlap == "replace":
            replace_tasks(self.alias, self.row, self.live)
            return False
        return bool(self.live)

    def _note_once(self, due: Due, kind: TickKind) -> None:
        """Note a tick that may have a row: a clock that was ahead dealt with it before its time."""
        if not store.noted(self.alias, self.row.pk, [due.at]):
            self._note(due, kind)

    def _note(self, due: Due, kind: TickKind) -> None:
        self.notes.append((due.at, due.since, kind, None))

    def _tell(self) -> None:
        for at, since, kind, key in self.notes:
            if kind == TickKind.MADE:
                tell_ticked(self.alias, self.row, Due(at=at, since=since), key)
            elif events.wanted(events.ScheduleSkipped):
                skipped = events.ScheduleSkipped(
                    schedule=self.row.name, task=self.row.task, at=at, since=since, alias=self.alias, why=_WHY[kind]
                )
                events.emit_on_commit(events.ScheduleSkipped, [skipped], using=self.alias)


def ticks_until(row: Schedule, first: datetime | None, until: datetime) -> Due | None:
    """Return the ticks from ``first`` to a moment as one, None where there is none."""
    if first is None or first > until:
        return None
    last = latest(row.rule_value, first, until)
    return Due(at=last, since=None if last == first else first)


def replace_tasks(alias: str, row: Schedule, live: Sequence[uuid.UUID]) -> None:
    """Cancel earlier tasks of a schedule, as its overlap policy wants."""
    if live:
        from django_taskq.lifecycle import control

        control.cancel(live, actor=f"schedule {row.name}", reason="replaced by the next tick", alias=alias)


def tell_ticked(alias: str, row: Schedule, due: Due, key: uuid.UUID | None, *, manual: bool = False) -> None:
    """Tell, after commit, that a schedule made a task."""
    if events.wanted(events.ScheduleTicked):
        ticked = events.ScheduleTicked(
            schedule=row.name, task=row.task, at=due.at, since=due.since, alias=alias, task_id=str(key), manual=manual
        )
        events.emit_on_commit(events.ScheduleTicked, [ticked], using=alias)


def make_task(alias: str, row: Schedule, due: Due, *, now: datetime, manual: bool = False) -> uuid.UUID:
    """
    Store the task of a tick, in the caller's transaction, and return its id.

    Raise UnknownTask where this process has no such task, and what an enqueue raises.
    """
    definition = definitions.find(row.task)
    if definition is None:
        raise UnknownTask(f"no task is called {row.task!r} in this process")
    values = row.option_values
    changes: dict[str, Any] = {name: values[name] for name in ("queue_name", "priority") if name in values}
    start = due.at if manual else due.at + jitter_of(row.name, due.at, row.policy.jitter)
    if start > now:
        changes["run_after"] = start
    options = conf.options(definition.backend)
    if getattr(definition, "enqueue_on_commit", None):
        changes["enqueue_on_commit"] = False
    elif options.enqueue_on_commit:
        options = replace(options, enqueue_on_commit=False)
    if databases.database_for(options) != alias:
        raise InvalidOptions(
            f"the task {row.task} is stored in {databases.database_for(options)!r}, its schedule in {alias!r}: "
            "a tick is exact only where both are in one database",
            field="backend",
            code="conflict",
        )
    task = definition.using(**changes) if changes else definition
    args, kwargs = typed_arguments(definition, *row.arguments)
    stored = enqueueing.enqueue(
        task,
        tuple(args),
        kwargs,
        options,
        on_stored=partial(_results, task, args, kwargs),
        extra={"schedule": _told(row, due, manual)},
        is_accepted=True,
    )
    # A unique task that was there already is the one of this tick.
    there = stored.found.get(0)
    return uuid.UUID(int=stored.ids[0] if there is None else there.id)


def _told(row: Schedule, due: Due, manual: bool) -> dict[str, Any]:
    """Return what a task keeps of the tick that made it."""
    found: dict[str, Any] = {"name": row.name, "at": due.at.isoformat()}
    if due.since is not None:
        found["since"] = due.since.isoformat()
    if manual:
        found["manual"] = True
    return found


def _results(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], stored: enqueueing.Stored) -> list[Any]:
    from django_taskq.lifecycle.results import new_result

    if stored.calls is not None:
        task, args, kwargs = stored.calls[0]
    return [
        new_result(
            task,
            enqueueing.public_id(number),
            args,
            dict(kwargs),
            backend=task.backend,
            enqueued_at=stored.created_at,
            state=stored.state,
        )
        for number in stored.ids
    ]


def _put_off(alias: str, key: int, error: Exception, now: datetime) -> None:
    """Note a failure, and look at the schedule again later: the longer it has been failing, the later."""
    with vendor_for(alias).atomic():
        row = store.lock(alias, pk=key)
        if row is None or row.due_at is None or row.due_at > now:
            return
        tick_at = row.next_at or row.due_at
        again_at = now + min(max((now - tick_at) / 2, _AGAIN_FIRST), _AGAIN_MOST)
        # Only the class of a database's error: its words may quote the arguments.
        text = type(error).__name__ if isinstance(error, DatabaseError) else f"{type(error).__name__}: {error}"
        store.change(alias, key, due_at=again_at, last_error=text[:300])
        if events.wanted(events.ScheduleFailed):
            failed = events.ScheduleFailed(
                schedule=row.name, task=row.task, at=tick_at, alias=alias, error=error, again_at=again_at
            )
            events.emit_on_commit(events.ScheduleFailed, [failed], using=alias)
