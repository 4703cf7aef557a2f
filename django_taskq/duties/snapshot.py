"""Write how deep each queue is, so that no page and no metric ever counts tasks."""

from __future__ import annotations

from datetime import datetime

from django_taskq import conf
from django_taskq.domain.states import State
from django_taskq.store import depths
from django_taskq.store import queues as queue_store
from django_taskq.store.vendors import vendor_for

__all__ = ["run_once"]

# Beyond this a depth is "more than": counting a million rows every ten seconds helps nobody.
CAP = 100_000
# The same for what is counted over all queues together, row by row.
CAP_TOGETHER = 20_000


def run_once(alias: str, options: conf.Options, now: datetime) -> int:
    """Look at every queue; return how many there are."""
    vendor = vendor_for(alias)
    known = queue_store.in_order(alias)
    missing = [name for name in vendor.ready_queues() if name not in known]
    if missing:
        queue_store.remember(alias, missing)
    dead = depths.dead_by_queue(alias, cap=CAP_TOGETHER)
    scheduled = depths.scheduled_by_queue(alias, cap=CAP_TOGETHER)
    running = depths.running_by_queue(alias)
    exact = max(dead.total(), scheduled.total()) < CAP_TOGETHER
    minute = now.replace(second=0, microsecond=0)
    for queue in (*known, *missing):
        ready = vendor.depth(queue, State.READY, cap=CAP)
        vendor.save_snapshot(
            {
                "queue": queue,
                "at": minute,
                "ready": ready,
                "scheduled": scheduled[queue],
                "running": running[queue],
                "dead": dead[queue],
                "oldest_ready_at": depths.oldest_ready(alias, queue),
                "exact": exact and ready < CAP,
            }
        )
    return len(known) + len(missing)
