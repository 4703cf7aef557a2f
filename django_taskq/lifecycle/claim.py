"""
Take tasks for a worker: which queues, in which order, how many, from where.

The surprise is the resumed scan. While an old transaction pins dead rows, a
scan from the left edge of the index walks over all of them again and again
(7 times slower at 100,000). So a full batch is followed by one that starts
behind it; short batches, and every 250 ms, start from the edge again, where
late commits, retries and more urgent tasks wait.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django_taskq.domain import lease as leases
from django_taskq.store import queues as queue_store
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for

__all__ = ["Claimer", "parse_queues"]

_RESUME_SECONDS = 0.25
_REFRESH_SECONDS = 1.0


def parse_queues(text: str) -> list[tuple[str, int | None]]:
    """
    Return queue names and weights from ``"email:3,default"``; an empty text means all queues.

    Raise ValueError for a weight that is not a whole number above 0, or if some have weights and some have not.
    """
    found: list[tuple[str, int | None]] = []
    for part in filter(None, (item.strip() for item in text.split(","))):
        name, colon, weight = part.rpartition(":") if ":" in part else (part, "", "")
        if colon and (not weight.isdecimal() or int(weight) < 1):
            raise ValueError(f"the weight of queue {name!r} must be a whole number above 0, got {weight!r}")
        found.append((name.strip(), int(weight) if colon else None))
    if any(weight is not None for _, weight in found):
        # "email:3,default" means 3 to 1: a name without a number weighs 1.
        found = [(name, weight or 1) for name, weight in found]
    return found


class Claimer:
    """Claims for one worker. Used by one thread."""

    def __init__(self, alias: str, worker_id: int, queues: Sequence[tuple[str, int | None]]) -> None:
        self.alias = alias
        self.worker_id = worker_id
        self._vendor = vendor_for(alias)
        self._wanted = list(queues)
        self._numbers = itertools.count(1)
        self._order: list[str] = []
        self._weights: dict[str, int] = {}
        self._refresh_at = 0.0
        self._resume: dict[str, tuple[int, Any]] = {}
        self._edge_at = 0.0

    def claim(self, limit: int, *, now: datetime) -> list[Claim]:
        """
        Take up to ``limit`` tasks from the queues that are not paused.

        In the given order until the batch is full; with weights the first
        queue is drawn by weight each time, and the rest follow.
        """
        tick = time.monotonic()
        if tick >= self._refresh_at:
            self._refresh(tick)
        if tick >= self._edge_at:
            self._resume.clear()
            self._edge_at = tick + _RESUME_SECONDS
        taken: list[Claim] = []
        for queue in self._drawn():
            missing = limit - len(taken)
            if missing <= 0:
                break
            taken += self._claim_from(queue, missing, now)
        return taken

    def _claim_from(self, queue: str, limit: int, now: datetime) -> list[Claim]:
        lease = leases.make_lease(self.worker_id, next(self._numbers) & leases.MAX_CLAIM_NO)
        after = self._resume.get(queue)
        rows = self._vendor.claim(queue, limit, lease=lease, now=now, after=after)
        if after is not None and len(rows) < limit:
            # The rest of the batch may lie before the resumed point.
            self._resume.pop(queue, None)
            rows += self._vendor.claim(queue, limit - len(rows), lease=lease, now=now)
        elif len(rows) == limit:
            self._resume[queue] = (rows[-1].rank, rows[-1].key)
        return rows

    def _drawn(self) -> list[str]:
        if not self._weights or len(self._order) < 2:
            return self._order
        # Efraimidis and Spirakis: sorting by u ** (1 / weight) draws without replacement by weight.
        keys = {queue: random.random() ** (1.0 / self._weights[queue]) for queue in self._order}
        return sorted(self._order, key=lambda queue: -keys[queue])

    def _refresh(self, tick: float) -> None:
        paused = queue_store.paused(self.alias)
        if self._wanted:
            self._order = [name for name, _ in self._wanted if name not in paused]
            self._weights = {name: weight for name, weight in self._wanted if weight is not None}
        else:
            known = queue_store.in_order(self.alias)
            # A queue that was never registered still has its turn: its tasks say so themselves.
            extra = [name for name in self._vendor.ready_queues() if name not in known]
            self._order = [name for name in (*known, *extra) if name not in paused]
        self._refresh_at = tick + _REFRESH_SECONDS

    def refresh(self) -> None:
        """Look at queues and pauses again with the next claim."""
        self._refresh_at = 0.0
        self._edge_at = 0.0
