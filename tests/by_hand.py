"""A worker by hand: claims, executes and settles in the calling thread, one step at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta

from django_taskq import clock, conf, events
from django_taskq.domain.outcomes import Interrupted
from django_taskq.lifecycle.claim import Claimer
from django_taskq.lifecycle.context import Run
from django_taskq.lifecycle.settle import Ended, Settled, settle
from django_taskq.store import workers as store
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from django_taskq.worker.executors.base import is_written, run_one


class HandWorker:
    """
    Does what a worker does, when told to.

    Takes the same steps through the same functions, without threads and without
    waiting, so that a test decides what happens between any two of them.
    """

    def __init__(self, alias: str = "default", *, lease_seconds: int = 30) -> None:
        self.alias = alias
        self.options = conf.options()
        self.id = store.announce(alias, now=clock.now(), name="by hand", lease_seconds=lease_seconds)
        self._claimer = Claimer(alias, self.id, [])
        self._ended: list[Ended] = []

    def claim(self, limit: int = 100) -> list[Claim]:
        """Promote what is due and take what is ready."""
        vendor_for(self.alias).promote(clock.now(), 1000)
        self._claimer.refresh()
        claims = self._claimer.claim(limit, now=clock.now())
        if claims and events.wanted(events.TasksClaimed):
            events.emit(events.TasksClaimed(claims=claims, worker_id=self.id, alias=self.alias))
        return claims

    def execute(self, claims: Sequence[Claim]) -> list[Ended]:
        """Call the functions of claims; return how they ended."""
        for claim in claims:
            run_one(self, claim, own_thread=False)
        ended, self._ended = self._ended, []
        return ended

    def settle(self, batch: Sequence[Ended]) -> Settled:
        """Write how attempts ended."""
        return settle(batch, alias=self.alias, worker_id=self.id, now=clock.now())

    def interrupt(self, claims: Sequence[Claim]) -> Settled:
        """Hand running tasks back, as a worker does whose grace time is over."""
        now = clock.timestamp()
        return self.settle([Ended(claim, Interrupted(), now, now) for claim in claims])

    def work(self, *, rounds: int = 20) -> int:
        """Work off what is ready or due, retries included; return how many attempts that were."""
        count = 0
        for _ in range(rounds):
            claims = self.claim()
            if not claims:
                break
            ended = self.execute(claims)
            count += len(claims)
            if ended:
                self.settle(ended)
        return count

    def fall_silent(self) -> None:
        """Make the last heartbeat older than the lease, as a killed worker's is."""
        store.beat(self.alias, self.id, now=clock.now() - timedelta(hours=1), running=0)

    # The Host of worker/executors/base.py

    def may_start(self, claim: Claim) -> bool:
        return True

    def started(self, run: Run) -> bool:
        if not events.wanted(events.TaskStarted):
            return True
        claim = run.claim
        eligible = (claim.run_after or claim.created_at).timestamp()
        events.emit(
            events.TaskStarted(
                task_id=run.public_id,
                task=claim.name,
                queue=claim.queue,
                attempt=claim.attempt,
                alias=self.alias,
                worker_id=self.id,
                wait_seconds=max(run.started - eligible, 0.0),
                claim=run,
            )
        )
        return True

    def ended(self, ended: Ended, *, settled: threading.Event | None = None) -> None:
        if is_written(settled):
            return
        self._ended.append(ended)
        if settled is not None:
            settled.set()

    def taken(self) -> None:
        """Do nothing: there is no line in front of one slot."""
