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


def run_once(alias: str, options: conf.Options, now: datetime) -> int:
    """Look at every queue; return how many there are."""
    vendor = vendor_for(alias)
    known = queue_store.in_order(alias)
    missing = [name for name in vendor.ready_queues() if name not in known]
    if missing:
        queue_store.remember(alias, missing)
    dead = depths.dead_by_queue(alias)
    minute = now.replace(second=0, microsecond=0)
    for queue in (*known, *missing):
        counts = {state: vendor.depth(queue, state, cap=CAP) for state in _SHOWN}
        vendor.save_snapshot(
            {
                "queue": queue,
                "at": minute,
                "ready": counts[State.READY],
                "scheduled": counts[State.SCHEDULED],
                "running": counts[State.RUNNING],
                "waiting": counts[State.WAITING],
                "parked": counts[State.PARKED],
                "dead": dead.get(queue, 0),
                "oldest_ready_at": depths.oldest_ready(alias, queue),
                "exact": max(counts.values()) < CAP,
            }
        )
    return len(known) + len(missing)


_SHOWN = (State.READY, State.SCHEDULED, State.RUNNING, State.WAITING, State.PARKED)
