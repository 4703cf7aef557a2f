"""
Store tasks, in the caller's transaction.

A task exists if and only if that transaction commits. Everything that can be
refused is refused before the database is asked.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from django.db import DatabaseError, router, transaction

from django_taskq import clock, conf, events
from django_taskq.domain import payload
from django_taskq.domain.retry import curve_to_data
from django_taskq.domain.states import State
from django_taskq.domain.transitions import initial_state
from django_taskq.domain.values import lean
from django_taskq.exceptions import EnqueueCancelled, EnqueueTimeout, InvalidOptions
from django_taskq.ids import task_ids
from django_taskq.lifecycle import context, definitions, wake
from django_taskq.models import Task
from django_taskq.store.rows import NewTask
from django_taskq.store.vendors import vendor_for

__all__ = [
    "Stored",
    "Withdrawal",
    "columns_of",
    "database_for",
    "enqueue",
    "enqueue_many",
    "main_database",
    "options_for",
    "public_id",
]


logger = logging.getLogger("django_taskq")


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Tasks that were stored: their ids as integers, the moment, the state, and the database."""

    ids: Sequence[int]
    created_at: datetime
    state: State
    alias: str


class Withdrawal:
    """
    The right to give up an enqueue until the database has accepted it.

    Shared by the thread that stores and the one that gives up. Times: ``begin``
    before the transaction, ``close`` after its last statement and before its
    commit. Given up before ``close``, nothing stays; after it, the commit wins.
    """

    def __init__(self, event: threading.Event | None = None) -> None:
        self._event = event or threading.Event()
        self._lock = threading.Lock()
        self._begun = False
        self._interrupt: Callable[[], None] | None = None

    @property
    def is_given_up(self) -> bool:
        """Whether nothing shall be stored any more."""
        return self._event.is_set()

    def begin(self, interrupt: Callable[[], None] | None = None) -> None:
        """Raise EnqueueCancelled if given up already; else let ``interrupt`` end a statement that waits."""
        with self._lock:
            self.check()
            self._begun = True
            self._interrupt = interrupt

    def close(self) -> None:
        """Raise EnqueueCancelled if given up; from here on the enqueue goes through."""
        with self._lock:
            self._interrupt = None
            self.check()

    def release(self) -> None:
        """Let nothing be interrupted any more."""
        with self._lock:
            self._interrupt = None

    def check(self) -> None:
        """Raise EnqueueCancelled if given up."""
        if self.is_given_up:
            raise EnqueueCancelled("the enqueue was cancelled before it was accepted")

    def give_up(self) -> bool:
        """Let nothing be stored any more. Return whether a transaction was begun that has to be rolled back."""
        self._event.set()
        with self._lock:
            return self._begun

    def interrupt(self) -> None:
        """End the statement that is on its way, if one is. Talks to the database, so not for an event loop."""
        # The lock keeps the storing thread from going on: what is interrupted is its INSERT and nothing later.
        with self._lock:
            if self._interrupt is None:
                return
            try:
                self._interrupt()
            except Exception:
                # Then the caller waits until the statement ends by itself; the row goes all the same.
                logger.warning("Could not interrupt an enqueue that was given up", exc_info=True)


class Recorder(Protocol):
    """Takes note of tasks that would have been stored."""

    def __call__(self, task: Any, stored: Stored, rows: Sequence[NewTask], *, on_commit: bool) -> None: ...


# Filled by django_taskq.testing: the last one is told instead of the database.
recorders: list[Recorder] = []
# Told beside them of the rows of workflows that would have been stored, outermost first.
workflow_recorders: list[Callable[[Sequence[Any], str], None]] = []


def database_for(options: conf.Options) -> str:
    """Return the database that tasks go to: the DATABASE option, else what the routers say."""
    return options.database or router.db_for_write(Task)


def main_database() -> str:
    """Return the database of the project's main backend: where everybody looks who names no other."""
    return database_for(conf.options(conf.main_alias()))


def options_for(database: str) -> conf.Options:
    """Return the options of the backend that stores its tasks in a database; those of ``TASKQ`` where none does."""
    main = conf.main_alias()
    for alias in sorted(conf.aliases(), key=lambda alias: alias != main):
        options = conf.options(alias)
        if database_for(options) == database:
            return options
    return conf.options()


