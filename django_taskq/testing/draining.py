"""
Run stored tasks here and now: the worker's own claim, execute and settle, in the calling thread.

No thread, no second connection, so it works inside ``TestCase``'s transaction and sees
what the test has not committed. Its surprise: a savepoint around each task function. A worker runs
tasks in autocommit, where a failed statement spoils nothing; inside a test's
transaction it would spoil the rest of the test.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.db import DatabaseError, InterfaceError, connections
from django.db.models import QuerySet

from django_taskq import clock, conf, events
from django_taskq.domain.outcomes import ErrorInfo, Outcome
from django_taskq.domain.parking import paused_type_key
from django_taskq.domain.pauses import PauseScope
from django_taskq.domain.states import State
from django_taskq.duties import release
from django_taskq.lifecycle import execute
from django_taskq.lifecycle.claim import Claimer
from django_taskq.lifecycle.context import Run
from django_taskq.lifecycle.databases import database_for
from django_taskq.lifecycle.settle import Ended, settle
from django_taskq.models import Limit, Task
from django_taskq.store import pauses
from django_taskq.store import tasks as task_store
from django_taskq.store import workers as worker_store
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from django_taskq.testing.clock import active_clock, travel
from django_taskq.worker.executors.base import is_written, run_one

__all__ = ["DrainOverrun", "Drained", "DrainedTask", "adrain", "drain"]

RUNAWAY = 10_000
# Nobody renews the lease while a task function runs in this thread.
_LEASE_SECONDS = 86_400
_PROMOTE_CHUNK = 1000


class DrainOverrun(AssertionError):
    """A drain ran 10,000 attempts and was not at its end: some task keeps coming back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainedTask:
    """
    One attempt that a drain ran, or one task it ended without running it.

    ``outcome`` says how the attempt ended ("succeeded", "failed", "timed_out",
    "snoozed", …), ``state`` what became of the task ("succeeded", "scheduled", "dead", …).
    ``exception`` is the very object that the function raised.
    """

    task_id: str
    task: str
    queue: str
    attempt: int
    outcome: str
    state: str
    result: Any = None
    reason: str | None = None
    run_after: datetime | None = None
    error: ErrorInfo | None = field(default=None, repr=False)
    exception: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What a drain did, attempt by attempt, in the order they ran. ``is_complete``: nothing was left to run."""

    attempts: tuple[DrainedTask, ...] = ()
    is_complete: bool = True

    def __len__(self) -> int:
        return len(self.attempts)

    def __iter__(self) -> Iterator[DrainedTask]:
        return iter(self.attempts)

    def __bool__(self) -> bool:
        return True

    def of(self, task: Any) -> list[DrainedTask]:
        """Return the attempts of one task, given by its definition, stored name, result or id."""
        wanted = getattr(task, "id", None) or getattr(task, "task_name", None) or getattr(task, "module_path", task)
        return [attempt for attempt in self.attempts if wanted in {attempt.task, attempt.task_id}]

    @property
    def outcomes(self) -> Counter[str]:
        """How often each outcome came."""
        return Counter(attempt.outcome for attempt in self.attempts)

    def _ended(self, *states: str) -> int:
        return sum(attempt.state in states for attempt in self.attempts)

    @property
    def succeeded(self) -> int:
        """How many tasks ended well."""
        return self._ended("succeeded")

    @property
    def dead(self) -> int:
        """How many tasks ended as dead letters."""
        return self._ended("dead")

    @property
    def cancelled(self) -> int:
        """How many tasks ended as cancelled."""
        return self._ended("cancelled")

    @property
    def again(self) -> int:
        """How many attempts led to another one: retries, snoozes, unknown tasks put aside."""
        return self._ended("scheduled", "ready")


_OUTCOME_NAMES = {"TimedOut": "timed_out", "GaveUp": "gave_up", "BudgetOver": "budget_over"}


def _outcome_name(outcome: Outcome) -> str:
    name = type(outcome).__name__
    return _OUTCOME_NAMES.get(name, name.lower())


class _Host:
    """What the inline executor needs of a worker: settles each attempt as soon as it ended."""

    def __init__(self, alias: str, options: conf.Options, worker_id: int) -> None:
        self.alias = alias
        self.options = options
        self.worker_id = worker_id
        # The test's clock is the only one.
        self.offset = timedelta(0)
        self.attempts: list[DrainedTask] = []
        self.raised: BaseException | None = None

    def may_start(self, claim: Claim) -> bool:
        return claim.lease >> 32 == self.worker_id

    def taken(self) -> None:
        """No line to look after."""

    def started(self, run: Run) -> bool:
        if events.wanted(events.TaskStarted):
            eligible = (run.claim.run_after or run.claim.created_at).timestamp()
            events.emit(
                events.TaskStarted(
                    task_id=run.public_id,
                    task=run.claim.name,
                    queue=run.claim.queue,
                    attempt=run.claim.attempt,
                    alias=self.alias,
                    worker_id=self.worker_id,
                    wait_seconds=max(run.started - eligible, 0.0),
                    claim=run,
                )
            )
        return True

    def ended(self, ended: Ended, *, settled: threading.Event | None = None) -> None:
        if not is_written(settled):
            settle([ended], alias=self.alias, worker_id=self.worker_id, now=clock.now())
            if settled is not None:
                settled.set()
        self.attempts.append(self._told(ended))
        self.raised = ended.exception

    def _told(self, ended: Ended) -> DrainedTask:
        claim = ended.claim
        public_id = vendor_for(self.alias).public_id(claim.key)
        row = task_store.find(self.alias, public_id)
        return DrainedTask(
            task_id=public_id,
            task=claim.name,
            queue=claim.queue,
            attempt=claim.attempt,
            outcome=_outcome_name(ended.outcome),
            # A task whose result is not kept leaves no row behind.
            state="succeeded" if row is None else State(row.state).name.lower(),
            result=getattr(row, "result_value", None),
            reason=getattr(row, "reason", None),
            run_after=None if row is None else row.run_after,
            error=getattr(ended.outcome, "error", None),
            exception=ended.exception,
        )


def _sheltered(run: Run) -> tuple[Outcome, BaseException | None]:
    """Call the task function so that a statement which fails in there does not spoil the test's transaction."""
    inside = [connection for connection in connections.all(initialized_only=True) if connection.in_atomic_block]
    points = [(connection, point) for connection in inside if (point := connection.savepoint()) is not None]
    outcome, error = execute.call(run)
    for connection, point in points:
        if connection.needs_rollback or (error is not None and not connection.is_usable()):
            connection.needs_rollback = False
            connection.savepoint_rollback(point)
        else:
            connection.savepoint_commit(point)
    return outcome, error


