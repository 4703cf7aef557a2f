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
from django_taskq.duties import promote, prune, reconcile, release, rescue, snapshot, tick
from django_taskq.duties.leader import Leader
from django_taskq.store import duties as store

__all__ = ["DUTIES", "DutyRunner"]

logger = logging.getLogger("django_taskq")

Duty = Callable[[str, conf.Options, datetime], int]

DUTIES: dict[str, Duty] = {
    "promote": promote.run_once,
    "release": release.run_once,
    "tick": tick.run_once,
    "rescue": rescue.run_once,
    "snapshot": snapshot.run_once,
    "prune": prune.run_once,
    "reconcile": reconcile.run_once,
}
_REPORT_SECONDS = 10.0
_PROMOTE_SECONDS = 0.25
# What is due sooner is promoted sooner, but not one by one where a stream of tasks is due: see pause().
_PROMOTE_LEAST_SECONDS = 0.05
# A limit that opens sooner is looked at sooner, too.
_RELEASE_SECONDS = 0.25


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
            "release": _RELEASE_SECONDS,
            "tick": 1.0,
            "rescue": options.heartbeat_seconds / 2,
            "snapshot": 10.0,
            "prune": 60.0,
            "reconcile": 30.0,
        }
        # The others have no memory.
        watch = rescue.Watch(options.heartbeat_seconds)
        self._agenda = tick.Agenda()
        self._sync_at = 0.0
        self._duties: dict[str, Duty] = {
            **DUTIES,
            "tick": partial(tick.run_once, agenda=self._agenda),
            "rescue": partial(rescue.run_once, watch=watch),
            "reconcile": partial(reconcile.run_once, place=reconcile.Round()),
        }
        self._due_at = dict.fromkeys(DUTIES, 0.0)
        self._promoted_at = 0.0
        self._reported_at: dict[str, float] = {}

    def run_due(self) -> int:
        """Run what is due; return how many tasks became ready. Database errors of a lost connection pass through."""
        ready = self._lead() if self._leader.leads(self._now()) else 0
        tick_at = time.monotonic()
        if not self._agenda.is_synced and tick_at >= self._sync_at:
            # Leader or not: the worker that started last has the newest code. Last, and not each time: what
            # the database refuses must not keep the duties from their turn.
            self._sync_at = tick_at + self._intervals["tick"]
            self._run(partial(tick.sync_once, agenda=self._agenda))
        return ready

    def _lead(self) -> int:
        ready = 0
        until_tick = self._agenda.until_next(self._now())
        if until_tick is not None and not until_tick:
            self._due_at["tick"] = 0.0
        for name, duty in self._duties.items():
            began = time.monotonic()
            if began < self._due_at[name]:
                continue
            # Before it runs: a duty that the database refuses each time must not keep those behind it from their turn.
            # A little apart, so that the duties of several databases do not march in step.
            self._due_at[name] = began + self._intervals[name] * random.uniform(0.9, 1.1)
            count, error = self._run(duty)
            if name == "promote":
                self._promoted_at = time.monotonic()
            self._report(name, count, error, time.monotonic() - began)
            if name in ("promote", "release", "rescue", "reconcile"):
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
        moment = time.monotonic()
        if not count and not error and moment - self._reported_at.get(name, -1e9) < _REPORT_SECONDS:
            return
        if moment - self._reported_at.get(name, -1e9) < 1.0:
            return
        self._reported_at[name] = moment
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
        until_promote = promote.until_next(self.alias, self._now())
        if until_promote is not None:
            due_at = time.monotonic() + until_promote.total_seconds()
            due_at = max(due_at, self._promoted_at + _PROMOTE_LEAST_SECONDS)
            self._due_at["promote"] = min(self._due_at["promote"], due_at)
        until_due = min(self._due_at.values()) - time.monotonic()
        until_release = release.until_next(self.alias, self._now())
        if until_release is not None and until_release.total_seconds() < until_due:
            until_due = until_release.total_seconds()
            self._due_at["release"] = time.monotonic() + until_due
        until_tick = self._agenda.until_next(self._now())
        if until_tick is not None:
            until_due = min(until_due, until_tick.total_seconds())
        return max(0.01, until_due)