def enqueue(
    task: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: conf.Options,
    *,
    withdrawal: Withdrawal | None = None,
    on_stored: Callable[[Stored], Any] | None = None,
) -> Stored:
    """
    Store one task and return its id and state.

    Raise InvalidPayload, PayloadTooLarge or InvalidOptions before the database is asked;
    EnqueueCancelled if the caller gives up by the ``withdrawal``, EnqueueTimeout if the
    task's ``enqueue_timeout`` was not enough. After either no row is left.
    """
    name = definitions.stored_name(task)
    try:
        text = payload.encode_arguments(args, kwargs, limit=options.max_payload_bytes)
        return _store(task, name, [text], options, withdrawal, on_stored)
    except Exception as error:
        _tell_rejected(name, task.queue_name, error)
        raise


def enqueue_many(
    task: Any,
    calls: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]],
    options: conf.Options,
    *,
    on_stored: Callable[[Stored], Any] | None = None,
) -> Stored:
    """Store a task for each (args, kwargs) in one go, all or none; return their ids in the same order."""
    name = definitions.stored_name(task)
    try:
        limit, encode = options.max_payload_bytes, payload.encode_arguments
        texts = [encode(args, kwargs, limit=limit) for args, kwargs in calls]
        return _store(task, name, texts, options, None, on_stored)
    except Exception as error:
        _tell_rejected(name, task.queue_name, error)
        raise


def _tell_rejected(name: str, queue: str, error: BaseException) -> None:
    if events.wanted(events.EnqueueRejected):
        events.emit(events.EnqueueRejected(task=name, queue=queue, error=error))


def _store(
    task: Any,
    name: str,
    texts: Sequence[str],
    options: conf.Options,
    withdrawal: Withdrawal | None,
    on_stored: Callable[[Stored], Any] | None,
) -> Stored:
    alias = database_for(options)
    queue: str = task.queue_name
    now = clock.now()
    run_after: datetime | None = task.run_after
    state = initial_state(run_after, now=now)
    shared = columns_of(task, name, options, state=state, now=now)
    ids: Sequence[int] = [task_ids.one()] if len(texts) == 1 else task_ids.many(len(texts))
    rows = [NewTask(number, *shared, text) for number, text in zip(ids, texts, strict=True)]  # type: ignore[call-arg]
    stored = Stored(ids=ids, created_at=now, state=state, alias=alias)
    on_commit: bool | None = getattr(task, "enqueue_on_commit", None)
    on_commit = options.enqueue_on_commit if on_commit is None else on_commit
    if recorders:
        recorders[-1](task, stored, rows, on_commit=on_commit)
        return stored

    def insert() -> None:
        if rows:
            vendor_for(alias).insert(rows)
            wake.after_commit(alias, queue, ready=state == State.READY, notify=options.notify)
            _announce(stored, task, name, queue, run_after, on_stored)

    given_up_by: threading.Event | None = getattr(task, "cancel", None)
    if withdrawal is None and given_up_by is not None:
        withdrawal = Withdrawal(given_up_by)
    limit: Any = getattr(task, "enqueue_timeout", None)
    work = insert if withdrawal is None and limit is None else partial(_bounded, insert, alias, limit, withdrawal)
    if on_commit:
        # Without a transaction it runs at once, and whoever called this tells what goes wrong.
        is_late = vendor_for(alias).connection.in_atomic_block
        transaction.on_commit(partial(_after_commit, work, name, queue, is_late=is_late), using=alias)
    else:
        work()
    return stored


def columns_of(
    task: Any, name: str, options: conf.Options, *, state: State, now: datetime, extra: Mapping[str, Any] | None = None
) -> tuple[Any, ...]:
    """
    Return the columns that all calls of one definition share: those of ``NewTask`` between the id and the arguments.

    The spans of a waiting task count from when its turn comes; until then they are
    kept in its options, together with ``extra``.
    """
    behaviour = definitions.behaviour_of_claim(name, task.queue_name, None, task, options)
    run_after: datetime | None = task.run_after
    eligible = max(run_after, now) if run_after is not None else now
    parent = context.current.get()
    is_waiting = state == State.WAITING
    own = _overrides(task, name, behaviour)
    expires: Any = behaviour.expires
    if is_waiting and expires is not None and not isinstance(expires, datetime):
        spans = {**(extra or {}).get("later", {}), "expires": _span(expires).total_seconds()}
        expires = None
        extra = {**(extra or {}), "later": spans}
    if extra:
        own = payload.encode_value({**(payload.decode_value(own) or {}), **extra}, limit=None)
    deadline = behaviour.max_time if not is_waiting else None
    return (
        task.queue_name,
        -int(task.priority),
        int(state),
        behaviour.max_attempts,
        int(behaviour.ack),
        run_after,
        now,
        None if deadline is None else eligible + timedelta(seconds=deadline),
        _expires_at(expires, eligible),
        name,
        own,
        context.captured_metadata(options.capture, getattr(task, "metadata", None), limit=options.max_payload_bytes),
        None if parent is None else _number(parent.public_id),
    )


