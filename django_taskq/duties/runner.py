"""Run each duty at its interval, on the worker that leads."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from django.db import DatabaseError, InterfaceError

from django_taskq import conf
from django_taskq.duties import promote, prune, reconcile, rescue, snapshot
from django_taskq.duties.leader import Leader
from django_taskq.store import duties as store

__all__ = ["DUTIES", "DutyRunner"]

logger = logging.getLogger("django_taskq")

Duty = Callable[[str, conf.Options, datetime], int]

DUTIES: dict[str, Duty] = {
    "promote": promote.run_once,
    "rescue": rescue.run_once,
    "snapshot": snapshot.run_once,
    "prune": prune.run_once,
    "reconcile": reconcile.run_once,
}
_REPORT_SECONDS = 10.0
_PROMOTE_SECONDS = 0.25


class DutyRunner:
    """Runs the duties of one worker while it leads. Used by one thread."""

    def __init__(
        self, alias: str, worker_id: Callable[[], int], options: conf.Options, now: Callable[[], datetime]
    ) -> None:
        self.alias = alias
        self.options = options
        self._worker_id = worker_id
        self._now = now
        self._leader = Leader(alias, worker_id, timedelta(seconds=min(10.0, options.lease_seconds / 2)))
        self._intervals = {
            "promote": _PROMOTE_SECONDS,
            "rescue": options.heartbeat_seconds / 2,
            "snapshot": 10.0,
            "prune": 60.0,
            "reconcile": 30.0,
        }
        # The others have no memory.
        watch = rescue.Watch(options.heartbeat_seconds)
        self._duties: dict[str, Duty] = {
            **DUTIES,
            "rescue": partial(rescue.run_once, watch=watch),
            "reconcile": partial(reconcile.run_once, place=reconcile.Round()),
        }
        self._due_at = dict.fromkeys(DUTIES, 0.0)
        self._reported_at: dict[str, float] = {}

    def run_due(self) -> int:
        """Run what is due; return how many tasks became ready. Database errors of a lost connection pass through."""
        if not self._leader.leads(self._now()):
            return 0
        ready = 0
        for name, duty in self._duties.items():
            tick = time.monotonic()
            if tick < self._due_at[name]:
                continue
            # Before it runs: a duty that the database refuses each time must not keep those behind it from their turn.
            # A little apart, so that the duties of several databases do not march in step.
            self._due_at[name] = tick + self._intervals[name] * random.uniform(0.9, 1.1)
            count, error = self._run(duty)
            self._report(name, count, error, time.monotonic() - tick)
            if name in ("promote", "rescue", "reconcile"):
                ready += count
        return ready

    def _run(self, duty: Duty) -> tuple[int, str]:
        try:
            return duty(self.alias, self.options, self._now()), ""
        except (DatabaseError, InterfaceError):
            raise
        except Exception as failure:
            # One broken duty must not keep the others from being done.
            logger.exception("The duty %s failed", getattr(duty, "func", duty).__module__)
            return 0, f"{type(failure).__name__}: {failure}"

    def _report(self, name: str, count: int, error: str, seconds: float) -> None:
        tick = time.monotonic()
        if not count and not error and tick - self._reported_at.get(name, -1e9) < _REPORT_SECONDS:
            return
        if tick - self._reported_at.get(name, -1e9) < 1.0:
            return
        self._reported_at[name] = tick
        store.report(
            self.alias,
            name,
            self._worker_id(),
            now=self._now(),
            took=timedelta(seconds=seconds),
            count=count,
            error=error,
        )

    def pause(self) -> float:
        """Return the seconds until the next duty is due."""
        if not self._leader.is_leading:
            return 0.5
        until_due = min(self._due_at.values()) - time.monotonic()
        until_promote = promote.until_next(self.alias, self._now())
        if until_promote is not None:
            until_due = min(until_due, until_promote.total_seconds())
        return max(0.01, until_due)
