"""
What operators do to schedules: pause, resume, enable, disable, skip, run now; make, change and delete. Audited.

Each verb is one transaction that holds the schedule's row, as the duty does: a pause and a tick never mix. Its
surprise: ticks that are due already are dealt with before, so that none is lost where the leader is late.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django_taskq import clock, conf
from django_taskq.domain import payload
from django_taskq.domain.schedules import Due, Policy, Rule, TickKind, next_after
from django_taskq.exceptions import InvalidOptions, ScheduleNotFound, ScheduleRefused
from django_taskq.lifecycle import definitions
from django_taskq.lifecycle.calls import (
    check_call,
    check_name,
    check_option,
    check_overlap,
    options_text,
    typed_arguments,
)
from django_taskq.lifecycle.databases import database_for, main_database
from django_taskq.lifecycle.tick import (
    catch_up,
    due_moment,
    follow_rule,
    make_task,
    replace_tasks,
    skip_is_ahead,
    tell_ticked,
    ticks_until,
)
from django_taskq.models import Schedule
from django_taskq.store import schedules as store
from django_taskq.store import tasks as task_store
from django_taskq.store.vendors import vendor_for

__all__ = [
    "RUN_AGAIN_AFTER",
    "audit_key",
    "change",
    "create",
    "delete",
    "disable",
    "enable",
    "pause",
    "resume",
    "run_now",
    "schedulable",
    "skip_next",
]

RUN_AGAIN_AFTER = timedelta(seconds=10)
"""So long after a run by hand the next one is refused: two who press the button mean one run."""

_INSTANT = timedelta(microseconds=1)


@contextmanager
def _held_on_time(name: str, alias: str, now: datetime) -> Iterator[Schedule]:
    """Lock a schedule whose ticks up to now were dealt with, but for those that fail. Raise ScheduleNotFound."""
    catch_up(alias, name, now=now)
    with _held(name, alias) as row:
        yield row


@contextmanager
def _held(name: str, alias: str) -> Iterator[Schedule]:
    """Lock a schedule for one transaction. Raise ScheduleNotFound where there is none of this name."""
    with vendor_for(alias).atomic():
        row = store.lock(alias, name=name)
        if row is None:
            raise ScheduleNotFound(f"no schedule is called {name!r}")
        yield row


def audit_key(row: Schedule) -> uuid.UUID:
    """Return what the audit log finds a schedule's entries by: its number, in the form of an id."""
    return uuid.UUID(int=row.pk)


def _audit(alias: str, verb: str, row: Schedule, now: datetime, who: Mapping[str, str], **detail: Any) -> None:
    shown = {key: value.isoformat() if isinstance(value, datetime) else value for key, value in detail.items()}
    target = f"schedule {row.name}"
    key = audit_key(row)
    task_store.audit(
        alias,
        actor=who["actor"],
        reason=who["reason"],
        action=f"schedule.{verb}",
        now=now,
        target=target,
        key=key,
        detail=shown,
    )


def pause(
    name: str, *, until: datetime | timedelta | None = None, actor: str = "", reason: str = "", alias: str | None = None
) -> bool:
    """
    Leave out the ticks of a schedule until it is resumed, or until a moment; return False if it was paused so already.

    They are noted as left out, not made up for; what is due already is made before. Raise InvalidOptions for a moment
    that has passed.
    """
    alias = alias or main_database()
    now = clock.now()
    if isinstance(until, timedelta):
        until = now + until
    if until is not None and (until.utcoffset() is None or until <= now):
        raise InvalidOptions(f"until must be an aware moment ahead, got {until}", field="until", code="range")
    with _held_on_time(name, alias, now) as row:
        if row.is_paused(now) and row.paused_until == until:
            return False
        changes: dict[str, Any] = {
            "paused_at": now,
            "paused_until": until,
            "paused_by": actor[:150],
            "pause_reason": reason[:200],
        }
        for column, value in changes.items():
            setattr(row, column, value)
        store.change(alias, row.pk, due_at=due_moment(row, row.next_at, now), **changes)
        _audit(alias, "pause", row, now, {"actor": actor, "reason": reason}, **({"until": until} if until else {}))
    return True


def resume(name: str, *, actor: str = "", reason: str = "", alias: str | None = None) -> bool:
    """Let a paused schedule tick again, from now on; return False if it was not paused."""
    alias = alias or main_database()
    now = clock.now()
    with _held_on_time(name, alias, now) as row:
        if row.paused_at is None:
            return False
        left_out = ticks_until(row, row.next_at, min(now, row.paused_until or now))
        if left_out is not None:
            if not store.noted(alias, row.pk, [left_out.at]):
                store.note_ticks(alias, row.pk, [(left_out.at, left_out.since, TickKind.PAUSED, None)], now)
            row.next_at = next_after(row.rule_value, left_out.at)
            row.last_at = left_out.at
            # The tick that was to be skipped is the first of these.
            row.skip_next = False
        row.paused_at = row.paused_until = None
        changes: dict[str, Any] = {"paused_at": None, "paused_until": None, "paused_by": "", "pause_reason": ""}
        changes["skip_next"] = row.skip_next
        due_at = due_moment(row, row.next_at, now)
        store.change(alias, row.pk, due_at=due_at, next_at=row.next_at, last_at=row.last_at, **changes)
        _audit(alias, "resume", row, now, {"actor": actor, "reason": reason})
    return True


