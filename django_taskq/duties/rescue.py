"""
Settle the tasks of workers that fell silent.

Its surprise: a late heartbeat alone proves nothing. After an outage longer than
a lease every heartbeat is late, and a clock that jumps makes it look so. So a
leader judges a worker only after it has itself, with the database answering all the
while, seen the same last beat for two heartbeats.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from django_taskq import clock, conf
from django_taskq.lifecycle import rescue
from django_taskq.models import Worker
from django_taskq.store.vendors import vendor_for

__all__ = ["Watch", "run_once"]


class Watch:
    """
    What one leader has seen of the others' heartbeats, on a clock that never jumps.

    A leader of some time has seen a beat from its beginning on, so waiting for
    two heartbeats delays no rescue; only a new leader, or one that was away, looks twice.
    """

    def __init__(self, heartbeat_seconds: float) -> None:
        self._patience = 2 * heartbeat_seconds
        self._seen: dict[int, tuple[datetime, float]] = {}
        self._looked_at: float | None = None

    def look(self, workers: Sequence[Worker], tick: float) -> Collection[int]:
        """Take note of each worker's last beat; return the ids of those whose beat has not changed for long enough."""
        if self._looked_at is None or tick - self._looked_at > self._patience:
            self._seen.clear()
        self._looked_at = tick
        known = {worker.pk: self._seen.get(worker.pk) for worker in workers}
        self._seen = {
            worker.pk: seen if (seen := known[worker.pk]) and seen[0] == worker.beat_at else (worker.beat_at, tick)
            for worker in workers
        }
        return {worker_id for worker_id, (_, since) in self._seen.items() if tick - since >= self._patience}


def run_once(
    alias: str, options: conf.Options, now: datetime, *, watch: Watch | None = None, tick: float | None = None
) -> int:
    """Rescue what dead workers held; return how many tasks that were. Without a ``watch`` the late beat is enough."""
    at = clock.elapsed() if tick is None else tick
    watched = None if watch is None else lambda workers: watch.look(workers, at)
    count = rescue.rescue(alias, now=now, watched=watched)
    if count and options.notify:
        vendor_for(alias).notify(["*"])
    return count
