"""
One leader among all workers.

Model: a row that says who leads until when. The leader renews it at a third of
that time; when the time has passed any worker takes it by compare-and-set on
the row's term. A leader that was stopped and wakes up late may work beside its
successor for one round: duties are harmless when done twice, so nothing is
fenced here. A leader that stops gives the row up, and the next takes over at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from django_taskq.store import duties as store

__all__ = ["Leader"]

NAME = "leader"


class Leader:
    """A worker's part in the election. Used by one thread."""

    def __init__(self, alias: str, worker_id: Callable[[], int], hold: timedelta) -> None:
        self.alias = alias
        self.hold = hold
        self._worker_id = worker_id
        self._leads = False
        self._ask_at = 0.0
        self._asked_as = 0

    @property
    def is_leading(self) -> bool:
        """Whether this worker led when it last asked."""
        return self._leads

    def leads(self, now: datetime) -> bool:
        """Return whether this worker leads; asks the database at most every third of the time it holds."""
        tick = time.monotonic()
        worker_id = self._worker_id()
        if tick >= self._ask_at or worker_id != self._asked_as:
            self._leads = store.take(self.alias, NAME, worker_id, now=now, hold=self.hold)
            self._ask_at = tick + self.hold.total_seconds() / 3
            self._asked_as = worker_id
        return self._leads