def enable(name: str, *, actor: str = "", reason: str = "", alias: str | None = None) -> bool:
    """
    Switch a schedule on, from now on: what would have ticked while it was off is not made up for.

    Return False if it was on. Its next tick is worked out anew, which also helps after a clock had jumped ahead.
    """
    return _switch(name, True, actor=actor, reason=reason, alias=alias)


def disable(name: str, *, actor: str = "", reason: str = "", alias: str | None = None) -> bool:
    """Switch a schedule off, whatever the code says; return False if it was off."""
    return _switch(name, False, actor=actor, reason=reason, alias=alias)


def _switch(name: str, on: bool, *, actor: str, reason: str, alias: str | None) -> bool:
    alias = alias or main_database()
    now = clock.now()
    with _held_on_time(name, alias, now) as row:
        if row.enabled == on:
            return False
        row.enabled = on
        skips = skip_is_ahead(row, now)
        # What is to be skipped is known by its moment, which may pass while the schedule is off.
        next_at = next_after(row.rule_value, now) if row.is_on or skips else None
        changes: dict[str, Any] = {"enabled": on, "next_at": next_at, "skip_next": skips, "last_error": ""}
        store.change(alias, row.pk, due_at=due_moment(row, next_at, now), **changes)
        _audit(alias, "enable" if on else "disable", row, now, {"actor": actor, "reason": reason})
    return True


def skip_next(name: str, *, actor: str = "", reason: str = "", alias: str | None = None) -> datetime | None:
    """
    Leave out the next tick of a schedule; return its moment, None where that is wished already.

    The wish is over with that moment, also where a pause leaves it out. Raise ScheduleRefused where there is
    no next tick, and while the schedule is paused.
    """
    alias = alias or main_database()
    now = clock.now()
    with _held_on_time(name, alias, now) as row:
        if not row.is_on or row.next_at is None:
            raise ScheduleRefused(f"schedule {name} has no next tick to skip: it is off, or it has ended")
        if row.is_paused(now):
            until = "" if row.paused_until is None else f" until {row.paused_until.isoformat(timespec='seconds')}"
            raise ScheduleRefused(
                f"schedule {name} is paused{until}, and its ticks are left out anyway; "
                "to leave out more, pause it longer"
            )
        if row.skip_next:
            return None
        store.change(alias, row.pk, skip_next=True)
        _audit(alias, "skip", row, now, {"actor": actor, "reason": reason}, tick=row.next_at)
        return row.next_at


def run_now(name: str, *, actor: str = "", reason: str = "", alias: str | None = None) -> str:
    """
    Make a task of a schedule now, beside its ticks, paused or not; return the task's id.

    Raise ScheduleRefused within 10 seconds of the last run by hand, and where the overlap
    policy is "skip" and an earlier task is live; UnknownTask where this process has no such task.
    """
    alias = alias or main_database()
    now = clock.now()
    with _held(name, alias) as row:
        last = store.hand_run_since(alias, row.pk, now - RUN_AGAIN_AFTER)
        if last is not None:
            raise ScheduleRefused(
                f"schedule {name} was run by hand at {last.isoformat(timespec='seconds')}; "
                f"it can be run again {RUN_AGAIN_AFTER.total_seconds():.0f} seconds later"
            )
        overlap = row.policy.overlap
        live = [] if overlap == "queue" else store.live_tasks(alias, row.pk)
        if live and overlap == "skip":
            raise ScheduleRefused(f"schedule {name} does not run beside itself, and its task {live[0]} is live")
        replace_tasks(alias, row, live)
        # Neither a moment that has a row nor one that will have: the tick of this very moment is another one.
        at = now
        while _is_open(row, at) or store.noted(alias, row.pk, [at]):
            at -= _INSTANT
        due = Due(at=at)
        key = make_task(alias, row, due, now=now, manual=True)
        store.note_ticks(alias, row.pk, [(at, None, TickKind.MANUAL, key)], now)
        store.change(alias, row.pk, last_task_id=key)
        _audit(alias, "run", row, now, {"actor": actor, "reason": reason}, task=str(key))
        tell_ticked(alias, row, due, key, manual=True)
        return str(key)


def _is_open(row: Schedule, at: datetime) -> bool:
    """Return whether a moment is a tick that nobody has dealt with."""
    return row.next_at is not None and row.next_at <= at and next_after(row.rule_value, at - _INSTANT) == at


