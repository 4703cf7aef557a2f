"""
Task results and contexts: how a row looks to users of ``django.tasks``.

The four statuses of the contract hide our states; ``result.state`` shows them.
Results are of the kind the task is of: Django's own or the backport's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from asgiref.sync import sync_to_async

from django_taskq import clock, conf
from django_taskq.compat import Contract, TaskContextBase, TaskResultBase, contract_named, contract_of
from django_taskq.domain import payload
from django_taskq.domain.states import DeadReason, State, status_name
from django_taskq.exceptions import InvalidPayload, ResultNotReady, WaitTimeout, error_class_path
from django_taskq.lifecycle import context as contexts
from django_taskq.models import Attempt, FinishedTask, Task
from django_taskq.store import tasks as store
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for

__all__ = ["TaskContext", "TaskResult", "make_context", "new_result", "result_of_claim", "result_of_row"]

if TYPE_CHECKING:
    from typing import Self

    from django_taskq.domain.schedules import Occurrence
    from django_taskq.lifecycle.handles import WorkflowHandle

_WAIT_FIRST, _WAIT_MOST = 0.005, 0.25
# The state of a result whose task was not stored, since its queue was full.
DROPPED = "dropped"


R = TypeVar("R")
S = TypeVar("S")

if TYPE_CHECKING:

    class _ResultFace(TaskResultBase[..., R]):
        """What a result inherits, whichever contract it is of."""

        state: str
        is_duplicate: bool

else:

    class _ResultFace(Generic[R]):
        __slots__ = ()


class TaskResult(_ResultFace[R]):
    """
    The result of a task: a ``TaskResult`` of ``django.tasks``, and what ours can do beyond that.

    ``state`` is the task's own state, such as "scheduled" or "dead", where ``status`` knows four only.
    ``is_duplicate``: the enqueue that gave this result stored no task, since this one was there.
    """

    __slots__ = ()

    def wait(self, timeout: float | timedelta | None = None) -> Self:
        """
        Wait until the task has ended and return this result, refreshed.

        ``timeout`` is in seconds. Raise WaitTimeout when it is over. Inside an open transaction
        on a database with snapshots (REPEATABLE READ) an end cannot be seen: wait outside of one.
        """
        for pause in _pauses(timeout):
            self.refresh()
            if self.is_finished:
                return self
            if pause is None:
                break
            time.sleep(pause)
        raise WaitTimeout(f"task {self.id} had not ended after {timeout} seconds")

    async def await_(self, timeout: float | timedelta | None = None) -> Self:  # noqa: ASYNC109 - its error is WaitTimeout
        """Do what ``wait`` does, without blocking the event loop."""
        for pause in _pauses(timeout):
            await self.arefresh()
            if self.is_finished:
                return self
            if pause is None:
                break
            await asyncio.sleep(pause)
        raise WaitTimeout(f"task {self.id} had not ended after {timeout} seconds")

    def get(self, timeout: float | timedelta | None = None) -> R:
        """Wait for the end and return the value. Raise WaitTimeout, or ResultNotReady if the task did not succeed."""
        return _value(self.wait(timeout))

    async def aget(self, timeout: float | timedelta | None = None) -> R:  # noqa: ASYNC109
        """Do what ``get`` does, without blocking the event loop."""
        return _value(await self.await_(timeout))

    @property
    def schedule(self) -> Occurrence | None:
        """The schedule and the tick that made the task, read from its row; None for any other task."""
        from django_taskq.lifecycle.databases import database_for

        row = store.find(database_for(conf.options(self.backend)), self.id)
        return None if row is None else row.schedule

    def cancel(self, *, reason: str = "", actor: str = "api", requeue: bool = False) -> bool:
        """
        Cancel the task: at once if it waits, by asking it if it runs.

        ``requeue``: only stop the attempt that runs, and send the task back as ready with the attempt given back.
        Return whether it is cancelled or was asked; False if it had ended. With ``requeue`` raise InvalidTransition
        unless it runs.
        """
        from django_taskq.lifecycle import control
        from django_taskq.lifecycle.databases import database_for

        if self.state == DROPPED:
            return False
        alias = database_for(conf.options(self.backend))
        return control.cancel(self.id, reason=reason, actor=actor, requeue=requeue, alias=alias).count > 0

    async def acancel(self, *, reason: str = "", actor: str = "api", requeue: bool = False) -> bool:
        """Do what ``cancel`` does, without blocking the event loop."""
        return await sync_to_async(self.cancel)(reason=reason, actor=actor, requeue=requeue)


def _pauses(timeout: float | timedelta | None) -> Any:
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    until = None if seconds is None else time.monotonic() + seconds
    pause = _WAIT_FIRST
    while True:
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            yield None
            return
        yield pause if left is None else min(pause, left)
        pause = min(pause * 1.5, _WAIT_MOST)


def _value(result: TaskResult[R]) -> R:
    if result.status == "SUCCESSFUL":
        return result.return_value
    last = result.errors[-1].exception_class_path if result.errors else result.state
    raise ResultNotReady(f"task {result.id} is {result.state}: {last}")


@lru_cache(maxsize=4)
def _result_class(contract: Contract) -> type[Any]:
    base = contract.base.TaskResult
    refreshed = {*contract.base.TASK_REFRESH_ATTRS, "state"}

    def refresh(self: Any) -> None:
        """Load what may have changed since; of a dropped task there is nothing to load."""
        if self.state == DROPPED:
            return
        _copy(self, self.task.get_backend().get_result(self.id), refreshed)

    async def arefresh(self: Any) -> None:
        """Load what may have changed since, without blocking the event loop."""
        if self.state == DROPPED:
            return
        _copy(self, await self.task.get_backend().aget_result(self.id), refreshed)

    made: type[Any] = dataclass(frozen=True, slots=True, kw_only=True)(
        type(
            "DatabaseTaskResult",
            (TaskResult, base),
            {
                "__annotations__": {"state": "str", "is_duplicate": "bool"},
                "__module__": __name__,
                "__doc__": "A task result that is read from the database; ``state`` is the task's own state.",
                "state": "ready",
                "is_duplicate": field(default=False, compare=False),
                "refresh": refresh,
                "arefresh": arefresh,
                "__reduce__": _reduce,
            },
        )
    )
    globals()[f"_{contract.name.replace('.', '_')}_result"] = made
    return made


def _copy(to: Any, source: Any, names: set[str]) -> None:
    for name in names:
        object.__setattr__(to, name, getattr(source, name))


def _reduce(self: Any) -> tuple[Any, ...]:
    values = {item.name: getattr(self, item.name) for item in fields(self)}
    return _rebuild, (contract_of(self.task).name, values)


def _rebuild(name: str, values: dict[str, Any]) -> Any:
    returned = values.pop("_return_value", None)
    result = _result_class(contract_named(name))(**values)
    object.__setattr__(result, "_return_value", returned)
    return result


def new_result(
    task: Any,
    public_id: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    backend: str,
    enqueued_at: datetime,
    state: State = State.READY,
    dropped: Exception | None = None,
) -> Any:
    """Return the result of a task that was just enqueued, or ``dropped``: then it has failed, by that error."""
    contract = contract_of(task)
    if dropped is not None:
        return _dropped_result(contract, task, public_id, args, kwargs, backend, enqueued_at, dropped)
    return _result_class(contract)(
        task=task,
        id=public_id,
        status=contract.base.TaskResultStatus.READY,
        enqueued_at=enqueued_at,
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=list(args),
        kwargs=kwargs,
        backend=backend,
        errors=[],
        worker_ids=[],
        state=state.name.lower(),
    )


def _dropped_result(
    contract: Contract,
    task: Any,
    public_id: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    backend: str,
    at: datetime,
    dropped: Exception,
) -> Any:
    error = contract.base.TaskError(exception_class_path=error_class_path(dropped), traceback=str(dropped))
    return _result_class(contract)(
        task=task,
        id=public_id,
        status=contract.base.TaskResultStatus.FAILED,
        enqueued_at=None,
        started_at=None,
        finished_at=at,
        last_attempted_at=None,
        args=list(args),
        kwargs=kwargs,
        backend=backend,
        errors=[error],
        worker_ids=[],
        state=DROPPED,
    )


def result_of_row(row: Task | FinishedTask, task: Any, attempts: Sequence[Attempt], *, backend: str) -> Any:
    """Return the result that shows a stored task. Damaged arguments show as none."""
    contract = contract_of(task)
    error = contract.base.TaskError
    try:
        args, kwargs = row.arguments
    except InvalidPayload:
        args, kwargs = [], {}
    counted = [attempt for attempt in attempts if attempt.outcome != "interrupted"]
    workers = [str(attempt.worker_id) for attempt in counted]
    errors = [
        error(exception_class_path=attempt.error_class, traceback=attempt.traceback)
        for attempt in counted
        if attempt.error_class
    ]
    finished_at = getattr(row, "finished_at", None)
    is_last_recorded = bool(counted) and counted[-1].number >= row.attempt
    if row.worker_id is not None and not is_last_recorded and row.attempt:
        workers.append(str(row.worker_id))
    if row.state in (State.DEAD, State.CANCELLED) and not (errors and row.state == State.DEAD):
        errors.append(error(exception_class_path=_synthetic(row), traceback=""))
    starts = [attempt.started_at for attempt in counted if attempt.started_at is not None]
    result = _result_class(contract)(
        task=task,
        id=str(row.pk),
        status=contract.base.TaskResultStatus[status_name(row.state)],
        enqueued_at=row.created_at,
        started_at=min([*starts, *([row.started_at] if row.started_at else [])], default=None),
        finished_at=finished_at,
        last_attempted_at=row.started_at,
        args=args,
        kwargs=kwargs,
        backend=backend,
        errors=errors,
        worker_ids=workers,
        state=State(row.state).name.lower(),
    )
    if isinstance(row, FinishedTask):
        object.__setattr__(result, "_return_value", row.result_value)
    return result


_REASON_ERRORS = {
    DeadReason.BUDGET: "django_taskq.exceptions.BudgetExceeded",
    DeadReason.UNKNOWN_TASK: "django_taskq.exceptions.UnknownTask",
    DeadReason.UNDECODABLE: "django_taskq.exceptions.InvalidPayload",
    DeadReason.GAVE_UP: "django_taskq.exceptions.GiveUp",
}


def _synthetic(row: Task | FinishedTask) -> str:
    """Return the path of an importable exception that stands for an end without one."""
    if row.state == State.CANCELLED:
        return "django_taskq.exceptions.TaskCancelled"
    reason: Any = getattr(row, "reason", None)
    return _REASON_ERRORS.get(reason, "django_taskq.exceptions.TaskqError")


def result_of_claim(
    claim: Claim,
    task: Any,
    public_id: str,
    *,
    alias: str,
    status: str,
    started: float | None,
    finished: float | None = None,
    error: tuple[str, str] | None = None,
    value: str | None = None,
) -> Any:
    """
    Return the result of a claimed task, from the claim alone where it is the first attempt.

    ``error`` is (class path, traceback), ``value`` the JSON text of the return value.
    """
    contract = contract_of(task)
    make_error = contract.base.TaskError
    try:
        args, kwargs = payload.decode_arguments(claim.args)
    except InvalidPayload:
        args, kwargs = [], {}
    earlier = store.attempts_of(alias, store.to_uuid(public_id)) if claim.attempt > 1 else []  # type: ignore[arg-type]
    earlier = [attempt for attempt in earlier if attempt.number < claim.attempt and attempt.outcome != "interrupted"]
    errors = [
        make_error(exception_class_path=attempt.error_class, traceback=attempt.traceback)
        for attempt in earlier
        if attempt.error_class
    ]
    if error is not None:
        errors.append(make_error(exception_class_path=error[0], traceback=error[1]))
    started_at = None if started is None else clock.from_timestamp(started)
    first = [attempt.started_at for attempt in earlier if attempt.started_at is not None]
    result = _result_class(contract)(
        task=task,
        id=public_id,
        status=contract.base.TaskResultStatus[status],
        enqueued_at=claim.created_at,
        started_at=min(first) if first else started_at,
        finished_at=None if finished is None else clock.from_timestamp(finished),
        last_attempted_at=started_at,
        args=args,
        kwargs=kwargs,
        backend=task.backend,
        errors=errors,
        worker_ids=[*(str(attempt.worker_id) for attempt in earlier), str(claim.lease >> 32)],
        state="running" if finished is None else status.lower(),
    )
    object.__setattr__(result, "_return_value", payload.decode_value(value))
    return result


if TYPE_CHECKING:

    class _ContextFace(TaskContextBase[..., Any]):
        """What a context inherits, whichever contract it is of."""

        run: contexts.Run

else:

    class _ContextFace:
        __slots__ = ()


class TaskContext(_ContextFace):
    """
    What a task with ``takes_context`` gets as its first argument, called ``context``.

    ``task_result`` and ``attempt`` are the contract's; the rest is ours.
    """

    __slots__ = ()

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.run.attempt

    @property
    def task_id(self) -> str:
        """The id of the task; the same in every attempt, so a good idempotency key."""
        return self.run.public_id

    @property
    def name(self) -> str:
        """The name under which the task is stored."""
        return self.run.claim.name

    @property
    def queue(self) -> str:
        """The queue the task came from."""
        return self.run.claim.queue

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments that the function gets, without the context."""
        return _arguments_of(self)[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments that the function gets."""
        return _arguments_of(self)[1]

    @property
    def redelivered(self) -> bool:
        """Whether the task may have run before: its effects may be there already."""
        return self.run.attempt > 1

    @property
    def deadline(self) -> datetime | None:
        """When this attempt has to be over: the earlier of its timeout and the task's budget."""
        return self.run.deadline_at

    @property
    def remaining(self) -> timedelta | None:
        """The time left until the deadline, never negative."""
        return self.run.remaining

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked this task to stop. Known within one heartbeat."""
        return self.run.cancelled

    @property
    def workflow(self) -> WorkflowHandle | None:
        """The chain, batch or workflow that this task is a member or a callback of; None for a plain task."""
        from django_taskq.lifecycle.handles import find

        flow_id = self.run.claim.workflow_id
        return None if flow_id is None else find(vendor_for(self.run.alias).public_id(flow_id))

    @property
    def schedule(self) -> Occurrence | None:
        """The schedule and the tick that made the task; None for a task that something else enqueued."""
        options = self.run.claim.options
        if options is None or '"schedule"' not in options:
            return None
        from django_taskq.domain.schedules import occurrence_of

        return occurrence_of(payload.decode_value(options))

    @property
    def metadata(self) -> dict[str, Any]:
        """The dict given to ``using(metadata=…)``."""
        found: dict[str, Any] = self.run.metadata.get("user", {})
        return found

    @property
    def log(self) -> contexts.TaskLogger:
        """A logger whose records carry ``task_id``, ``task`` and ``attempt``."""
        return contexts.logger_for(self.run)

    def raise_if_cancelled(self) -> None:
        """Raise TaskCancelled if asked to stop, TaskTimeout or BudgetExceeded when the time is over. Call it often."""
        self.run.raise_if_cancelled()

    def progress(self, done: float, total: float | None = None, note: str = "") -> bool:
        """Show how far the task is; written at most once a second and at the end. Return whether it was written."""
        return self.run.progress(done, total, note)

    async def aprogress(self, done: float, total: float | None = None, note: str = "") -> bool:
        """Do what ``progress`` does, from a coroutine."""
        return await sync_to_async(self.run.progress)(done, total, note)

    def step(self, name: str, function: Callable[..., S], /, *args: Any, atomic: bool = False, **kwargs: Any) -> S:
        """
        Call the function as a durable step of this task, or return the result it had in an earlier attempt.

        The result is stored before this returns, and comes back as JSON gives it back, now and later. ``atomic``: what
        the function writes into the task's database and the record of it are one transaction.
        Raise what the function raises; TaskCancelled, TaskTimeout or BudgetExceeded before and after it;
        InvalidPayload for a result that cannot be stored; LeaseLost when another attempt may run by now.
        """
        from django_taskq.lifecycle import steps

        value: S = steps.step(self.run, name, function, args, kwargs, atomic=atomic)
        return value

    @overload
    async def astep(
        self, name: str, function: Callable[..., Awaitable[S]], /, *args: Any, atomic: bool = False, **kwargs: Any
    ) -> S: ...

    @overload
    async def astep(
        self, name: str, function: Callable[..., S], /, *args: Any, atomic: bool = False, **kwargs: Any
    ) -> S: ...

    async def astep(
        self, name: str, function: Callable[..., Any], /, *args: Any, atomic: bool = False, **kwargs: Any
    ) -> Any:
        """
        Do what ``step`` does, from a coroutine.

        The function may be one, too; if not, it runs in the thread that Django's ORM uses for coroutines.
        """
        from django_taskq.lifecycle import steps

        return await steps.astep(self.run, name, function, args, kwargs, atomic=atomic)

    def plan(self, *names: str) -> None:
        """Name the steps ahead, so that they show as pending. Those that are known already stay as they are."""
        from django_taskq.lifecycle import steps

        steps.plan(self.run, names)

    async def aplan(self, *names: str) -> None:
        """Do what ``plan`` does, from a coroutine."""
        from django_taskq.lifecycle import steps

        await sync_to_async(steps.plan)(self.run, names)

    def enqueue(self, task: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Enqueue a task as a child of this one. (Any enqueue inside a task is; this says so.)"""
        return task.enqueue(*args, **kwargs)


def _arguments_of(context: TaskContext) -> tuple[tuple[Any, ...], dict[str, Any]]:
    found: tuple[tuple[Any, ...], dict[str, Any]] | None = getattr(context.run, "arguments", None)
    return found or (tuple(context.task_result.args), dict(context.task_result.kwargs))


def context_of(run: contexts.Run) -> TaskContext:
    """Return the context for a task function."""
    if not run.is_stored:
        return make_context(run, run.result)  # type: ignore[attr-defined]  # what has no row carries its result
    result = result_of_claim(run.claim, run.task, run.public_id, alias=run.alias, status="RUNNING", started=run.started)
    return make_context(run, result)


def make_context(run: contexts.Run, result: Any) -> TaskContext:
    """Return a context of the kind that the result is of."""
    context: TaskContext = _context_class(contract_of(run.task))(task_result=result, run=run)
    return context


@lru_cache(maxsize=4)
def _context_class(contract: Contract) -> type[Any]:
    return make_dataclass(
        "TaskContext",
        [("run", Any)],
        bases=(TaskContext, contract.base.TaskContext),
        namespace={"__doc__": TaskContext.__doc__, "__module__": __name__},
        frozen=True,
        slots=True,
        kw_only=True,
    )
