"""
Let schedules tick here and now, by the test's clock.

The worker's own duty, in the calling thread and inside the test's transaction. Its surprise: a schedule begins when it
is first seen, so a test that moves the clock lets ``tick_schedules`` see it before.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime, timedelta

from django_taskq import clock, conf
from django_taskq.duties.tick import first_due
from django_taskq.lifecycle.databases import database_for
from django_taskq.lifecycle.sync_schedules import sync
from django_taskq.lifecycle.tick import tick_due
from django_taskq.models import ScheduleTick
from django_taskq.testing.clock import active_clock, travel
from django_taskq.testing.draining import RUNAWAY, DrainOverrun

__all__ = ["tick_schedules"]


def tick_schedules(until: datetime | timedelta | None = None, *, backend: str = "default") -> list[ScheduleTick]:
    """
    Bring the declared schedules into the database and make the tasks that are due; return the ticks, in their order.

    ``until``: move the clock from tick to tick up to this moment, or for this span from now; without a clock of the
    test's own (``travel``, freezegun) it moves only while this lasts. The tasks are stored, not run.
    Raise DrainOverrun after 10,000 ticks.
    """
    alias = database_for(conf.options(backend))
    before = ScheduleTick.objects.using(alias).order_by("-pk").values_list("pk", flat=True).first() or 0
    made = ScheduleTick.objects.using(alias).filter(pk__gt=before)
    with ExitStack() as stack:
        hands = active_clock()
        if hands is None and until is not None:
            hands = stack.enter_context(travel())
        limit = clock.now() + until if isinstance(until, timedelta) else until
        sync(alias, now=clock.now())
        due_at = first_due(alias)
        while due_at is not None and due_at <= (limit or clock.now()):
            if hands is not None and due_at > clock.now():
                hands.move_to(due_at)
            tick_due(alias, now=clock.now())
            if made.count() > RUNAWAY:
                raise DrainOverrun(f"more than {RUNAWAY} ticks until {limit}; give a shorter span")
            due_at = first_due(alias)
        if hands is not None and limit is not None and limit > clock.now():
            hands.move_to(limit)
    return list(made.select_related("schedule").order_by("at", "pk"))