def schedulable() -> dict[str, Any]:
    """Return the tasks that operators may make schedules of, by name."""
    found = {name: task for name, task in definitions.known().items() if getattr(task, "schedulable", False)}
    return dict(sorted(found.items()))


def _columns(
    alias: str,
    *,
    task: str,
    rule: Rule,
    policy: Policy,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    queue_name: str | None,
    priority: int | None,
) -> dict[str, Any]:
    """Return what an operator decides about a schedule. Raise InvalidOptions or InvalidPayload for what cannot be."""
    definition = schedulable().get(task)
    if definition is None:
        raise InvalidOptions(
            f"no task called {task!r} may be scheduled here; the code allows it with @task(schedulable=True)",
            field="task",
            code="unknown",
        )
    options = conf.options(definition.backend)
    if database_for(options) != alias:
        raise InvalidOptions(f"{task} is stored in another database than {alias!r}", field="task", code="conflict")
    check_call(definition, args, kwargs)
    typed_arguments(definition, list(args), dict(kwargs))
    check_overlap(definition, policy)
    check_option(definition, "queue_name", queue_name)
    check_option(definition, "priority", priority)
    return {
        "task": task,
        "kind": int(rule.kind),
        "rule": rule.text,
        "timezone": rule.timezone,
        "start_at": rule.start,
        "end_at": rule.end,
        "args": payload.encode_arguments(tuple(args), kwargs, limit=options.max_payload_bytes),
        "options": options_text(policy, queue_name=queue_name, priority=priority),
    }


def create(
    name: str,
    *,
    task: str,
    rule: Rule,
    policy: Policy | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    queue_name: str | None = None,
    priority: int | None = None,
    actor: str = "",
    reason: str = "",
    alias: str | None = None,
) -> Schedule:
    """
    Make an operator's schedule of a task that the code exposes.

    Raise InvalidOptions for a name that is taken, a task that may not be scheduled, arguments it does not take.
    """
    alias = alias or main_database()
    now = clock.now()
    columns = _columns(
        alias,
        task=task,
        rule=rule,
        policy=policy or Policy(),
        args=args,
        kwargs=kwargs or {},
        queue_name=queue_name,
        priority=priority,
    )
    row = Schedule(name=check_name(name), source="admin", created_at=now, changed_at=now, **columns)
    row.next_at = row.due_at = next_after(rule, now)

    def work() -> Schedule:
        with vendor_for(alias).atomic():
            if not store.add_one(alias, row):
                raise InvalidOptions(f"a schedule is called {name!r} already", field="name", code="taken")
            _audit(alias, "create", row, now, {"actor": actor, "reason": reason}, task=task, rule=rule.text)
        return row

    return vendor_for(alias).retrying(work)


def change(
    name: str,
    *,
    task: str,
    rule: Rule,
    policy: Policy,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    queue_name: str | None = None,
    priority: int | None = None,
    actor: str = "",
    reason: str = "",
    alias: str | None = None,
) -> bool:
    """
    Change an operator's schedule; return False if all is as it was. A new rule counts from now on.

    Where a tick of the old rule is overdue since it fails, it counts from there.
    Raise ScheduleRefused for one that is declared in code, and what ``create`` raises.
    """
    alias = alias or main_database()
    now = clock.now()
    columns = _columns(
        alias,
        task=task,
        rule=rule,
        policy=policy,
        args=args,
        kwargs=kwargs or {},
        queue_name=queue_name,
        priority=priority,
    )
    with _held_on_time(name, alias, now) as row:
        _refuse_code(row, "changed")
        before, skips = row.rule_value, row.skip_next
        changed = {column: value for column, value in columns.items() if getattr(row, column) != value}
        if not changed:
            return False
        for column, value in changed.items():
            setattr(row, column, value)
        if row.rule_value != before:
            skips = follow_rule(row, now)
        due_at = due_moment(row, row.next_at, now)
        extra = {"due_at": due_at, "next_at": row.next_at, "skip_next": skips, "last_error": "", "changed_at": now}
        store.change(alias, row.pk, **extra, **changed)
        _audit(alias, "change", row, now, {"actor": actor, "reason": reason}, changed=sorted(changed))
    return True


def delete(name: str, *, actor: str = "", reason: str = "", alias: str | None = None) -> None:
    """
    Delete an operator's schedule with its ticks, or one whose code is gone. Its tasks stay.

    Raise ScheduleRefused for one that is declared in code: the next worker would only make it anew.
    """
    alias = alias or main_database()
    with _held(name, alias) as row:
        if row.gone_at is None:
            _refuse_code(row, "deleted")
        store.remove(alias, row.pk)
        _audit(alias, "delete", row, clock.now(), {"actor": actor, "reason": reason}, task=row.task, rule=row.rule)


def _refuse_code(row: Schedule, what: str) -> None:
    if row.source == "code":
        raise ScheduleRefused(
            f"schedule {row.name} is declared in code and cannot be {what} here; it can be paused and disabled"
        )