def drain(
    queues: Iterable[str] | str | None = None,
    *,
    with_scheduled: bool = False,
    until: datetime | timedelta | None = None,
    max_tasks: int | None = None,
    raise_errors: bool = False,
    backend: str = "default",
) -> Drained:
    """
    Run the tasks that are ready, and those they enqueue, until none is; return what happened.

    Most urgent first, as a worker would. ``queues``: only these (default: all that are not paused).
    ``with_scheduled``: when nothing is ready, move the clock to the moment the next
    task is due and go on, so that retries and delays are followed to their end. ``until``: the same, but
    never past this moment, or this span from now; the clock ends there. A task
    never runs before its time. A clock of the test's own (``travel``, freezegun) stays where it was moved;
    without one, only the engine's clock moves, and only while the drain lasts.

    ``max_tasks``: stop after so many attempts. ``raise_errors``: raise what the first failing attempt
    raised, once it is settled. KeyboardInterrupt, and pytest's own
    ``fail`` and ``skip``, are settled and raised in any case.
    Raise DrainOverrun after 10,000 attempts without ``max_tasks``.
    """
    options = conf.options(backend)
    alias = database_for(options)
    names = [queues] if isinstance(queues, str) else None if queues is None else list(queues)
    with ExitStack() as stack:
        if active_clock() is None and (with_scheduled or until is not None):
            stack.enter_context(travel(ticking=True))
        worker_id = _announce(alias, names)
        stack.callback(_forget, alias, worker_id)
        host = _Host(alias, options, worker_id)
        limit = clock.now() + until if isinstance(until, timedelta) else until
        is_complete = _run(
            host,
            Claimer(alias, worker_id, [(name, None) for name in names or []], options),
            names,
            max_tasks=max_tasks,
            raise_errors=raise_errors,
            follow=with_scheduled or until is not None,
            limit=limit,
        )
        return Drained(attempts=tuple(host.attempts), is_complete=is_complete)


async def adrain(*args: Any, **kwargs: Any) -> Drained:
    """Do what ``drain`` does, from a coroutine: the tasks run in the thread that Django's ORM uses for it."""
    return await sync_to_async(drain)(*args, **kwargs)


