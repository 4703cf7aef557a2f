"""
Backends of ``django.tasks``: the database backend, and two with the same face that store nothing.

Backend objects are made per thread, and the first while user modules are
imported: they hold no state, and import models inside methods only.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from asgiref.sync import sync_to_async

from django_taskq import clock, conf
from django_taskq.api import EnqueuedTasks
from django_taskq.compat import BaseTaskBackend, contract_of, contracts, invalid_task, result_not_found
from django_taskq.exceptions import InvalidOptions, UnsupportedCapability
from django_taskq.task import Task

__all__ = ["DatabaseBackend", "ImmediateBackend", "NullBackend", "implicit_backend"]


class _Validated(BaseTaskBackend):
    """What all our backends share: our task class, and errors of every contract."""

    task_class = Task

    def validate_task(self, task: Any) -> None:
        """Raise InvalidTask, of whichever contract the caller knows, for a task this backend cannot take."""
        try:
            super().validate_task(task)
        except tuple(contract.error("InvalidTask") for contract in contracts()) as error:
            raise invalid_task(str(error)) from None

    def supports(self, capability: str) -> bool:
        """Return whether this backend can "defer", "get_result", "priority", "async", "pause" or "stats"."""
        return capability in self.capabilities

    capabilities: frozenset[str] = frozenset()

    def require(self, capability: str) -> None:
        """Raise UnsupportedCapability unless the backend supports it."""
        if not self.supports(capability):
            raise UnsupportedCapability(capability, type(self).__name__)


class DatabaseBackend(_Validated):
    """Stores tasks in the project's database, in the caller's transaction; ``runworker`` runs them."""

    stores_tasks_in_database = True
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True
    capabilities = frozenset({"defer", "get_result", "priority", "async", "pause", "stats", "admin"})

    @property
    def taskq_options(self) -> conf.Options:
        """The parsed options of this alias."""
        return conf.options(self.alias)

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """
        Store the task and return its result, READY.

        Raise InvalidTask, InvalidPayload, PayloadTooLarge or InvalidOptions before the database is asked.
        """
        return self._enqueue(task, args, kwargs, None)

    def _enqueue(
        self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], abandoned: threading.Event | None
    ) -> Any:
        from django_taskq.lifecycle import enqueue as lifecycle

        self.validate_task(task)

        def results(stored: lifecycle.Stored) -> list[Any]:
            return [self._new_result(task, args, kwargs, stored)]

        stored = lifecycle.enqueue(
            task, tuple(args), kwargs, self.taskq_options, abandoned=abandoned, on_stored=results
        )
        return self._new_result(task, args, kwargs, stored)

    def _new_result(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], stored: Any) -> Any:
        from django_taskq.lifecycle.enqueue import public_id
        from django_taskq.lifecycle.results import new_result

        return new_result(
            task,
            public_id(stored.ids[0]),
            args,
            dict(kwargs),
            backend=self.alias,
            enqueued_at=stored.created_at,
            state=stored.state,
        )

    def enqueue_many(self, task: Any, calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> EnqueuedTasks:
        """Store one task per (args, kwargs), all or none."""
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
        abandoned = threading.Event()
        storing = asyncio.ensure_future(sync_to_async(self._enqueue, thread_sensitive=True)(task, args, kwargs, abandoned))
        try:
            return await asyncio.shield(storing)
        except asyncio.CancelledError:
            abandoned.set()
            await asyncio.wait([storing])
            if not storing.cancelled():
                storing.exception()
            raise

    def get_result(self, result_id: str) -> Any:
        """Return a task's result, live or finished. Raise TaskResultDoesNotExist for unknown and malformed ids."""
        from django_taskq.lifecycle import definitions
        from django_taskq.lifecycle.enqueue import database_for
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
        return result_of_row(row, _of_backend(task, self.alias), attempts, backend=self.alias)

    def check(self, **kwargs: Any) -> list[Any]:
        """Return nothing: ``checks.py`` looks at all aliases together."""
        return []


def _of_backend(task: Any, alias: str) -> Any:
    """Return the task as it would be had it been enqueued on this alias."""
    return task if task.backend == alias else task.using(backend=alias)


class ImmediateBackend(_Validated):
    """
    Runs each task at once, in the calling thread, with arguments and result going through JSON as they would in the database.

    No retries, no delays: ``run_after`` is refused. For development and tests.
    """

    supports_async_task = True
    supports_priority = True
    capabilities = frozenset({"async", "priority"})

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the task and return its result, SUCCESSFUL or FAILED. KeyboardInterrupt passes through."""
        from django_taskq.domain import payload
        from django_taskq.ids import uuid7
        from django_taskq.lifecycle import execute
        from django_taskq.lifecycle.results import new_result

        self.validate_task(task)
        limit = conf.options().max_payload_bytes
        text = payload.encode_arguments(tuple(args), kwargs, limit=limit)
        plain_args, plain_kwargs = payload.decode_arguments(text)
        result = new_result(
            task, str(uuid7()), plain_args, plain_kwargs, backend=self.alias, enqueued_at=clock.now()
        )
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
        from django_taskq.lifecycle.results import new_result

        self.validate_task(task)
        text = payload.encode_arguments(tuple(args), kwargs, limit=conf.options().max_payload_bytes)
        plain_args, plain_kwargs = payload.decode_arguments(text)
        result = new_result(
            task, str(uuid7()), plain_args, plain_kwargs, backend=self.alias, enqueued_at=clock.now()
        )
        contract_of(task).signals.task_enqueued.send(type(self), task_result=result)
        return result

    def enqueue_many(self, task: Any, calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> list[Any]:
        """Drop them all."""
        return [self.enqueue(task, args, kwargs) for args, kwargs in calls]


@lru_cache(maxsize=None)
def _implicit(alias: str) -> DatabaseBackend:
    return DatabaseBackend(alias=alias, params={"QUEUES": []})


def implicit_backend(alias: str) -> DatabaseBackend:
    """
    Return the backend of a project that set up none.

    Raise InvalidOptions for an alias that TASKS would have to name.
    """
    if alias != "default":
        raise InvalidOptions(
            f"no backend is called {alias!r}; name it in the TASKS setting", field="backend", code="unknown"
        )
    return _implicit(alias)
