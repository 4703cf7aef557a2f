"""
The portable vendor: every operation through the ORM, correct on any database Django supports.

The other files here replace an operation where one statement of theirs is
measured faster; ``StoreContract`` holds all of them to the same behaviour.
Every method that takes ``now`` compares with it and never with a clock of its own.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    connections,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Case, Exists, F, Model, OuterRef, Q, QuerySet, Value, When, signals

from django_taskq import clock
from django_taskq.domain.limit_columns import LIMIT_CHANGING, LIMIT_FIELDS
from django_taskq.domain.parking import promise_mark
from django_taskq.domain.states import State
from django_taskq.models import Attempt, FinishedTask, Limit, Progress, Snapshot, Stat, Step, Task, Workflow
from django_taskq.store.rows import Again, AttemptRow, Claim, Ending, NewTask

__all__ = ["CARRIED", "STAT_COUNTERS", "Holder", "Listener", "Vendor"]

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
    "slots",
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
    "limits",
    "fair_key",
    "unique_key",
)
# In the options of a task whose unique key is free once it starts.
FREES_KEY = '"frees_key"'
STAT_COUNTERS = tuple(
    field.attname
    for field in Stat._meta.concrete_fields
    if field.attname not in ("id", "minute", "queue", "task", "worker_id")
)


def _behind(position: tuple[int, Any]) -> Q:
    rank, key = position
    return Q(rank=rank, id__gt=key) | Q(rank__gt=rank)


def by_fair_key(rows: Iterable[tuple[str, Claim]]) -> dict[str, list[Claim]]:
    """Return claims by their fair keys, those of each key most urgent first, then oldest."""
    found: dict[str, list[Claim]] = {}
    for key, claim in rows:
        found.setdefault(key, []).append(claim)
    for claims in found.values():
        claims.sort(key=lambda claim: (claim.rank, claim.key))
    return found


def joined(*lists: str | None) -> str | None:
    """Return lists of keys, one key in a line, as one."""
    return "\n".join(filter(None, lists)) or None


class Holder(NamedTuple):
    """The live task that holds a unique key: its id as integer, its state, and when it was stored."""

    id: int
    state: int
    created_at: datetime


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

    def limit_idle(self) -> None:
        """Let the server end the transaction that is open if it stands still from here on, where the server can."""

    def delete(self, rows: QuerySet[Any]) -> int:
        """
        Delete rows and return how many, in a transaction that is no more in the way than claims are.

        What changes meanwhile, and is not among ``rows`` any more, stays.
        """
        with self.atomic():
            if self.connection.features.has_select_for_update and _has_listeners(rows.model):
                # Then Django reads the rows first, and deletes by their keys what may have changed since.
                keys = list(rows.select_for_update().values_list("pk", flat=True))
                rows = rows.model._default_manager.using(self.alias).filter(pk__in=keys)
            return rows.delete()[0]

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
                    limits=row.limits,
                    fair_key=row.fair_key,
                    unique_key=row.unique_key,
                )
                for row in rows
            ],
            batch_size=1000,
        )

    def insert_unique(self, rows: Sequence[NewTask]) -> set[int]:
        """
        Store those tasks whose unique keys no live task holds; return their ids.

        A key that is taken raises nothing and spoils no transaction. No two of the rows have the same key. Waits for
        others that store one of the keys and have not committed.
        """
        made: set[int] = set()
        for row in rows:
            try:
                with transaction.atomic(using=self.alias):
                    self.insert([row])
            except IntegrityError:
                if not Task.objects.using(self.alias).filter(unique_key=row.unique_key).exists():
                    raise
            else:
                made.add(row.id)
        return made

    def holders(self, keys: Sequence[str], *, lock: Literal["share", "update"] | None = None) -> dict[str, Holder]:
        """
        Return the live tasks that hold unique keys, by key.

        Locked, in a transaction of the caller's, they are neither claimed nor changed until it ends;
        "share" lets others lock them the same way.
        """
        found = Task.objects.using(self.alias).filter(unique_key__in=keys).order_by("unique_key")
        if lock is not None and self.connection.features.has_select_for_update:
            found = found.select_for_update()
        return {
            key: Holder(uuid.UUID(self.public_id(number)).int, state, created_at)
            for key, number, state, created_at in found.values_list("unique_key", "id", "state", "created_at")
            if key is not None
        }

    def free_keys(self, claims: Iterable[Claim]) -> None:
        """
        Free the unique keys that are held until the start; for claims with ``limited``, in their transaction.

        Asks the database only where one of the tasks had such a key.
        """
        keys = [claim.key for claim in claims if claim.options is not None and FREES_KEY in claim.options]
        if keys:
            held = Task.objects.using(self.alias).filter(id__in=keys, unique_key__startswith="~")
            held.update(unique_key=None)

    # Claim

    def claim(
        self,
        queue: str,
        limit: int,
        *,
        lease: int,
        now: datetime,
        after: tuple[int, Any] | None = None,
        limited: bool = False,
        slots: str | None = None,
    ) -> list[Claim]:
        """
        Take up to ``limit`` ready tasks of one queue, most urgent first, then oldest.

        Unique keys that are held until the start are free with it; with ``limited``, where a task may
        be put aside unstarted, ``free_keys`` frees them.

        ``after``: start behind this (rank, key). Two callers never get the same task.

        Tasks with limits are passed over unless ``limited``; then each claim's ``slots`` are the keys
        in ``slots``, the task's own, and behind them the promise of a task that was released. The caller has
        opened a transaction in which it asks the limits, and takes back what they refuse.
        """
        with self.atomic():
            found = self._ready(queue)
            if after is not None:
                found = found.filter(_behind(after))
            rows = self._take(found, limit, lease, now, limited, slots)
        return [claim for _, claim in rows]

    def _ready(self, queue: str) -> QuerySet[Task]:
        return Task.objects.using(self.alias).filter(queue=queue, state=State.READY).order_by("rank", "id")

    def _take(
        self, found: QuerySet[Task], limit: int, lease: int, now: datetime, limited: bool, slots: str | None
    ) -> list[tuple[str | None, Claim]]:
        """Claim the first ready tasks of a search, in the caller's transaction; return them with their fair keys."""
        features = self.connection.features
        if features.has_select_for_update:
            found = found.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
        # A ready task's slots are the promise of the limit that it was released for, if it was.
        found_rows = [
            row for row in found.values_list(*CLAIM_FIELDS, "limits", "fair_key")[:limit] if limited or row[-2] is None
        ]
        rows = [(row[-1], (*row[:-3], joined(slots, row[-2], row[-3]) if limited else None)) for row in found_rows]
        # The state is asked again: without row locks another claimer may have been faster.
        mine = Task.objects.using(self.alias).filter(id__in=[row[0] for _, row in rows], state=State.READY)
        held = [When(pk=row[0], then=Value(row[-1])) for _, row in rows if row[-1] is not None]
        changed = mine.update(
            state=State.RUNNING,
            attempt=F("attempt") + 1,
            lease=lease,
            started_at=now,
            unique_key=F("unique_key")
            if limited
            else Case(When(unique_key__startswith="~", then=None), default=F("unique_key")),
            slots=Case(*held, default=None),
        )
        if changed != len(rows):
            mine = Task.objects.using(self.alias).filter(id__in=[row[0] for _, row in rows], lease=lease)
            kept = set(mine.values_list("id", flat=True))
            rows = [(key, row) for key, row in rows if row[0] in kept]
        return [(key, Claim(*row[:3], row[3] + 1, *row[4:], lease)) for key, row in rows]  # type: ignore[call-arg]  # a slice's length is unknown to it

    # Claim in turns over fair keys

    def fair_queues(self, queues: Sequence[str]) -> set[str]:
        """Return which of these queues have a ready task with a fair key."""
        return {queue for queue in queues if self._ready(queue).filter(fair_key__isnull=False).order_by().exists()}

    def fair_keys(self, queue: str, *, after: str, limit: int) -> list[str]:
        """Return up to ``limit`` fair keys of the queue's ready tasks, ascending, behind ``after``, by jumps."""
        found: list[str] = []
        while len(found) < limit:
            behind = self._ready(queue).filter(fair_key__gt=after).order_by("fair_key")
            key = behind.values_list("fair_key", flat=True).first()
            if key is None:
                break
            found.append(key)
            after = key
        return found

    def claim_fair(
        self,
        queue: str,
        shares: Sequence[tuple[str, int]],
        *,
        lease: int,
        now: datetime,
        after: Mapping[str, tuple[int, Any]] | None = None,
        limited: bool = False,
        slots: str | None = None,
    ) -> dict[str, list[Claim]]:
        """
        Take up to so many ready tasks of each fair key, within a key most urgent first, then oldest.

        ``after``: start behind this (rank, key) of a fair key, where that saves reading dead rows. Two callers
        never get the same task. ``limited`` and ``slots`` are those of ``claim``.
        """
        with self.atomic():
            taken = {
                key: self._take(self._ready(queue).filter(fair_key=key), count, lease, now, limited, slots)
                for key, count in shares
            }
        return {key: [claim for _, claim in rows] for key, rows in taken.items() if rows}

    def unkeyed(
        self, queue: str, *, after: tuple[int, Any] | None, size: int
    ) -> tuple[tuple[int, Any] | None, tuple[int, Any] | None]:
        """
        Look at up to ``size`` ready tasks behind ``after``, in their order, for one without a fair key.

        Return the (rank, key) of the first of these, None if there is none, and that of the last task looked at.
        """
        found = self._ready(queue)
        if after is not None:
            found = found.filter(_behind(after))
        rows = list(found.values_list("rank", "id", "fair_key")[:size])
        first = next(((rank, key) for rank, key, fair_key in rows if fair_key is None), None)
        return first, rows[-1][:2] if rows else None

    def claim_between(
        self,
        queue: str,
        limit: int,
        *,
        first: tuple[int, Any],
        last: tuple[int, Any],
        lease: int,
        now: datetime,
        limited: bool = False,
        slots: str | None = None,
    ) -> list[Claim]:
        """
        Take up to ``limit`` ready tasks without a fair key between two (rank, key), both included, in their order.

        A vendor whose index has tasks without a key apart may go beyond bounds of different ranks.
        """
        with self.atomic():
            found = self._ready(queue).filter(fair_key__isnull=True).exclude(_behind(last))
            found = found.filter(_behind(first) | Q(rank=first[0], id=first[1]))
            return [claim for _, claim in self._take(found, limit, lease, now, limited, slots)]

    def ready_head(
        self, queue: str, *, above: int | None = None, behind: tuple[int, Any] | None = None
    ) -> tuple[int, uuid.UUID] | None:
        """
        Return (rank, id) of the first ready task of the queue: of all, of the ranks above one, or of one behind a key.

        ``behind`` is the (rank, key) to look behind, within this rank.
        """
        found = self._ready(queue)
        if behind is not None:
            rank, key = behind
            found = found.filter(rank=rank, id__gt=key)
        elif above is not None:
            found = found.filter(rank__gt=above)
        return found.values_list("rank", "id").first()

    def has_limited(self, queue: str) -> bool:
        """Return whether a ready task of the queue has limits; quick where few of its ready tasks have none."""
        ready = Task.objects.using(self.alias).filter(queue=queue, state=State.READY)
        return (
            ready.filter(limits__isnull=False).order_by("rank", "id").values_list("id", flat=True).first() is not None
        )

    def park(self, rows: Sequence[tuple[Claim, str | None, str | None]], *, lease: int) -> None:
        """
        Put claimed tasks aside, each on a key, their attempts given back; ready again without one.

        Behind the key comes that of the limit whose promise the task keeps. In the transaction of their claim.
        """
        for claim, key, promised in rows:
            Task.objects.using(self.alias).filter(id=claim.key, lease=lease).update(
                state=State.READY if key is None else State.PARKED,
                lease=None,
                slots=None if promised is None else promise_mark(promised),
                # Before the attempt, which MySQL would else change first.
                started_at=Case(When(attempt__gt=1, then=F("started_at")), default=None),
                attempt=F("attempt") - 1,
                parked_on=key,
            )

    # Limits

    def lock_limits(self, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        """Lock the rows of limits in key order and return their LIMIT_FIELDS; a key without a row is left out."""
        rows = Limit.objects.using(self.alias).filter(key__in=keys).order_by("key")
        if self.connection.features.has_select_for_update:
            rows = rows.select_for_update()
        return list(rows.values_list(*LIMIT_FIELDS))

    def make_limits(self, keys: Iterable[str]) -> None:
        """Make rows for these keys; those that have one are left alone."""
        Limit.objects.using(self.alias).bulk_create([Limit(key=key) for key in sorted(keys)], ignore_conflicts=True)

    def save_held(self, rows: Sequence[tuple[str, int]]) -> None:
        """Write how many slots of locked limits are held."""
        for key, held in rows:
            Limit.objects.using(self.alias).filter(key=key).update(held=held)

    def save_limits(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write the counters of locked limits: of each its key, then LIMIT_CHANGING."""
        for key, *values in rows:
            Limit.objects.using(self.alias).filter(key=key).update(**dict(zip(LIMIT_CHANGING, values, strict=True)))

    def unpark(self, wanted: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
        """
        Make up to so many tasks ready that are parked on each key, most urgent first; return key and queue of each.

        Their slots are the key's ``promise_mark``.

        The limits of the keys are locked by the caller, so that nobody else releases the same tasks.
        """
        told: list[tuple[str, str]] = []
        for key, count in wanted:
            parked = Task.objects.using(self.alias).filter(parked_on=key, state=State.PARKED).order_by("rank", "id")
            features = self.connection.features
            if features.has_select_for_update:
                parked = parked.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
            rows = list(parked.values_list("id", "queue")[:count])
            Task.objects.using(self.alias).filter(id__in=[row[0] for row in rows]).update(
                state=State.READY, parked_on=None, slots=promise_mark(key)
            )
            told += [(key, queue) for _, queue in rows]
        return told

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
            changes: dict[str, Any] = {"state": state, "lease": None, "slots": None}
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
        return self._delete_finished("finished_at", limit, state=state, finished_at__lt=before, delete_at__isnull=True)

    def prune_marked(self, now: datetime, limit: int) -> int:
        """Delete up to ``limit`` finished tasks whose own time to be kept is over."""
        return self._delete_finished("delete_at", limit, delete_at__lte=now)

    def prunable(self) -> QuerySet[FinishedTask]:
        """Return what is not deleted together with a workflow: others of it may wait for its result."""
        workflows = Workflow.objects.filter(pk=OuterRef("workflow_id"))
        return FinishedTask.objects.using(self.alias).filter(Q(workflow_id__isnull=True) | ~Exists(workflows))

    def _delete_finished(self, oldest: str, limit: int, **over: Any) -> int:
        keys = list(self.prunable().filter(**over).order_by(oldest).values_list("id", flat=True)[:limit])
        if not keys:
            return 0
        with self.atomic():
            # Asked again under lock: one that was replayed meanwhile goes on with its steps, and may have ended anew.
            rows = FinishedTask.objects.using(self.alias).filter(id__in=keys, **over)
            features = self.connection.features
            if features.has_select_for_update:
                rows = rows.select_for_update(skip_locked=features.has_select_for_update_skip_locked)
            keys = list(rows.values_list("id", flat=True))
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
        with self.atomic():
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


def _has_listeners(model: type[Model]) -> bool:
    return any(signal.has_listeners(model) for signal in (signals.pre_delete, signals.post_delete))
