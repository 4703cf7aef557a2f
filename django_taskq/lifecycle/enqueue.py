"""
Store tasks, in the caller's transaction.

A task exists if and only if that transaction commits. Everything that can be
refused is refused before the database is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import router, transaction

from django_taskq import clock, conf, events
from django_taskq.domain import payload
from django_taskq.domain.retry import curve_to_data
from django_taskq.domain.states import State
from django_taskq.domain.transitions import initial_state
from django_taskq.exceptions import EnqueueCancelled, InvalidOptions
from django_taskq.ids import task_ids
from django_taskq.lifecycle import context, definitions, wake
from django_taskq.models import Task
from django_taskq.store.rows import NewTask
from django_taskq.store.vendors import vendor_for

__all__ = ["Stored", "database_for", "enqueue", "enqueue_many", "public_id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Tasks that were stored: their ids as integers, the moment, the state, and the database."""

    ids: Sequence[int]
    created_at: datetime
    state: State
    alias: str


def database_for(options: conf.Options) -> str:
    """Return the database that tasks go to: the DATABASE option, else what the routers say."""
    return options.database or router.db_for_write(Task)


def enqueue(
    task: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: conf.Options,
    *,
    abandoned: threading.Event | None = None,
    on_stored: Callable[[Stored], Any] | None = None,
) -> Stored:
    """
    Store one task and return its id and state.

    Raise InvalidPayload, PayloadTooLarge or InvalidOptions before the database is asked.
    ``abandoned``: once set, nothing is stored; EnqueueCancelled is raised and
    the row rolled back if the caller gives up before the commit.
    """
    name = definitions.stored_name(task)
    try:
        text = payload.encode_arguments(args, kwargs, limit=options.max_payload_bytes)
        return _store(task, name, [text], options, abandoned, on_stored)
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
    abandoned: threading.Event | None,
    on_stored: Callable[[Stored], Any] | None,
) -> Stored:
    alias = database_for(options)
    queue: str = task.queue_name
    behaviour = definitions.behaviour_of(task, queue, options)
    now = clock.now()
    run_after: datetime | None = task.run_after
    state = initial_state(run_after, now=now)
    eligible = max(run_after, now) if run_after is not None else now
    parent = context.current.get()
    shared = (
        queue,
        -int(task.priority),
        int(state),
        behaviour.max_attempts,
        int(behaviour.ack),
        run_after,
        now,
        None if behaviour.max_time is None else eligible + timedelta(seconds=behaviour.max_time),
        _expires_at(behaviour.expires, eligible),
        name,
        _overrides(task, name, behaviour),
        context.captured_metadata(
            options.capture, getattr(task, "metadata", None), limit=options.max_payload_bytes
        ),
        None if parent is None else _number(parent.public_id),
    )
    ids: Sequence[int] = [task_ids.one()] if len(texts) == 1 else task_ids.many(len(texts))
    rows = [NewTask(number, *shared, text) for number, text in zip(ids, texts, strict=True)]
    stored = Stored(ids=ids, created_at=now, state=state, alias=alias)

    def insert() -> None:
        if rows:
            vendor_for(alias).insert(rows)
            wake.after_commit(alias, queue, ready=state == State.READY, notify=options.notify)
            _announce(stored, task, name, queue, run_after, on_stored)

    if abandoned is not None:
        with transaction.atomic(using=alias):
            _give_up_if(abandoned)
            insert()
            _give_up_if(abandoned)
    elif getattr(task, "enqueue_on_commit", None) or (
        options.enqueue_on_commit and getattr(task, "enqueue_on_commit", None) is None
    ):
        transaction.on_commit(insert, using=alias)
    else:
        insert()
    return stored


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


def _give_up_if(abandoned: threading.Event) -> None:
    if abandoned.is_set():
        raise EnqueueCancelled("the enqueue was cancelled before it was accepted")


def _expires_at(expires: Any, eligible: datetime) -> datetime | None:
    if expires is None:
        return None
    if isinstance(expires, datetime):
        return expires
    span = expires if isinstance(expires, timedelta) else timedelta(seconds=expires)
    return eligible + span


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
