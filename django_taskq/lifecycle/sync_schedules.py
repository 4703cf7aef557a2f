"""
Bring the rows of schedules in line with the code, at the start of a worker and, by the leader, once a minute.

Its surprise: during a deployment two releases do this side by side. Rules then change to and fro until the old
workers are gone, which costs nothing, since a tick is exact whatever the rule; but a schedule is declared gone
only when no worker has seen it in its code for a while.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django_taskq import conf
from django_taskq.domain.schedules import next_after
from django_taskq.lifecycle import declarations, definitions
from django_taskq.lifecycle.calls import Declared
from django_taskq.lifecycle.databases import database_for
from django_taskq.lifecycle.tick import due_moment, follow_rule, skip_is_ahead
from django_taskq.models import Schedule
from django_taskq.store import schedules as store
from django_taskq.store import tasks as task_store
from django_taskq.store.vendors import vendor_for

__all__ = ["GONE_AFTER", "sync"]

logger = logging.getLogger("django_taskq")

GONE_AFTER = timedelta(minutes=10)
_TIMING = ("kind", "rule", "timezone", "start_at", "end_at")


def sync(alias: str, *, now: datetime) -> int:
    """
    Add, change and switch off schedules as the code wants; return how many rows that were.

    Harmless when done twice, or by several at once. What operators did to a schedule stays: pause, disable, skip.
    """
    wanted = {name: made for name, made in declarations.declared().items() if _home(made) == alias}
    for name, paths in declarations.conflicts().items():
        logger.error("Two schedules are called %r, of %s and of %s; the first one counts", name, *paths)
    rows = {row.name: row for row in store.from_code(alias, wanted)}
    new = [_new_row(made, now) for name, made in wanted.items() if name not in rows]
    if new:
        vendor_for(alias).retrying(lambda: store.add(alias, new))
    count = len(new)
    seen: list[int] = []
    for name, row in rows.items():
        made = wanted.get(name)
        if made is None:
            count += _leave(alias, row, now)
        elif row.source != "code":
            logger.error("The code declares schedule %r, but the admin has one of that name, which counts", name)
        else:
            seen.append(row.pk)
            count += _follow(alias, row, made, now)
    if seen:
        vendor_for(alias).retrying(lambda: store.mark_seen(alias, seen, now))
    return count


def _home(made: Declared) -> str | None:
    """Return the database that the tasks of a schedule go to, where its row is too; None where they go to none."""
    backend = made.definition.backend
    return database_for(conf.options(backend)) if backend in conf.aliases() else None


def _columns(made: Declared) -> Mapping[str, Any]:
    rule = made.rule
    return {
        "task": definitions.stored_name(made.definition),
        "kind": int(rule.kind),
        "rule": rule.text,
        "timezone": rule.timezone,
        "start_at": rule.start,
        "end_at": rule.end,
        "args": made.args,
        "options": made.options,
    }


def _new_row(made: Declared, now: datetime) -> Schedule:
    row = Schedule(name=made.name, source="code", seen_at=now, created_at=now, changed_at=now, **_columns(made))
    # Ticks of the past are nobody's: a schedule begins when it is first seen.
    row.next_at = row.due_at = next_after(row.rule_value, now)
    return row


def _follow(alias: str, row: Schedule, made: Declared, now: datetime) -> bool:
    """Change a row as the code changed; return whether there was anything to change."""
    wanted = _columns(made)
    if row.gone_at is None and not _differing(row, wanted):
        return False

    def work() -> bool:
        with vendor_for(alias).atomic():
            found = store.lock(alias, pk=row.pk)
            if found is None:
                return False
            changed = {name: wanted[name] for name in _differing(found, wanted)}
            if not changed and found.gone_at is None:
                return False
            is_timed_anew = found.gone_at is not None or not changed.keys().isdisjoint(_TIMING)
            skips = found.skip_next
            for name, value in changed.items():
                setattr(found, name, value)
            if found.gone_at is not None and not skip_is_ahead(found, now):
                # What passed while it was gone is nobody's.
                found.skip_next, found.next_at = False, None
            found.gone_at = None
            if is_timed_anew:
                skips = follow_rule(found, now)
            due_at = due_moment(found, found.next_at, now)
            extra = {"next_at": found.next_at, "skip_next": skips, "gone_at": None, "last_error": "", "changed_at": now}
            store.change(alias, found.pk, due_at=due_at, **extra, **changed)
            return True

    return vendor_for(alias).retrying(work)


def _differing(row: Schedule, wanted: Mapping[str, Any]) -> list[str]:
    return [name for name, value in wanted.items() if getattr(row, name) != value]


def _leave(alias: str, row: Schedule, now: datetime) -> bool:
    """Switch a schedule off that no longer stands in the code; return whether that was done."""
    if row.gone_at is not None or (row.seen_at is not None and now - row.seen_at < GONE_AFTER):
        return False

    def work() -> bool:
        with vendor_for(alias).atomic():
            found = store.lock(alias, pk=row.pk)
            if found is None or found.gone_at is not None or found.seen_at != row.seen_at:
                return False
            next_at = found.next_at if skip_is_ahead(found, now) else None
            store.change(alias, found.pk, gone_at=now, due_at=None, next_at=next_at, changed_at=now)
            task_store.audit(
                alias,
                actor="code",
                action="schedule.gone",
                now=now,
                reason="no worker has it in its code any more",
                target=f"schedule {row.name}",
                key=uuid.UUID(int=row.pk),
            )
            return True

    done = vendor_for(alias).retrying(work)
    if done:
        logger.warning("Schedule %s is no longer in the code; it is off, and its row is kept", row.name)
    return done
