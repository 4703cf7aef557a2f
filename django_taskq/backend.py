"""
Backends of ``django.tasks``: the database backend, and two with the same face that store nothing.

Backend objects are made per thread, and the first while user modules are
imported: they hold no state, and import models inside methods only.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async

from django_taskq import clock, conf
from django_taskq.compat import (
    BaseTaskBackend,
    Contract,
    contract_of,
    contracts,
    invalid_backend,
    invalid_task,
    result_not_found,
)
from django_taskq.exceptions import InvalidOptions, UnsupportedCapability
from django_taskq.task import NAME_LENGTH, QUEUE_LENGTH, Task, task_class_of

if TYPE_CHECKING:
    from django_taskq.api import EnqueuedTasks
    from django_taskq.lifecycle.enqueue import Withdrawal

__all__ = ["DatabaseBackend", "ImmediateBackend", "NullBackend", "implicit_backend"]


class _TaskClass:
    """What ``task_class`` is: our definition, of the kind that the contract which asks knows."""

    def __get__(self, backend: Any, owner: type[Any]) -> type[Any]:
        for contract in contracts()[1:]:
            if backend is not None and _holds(contract, backend):
                return task_class_of(contract)
        return Task


def _holds(contract: Contract, backend: Any) -> bool:
    """Return whether a contract's handler made this backend object."""
    try:
        return contract.handler[backend.alias] is backend
    except contract.error("InvalidTaskBackend"):
        return False


# How soon a statement that was to be interrupted, and still runs, is interrupted again.
_INTERRUPT_SECONDS = 0.2


class _Validated(BaseTaskBackend):
    """What all our backends share: our task class, and errors of every contract."""

    task_class = _TaskClass()

    def validate_task(self, task: Any) -> None:
        """Raise InvalidTask, of whichever contract the caller knows, for a task this backend cannot take."""
        _check_plain_values(task)
        try:
            super().validate_task(task)
        except tuple(contract.error("InvalidTask") for contract in contracts()) as error:
            raise invalid_task(str(error)) from None
        if task.func.__name__ == "<lambda>":
            raise invalid_task("Task function must have a name: no worker can import a lambda.")

    def supports(self, capability: str) -> bool:
        """Return whether this can do "workflows", "defer", "get_result", "priority", "async", "pause" or "stats"."""
        return capability in self.capabilities

    capabilities: frozenset[str] = frozenset()

    def require(self, capability: str) -> None:
        """Raise UnsupportedCapability unless the backend supports it."""
        if not self.supports(capability):
            raise UnsupportedCapability(capability, type(self).__name__)


def _check_plain_values(task: Any) -> None:
    """Refuse what would break the contract's own checks half-way, or the database later."""
    if not isinstance(task.priority, int | float) or not math.isfinite(task.priority):
        raise invalid_task(f"priority must be a whole number, got {task.priority!r}.")
    if task.run_after is not None and not isinstance(task.run_after, datetime):
        raise invalid_task(f"run_after must be an aware datetime, got {task.run_after!r}.")
    if not isinstance(task.queue_name, str) or not 0 < len(task.queue_name) <= QUEUE_LENGTH:
        raise invalid_task(f"queue_name must have 1 to {QUEUE_LENGTH} characters, got {task.queue_name!r}.")
    if not isinstance(task, Task) and len(getattr(task.func, "__qualname__", "")) > NAME_LENGTH // 2:
        path = task.module_path
        if len(path) > NAME_LENGTH:
            raise invalid_task(f"The path of a task must have at most {NAME_LENGTH} characters, got {path!r}.")


