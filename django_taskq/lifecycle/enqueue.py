"""
Store tasks, in the caller's transaction.

A task exists if and only if that transaction commits. Everything that can be
refused is refused before the database is asked.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from django.db import DatabaseError, transaction

from django_taskq import clock, conf, events
from django_taskq.domain import payload
from django_taskq.domain.retry import curve_to_data
from django_taskq.domain.states import State
from django_taskq.domain.transitions import initial_state
from django_taskq.domain.values import lean
from django_taskq.exceptions import EnqueueCancelled, EnqueuePaused, EnqueueTimeout, InvalidOptions, QueueFull
from django_taskq.ids import task_ids
from django_taskq.lifecycle import context, definitions, wake
from django_taskq.lifecycle.databases import database_for
from django_taskq.store.rows import NewTask
from django_taskq.store.vendors import vendor_for

if TYPE_CHECKING:
    from django_taskq.lifecycle.deduplicate import Found, Keyed

__all__ = [
    "Stored",
    "Withdrawal",
    "arranged",
    "columns_of",
    "enqueue",
    "enqueue_many",
    "extras_of",
    "has_extras",
    "public_id",
]


logger = logging.getLogger("django_taskq")


# Positional and keyword arguments; and those of a definition as they are stored.
Call = tuple[tuple[Any, ...], Mapping[str, Any]]
ArrangedCall = tuple[Any, tuple[Any, ...], Mapping[str, Any]]


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """
    Tasks that were stored, or dropped: their ids as integers, the moment, the state, and the database.

    ``found``: by place, those that were there already. ``calls``: each task with its arguments as it is stored,
    where that may differ from what was asked for.
    """

    ids: Sequence[int]
    created_at: datetime
    state: State
    alias: str
    calls: Sequence[ArrangedCall] | None = None
    found: Mapping[int, Found] = field(default_factory=dict)
    dropped: QueueFull | None = None
    """Why nothing was stored, where the queue was full and its policy is "drop"."""


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


def enqueue(
    task: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: conf.Options,
    *,
    withdrawal: Withdrawal | None = None,
    on_stored: Callable[[Stored], Any] | None = None,
    is_accepted: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> Stored:
    """
    Store one task and return its id and state. ``extra`` is kept among its options.

    ``is_accepted``: part of work that was accepted before (the tick of a schedule), so never refused.
    Raise InvalidPayload, PayloadTooLarge or InvalidOptions before the database is asked; EnqueuePaused or
    QueueFull where there is a rule against new tasks just now;
    EnqueueCancelled if the caller gives up by the ``withdrawal``, EnqueueTimeout if the
    task's ``enqueue_timeout`` was not enough. After either no row is left.
    """
    name = definitions.stored_name(task)
    calls: list[ArrangedCall] | None = None
    try:
        if _is_arranged(task, options):
            task, args, kwargs = arranged(task, args, kwargs, options)
            calls = [(task, args, kwargs)]
        text = payload.encode_arguments(args, kwargs, limit=options.max_payload_bytes)
        return _store(
            task,
            name,
            [text],
            [(args, kwargs)],
            options,
            withdrawal=withdrawal,
            on_stored=on_stored,
            calls=calls,
            extra=extra,
            is_accepted=is_accepted,
        )
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
        pairs = list(calls)
        if _is_arranged(task, options):
            from django_taskq.lifecycle.arrange import store_each

            arranged_calls = [arranged(task, *call, options) for call in pairs]
            return store_each(arranged_calls, task, name, options, partial(_store, on_stored=on_stored))
        limit, encode = options.max_payload_bytes, payload.encode_arguments
        texts = [encode(args, kwargs, limit=limit) for args, kwargs in pairs]
        return _store(task, name, texts, pairs, options, on_stored=on_stored)
    except Exception as error:
        _tell_rejected(name, task.queue_name, error)
        raise


def _is_arranged(task: Any, options: conf.Options) -> bool:
    return bool(
        options.enqueue_middleware
        or options.validate
        or getattr(task, "validate", None)
        or getattr(task, "enqueue_middleware", None)
    )


def arranged(task: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: conf.Options) -> ArrangedCall:
    """
    Return a call as it is to be stored, after its enqueue middleware and the checks of its arguments.

    Raise InvalidArguments, or what a middleware raises to refuse it.
    """
    if not _is_arranged(task, options):
        return task, args, kwargs
    # Loaded by those who have any of it.
    from django_taskq.lifecycle.arrange import arrange

    return arrange(task, args, kwargs, options)


def _tell_rejected(name: str, queue: str, error: BaseException) -> None:
    if events.wanted(events.EnqueueRejected):
        events.emit(events.EnqueueRejected(task=name, queue=queue, error=error))


def _has_keys(task: Any) -> bool:
    """Return whether a task may be there already."""
    return bool(getattr(task, "unique", None)) or getattr(task, "idempotency_key", None) is not None


def _deduplicate() -> ModuleType:
    # Loaded by those who have unique tasks.
    return import_module("django_taskq.lifecycle.deduplicate")


def _store(
    task: Any,
    name: str,
    texts: Sequence[str],
    pairs: Sequence[Call],
    options: conf.Options,
    *,
    withdrawal: Withdrawal | None = None,
    on_stored: Callable[[Stored], Any] | None = None,
    calls: Sequence[ArrangedCall] | None = None,
    extra: Mapping[str, Any] | None = None,
    is_accepted: bool = False,
) -> Stored:
    """Store calls of one definition, given by their JSON texts and, for the keys made of them, as they are."""
    alias = database_for(options)
    now = clock.now()
    has_keys = _has_keys(task)
    if has_keys:
        task = _deduplicate().delayed(task, now)
    run_after: datetime | None = task.run_after
    state = initial_state(run_after, now=now)
    rows = _rows(task, name, texts, pairs, columns_of(task, name, options, state=state, now=now, extra=extra))
    keyed: Keyed | None = None
    if has_keys:
        keyed = _deduplicate().keyed(task, name, rows, pairs, options)
        rows = keyed.rows
    stored = Stored(ids=[row.id for row in rows], created_at=now, state=state, alias=alias, calls=calls)
    on_commit: bool | None = getattr(task, "enqueue_on_commit", None)
    # Whether a task is there already has to be known by now: its transaction stores it if and only if it commits.
    # What was accepted (a tick) is noted in this transaction, so it is stored there, whatever a middleware changed.
    on_commit = keyed is None and not is_accepted and (options.enqueue_on_commit if on_commit is None else on_commit)
    if recorders:
        recorders[-1](task, stored, rows, on_commit=on_commit)
        return stored

    given_up_by: threading.Event | None = getattr(task, "cancel", None)
    if withdrawal is None and given_up_by is not None:
        withdrawal = Withdrawal(given_up_by)
    if not is_accepted and rows:
        refusal = _ask_admission(task, name, alias, len(rows), options, state, withdrawal, keyed)
        if refusal is not None:
            return replace(stored, dropped=refusal)

    def insert() -> None:
        nonlocal stored
        stored = _insert(stored, rows, keyed, task, name, options, on_stored)

    limit: Any = getattr(task, "enqueue_timeout", None)
    work = insert if withdrawal is None and limit is None else partial(_bounded, insert, alias, limit, withdrawal)
    if on_commit:
        # Without a transaction it runs at once, and whoever called this tells what goes wrong.
        is_late = vendor_for(alias).connection.in_atomic_block
        transaction.on_commit(partial(_after_commit, work, name, task.queue_name, is_late=is_late), using=alias)
    else:
        work()
    return stored


def _rows(
    task: Any, name: str, texts: Sequence[str], pairs: Sequence[Call], shared: tuple[Any, ...]
) -> Sequence[NewTask]:
    ids: Sequence[int] = [task_ids.one()] if len(texts) == 1 else task_ids.many(len(texts))
    rows = [NewTask(number, *shared, text) for number, text in zip(ids, texts, strict=True)]  # type: ignore[call-arg]
    if has_extras(task):
        rows = [
            row._replace(**extras_of(task, name, args, kwargs)) for row, (args, kwargs) in zip(rows, pairs, strict=True)
        ]
    return rows


def _insert(
    stored: Stored,
    rows: Sequence[NewTask],
    keyed: Keyed | None,
    task: Any,
    name: str,
    options: conf.Options,
    on_stored: Callable[[Stored], Any] | None,
) -> Stored:
    """Insert the rows, and tell of it once they are committed; return what was stored."""
    queue: str = task.queue_name
    if keyed is not None:
        stored = _deduplicate().insert(keyed, stored, notify=options.notify)
    elif rows:
        vendor_for(stored.alias).insert(rows)
    else:
        return stored
    if len(stored.found) < len(rows):
        wake.after_commit(stored.alias, queue, ready=stored.state == State.READY, notify=options.notify)
    _announce(stored, task, name, queue, task.run_after, on_stored)
    return stored


def has_extras(task: Any) -> bool:
    """Return whether tasks of a definition have columns that are made of each call's arguments."""
    return bool(getattr(task, "limits", None)) or getattr(task, "fair_key", None) is not None


