"""What the tests of the faces schedule: a task of the admin's, one of the code's, and one that is not exposed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django_taskq import task
from django_taskq.domain.schedules import Rule, check_rule
from django_taskq.lifecycle import schedules
from django_taskq.models import AuditEntry, Schedule

MORNING = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)
REPORT = "tests.faces.schedules.report"


@task(schedulable=True)
def report(day: str = "today", *, pages: int = 1) -> str:
    """A task that operators may schedule."""
    return day


@task
def hidden() -> None:
    """A task that they may not."""


def rule(**values: Any) -> Rule:
    return check_rule(**{"timezone": "UTC", **(values or {"cron": "0 9 * * *"})})


def made(name: str = "daily", **values: Any) -> Schedule:
    """Return a schedule that an operator made."""
    return schedules.create(name, **{"task": REPORT, "rule": rule(), **values})


def in_code(name: str = "nightly", **columns: Any) -> Schedule:
    """Return a schedule that the code declared, as its row looks."""
    row = made(name)
    Schedule.objects.filter(pk=row.pk).update(source="code", **columns)
    AuditEntry.objects.filter(action="schedule.create").delete()
    row.refresh_from_db()
    return row
