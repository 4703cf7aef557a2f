"""
Two verbs at once, one of them held before each of its statements: whatever the moment, the books are right.

A race that a thousand runs may miss is here one of a few hundred cases, each the same every time.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.test import override_settings

import django_taskq
from django_taskq import Concurrency, Fixed, Unique, batch, conf, task, workflow
from django_taskq.domain.outcomes import Cancelled, ErrorInfo, Failed, Interrupted, Outcome, Snoozed, Succeeded
from django_taskq.domain.parking import counted, promised_key
from django_taskq.domain.states import State
from django_taskq.domain.workflows import Role
from django_taskq.duties import promote, prune, reconcile, release
from django_taskq.exceptions import InvalidTransition, WorkflowEnded, WorkflowNotFound
from django_taskq.lifecycle import rescue
from django_taskq.lifecycle.claim import Claimer
from django_taskq.lifecycle.settle import Ended, settle
from django_taskq.models import FinishedTask, Limit, Task, Workflow
from django_taskq.store.rows import Claim
from tests import emptying
from tests.engine import ALIAS, announce, db_now, with_another_before

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(600)]

KEPT = {"RETENTION": {"SUCCEEDED": 0, "CANCELLED": 0, "DEAD": 0}}
ERROR = ErrorInfo(class_path="x.Y", message="m", traceback="", fingerprint="f")
ONE = "one"


@task(limits=Concurrency(1, key=ONE), backoff=Fixed(0), max_attempts=2)
def single(name: str) -> None:
    """Do nothing, one at once."""


@task(unique=Unique(key="{name}", on_conflict="replace"))
def latest(name: str, version: int = 0) -> None:
    """Do nothing, by the arguments of the last call."""


@task
def free(name: str) -> None:
    """Do nothing."""


class World:
    """What workers do, in single steps. Public methods without arguments are the verbs."""

    claimed: list[Claim]

    def _claim_as(self, worker_id: int, limit: int) -> list[Claim]:
        return Claimer(ALIAS, worker_id, [("default", None)]).claim(limit, now=db_now())

    def _write(self, claimed: Claim, outcome: Outcome) -> int:
        at = db_now()
        ended = Ended(claimed, outcome, at.timestamp(), at.timestamp())
        return settle([ended], alias=ALIAS, worker_id=claimed.lease >> 32, now=at).count

    def claim(self) -> None:
        # As a worker that comes just now.
        self.claimed += self._claim_as(announce(), 4)

    def rescue(self) -> None:
        rescue.rescue(ALIAS, now=db_now())

    def reconcile(self) -> None:
        assert reconcile.run_once(ALIAS, conf.options(), db_now()) == 0

    def _run_all(self) -> None:
        """Let everything run to its end."""
        later = db_now()
        for _ in range(40):
            for claimed in self.claimed:
                self._write(claimed, Succeeded())
            self.claimed.clear()
            if not Task.objects.exists():
                break
            later += timedelta(seconds=3)
            self.rescue()
            promote.run_once(ALIAS, conf.options(), later)
            release.run_once(ALIAS, conf.options(), later)
            self.claim()
        left = list(Task.objects.values("name", "state", "parked_on", "slots", "run_after", "waits_for"))
        assert not left, left
        self.reconcile()


class Tasks(World):
    """
    A few tasks in all states.

    ``a`` runs on a worker that has been silent for longer than its lease, ``b`` and ``c`` are parked behind it,
    ``r`` and ``k`` are ready, ``s`` is due, ``d`` and ``e`` are dead.
    """

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}
        self.now = db_now()
        for name, kind in (("d", single), ("e", latest), ("a", single), ("b", single), ("c", single)):
            self._add(name, kind)
            if name in "de":
                [claimed] = self._claim_as(announce(), 1)
                assert self._write(claimed, Failed(error=ERROR, retry_in=None)) == 1
            elif name == "a":
                [self.running] = self._claim_as(announce(silent_for=31), 1)
        assert self._claim_as(announce(), 2) == []
        self._add("r", free)
        self._add("k", latest)
        self._add("s", free.using(delay=0.0))
        Task.objects.filter(pk=self.ids["s"]).update(state=State.SCHEDULED, run_after=self.now - timedelta(seconds=1))
        self.claimed: list[Claim] = []

    def _add(self, name: str, kind: Any) -> None:
        self.ids[name] = kind.enqueue(name).id

    def succeed(self) -> None:
        self._write(self.running, Succeeded())

    def retry(self) -> None:
        self._write(self.running, Failed(error=ERROR, retry_in=0.0))

    def die(self) -> None:
        self._write(self.running, Failed(error=ERROR, retry_in=None))

    def snooze(self) -> None:
        self._write(self.running, Snoozed(0.0))

    def stop(self) -> None:
        self._write(self.running, Cancelled())

    def hand_back(self) -> None:
        self._write(self.running, Interrupted(started=False))

    def cancel_running(self) -> None:
        django_taskq.cancel(self.ids["a"])

    def requeue_running(self) -> None:
        # It may have ended, or gone back.
        with suppress(InvalidTransition):
            django_taskq.cancel(self.ids["a"], requeue=True)

    def cancel_waiting(self) -> None:
        django_taskq.cancel([self.ids[name] for name in "brks"])

    def replay(self) -> None:
        django_taskq.replay([self.ids["d"], self.ids["e"]])

    def discard(self) -> None:
        django_taskq.discard([self.ids["d"], self.ids["e"]])

    def release(self) -> None:
        # Late enough for a second look, and before a promise is given up.
        release.run_once(ALIAS, conf.options(), db_now() + timedelta(seconds=1.5))

    def promote(self) -> None:
        promote.run_once(ALIAS, conf.options(), db_now())

    def prune(self) -> None:
        prune.run_once(ALIAS, conf.options(), db_now())

    def raise_limit(self) -> None:
        django_taskq.set_limit(ONE, concurrency=2)

    def close_limit(self) -> None:
        django_taskq.set_limit(ONE, concurrency=0)

    def reset_limit(self) -> None:
        django_taskq.reset_limit(ONE)

    def pause(self) -> None:
        django_taskq.pause(task=single)

    def resume(self) -> None:
        django_taskq.resume(task=single)

    def enqueue(self) -> None:
        self._add(f"new{len(self.ids)}", single)

    def replace(self) -> None:
        latest.enqueue("k", 1)
        latest.enqueue("e", 1)

    def _check(self, *, may_be_gone: bool) -> None:
        live = {str(key) for key in Task.objects.values_list("pk", flat=True)}
        ended = {str(key) for key in FinishedTask.objects.values_list("pk", flat=True)}
        assert not live & ended
        if not may_be_gone:
            assert set(self.ids.values()) <= live | ended
        leases = set(Task.objects.exclude(lease=None).values_list("lease", flat=True))
        assert leases >= {claimed.lease for claimed in self.claimed}, "taken away"
        held: Counter[str] = Counter()
        promised: Counter[str] = Counter()
        for state, lease, slots, limits in Task.objects.values_list("state", "lease", "slots", "limits"):
            assert (state == State.RUNNING) == (lease is not None)
            if lease is not None:
                assert counted(slots or "") == (limits or "").split("\n")
                held.update(counted(slots) if slots else ())
            elif slots is not None:
                promised.update([promised_key(slots)])
        for limit in Limit.objects.all():
            assert limit.held == held[limit.key], "held"
            assert limit.promised >= promised[limit.key], "promised"
            assert limit.held <= 2
        assert not Task.objects.filter(state=State.PARKED, parked_on__isnull=True).exists()
        assert not Task.objects.exclude(state=State.PARKED).filter(parked_on__isnull=False).exists()

    def _finish(self) -> None:
        django_taskq.resume(task=single)
        django_taskq.reset_limit(ONE)
        self._write(self.running, Succeeded())
        self._run_all()
        assert not Limit.objects.exclude(held=0).exists()


class Flows(World):
    """
    A graph: ``a`` runs, and ``b`` on a worker that has been silent for too long; ``c`` waits for both.

    ``d`` waits for ``c`` and for a signal, and a batch inside for ``a``. A second graph has failed.
    """

    def __init__(self) -> None:
        inside = batch(free.s("x"), free.s("y"))
        self.failed = workflow().add("p", free.s("p")).add("q", free.s("q"), after="p").enqueue()
        [claimed] = self._claim_as(announce(), 1)
        assert self._write(claimed, Failed(error=ERROR, retry_in=None)) == 1
        self.made = (
            workflow()
            .add("a", free.s("a"))
            .add("b", free.s("b"))
            .add("c", free.s("c"), after=("a", "b"))
            .wait_for("go")
            .add("d", free.s("d"), after=("c", "go"))
            .add("inside", inside, after="a")
            .finally_(free.s("end"))
            .enqueue()
        )
        [self.a] = self._claim_as(announce(), 1)
        [self.b] = self._claim_as(announce(silent_for=31), 1)
        self.claimed = []

    def succeed(self) -> None:
        self._write(self.a, Succeeded())

    def die(self) -> None:
        self._write(self.a, Failed(error=ERROR, retry_in=None))

    def stop(self) -> None:
        self._write(self.a, Cancelled())

    def succeed_late(self) -> None:
        self._write(self.b, Succeeded())

    def die_late(self) -> None:
        self._write(self.b, Failed(error=ERROR, retry_in=None))

    def cancel(self) -> None:
        self.made.cancel()

    def cancel_member(self) -> None:
        django_taskq.cancel([str(row.pk) for row in self.made.tasks() if row.name.endswith("free")][2])

    def signal(self) -> None:
        with suppress(WorkflowEnded):
            self.made.signal("go")

    def replay(self) -> None:
        # Somebody else may have done it.
        with suppress(InvalidTransition):
            self.failed.replay()

    def replay_member(self) -> None:
        django_taskq.replay([str(row.pk) for row in self.failed.tasks()][:1])

    def prune(self) -> None:
        prune.run_once(ALIAS, conf.options(), db_now())

    def _check(self, *, may_be_gone: bool) -> None:
        live = set(Task.objects.values_list("pk", flat=True))
        ended = set(FinishedTask.objects.values_list("pk", flat=True))
        assert not live & ended
        leases = set(Task.objects.exclude(lease=None).values_list("lease", flat=True))
        assert leases >= {claimed.lease for claimed in self.claimed}, "taken away"
        assert may_be_gone or len(live | ended) >= 9

    def _finish(self) -> None:
        self.signal()
        self._write(self.a, Succeeded())
        self._write(self.b, Succeeded())
        self._run_all()
        for handle in (self.made, self.failed):
            with suppress(WorkflowNotFound):
                assert handle.refresh().is_finished
                assert not handle.counts.open
        assert FinishedTask.objects.filter(role=Role.FINALLY).count() <= 1
        if Workflow.objects.filter(pk=self.made.id).exists():
            assert FinishedTask.objects.filter(role=Role.FINALLY).exists()


def verbs_of(world: type[World]) -> list[str]:
    return [name for name in dir(world) if not name.startswith("_") and callable(getattr(world, name))]


# All of them take minutes: HYPOTHESIS_PROFILE=deep. Else a sample.
IS_DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
PAIRS = [
    (world, first, second)
    for world, step in ((Tasks, 2), (Flows, 3))
    for verbs in [verbs_of(world)]
    for at, first in enumerate(verbs)
    for second in (verbs if IS_DEEP else [verbs[(7 * at + 3) % len(verbs)]])
    if IS_DEEP or at % step == 0
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "first", "second"), PAIRS)
@override_settings(TASKQ=KEPT)
def test_of_two_verbs_at_once_none_breaks_what_the_other_does(
    kind: type[Tasks | Flows], first: str, second: str
) -> None:
    for moment in itertools.count(1):
        world = kind()
        found = with_another_before(moment, getattr(world, first), getattr(world, second))
        world._check(may_be_gone="prune" in (first, second))
        world._finish()
        emptying.empty(ALIAS)
        if not found:
            break
    assert moment > 1