def extras_of(task: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the columns of a stored task that are made of its arguments.

    Raise InvalidOptions for keys that cannot be made of them, InvalidPayload for arguments that do not fit.
    """
    # Loaded by those who have any.
    from django_taskq.lifecycle import keys

    return {"limits": keys.limits_of(task, name, args, kwargs), "fair_key": keys.fair_key_of(task, args, kwargs)}


def _ask_admission(
    task: Any,
    name: str,
    alias: str,
    count: int,
    options: conf.Options,
    state: State,
    withdrawal: Withdrawal | None,
    keyed: Keyed | None,
) -> QueueFull | None:
    """
    Raise EnqueuePaused or QueueFull, or return why the tasks are dropped; None: store them.

    Calls that only get tasks which are there already add nothing, so they are not refused.
    """
    from django_taskq.lifecycle import admission

    queue = task.queue_name
    try:
        admission.check_pauses(alias, ((name, queue),), options)
    except EnqueuePaused:
        if keyed is None or not _deduplicate().adds_nothing(keyed, alias, now=clock.now()):
            raise
        return None
    rule = options.queues.get(queue)
    # What is for later does not count, and is not refused.
    if rule is None or rule.max_ready is None or state != State.READY:
        return None
    if keyed is not None and _deduplicate().adds_nothing(keyed, alias, now=clock.now()):
        return None
    refusal = admission.find_room(task, alias, queue, count, rule, withdrawal)
    if refusal is not None and events.wanted(events.EnqueueDropped):
        told = events.EnqueueDropped(task=name, queue=queue, count=count, depth=refusal.depth, bound=refusal.bound)
        events.emit(told)
    return refusal


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
    count = len(stored.ids) - len(stored.found)
    if not count:
        return
    if events.wanted(events.TasksStored):
        told = events.TasksStored(task=name, queue=queue, count=count, alias=stored.alias)
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
            if at not in stored.found
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