def _announce(alias: str, names: Sequence[str] | None) -> int:
    return worker_store.announce(
        alias,
        # The database's clock and not the test's: a frozen past would look like a silent worker to others.
        now=vendor_for(alias).now(),
        name="drain",
        host=socket.gethostname()[:200],
        pid=os.getpid(),
        queues=",".join(names or [])[:500],
        slots=1,
        executor="inline",
        lease_seconds=_LEASE_SECONDS,
    )


def _forget(alias: str, worker_id: int) -> None:
    try:
        worker_store.forget(alias, worker_id)
    except (DatabaseError, InterfaceError):
        # The test has broken its own transaction, which takes the row along.
        if not connections[alias].in_atomic_block:
            raise


def _run(
    host: _Host,
    claimer: Claimer,
    names: Sequence[str] | None,
    *,
    max_tasks: int | None,
    raise_errors: bool,
    follow: bool,
    limit: datetime | None,
) -> bool:
    """Run until nothing is left, return True; return False if ``max_tasks`` came first."""
    while max_tasks is None or len(host.attempts) < max_tasks:
        if max_tasks is None and len(host.attempts) >= RUNAWAY:
            raise DrainOverrun(
                f"{RUNAWAY} attempts and no end; the last was {host.attempts[-1]!r}. Give max_tasks or until"
            )
        _promote_due(host.alias, host.options)
        # From the edge each time: what the last task enqueued may be more urgent, or on a new queue.
        claimer.refresh()
        rows = claimer.claim(1, now=clock.now())
        if rows:
            for claim in rows:
                run_one(host, claim, _sheltered, own_thread=False)
            _raise_what_must(host, raise_errors)
        elif not claimer.has_more and (not follow or not _move_on(host.alias, names, limit, claimer.opens_at)):
            return True
    return False


def _promote_due(alias: str, options: conf.Options) -> None:
    while len(vendor_for(alias).promote(clock.now(), _PROMOTE_CHUNK)) == _PROMOTE_CHUNK:
        pass
    release.run_once(alias, options, clock.now())


def _raise_what_must(host: _Host, raise_errors: bool) -> None:
    raised, host.raised = host.raised, None
    if raised is None:
        return
    is_for_the_test = not isinstance(raised, Exception | SystemExit | GeneratorExit | asyncio.CancelledError)
    if is_for_the_test or (raise_errors and host.attempts[-1].error is not None):
        last = host.attempts[-1]
        raised.add_note(f"Raised by attempt {last.attempt} of task {last.task} ({last.task_id})")
        raise raised


def _releases(alias: str, parked: QuerySet[Task]) -> Iterator[datetime | None]:
    """Yield when parked tasks may go on: at the look at their limits, or at the end of the pause of their type."""
    paused = {
        paused_type_key(pause.name): pause.until
        for pause in pauses.in_force(alias, clock.now())
        if pause.scope == PauseScope.TASK
    }
    # Of a paused type somebody looks each second; followed to its end, that would be for ever.
    if parked.exclude(parked_on__in=paused).exists():
        looks = Limit.objects.using(alias).filter(next_at__isnull=False).exclude(key__in=paused)
        yield looks.order_by("next_at").values_list("next_at", flat=True).first()
    for key, until in paused.items():
        if until is not None and parked.filter(parked_on=key).exists():
            yield until


def _move_on(alias: str, names: Sequence[str] | None, limit: datetime | None, opens_at: datetime | None) -> bool:
    """Move the clock to the next due moment, or to the limit; return whether a task is due there."""
    hands = active_clock()
    assert hands is not None
    scheduled = Task.objects.using(alias).filter(state=State.SCHEDULED, run_after__isnull=False)
    if names is not None:
        scheduled = scheduled.filter(queue__in=names)
    first = scheduled.order_by("run_after").values_list("run_after", flat=True).first()
    # Tasks that a rate keeps waiting go on when it lets them.
    parked = Task.objects.using(alias).filter(state=State.PARKED)
    if names is not None:
        parked = parked.filter(queue__in=names)
    looks = [*_releases(alias, parked), opens_at, first]
    due = min((moment for moment in looks if moment is not None), default=None)
    if due is None or (limit is not None and due > limit):
        if limit is not None and limit > hands.now():
            hands.move_to(limit)
        return False
    if due > hands.now():
        hands.move_to(due)
    return True
