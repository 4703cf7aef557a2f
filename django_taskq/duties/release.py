"""Send parked tasks back to their queues when their limits have room, and wake whoever waits for them."""

from __future__ import annotations

from datetime import datetime, timedelta

from django_taskq import conf
from django_taskq.models import Limit
from django_taskq.store import pauses
from django_taskq.store.vendors import vendor_for

__all__ = ["next_look", "run_once", "until_next"]


def run_once(alias: str, options: conf.Options, now: datetime) -> int:
    """Look at the limits that have to be looked at; return how many queues got tasks back."""
    due = next_look(alias)
    if due is None or due > now:
        return 0
    # Loaded by those who have limits.
    from django_taskq.lifecycle import limits

    queues = limits.release_due(alias, now, paused_types=pauses.paused_types(alias, now))
    if queues and options.notify:
        vendor_for(alias).notify(set(queues))
    return len(queues)


def until_next(alias: str, now: datetime) -> timedelta | None:
    """Return how long no limit has to be looked at, None if none has to be."""
    due = next_look(alias)
    return None if due is None else max(due - now, timedelta(0))


def next_look(alias: str) -> datetime | None:
    """Return when a limit has to be looked at next, None if none has to be."""
    waiting = Limit.objects.using(alias).filter(next_at__isnull=False)
    return waiting.order_by("next_at").values_list("next_at", flat=True).first()
