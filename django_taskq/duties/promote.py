"""Make due tasks ready, and wake whoever waits for them."""

from __future__ import annotations

from datetime import datetime, timedelta

from django_taskq import conf
from django_taskq.store.vendors import vendor_for

__all__ = ["run_once", "until_next"]

CHUNK = 1000


def run_once(alias: str, options: conf.Options, now: datetime) -> int:
    """Promote everything that is due; return how many tasks that were."""
    vendor = vendor_for(alias)
    due = vendor.next_due()
    if due is None or due > now:
        return 0
    count = 0
    queues: set[str] = set()
    while True:
        promoted = vendor.retrying(lambda: vendor.promote(now, CHUNK))
        queues.update(promoted)
        count += len(promoted)
        if len(promoted) < CHUNK:
            break
    if queues and options.notify:
        vendor.notify(queues)
    return count


def until_next(alias: str, now: datetime) -> timedelta | None:
    """Return how long nothing is due, None if nothing is scheduled."""
    due = vendor_for(alias).next_due()
    return None if due is None else max(due - now, timedelta(0))