def _bounded(
    insert: Callable[[], None], alias: str, limit: float | timedelta | None, withdrawal: Withdrawal | None
) -> None:
    """Insert in a transaction (a savepoint, inside the caller's) that may be given up and does not wait for ever."""
    withdrawal = withdrawal or Withdrawal()
    vendor = vendor_for(alias)
    seconds = limit.total_seconds() if isinstance(limit, timedelta) else limit
    withdrawal.begin(vendor.interrupter())
    try:
        with vendor.bounded(seconds, given_up=lambda: withdrawal.is_given_up):
            insert()
            withdrawal.close()
    except DatabaseError as error:
        withdrawal.close()
        if vendor.is_timeout(error) and seconds is not None:
            raise EnqueueTimeout(f"the database had not accepted the task after {seconds:g} seconds") from error
        raise
    finally:
        withdrawal.release()


def _after_commit(work: Callable[[], None], name: str, queue: str, *, is_late: bool) -> None:
    try:
        work()
    except Exception as error:
        if is_late or isinstance(error, EnqueueCancelled):
            _tell_rejected(name, queue, error)
        # The transaction is over; raising this would only keep its other callbacks from running.
        if not isinstance(error, EnqueueCancelled):
            raise


def _announce(
    stored: Stored,
    task: Any,
    name: str,
    queue: str,
    run_after: datetime | None,
    on_stored: Callable[[Stored], Any] | None,
) -> None:
    if events.wanted(events.TasksStored):
        told = events.TasksStored(task=name, queue=queue, count=len(stored.ids), alias=stored.alias)
        events.emit_on_commit(events.TasksStored, [told], using=stored.alias)
    if not events.wanted(events.TaskEnqueued):
        return
    results = on_stored(stored) if on_stored is not None else None
    events.emit_on_commit(
        events.TaskEnqueued,
        (
            events.TaskEnqueued(
                task_id=public_id(number),
                task=name,
                queue=queue,
                alias=stored.alias,
                run_after=run_after,
                result=None if results is None else results[at],
            )
            for at, number in enumerate(stored.ids)
        ),
        using=stored.alias,
    )


def public_id(number: int) -> str:
    """Return the id that users see."""
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _number(public_id: str) -> int:
    return int(public_id.replace("-", ""), 16)


def _expires_at(expires: Any, eligible: datetime) -> datetime | None:
    if expires is None:
        return None
    if isinstance(expires, datetime):
        return expires
    return eligible + _span(expires)


def _span(value: float | timedelta) -> timedelta:
    return value if isinstance(value, timedelta) else timedelta(seconds=value)


_CALL_OPTIONS = ("timeout", "keep_result", "ack")


def _overrides(task: Any, name: str, behaviour: definitions.Behaviour) -> str | None:
    """Return as JSON text what this call set differently from the definition that a worker will find."""
    found: dict[str, Any] = {}
    if behaviour.max_time is not None:
        # A replay starts a fresh budget of this length.
        found["max_time"] = behaviour.max_time
    definition = definitions.find(name) if hasattr(task, "backoff") else None
    if definition is not None and definition is not task:
        for option in _CALL_OPTIONS:
            value = getattr(task, option, None)
            if value is not None and value != getattr(definition, option, None):
                found[option] = value.total_seconds() if isinstance(value, timedelta) else value
        if task.backoff is not None and task.backoff != getattr(definition, "backoff", None):
            data = curve_to_data(task.backoff)
            if data is None:
                raise InvalidOptions(
                    f"backoff in using() must be Fixed, Steps or Exponential, got {task.backoff!r}; "
                    "a callable can only be given to @task, since it is not stored with the task",
                    field="backoff",
                    code="type",
                )
            found["backoff"] = data
    return payload.encode_value(found, limit=None) if found else None