class DatabaseBackend(_Validated):
    """Stores tasks in the project's database, in the caller's transaction; ``runworker`` runs them."""

    stores_tasks_in_database = True
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True
    capabilities = frozenset({"defer", "get_result", "priority", "async", "pause", "stats", "admin", "workflows"})

    @property
    def taskq_options(self) -> conf.Options:
        """The parsed options of this alias."""
        return conf.options(self.alias)

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """
        Store the task and return its result, READY; FAILED and with the state "dropped" where its full queue drops.

        Raise InvalidTask, InvalidPayload, PayloadTooLarge or InvalidOptions before the database is asked,
        EnqueuePaused or QueueFull before anything is stored.
        """
        return self._enqueue(task, args, kwargs, None)

    def _enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], withdrawal: Withdrawal | None) -> Any:
        from django_taskq.lifecycle import enqueue as lifecycle

        self.validate_task(task)

        def results(stored: lifecycle.Stored) -> list[Any]:
            return [self._new_result(task, args, kwargs, stored)]

        stored = lifecycle.enqueue(
            task, tuple(args), kwargs, self.taskq_options, withdrawal=withdrawal, on_stored=results
        )
        return self._new_result(task, args, kwargs, stored)

    def _new_result(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], stored: Any) -> Any:
        from django_taskq.lifecycle.enqueue import public_id
        from django_taskq.lifecycle.results import new_result

        if stored.found:
            from django_taskq.lifecycle.deduplicate import result_of

            return result_of(task, args, dict(kwargs), stored.found[0], stored=stored, backend=self.alias)
        if stored.calls is not None:
            task, args, kwargs = stored.calls[0]
        return new_result(
            task,
            public_id(stored.ids[0]),
            args,
            dict(kwargs),
            backend=self.alias,
            enqueued_at=stored.created_at,
            state=stored.state,
            dropped=stored.dropped,
        )

    def enqueue_many(self, task: Any, calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> EnqueuedTasks[Any]:
        """Store one task per (args, kwargs), all or none."""
        from django_taskq.api import EnqueuedTasks
        from django_taskq.lifecycle import enqueue as lifecycle

        stored = lifecycle.enqueue_many(
            task, calls, self.taskq_options, on_stored=lambda stored: EnqueuedTasks(task, calls, stored)
        )
        return EnqueuedTasks(task, calls, stored)

    async def aenqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """
        Store the task without blocking the event loop.

        If the caller is cancelled before the database accepted the task, no row
        is left; a commit that had already won stays.
        """
        from django_taskq.lifecycle.enqueue import Withdrawal

        withdrawal = Withdrawal(getattr(task, "cancel", None))
        storing = asyncio.ensure_future(
            sync_to_async(self._enqueue, thread_sensitive=True)(task, args, kwargs, withdrawal)
        )
        try:
            return await asyncio.shield(storing)
        except asyncio.CancelledError:
            storing.add_done_callback(_hear)
            if withdrawal.give_up():
                # The row must be gone when the caller goes on; a statement that waits for a lock is not waited for.
                # Asked again: an interrupt that comes before the statement has reached the server is lost.
                while not storing.done():
                    await asyncio.to_thread(withdrawal.interrupt)
                    await asyncio.wait([storing], timeout=_INTERRUPT_SECONDS)
            raise

    def get_result(self, result_id: str) -> Any:
        """Return a task's result, live or finished. Raise TaskResultDoesNotExist for unknown and malformed ids."""
        from django_taskq.lifecycle import definitions
        from django_taskq.lifecycle.databases import database_for
        from django_taskq.lifecycle.results import result_of_row
        from django_taskq.store import tasks as store

        alias = database_for(self.taskq_options)
        row = store.find(alias, result_id)
        if row is None:
            raise result_not_found(f"no task has the id {result_id!r}")
        task = definitions.find(row.name)
        if task is None:
            raise result_not_found(f"task {result_id} is called {row.name!r}, which leads to no task here")
        needs_attempts = row.attempt > 1 or row.state not in (2, 3)
        attempts = store.attempts_of(alias, row.pk) if needs_attempts else []
        return result_of_row(row, _as_enqueued(task, row, self.alias), attempts, backend=self.alias)

    def check(self, **kwargs: Any) -> list[Any]:
        """Return nothing: ``checks.py`` looks at all aliases together."""
        return []


def _hear(storing: asyncio.Future[Any]) -> None:
    """Take note of how an enqueue ended that nobody waits for, so that the loop does not complain."""
    if not storing.cancelled():
        storing.exception()


def _invalid() -> tuple[type[Exception], ...]:
    return (InvalidOptions, *(contract.error("InvalidTask") for contract in contracts()))


def _as_enqueued(task: Any, row: Any, alias: str) -> Any:
    """Return the definition with the backend, queue, priority and time that this task has."""
    given = {"backend": alias, "queue_name": row.queue, "priority": row.priority, "run_after": row.run_after}
    if all(getattr(task, name) == value for name, value in given.items()):
        return task
    try:
        return replace(task, **given)
    except _invalid():
        # Its queue or its options have become invalid since: the result can still be shown.
        return task


def _check_keys(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise what the database backend would raise for a call that makes no key."""
    if getattr(task, "unique", None) or getattr(task, "idempotency_key", None) is not None:
        from django_taskq.lifecycle import deduplicate, definitions

        deduplicate.check_call(task, definitions.stored_name(task), args, kwargs)


class ImmediateBackend(_Validated):
    """
    Runs each task at once, in the calling thread; arguments and result go through JSON as in the database.

    No retries, no delays: ``run_after`` is refused. For development and tests. A unique task runs each
    time: when it returns nothing of it is left that another could be a duplicate of.
    """

    supports_async_task = True
    supports_priority = True
    capabilities = frozenset({"async", "priority"})

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the task and return its result, SUCCESSFUL or FAILED. KeyboardInterrupt passes through."""
        from django_taskq.domain import payload
        from django_taskq.ids import uuid7
        from django_taskq.lifecycle import execute
        from django_taskq.lifecycle.enqueue import arranged
        from django_taskq.lifecycle.results import new_result

        self.validate_task(task)
        task, args, kwargs = arranged(task, tuple(args), kwargs, conf.options())
        _check_keys(task, args, kwargs)
        limit = conf.options().max_payload_bytes
        text = payload.encode_arguments(tuple(args), kwargs, limit=limit)
        plain_args, plain_kwargs = payload.decode_arguments(text)
        result = new_result(task, str(uuid7()), plain_args, plain_kwargs, backend=self.alias, enqueued_at=clock.now())
        contract = contract_of(task)
        contract.signals.task_enqueued.send(type(self), task_result=result)
        execute.run_immediately(result, sender=type(self))
        return result

    def enqueue_many(self, task: Any, calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> list[Any]:
        """Run one task after the other."""
        return [self.enqueue(task, args, kwargs) for args, kwargs in calls]


class NullBackend(_Validated):
    """Takes every task and drops it. Checks arguments as the database backend does, so that mistakes still show."""

    supports_async_task = True
    supports_priority = True
    supports_defer = True
    capabilities = frozenset({"async", "priority", "defer"})

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return a READY result of a task that will never run."""
        from django_taskq.domain import payload
        from django_taskq.ids import uuid7
        from django_taskq.lifecycle.enqueue import arranged
        from django_taskq.lifecycle.results import new_result

        self.validate_task(task)
        task, args, kwargs = arranged(task, tuple(args), kwargs, conf.options())
        _check_keys(task, args, kwargs)
        text = payload.encode_arguments(tuple(args), kwargs, limit=conf.options().max_payload_bytes)
        plain_args, plain_kwargs = payload.decode_arguments(text)
        result = new_result(task, str(uuid7()), plain_args, plain_kwargs, backend=self.alias, enqueued_at=clock.now())
        contract_of(task).signals.task_enqueued.send(type(self), task_result=result)
        return result

    def enqueue_many(self, task: Any, calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> list[Any]:
        """Drop them all."""
        return [self.enqueue(task, args, kwargs) for args, kwargs in calls]


@cache
def _implicit(alias: str) -> DatabaseBackend:
    return DatabaseBackend(alias=alias, params={"QUEUES": []})


def implicit_backend(alias: str) -> DatabaseBackend:
    """
    Return the backend of a project that set up none.

    Raise InvalidTaskBackend for an alias that TASKS would have to name.
    """
    if alias != "default":
        raise invalid_backend(f"no backend is called {alias!r}; name it in the TASKS setting")
    return _implicit(alias)
