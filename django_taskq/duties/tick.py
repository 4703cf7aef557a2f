"""
Make the tasks that schedules are due for, when they are due.

Its surprise: it remembers when that is, so that a project without schedules asks once a second, and one with
some is woken at the moment of the next tick.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import DatabaseError, InterfaceError

from django_taskq import clock, conf
from django_taskq.lifecycle import declarations
from django_taskq.models import Schedule

__all__ = ["Agenda", "first_due", "run_once", "sync_once"]

SYNC_SECONDS = 60.0


class Agenda:
    """What one worker knows of its schedules: when the next is due, and when it last looked at the code's."""

    def __init__(self) -> None:
        self.due_at: datetime | None = None
        self._synced_at: float | None = None

    def until_next(self, now: datetime) -> timedelta | None:
        """Return how long no schedule is due, as far as is known; None for as long as nobody makes one."""
        return None if self.due_at is None else max(self.due_at - now, timedelta(0))

    @property
    def is_synced(self) -> bool:
        """Return whether this worker has looked at the declared schedules at all."""
        return self._synced_at is not None

    def sync(self, alias: str, now: datetime) -> None:
        """Bring the rows in line with the code, if that was not done within a minute."""
        tick = clock.elapsed()
        if self._synced_at is not None and tick - self._synced_at < SYNC_SECONDS:
            return
        before, self._synced_at = self._synced_at, tick
        try:
            _sync(alias, now)
        except (DatabaseError, InterfaceError):
            # Again as soon as there is a database; anything else would only fail again.
            self._synced_at = before
            raise


def sync_once(alias: str, options: conf.Options, now: datetime, *, agenda: Agenda) -> int:
    """Bring the rows of schedules in line with the code, as each worker does once, leader or not."""
    agenda.sync(alias, now)
    return 0


def first_due(alias: str) -> datetime | None:
    """Return when a schedule has to be looked at next, None where none ever has."""
    found = Schedule.objects.using(alias).filter(due_at__isnull=False)
    return found.order_by("due_at").values_list("due_at", flat=True).first()


def _sync(alias: str, now: datetime) -> None:
    if declarations.declared() or Schedule.objects.using(alias).filter(source="code", gone_at__isnull=True).exists():
        # Loaded by those who have schedules.
        from django_taskq.lifecycle.sync_schedules import sync

        sync(alias, now=now)


def run_once(alias: str, options: conf.Options, now: datetime, *, agenda: Agenda | None = None) -> int:
    """Make the tasks of all schedules that are due; return how many that were."""
    if agenda is None:
        _sync(alias, now)
    else:
        agenda.sync(alias, now)
    due_at = first_due(alias)
    count = 0
    if due_at is not None and due_at <= now:
        from django_taskq.lifecycle.tick import tick_due

        count = tick_due(alias, now=now)
        due_at = first_due(alias)
    if agenda is not None:
        agenda.due_at = due_at
    return count
