"""
Take tasks for a worker: which queues, in which order, how many, from where.

The surprise is the resumed scan. While an old transaction pins dead rows, a
scan from the left edge of the index walks over all of them again and again
(7 times slower at 100,000). So a full batch is followed by one that starts
behind it; short batches, and every 250 ms, start from the edge again, where
late commits, retries and more urgent tasks wait.

A queue whose tasks have fair keys is claimed from in turns over them (``fair``),
one whose settings say so with ageing. Whether a queue has keys is asked once a second; until
then its tasks are claimed as all others, so the question costs a plain queue
nothing and loses no task.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from django_taskq import clock, conf
from django_taskq.domain import lease as leases
from django_taskq.domain.pauses import PauseScope
from django_taskq.store import pauses as pause_store
from django_taskq.store import queues as queue_store
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for

if TYPE_CHECKING:
    from django_taskq.domain.shares import Shares
    from django_taskq.lifecycle.ageing import Ageing
    from django_taskq.lifecycle.fair import Turns

__all__ = ["Claimer", "parse_queues"]

_RESUME_SECONDS = 0.25
_REFRESH_SECONDS = 1.0
# How soon after one short claim another asks whether it passed over tasks with limits.
_ASK_SECONDS = 0.05
# How long after the last such task a queue is claimed from with limits.
_LIMITED_SECONDS = 30.0
# How many batches one claim tries when some of each have to be parked.
_LIMITED_TURNS = 5
# How many tasks a batch then looks at, however few are wanted.
_LOOK = 200


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

    def __init__(
        self,
        alias: str,
        worker_id: int,
        queues: Sequence[tuple[str, int | None]],
        options: conf.Options | None = None,
    ) -> None:
        self.alias = alias
        self._options = options or conf.options()
        self.worker_id = worker_id
        self._vendor = vendor_for(alias)
        self._wanted = list(queues)
        self._numbers = itertools.count(1)
        self._order: list[str] = []
        self._weights: dict[str, int] = {}
        self._shares: Shares | None = None
        self._orders: dict[str, Turns | Ageing] = {}
        self._refresh_at = 0.0
        self._pause_ends_at: float | None = None
        self._paused_types: frozenset[str] = frozenset()
        self._resume: dict[str, tuple[int, Any]] = {}
        self._edge_at = 0.0
        self._gate: Any = None
        self._read_at = 0.0
        self._limited_until: dict[str, float] = {}
        self._ask_at: dict[str, float] = {}
        self.has_more = False
        """Whether the last claim gave up looking: it parked whatever it saw, and there is more behind it."""

    def claim(self, limit: int, *, now: datetime) -> list[Claim]:
        """
        Take up to ``limit`` tasks from the queues that are not paused.

        In the given order until the batch is full; with weights each queue gives its
        share of the batch, and what one cannot give is shared by the others.
        """
        self._read_at = clock.elapsed()
        tick = time.monotonic()
        if tick >= self._refresh_at:
            self._refresh(tick, now)
        if tick >= self._edge_at:
            self._resume.clear()
            self._edge_at = tick + _RESUME_SECONDS
        if self._gate is not None:
            self._gate.opens_at = None
        self.has_more = False
        if self._shares is not None:
            return self._claim_shares(self._shares, limit, now)
        taken: list[Claim] = []
        for queue in self._order:
            missing = limit - len(taken)
            if missing <= 0:
                break
            taken += self._claim_from(queue, missing, now)
        return taken

    def _claim_shares(self, shares: Shares, limit: int, now: datetime) -> list[Claim]:
        taken: list[Claim] = []
        empty: set[str] = set()
        while len(taken) < limit and len(empty) < len(self._order):
            among = [queue for queue in self._order if queue not in empty]
            for queue, count in shares.divide(limit - len(taken), among).items():
                rows = self._claim_from(queue, count, now)
                shares.took(queue, len(rows))
                taken += rows
                if len(rows) < count:
                    empty.add(queue)
        shares.keep_up(queue for queue in self._order if queue not in empty)
        return taken

    def _claim_from(self, queue: str, limit: int, now: datetime) -> list[Claim]:
        if self._has_limits(queue):
            return self._claim_limited(queue, limit, now)
        lease = self._new_lease()
        order = self._orders.get(queue)
        if order is not None:
            rows = order.claim(limit, lease=lease, now=now)
            # Short or not: what it passes over is made up for by tasks of others.
            if order.passes_over and self._passed_over(queue) and len(rows) < limit:
                rows += self._claim_limited(queue, limit - len(rows), now)
            return rows
        after = self._resume.get(queue)
        rows = self._vendor.claim(queue, limit, lease=lease, now=now, after=after)
        if after is not None and len(rows) < limit:
            # The rest of the batch may lie before the resumed point.
            self._resume.pop(queue, None)
            rows += self._vendor.claim(queue, limit - len(rows), lease=lease, now=now)
        elif len(rows) == limit:
            self._resume[queue] = (rows[-1].rank, rows[-1].key)
        if len(rows) < limit and self._passed_over(queue):
            rows += self._claim_limited(queue, limit - len(rows), now)
        return rows

    def _new_lease(self) -> int:
        return leases.make_lease(self.worker_id, next(self._numbers) & leases.MAX_CLAIM_NO)

    # Limits. Tasks without any are claimed by one statement; it passes over the others. Only a claim that
    # came back short may have passed over some, and only then somebody asks.

    def _has_limits(self, queue: str) -> bool:
        if self._gate is None:
            return False
        return self._gate.guards(queue) or time.monotonic() < self._limited_until.get(queue, 0.0)

    def _passed_over(self, queue: str) -> bool:
        tick = time.monotonic()
        if tick < self._ask_at.get(queue, 0.0):
            return False
        self._ask_at[queue] = tick + _ASK_SECONDS
        if not self._vendor.has_limited(queue):
            return False
        self._limited_until[queue] = tick + _LIMITED_SECONDS
        return True

    def _claim_limited(self, queue: str, limit: int, now: datetime) -> list[Claim]:
        """Claim with limits: a batch at a time, for some of each may have to be parked."""
        gate = self._made_gate()
        started: list[Claim] = []
        look = 0
        for _ in range(_LIMITED_TURNS):
            wanted = limit - len(started)
            if wanted <= 0:
                break
            lease = self._new_lease()
            order = self._orders.get(queue)
            after = None if order is not None else self._resume.get(queue)
            claim = partial(self._vendor.claim, queue, after=after) if order is None else order.claim
            take = partial(claim, lease=lease, now=now, limited=True)
            claimed, fit = gate.claim(take, queue, wanted, look=look, now=now, read_at=self._read_at)
            started += fit
            asked = max(look, wanted)
            # Where most have to be parked, a worker with one free slot would else park them one by one.
            look = _LOOK if len(fit) < len(claimed) else 0
            if len(claimed) == asked and order is None:
                # Not behind what could have started, was too much, and so stays ready.
                last = (fit or claimed)[-1]
                self._resume[queue] = (last.rank, last.key)
            elif after is not None:
                self._resume.pop(queue, None)
                continue
            if any(claim.slots is not None for claim in claimed):
                self._limited_until[queue] = time.monotonic() + _LIMITED_SECONDS
            if len(claimed) < asked:
                break
        else:
            self.has_more = True
        return started

    def _made_gate(self) -> Any:
        if self._gate is None:
            from django_taskq.lifecycle.limits import Gate

            self._gate = Gate(self.alias, self._options)
            self._gate.refresh(self._paused_types)
        return self._gate

    @property
    def opens_at(self) -> datetime | None:
        """When the rate of a queue lets a task start again that kept the last claim from some, None if none did."""
        return None if self._gate is None else self._gate.opens_at

    def looks_in(self, now: datetime) -> float | None:
        """Return after how many seconds to look again untold: a pause or rate is over, or more is there."""
        waits = [] if self._pause_ends_at is None else [self._pause_ends_at - time.monotonic()]
        if self.opens_at is not None:
            waits.append((self.opens_at - now).total_seconds())
        if self.has_more:
            waits.append(0.0)
        return max(min(waits), 0.001) if waits else None

    def _refresh(self, tick: float, now: datetime) -> None:
        paused = self._paused(tick, now)
        if self._wanted:
            weights = {name: weight for name, weight in self._wanted if weight is not None}
            names = [name for name, _ in self._wanted]
        else:
            known = queue_store.in_order(self.alias)
            # A queue that was never registered still has its turn: its tasks say so themselves.
            names = [*known, *(name for name in self._vendor.ready_queues() if name not in known)]
            # Nobody gave any queue a weight: their positions say who is first.
            weights = {} if set(known.values()) <= {1} else {name: max(known.get(name, 1), 1) for name in names}
        self._order = [] if paused is None else [name for name in dict.fromkeys(names) if name not in paused]
        self._weigh(weights)
        self._orders = self._special_orders()
        self._refresh_limits()
        self._refresh_at = tick + _REFRESH_SECONDS
        if self._pause_ends_at is not None:
            self._refresh_at = min(self._refresh_at, self._pause_ends_at)

    def _paused(self, tick: float, now: datetime) -> set[str] | None:
        """Return the queues that nobody may claim from, None for all; tidy away the pauses that are over."""
        pauses = pause_store.every(self.alias)
        self._pause_ends_at = None
        self._paused_types = frozenset()
        if not pauses:
            return set()
        over = [pause for pause in pauses if pause.is_over(now)]
        if over:
            # Loaded where there are pauses.
            from django_taskq.lifecycle import pausing

            pausing.lift_ended(self.alias, over, now=now)
        held = [pause for pause in pauses if not pause.is_over(now)]
        ends = [pause.until for pause in held if pause.until is not None]
        if ends:
            self._pause_ends_at = tick + (min(ends) - now).total_seconds()
        self._paused_types = frozenset(pause.name for pause in held if pause.scope == PauseScope.TASK)
        if any(pause.scope == PauseScope.EVERYTHING for pause in held):
            return None
        return {pause.name for pause in held if pause.scope == PauseScope.QUEUE}

    def _special_orders(self) -> dict[str, Turns | Ageing]:
        """Return what claims from the queues that are not served by priority and age alone, their places kept."""
        found: dict[str, Turns | Ageing] = {}
        for queue in self._vendor.fair_queues(self._order):
            from django_taskq.lifecycle.fair import Turns

            known = self._orders.get(queue)
            found[queue] = known if isinstance(known, Turns) else Turns(self._vendor, queue)
        for queue, own in self._options.queues.items():
            if own.age_step is not None and queue in self._order and queue not in found:
                from django_taskq.lifecycle.ageing import Ageing

                aged = self._orders.get(queue)
                found[queue] = aged if isinstance(aged, Ageing) else Ageing(self._vendor, queue, own.age_step)
        return found

    def _weigh(self, weights: dict[str, int]) -> None:
        """Keep the passes while the weights stay as they are."""
        if weights == self._weights:
            return
        self._weights = weights
        self._shares = None
        if len(weights) > 1:
            from django_taskq.domain.shares import Shares

            self._shares = Shares(weights, random.random)

    def _refresh_limits(self) -> None:
        """Look whether queues have limits, from the settings or set by an operator."""
        options = self._options
        if self._gate is None and not (
            self._paused_types
            or options.concurrency
            or options.rate
            or any(own.concurrency or own.rate for own in options.queues.values())
            or queue_store.has_limits(self.alias)
        ):
            return
        self._made_gate().refresh(self._paused_types)

    def refresh(self) -> None:
        """Look at queues, pauses and limits again with the next claim."""
        self._refresh_at = 0.0
        self._edge_at = 0.0
        self._ask_at.clear()
