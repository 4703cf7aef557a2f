"""
What a program does with tasks besides enqueueing one: many at once, look up, cancel, replay, pause, count.

The rooms below are imported inside functions: this file is loaded before the models are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, overload

from django_taskq.exceptions import InvalidOptions

if TYPE_CHECKING:
    from django_taskq.lifecycle.control import Changed
    from django_taskq.lifecycle.streams import ResultStream
    from django_taskq.models import FinishedTask
    from django_taskq.models import Task as TaskModel
    from django_taskq.ops.finished import FinishedPage

__all__ = [
    "EnqueuedTasks",
    "acancel",
    "afinished_since",
    "areplay",
    "cancel",
    "discard",
    "enqueue_many",
    "find_task",
    "finished_since",
    "pause_queue",
    "replay",
    "resume_queue",
    "subscribe_results",
]


class EnqueuedTasks(Sequence[Any]):
    """The tasks of one ``enqueue_many``, in order: a sequence of results, each made when it is asked for."""

    def __init__(self, task: Any, calls: Sequence[tuple[Any, Any]], stored: Any) -> None:
        self._task = task
        self._calls = calls
        self._stored = stored

    @property
    def ids(self) -> list[str]:
        """The ids of all tasks."""
        from django_taskq.lifecycle.enqueue import public_id

        return [public_id(number) for number in self._stored.ids]

    def __len__(self) -> int:
        return len(self._calls)

    @overload
    def __getitem__(self, at: int) -> Any: ...

    @overload
    def __getitem__(self, at: slice) -> list[Any]: ...

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        from django_taskq.lifecycle.enqueue import public_id
        from django_taskq.lifecycle.results import new_result

        args, kwargs = self._calls[at]
        return new_result(
            self._task,
            public_id(self._stored.ids[at]),
            args,
            dict(kwargs),
            backend=self._task.backend,
            enqueued_at=self._stored.created_at,
            state=self._stored.state,
        )

    def __iter__(self) -> Iterator[Any]:
        return (self[at] for at in range(len(self)))

    def __repr__(self) -> str:
        return f"<{len(self)} tasks of {self._task.module_path}>"


def _call(task: Any, call: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(call, tuple | list):
        return tuple(call), {}
    if isinstance(call, Mapping):
        return (), call
    if hasattr(call, "task") and hasattr(call, "args"):
        if call.task.func is not task.func:
            raise InvalidOptions(
                f"enqueue_many of {task.module_path} got a signature of {call.task.module_path}",
                field="calls",
                code="mixed",
            )
        return call.args, call.kwargs or {}
    raise InvalidOptions(
        f"each call must be a tuple of arguments, a dict of keyword arguments or a signature, got {call!r}; "
        "write (value,) for a single argument",
        field="calls",
        code="type",
    )


def enqueue_many(task: Any, calls: Iterable[Any]) -> EnqueuedTasks:
    """Store a task for each call in one go; see ``Task.enqueue_many``."""
    backend = task.get_backend()
    backend.validate_task(task)
    pairs = [_call(task, call) for call in calls]
    stored: EnqueuedTasks = backend.enqueue_many(task, pairs)
    return stored


def find_task(task_id: str, *, using: str | None = None) -> TaskModel | FinishedTask:
    """Return the row of a task, live or finished. Raise TaskNotFound."""
    from django_taskq.exceptions import TaskNotFound
    from django_taskq.lifecycle.enqueue import main_database
    from django_taskq.store import tasks as store

    row = store.find(using or main_database(), task_id)
    if row is None:
        raise TaskNotFound(f"no task has the id {task_id!r}")
    return row


def subscribe_results(
    *, buffer: int = 1000, drop: Literal["newest", "oldest", "block"] = "newest", timeout: float | timedelta = 1.0
) -> ResultStream:
    """
    Return a stream of how tasks end in this process, from now on; close it, or use it in a ``with``.

    At most ``buffer`` outcomes wait to be read. When it is full, ``drop`` says what gives way: the
    "newest" outcome, the "oldest", or with "block" the settling thread, for ``timeout`` seconds at
    most and for no more than half of the time; then the newest. Raise InvalidOptions.
    """
    from django_taskq.lifecycle.streams import ResultStream

    return ResultStream(buffer=buffer, drop=drop, timeout=timeout)


def finished_since(
    since: str | datetime | None, *, limit: int = 500, lag: float | timedelta = 5.0, using: str | None = None
) -> FinishedPage:
    """
    Return tasks of all processes that ended after a cursor, in order, and the next cursor.

    Start with a moment, or with None for the oldest that is kept. Nothing is taken from other readers.
    No task is passed over that was committed within ``lag`` seconds after its end; until then none is shown.
    Not inside a transaction that shows a snapshot. Raise InvalidCursor.
    """
    from django_taskq.lifecycle.enqueue import main_database
    from django_taskq.ops import finished

    return finished.finished_since(using or main_database(), since, limit=limit, lag=lag)


async def afinished_since(
    since: str | datetime | None, *, limit: int = 500, lag: float | timedelta = 5.0, using: str | None = None
) -> FinishedPage:
    """Do what ``finished_since`` does, without blocking the event loop."""
    from asgiref.sync import sync_to_async

    return await sync_to_async(finished_since)(since, limit=limit, lag=lag, using=using)


def cancel(ids: str | Iterable[str], *, actor: str = "api", reason: str = "", using: str | None = None) -> Changed:
    """
    Cancel tasks: waiting ones at once, running ones by asking. Raise TaskNotFound for a single unknown id.

    ``using``, here and below, is the database the tasks are in; None: that of the main backend.
    """
    from django_taskq.lifecycle import control

    return control.cancel(ids, actor=actor, reason=reason, alias=using)


async def acancel(
    ids: str | Iterable[str], *, actor: str = "api", reason: str = "", using: str | None = None
) -> Changed:
    """Do what ``cancel`` does, without blocking the event loop."""
    from asgiref.sync import sync_to_async

    return await sync_to_async(cancel)(ids, actor=actor, reason=reason, using=using)


def replay(
    ids: str | Iterable[str],
    *,
    attempts: int | None = None,
    from_start: bool = False,
    actor: str = "api",
    reason: str = "",
    using: str | None = None,
) -> Changed:
    """
    Send dead and cancelled tasks back as ready. Raise TaskNotFound for a single unknown id.

    A task goes on after its last step that succeeded; ``from_start`` forgets its steps.
    """
    from django_taskq.lifecycle import control

    return control.replay(ids, attempts=attempts, from_start=from_start, actor=actor, reason=reason, alias=using)


async def areplay(
    ids: str | Iterable[str],
    *,
    attempts: int | None = None,
    from_start: bool = False,
    actor: str = "api",
    reason: str = "",
    using: str | None = None,
) -> Changed:
    """Do what ``replay`` does, without blocking the event loop."""
    from asgiref.sync import sync_to_async

    return await sync_to_async(replay)(
        ids, attempts=attempts, from_start=from_start, actor=actor, reason=reason, using=using
    )


def discard(ids: str | Iterable[str], *, actor: str = "api", reason: str = "", using: str | None = None) -> Changed:
    """Give dead tasks up for good. Raise TaskNotFound for a single unknown id."""
    from django_taskq.lifecycle import control

    return control.discard(ids, actor=actor, reason=reason, alias=using)


def pause_queue(queue: str, *, actor: str = "api", reason: str = "", using: str | None = None) -> bool:
    """Stop workers from claiming from a queue, within a second; return False if it was paused already."""
    from django_taskq.lifecycle import control

    return control.pause(queue, actor=actor, reason=reason, alias=using)


def resume_queue(queue: str, *, actor: str = "api", reason: str = "", using: str | None = None) -> bool:
    """Let workers claim from a paused queue again; return False if it was not paused."""
    from django_taskq.lifecycle import control

    return control.resume(queue, actor=actor, reason=reason, alias=using)
