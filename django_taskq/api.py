"""
What a program does with tasks besides enqueueing one: many at once, look up, cancel, replay, pause, count.

The rooms below are imported inside functions: this file is loaded before the models are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from django_taskq.domain.transitions import initial_state
from django_taskq.exceptions import InvalidOptions

if TYPE_CHECKING:
    from django_taskq.lifecycle.control import Changed
    from django_taskq.lifecycle.results import TaskResult
    from django_taskq.lifecycle.streams import ResultStream
    from django_taskq.models import FinishedTask, Pause
    from django_taskq.models import Task as TaskModel
    from django_taskq.ops.finished import FinishedPage
    from django_taskq.ops.limits import LimitView
    from django_taskq.task import Task as TaskDefinition

__all__ = [
    "EnqueuedTasks",
    "acancel",
    "afinished_since",
    "areplay",
    "cancel",
    "discard",
    "enqueue_many",
    "find_limits",
    "find_task",
    "finished_since",
    "pause",
    "pause_queue",
    "pauses",
    "replay",
    "reset_limit",
    "resume",
    "resume_queue",
    "set_limit",
    "subscribe_results",
]


R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

if TYPE_CHECKING:
    _Results = Sequence[TaskResult[R_co]]
else:
    # Takes a type parameter as it is.
    _Results = Sequence


class EnqueuedTasks(_Results[R_co]):
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

    @property
    def is_dropped(self) -> bool:
        """Whether none was stored, since the queue was full and its FULL_POLICY is "drop"."""
        return self._stored.dropped is not None

    def __len__(self) -> int:
        return len(self._calls)

    @overload
    def __getitem__(self, at: int) -> TaskResult[R_co]: ...

    @overload
    def __getitem__(self, at: slice) -> list[TaskResult[R_co]]: ...

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        from django_taskq.lifecycle.enqueue import public_id
        from django_taskq.lifecycle.results import new_result

        args, kwargs = self._calls[at]
        if self._stored.found and (hit := self._stored.found.get(at % len(self._calls))) is not None:
            from django_taskq.lifecycle.deduplicate import result_of

            return result_of(self._task, args, dict(kwargs), hit, stored=self._stored, backend=self._task.backend)
        task, state = self._task, self._stored.state
        if self._stored.calls is not None:
            task, args, kwargs = self._stored.calls[at]
            state = initial_state(task.run_after, now=self._stored.created_at)
        return new_result(
            task,
            public_id(self._stored.ids[at]),
            args,
            dict(kwargs),
            backend=task.backend,
            enqueued_at=self._stored.created_at,
            state=state,
            dropped=self._stored.dropped,
        )

    def __iter__(self) -> Iterator[TaskResult[R_co]]:
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


@overload
def enqueue_many(task: TaskDefinition[..., R], calls: Iterable[Any]) -> EnqueuedTasks[R]: ...


@overload
def enqueue_many(task: Any, calls: Iterable[Any]) -> EnqueuedTasks[Any]: ...


def enqueue_many(task: Any, calls: Iterable[Any]) -> EnqueuedTasks[Any]:
    """Store a task for each call in one go; see ``Task.enqueue_many``."""
    backend = task.get_backend()
    backend.validate_task(task)
    pairs = [_call(task, call) for call in calls]
    stored: EnqueuedTasks[Any] = backend.enqueue_many(task, pairs)
    return stored


def find_task(task_id: str, *, using: str | None = None) -> TaskModel | FinishedTask:
    """Return the row of a task, live or finished. Raise TaskNotFound."""
    from django_taskq.exceptions import TaskNotFound
    from django_taskq.lifecycle.databases import main_database
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
    from django_taskq.lifecycle.databases import main_database
    from django_taskq.ops import finished

    return finished.finished_since(using or main_database(), since, limit=limit, lag=lag)


async def afinished_since(
    since: str | datetime | None, *, limit: int = 500, lag: float | timedelta = 5.0, using: str | None = None
) -> FinishedPage:
    """Do what ``finished_since`` does, without blocking the event loop."""
    from asgiref.sync import sync_to_async

    return await sync_to_async(finished_since)(since, limit=limit, lag=lag, using=using)


def cancel(
    ids: str | Iterable[str],
    *,
    actor: str = "api",
    reason: str = "",
    requeue: bool = False,
    using: str | None = None,
) -> Changed:
    """
    Cancel tasks: waiting ones at once, running ones by asking. Raise TaskNotFound for a single unknown id.

    ``requeue``: only stop the attempts that run, and send their tasks back as ready with the attempt given back;
    what does not run is skipped, and InvalidTransition raised for a single id.
    ``using``, here and below, is the database the tasks are in; None: that of the main backend.
    """
    from django_taskq.lifecycle import control

    return control.cancel(ids, actor=actor, reason=reason, requeue=requeue, alias=using)


async def acancel(
    ids: str | Iterable[str],
    *,
    actor: str = "api",
    reason: str = "",
    requeue: bool = False,
    using: str | None = None,
) -> Changed:
    """Do what ``cancel`` does, without blocking the event loop."""
    from asgiref.sync import sync_to_async

    return await sync_to_async(cancel)(ids, actor=actor, reason=reason, requeue=requeue, using=using)


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


def pause(
    queue: str | None = None,
    *,
    task: Any = None,
    everything: bool = False,
    until: datetime | timedelta | None = None,
    reason: str = "",
    actor: str = "api",
    reject: bool | None = None,
    replace: bool = False,
    using: str | None = None,
) -> bool:
    """
    Let no worker take tasks of a queue, of a task type (a definition or a stored name), or any, within a second.

    Running tasks finish. ``until``: it ends by itself then, by the database's clock. ``reject``: new tasks are
    refused with EnqueuePaused; None: what REJECT_WHEN_PAUSED of the queue says. Return False if it was
    paused already, and left as it was; ``replace`` puts this pause in its place.
    Raise InvalidOptions, and UnsupportedCapability where no backend stores tasks in a database.
    """
    from django_taskq.lifecycle import pausing

    return pausing.pause(
        queue,
        task=task,
        everything=everything,
        until=until,
        reject=reject,
        replace=replace,
        actor=actor,
        reason=reason,
        alias=using or _pausable(task),
    )


def resume(
    queue: str | None = None,
    *,
    task: Any = None,
    everything: bool = False,
    reason: str = "",
    actor: str = "api",
    using: str | None = None,
) -> bool:
    """
    Lift the pause of a queue, of a task type, or that of everything; return False if there was none.

    Each is lifted for itself: a queue that was paused stays so when everything is resumed.
    Raise InvalidOptions, and UnsupportedCapability where no backend stores tasks in a database.
    """
    from django_taskq.lifecycle import pausing

    return pausing.resume(
        queue, task=task, everything=everything, actor=actor, reason=reason, alias=using or _pausable(task)
    )


def pauses(*, using: str | None = None) -> list[Pause]:
    """
    Return the pauses that hold just now, that of everything first.

    Raise UnsupportedCapability where no backend stores tasks in a database.
    """
    from django_taskq.store import pauses as store
    from django_taskq.store.vendors import vendor_for

    alias = using or _pausable()
    return store.in_force(alias, vendor_for(alias).now())


def _pausable(task: Any = None) -> str:
    """Return the database whose workers a pause reaches. Raise UnsupportedCapability where there is none."""
    from django_taskq import conf
    from django_taskq.exceptions import UnsupportedCapability
    from django_taskq.lifecycle.databases import database_for, main_database

    if hasattr(task, "get_backend"):
        backend = task.get_backend()
        if not getattr(backend, "stores_tasks_in_database", False):
            raise UnsupportedCapability("pause", type(backend).__name__)
        return database_for(backend.taskq_options)
    if conf.main_alias() is None:
        paths = [str(given.get("BACKEND", "")).rpartition(".")[2] for given in conf.task_settings().values()]
        raise UnsupportedCapability("pause", ", ".join(paths))
    return main_database()


def pause_queue(queue: str, *, actor: str = "api", reason: str = "", using: str | None = None) -> bool:
    """Stop workers from claiming from a queue, within a second; return False if it was paused already."""
    return pause(queue, actor=actor, reason=reason, using=using)


def resume_queue(queue: str, *, actor: str = "api", reason: str = "", using: str | None = None) -> bool:
    """Let workers claim from a paused queue again; return False if it was not paused."""
    return resume(queue, actor=actor, reason=reason, using=using)


def set_limit(
    name: str,
    *,
    concurrency: int | None = None,
    rate: str | None = None,
    burst: int | None = None,
    until: datetime | timedelta | None = None,
    actor: str = "api",
    reason: str = "",
    using: str | None = None,
) -> None:
    """
    Set the bound of a limit for all workers, within a second, until a moment or until it is reset.

    ``name`` is "all", "queue:email", "task:shop.send" or a key of tasks; give ``concurrency`` or ``rate``, 0 lets
    nothing start. Running tasks go on. Raise InvalidOptions, or LimitNotFound for a key that no task has.
    """
    from django_taskq.lifecycle import set_limits

    set_limits.set_limit(
        name, concurrency=concurrency, rate=rate, burst=burst, until=until, actor=actor, reason=reason, alias=using
    )


def reset_limit(
    name: str, *, kind: str | None = None, actor: str = "api", reason: str = "", using: str | None = None
) -> bool:
    """
    Let the code's bounds of a limit hold again; return False if nothing was set.

    ``kind`` is "concurrency" or "rate", None for both. Raise InvalidOptions.
    """
    from django_taskq.lifecycle import set_limits

    return set_limits.reset_limit(name, kind=kind, actor=actor, reason=reason, alias=using)


def find_limits(prefix: str = "", *, limit: int = 100, using: str | None = None) -> list[LimitView]:
    """Return up to ``limit`` limits whose names begin so: their bounds, who holds them, how many tasks are parked."""
    from django_taskq.lifecycle.databases import main_database
    from django_taskq.ops import limits

    page = limits.listed(using or main_database(), prefix, limit=limit)
    return list(page.rows)
