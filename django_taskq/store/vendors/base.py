"""
The portable vendor: every operation through the ORM, correct on any database Django supports.

The other files here replace an operation where one statement of theirs is
measured faster; ``StoreContract`` holds all of them to the same behaviour.
Every method that takes ``now`` compares with it and never with a clock of its own.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from django.db import DatabaseError, DataError, InterfaceError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, Value, When

from django_taskq import clock
from django_taskq.domain.states import State
from django_taskq.models import Attempt, FinishedTask, Progress, Snapshot, Stat, Step, Task, Workflow
from django_taskq.store.rows import Again, AttemptRow, Claim, Ending, NewTask

__all__ = ["CARRIED", "STAT_COUNTERS", "Listener", "Vendor"]

T = TypeVar("T")

CLAIM_FIELDS = (
    "id",
    "queue",
    "rank",
    "attempt",
    "max_attempts",
    "ack",
    "name",
    "args",
    "options",
    "metadata",
    "run_after",
    "created_at",
    "deadline_at",
    "expires_at",
    "cancel",
    "workflow_id",
    "role",
)
CARRIED = (
    "id",
    "queue",
    "rank",
    "max_attempts",
    "ack",
    "lease",
    "run_after",
    "created_at",
    "deadline_at",
    "expires_at",
    "name",
    "args",
    "options",
    "metadata",
    "parent_id",
    "replays",
    "workflow_id",
    "role",
)
STAT_COUNTERS = tuple(
    field.attname
    for field in Stat._meta.concrete_fields
    if field.attname not in ("id", "minute", "queue", "task", "worker_id")
)


class Listener(Protocol):
    """A connection that hears ``notify``."""

    def fileno(self) -> int:
        """Return what becomes readable when there is something to hear."""

    def heard(self) -> list[str]:
        """Return the messages that came since the last call, without waiting."""


class Vendor:
    """The operations on one database alias. Holds no state, so threads share it."""

    name = "portable"
    skip_locked = False
    poll_seconds = 0.02
    """How soon an idle worker looks again, at the quickest, where nothing wakes it."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    @property
    def connection(self) -> BaseDatabaseWrapper:
        """The calling thread's connection."""
        return connections[self.alias]

    # Ids

    def key_of(self, public_id: str | uuid.UUID) -> Any:
        """Return an id in the database's own form. Raise ValueError for what is no UUID."""
        return public_id if isinstance(public_id, uuid.UUID) else uuid.UUID(public_id)

    def public_id(self, key: Any) -> str:
        """Return the id that users see: 36 characters."""
        return str(key)

    def order_of(self, key: Any) -> Any:
        """Return what keys sort by within one process."""
        return key

    # Errors, known by class and code

    def is_lost_connection(self, error: BaseException) -> bool:
        """Return whether the statement may be repeated on a new connection."""
        return isinstance(error, OperationalError | InterfaceError)

    def refuses_value(self, error: BaseException) -> bool:
        """Return whether the database will never take what it was given, however often it is asked."""
        return isinstance(error, DataError) or not isinstance(error, DatabaseError | InterfaceError)

    def takes(self, size: int) -> bool:
        """Return whether a statement with values of so many bytes may reach the database."""
        return True

    def is_conflict(self, error: BaseException) -> bool:
        """Return whether the whole transaction may be repeated at once: a deadlock, a busy database."""
        return False

    def retrying(self, work: Callable[[], T], *, tries: int = 8) -> T:
        """Run ``work``, one whole transaction, again while the database reports a conflict."""
        for turn in range(tries):
            try:
                return work()
            except DatabaseError as error:
                if turn == tries - 1 or not self.is_conflict(error) or self.connection.in_atomic_block:
                    raise
            time.sleep(0.005 * 2**turn)
        raise AssertionError("unreachable")

    def atomic(self) -> Any:
        """Return a transaction fit for claims and settlements."""
        return transaction.atomic(using=self.alias)

    def is_timeout(self, error: BaseException) -> bool:
        """Return whether a statement was ended because it waited too long."""
        return False

    def interrupter(self) -> Callable[[], None] | None:
        """
        Return what ends the statement of this thread's connection, to be called from another thread.

        None where a statement cannot be ended from outside.
        """
        return None

    @contextmanager
    def bounded(self, seconds: float | None, *, given_up: Callable[[], bool]) -> Iterator[None]:
        """
        Open a transaction, or a savepoint in the caller's, whose statements may each take ``seconds``.

        The session's own limit is back afterwards. ``given_up`` is for databases
        that cannot interrupt a statement: they look at it while they wait.
        """
        with transaction.atomic(using=self.alias):
            if seconds is None:
                yield
            else:
                with self.statement_limit(seconds):
                    yield

    @contextmanager
    def statement_limit(self, seconds: float) -> Iterator[None]:
        """Let each statement inside take at most ``seconds``; nothing is limited where the database cannot."""
        yield

    def now(self) -> datetime:
        """Return the database's clock, the one that all workers share."""
        return clock.now()

    # Enqueue

    def insert(self, rows: Sequence[NewTask]) -> None:
        """Store tasks, in the caller's transaction."""
        Task.objects.using(self.alias).bulk_create(
            [
                Task(
                    id=uuid.UUID(int=row.id),
                    queue=row.queue,
                    rank=row.rank,
                    state=row.state,
                    max_attempts=row.max_attempts,
                    ack=row.ack,
                    run_after=row.run_after,
                    created_at=row.created_at,
                    deadline_at=row.deadline_at,
                    expires_at=row.expires_at,
                    name=row.name,
                    args=row.args,
                    options=row.options,
                    metadata=row.metadata,
                    parent_id=None if row.parent_id is None else uuid.UUID(int=row.parent_id),
                    workflow_id=None if row.workflow_id is None else uuid.UUID(int=row.workflow_id),
                    role=row.role,
                    waits_for=row.waits_for,
                )
                for row in rows
            ],
            batch_size=1000,
        )

    # Claim

    def claim(
        self, queue: str, limit: int, *, lease: int, now: datetime, after: tuple[int, Any] | None = None
    ) -> list[Claim]:
        """
        Take up to ``limit`` ready tasks of one queue, most urgent first, then oldest.

        ``after``: start behind this (rank, key). Two callers never get the same task.
        """
        with self.atomic():
            found = Task.objects.using(self.alias).filter(queue=queue, state=State.READY).order_by("rank", "id")
            if after is not None:
                rank, key = after
                found = found.filter(rank=rank, id__gt=key) | found.filter(rank__gt=rank)
            features = self.connection.features
            if features.has_select_for_update:
                found = found.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
            rows = list(found.values_list(*CLAIM_FIELDS)[:limit])
            # The state is asked again: without row locks another claimer may have been faster.
            mine = Task.objects.using(self.alias).filter(id__in=[row[0] for row in rows], state=State.READY)
            changed = mine.update(state=State.RUNNING, attempt=F("attempt") + 1, lease=lease, started_at=now)
            if changed != len(rows):
                kept = set(
                    Task.objects.using(self.alias)
                    .filter(id__in=[row[0] for row in rows], lease=lease)
                    .values_list("id", flat=True)
                )
                rows = [row for row in rows if row[0] in kept]
        return [Claim(*row[:3], row[3] + 1, *row[4:], lease) for row in rows]  # type: ignore[call-arg]  # a slice's length is unknown to it

    # Settle

    def finish(self, endings: Sequence[Ending]) -> set[Any]:
        """
        Move claimed tasks to the finished table; return the keys whose lease still held.

        The caller has opened a transaction.
        """
        wanted = {(ending.key, ending.lease): ending for ending in endings}
        held = Task.objects.using(self.alias).filter(id__in=[key for key, _ in wanted], lease__isnull=False)
        if self.connection.features.has_select_for_update:
            held = held.select_for_update()
        done: list[FinishedTask] = []
        keys: list[Any] = []
        for row in held.values(*CARRIED, "attempt", "started_at"):
            ending = wanted.get((row["id"], row["lease"]))
            if ending is None:
                continue
            keys.append(row["id"])
            if ending.keep == 0:
                continue
            row["attempt"] -= ending.attempt_back
            if ending.started is not None:
                row["started_at"] = clock.from_timestamp(ending.started)
            finished_at = clock.from_timestamp(ending.finished)
            done.append(
                FinishedTask(
                    **row,
                    state=ending.state,
                    finished_at=finished_at,
                    result=ending.result,
                    reason=ending.reason,
                    error_class=ending.error_class,
                    error_line=ending.error_line,
                    fingerprint=ending.fingerprint,
                    delete_at=None if ending.keep is None else finished_at + timedelta(seconds=ending.keep),
                )
            )
        FinishedTask.objects.using(self.alias).bulk_create(done, batch_size=500)
        Task.objects.using(self.alias).filter(id__in=keys).delete()
        return set(keys)

    def put_back(self, rows: Sequence[Again]) -> set[Any]:
        """
        Return claimed tasks to a live state; return the keys whose lease still held.

        One that somebody asked to stop is ready at once, whatever it waits for: its next claim ends it.

        The caller has opened a transaction.
        """
        kept: set[Any] = set()
        for row in rows:
            state = Case(When(cancel=True, then=Value(int(State.READY))), default=Value(int(row.state)))
            changes: dict[str, Any] = {"state": state, "lease": None}
            if row.attempt_back:
                changes["attempt"] = F("attempt") - row.attempt_back
            if row.run_after is not None:
                changes["run_after"] = clock.from_timestamp(row.run_after)
            if row.options is not None:
                changes["options"] = row.options
            if Task.objects.using(self.alias).filter(id=row.key, lease=row.lease).update(**changes):
                kept.add(row.key)
        return kept

    def record_attempts(self, rows: Iterable[AttemptRow]) -> None:
        """Keep attempts that did not succeed."""
        Attempt.objects.using(self.alias).bulk_create(
            Attempt(
                task_id=self.public_id(row.key),
                number=row.number,
                worker_id=row.worker_id,
                outcome=row.outcome,
                started_at=None if row.started is None else clock.from_timestamp(row.started),
                ended_at=clock.from_timestamp(row.ended),
                error_class=row.error_class[:200],
                message=row.message,
                traceback=row.traceback,
            )
            for row in rows
        )

    def add_stats(self, sums: dict[tuple[datetime, str, str, int], list[int]]) -> None:
        """Add sums to the statistics; the key is (minute, queue, task, worker id), the values are STAT_COUNTERS."""
        for (minute, queue, task, worker_id), values in sorted(sums.items()):
            row, _ = Stat.objects.using(self.alias).get_or_create(
                minute=minute, queue=queue, task=task, worker_id=worker_id
            )
            changes = {name: F(name) + value for name, value in zip(STAT_COUNTERS, values, strict=True) if value}
            Stat.objects.using(self.alias).filter(pk=row.pk).update(**changes)

    def save_workflows(self, rows: Sequence[Any], names: Sequence[str]) -> None:
        """Write these columns of many locked workflows."""
        Workflow.objects.using(self.alias).bulk_update(rows, names, batch_size=100)

    # Upkeep

    def promote(self, now: datetime, limit: int) -> list[str]:
        """Make up to ``limit`` due tasks ready, oldest first; return the queue of each."""
        with self.atomic():
            due = Task.objects.using(self.alias).filter(state=State.SCHEDULED, run_after__lte=now).order_by("run_after")
            features = self.connection.features
            if features.has_select_for_update:
                due = due.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
            rows = list(due.values_list("id", "queue")[:limit])
            Task.objects.using(self.alias).filter(id__in=[key for key, _ in rows], state=State.SCHEDULED).update(
                state=State.READY
            )
        return [queue for _, queue in rows]

    def next_due(self) -> datetime | None:
        """Return when the next scheduled task is due."""
        scheduled = Task.objects.using(self.alias).filter(state=State.SCHEDULED, run_after__isnull=False)
        return scheduled.order_by("run_after").values_list("run_after", flat=True).first()

    def prune(self, state: int, *, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` finished tasks of a state that ended before a moment, with all that is theirs."""
        found = self.prunable().filter(state=state, finished_at__lt=before, delete_at__isnull=True)
        return self._delete_finished(list(found.order_by("finished_at").values_list("id", flat=True)[:limit]))

    def prune_marked(self, now: datetime, limit: int) -> int:
        """Delete up to ``limit`` finished tasks whose own time to be kept is over."""
        found = self.prunable().filter(delete_at__lte=now)
        return self._delete_finished(list(found.order_by("delete_at").values_list("id", flat=True)[:limit]))

    def prunable(self) -> QuerySet[FinishedTask]:
        """Return what is not deleted together with a workflow: others of it may wait for its result."""
        workflows = Workflow.objects.filter(pk=OuterRef("workflow_id"))
        return FinishedTask.objects.using(self.alias).filter(Q(workflow_id__isnull=True) | ~Exists(workflows))

    def _delete_finished(self, keys: list[Any]) -> int:
        if not keys:
            return 0
        with self.atomic():
            self.forget(keys)
            return FinishedTask.objects.using(self.alias).filter(id__in=keys).delete()[0]

    def forget(self, keys: Sequence[Any]) -> None:
        """Delete what belongs to tasks whose own rows are gone, or about to be. The caller has opened a transaction."""
        ids = [self.public_id(key) for key in keys]
        Attempt.objects.using(self.alias).filter(task_id__in=ids).delete()
        Progress.objects.using(self.alias).filter(task_id__in=ids).delete()
        Step.objects.using(self.alias).filter(task_id__in=ids).delete()

    # Depths

    def ready_queues(self) -> list[str]:
        """Return the queues that have ready tasks, without reading each task."""
        ready = Task.objects.using(self.alias).filter(state=State.READY)
        found: list[str] = []
        queue = ready.order_by("queue").values_list("queue", flat=True).first()
        while queue is not None:
            found.append(queue)
            queue = ready.filter(queue__gt=queue).order_by("queue").values_list("queue", flat=True).first()
        return found

    def depth(self, queue: str, state: int, *, cap: int) -> int:
        """Count the live tasks of one queue in one state, at most ``cap``."""
        found = Task.objects.using(self.alias).filter(queue=queue, state=state)
        if state == State.RUNNING:
            # True of each running task, and what makes the lease index usable: else the whole table is read.
            found = found.filter(lease__isnull=False)
        return found.order_by().values("id")[:cap].count()

    def save_snapshot(self, row: dict[str, Any]) -> None:
        """Store how deep a queue is; an earlier look in the same minute is replaced."""
        key = {"queue": row.pop("queue"), "at": row.pop("at")}
        Snapshot.objects.using(self.alias).update_or_create(**key, defaults=row)

    # Wake-up

    def notify(self, queues: Iterable[str]) -> None:
        """Tell listening workers that these queues have work; does nothing where the database cannot."""

    def listen(self) -> Listener | None:
        """Make this thread's connection hear ``notify``; None where the database has nothing of the kind."""
        return None

    def change_mark(self) -> int | None:
        """Return a number that changes when anybody writes to the database, None where there is none."""
        return None
