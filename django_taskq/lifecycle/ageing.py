"""
Claim from a queue in which waiting counts: each step of time that a task waits is worth one of priority.

Its surprise: nothing is written. All tasks age alike, so of two tasks the same one is ahead for
ever: the one whose time of storing, plus its rank times the step, is the lower. Within a rank
that is the order of the claim index. So the ranks are merged, each read from its head, and one
gives tasks up to the moment at which the next one's head is ahead. The heads are looked up
anew every 250 ms, for what came in before them.
"""

from __future__ import annotations

import time
import uuid
from datetime import datetime, timedelta

from django_taskq.lifecycle.passed_over import PassedOver
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import Vendor

__all__ = ["Ageing"]

_LIST_SECONDS = 0.25
# From so many stretches one claim takes at most; each is a statement or two.
_STRETCHES_MOST = 16
# What of a step two tasks may be apart and be taken in the order of their ranks: else each
# claim from ranks that are filled alike would be a statement per task.
_BLUR = 0.25
_MOST = (1 << 48) - 1


class Ageing:
    """The ranks of one queue with ready tasks, and the first task of each. Used by one thread."""

    def __init__(self, vendor: Vendor, queue: str, step: timedelta) -> None:
        self.queue = queue
        self.step = step
        self._vendor = vendor
        self._milliseconds = step.total_seconds() * 1000
        self._heads: dict[int, uuid.UUID] = {}
        self._is_limited = False
        self._listed_until = 0.0
        self._passed_over = PassedOver(vendor, queue)

    @property
    def passes_over(self) -> bool:
        """Whether tasks with limits wait in the queue, which a claim that is not ``limited`` passes over."""
        return self._passed_over.found

    def claim(
        self, limit: int, *, lease: int, now: datetime, limited: bool = False, slots: str | None = None
    ) -> list[Claim]:
        """
        Take up to ``limit`` ready tasks, first those that are ahead by priority and time waited.

        Exact to a quarter of a step. Two callers never get the same task; ``limited`` and
        ``slots`` are those of ``Vendor.claim``.
        """
        taken: list[Claim] = []
        if time.monotonic() >= self._listed_until or not self._heads or limited != self._is_limited:
            self._is_limited = limited
            self._list()
        for _ in range(_STRETCHES_MOST):
            if len(taken) == limit or not self._heads:
                break
            first, *others = sorted(self._heads, key=self._place)
            last = self._until(first, min(map(self._place, others), default=None))
            rows = self._vendor.claim_between(
                self.queue,
                limit - len(taken),
                first=(first, self._vendor.key_of(self._heads[first])),
                last=(first, self._vendor.key_of(last)),
                lease=lease,
                now=now,
                limited=limited,
                slots=slots,
            )
            taken += rows
            if len(taken) == limit:
                self._heads[first] = uuid.UUID(self._vendor.public_id(rows[-1].key))
            else:
                if not limited:
                    self._passed_over.ask()
                # Fewer may mean that some have limits and others stand behind them.
                self._move(first, uuid.UUID(self._vendor.public_id(rows[-1].key)) if rows else last)
        if not taken:
            # Whatever the look has missed, or the limits passed over.
            self._listed_until = 0.0
            taken = self._vendor.claim(self.queue, limit, lease=lease, now=now, limited=limited, slots=slots)
        return taken

    def _place(self, rank: int) -> float:
        """Return where a rank's first task stands in the merged order."""
        return (self._heads[rank].int >> 80) + rank * self._milliseconds

    def _until(self, rank: int, next_place: float | None) -> uuid.UUID:
        """Return the last id of a rank that comes before the first task of the next one."""
        if next_place is None:
            return uuid.UUID(int=(1 << 128) - 1)
        moment = int(next_place + (_BLUR - rank) * self._milliseconds)
        return uuid.UUID(int=(min(max(moment, 0), _MOST) << 80) | ((1 << 80) - 1))

    def _move(self, rank: int, behind: uuid.UUID) -> None:
        """Go on with a rank behind what was taken of it."""
        head = self._vendor.ready_head(self.queue, behind=(rank, self._vendor.key_of(behind)))
        if head is None:
            del self._heads[rank]
        else:
            self._heads[rank] = head[1]

    def _list(self) -> None:
        self._heads = {}
        head = self._vendor.ready_head(self.queue)
        while head is not None:
            rank, self._heads[rank] = head
            head = self._vendor.ready_head(self.queue, above=rank)
        self._listed_until = time.monotonic() + _LIST_SECONDS
