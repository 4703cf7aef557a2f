"""
Call the task function and say how it ended: the only caller of user code.

Everything a function can do to leave, returning, raising, exiting, being
cancelled, becomes an Outcome here; nothing gets past. ``prepare`` comes first
and ends tasks that must not run at all.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from asgiref.sync import async_to_sync
from django.db import close_old_connections

from django_taskq import clock, conf
from django_taskq.domain import payload
from django_taskq.domain.outcomes import (
    BudgetOver,
    Cancelled,
    Crashed,
    Expired,
    Failed,
    GaveUp,
    Interrupted,
    NotYet,
    Outcome,
    Skipped,
    Snoozed,
    Succeeded,
    TimedOut,
    Undecodable,
    Unknown,
    clean_text,
)
from django_taskq.domain.retry import Curve
from django_taskq.exceptions import (
    BudgetExceeded,
    Cancel,
    GiveUp,
    InvalidPayload,
    Retry,
    Skip,
    Snooze,
    TaskCancelled,
    TaskTimeout,
    error_class_path,
)
from django_taskq.lifecycle import definitions
from django_taskq.lifecycle.context import Run, Verdict, current, restored
from django_taskq.lifecycle.errors import describe
from django_taskq.store.rows import Claim

__all__ = ["acall", "call", "describe", "on_a_good_connection", "outcome_of", "prepare", "timed_out"]

# How soon a task that nobody here knows is offered to other workers again.
_UNKNOWN_RETRY_SECONDS = 5.0
# A task is not sent back for what two looks at one clock may differ by.
_EARLY_SECONDS = 0.1
_NO_OFFSET = timedelta(0)
# In the options of a task whose arguments wait for the results of others.
_REFERENCES = '"refs"'


def prepare(claim: Claim, options: conf.Options, alias: str, *, offset: timedelta = _NO_OFFSET) -> Run | Outcome:
    """
    Return what to run, or how the task ends without being run.

    ``offset``: how far the database's clock is ahead of this machine's. Rows are judged by the former.
    """
    started = clock.timestamp()
    if claim.cancel:
        return Cancelled("cancel requested before the start", was_asked=True)
    if claim.run_after is not None or claim.deadline_at is not None or claim.expires_at is not None:
        now = clock.from_timestamp(started) + offset
        if claim.run_after is not None and (claim.run_after - now).total_seconds() > _EARLY_SECONDS:
            return NotYet(claim.run_after)
        if claim.deadline_at is not None and claim.deadline_at <= now:
            return BudgetOver()
        if claim.expires_at is not None and claim.attempt == 1 and claim.expires_at <= now:
            return Expired()
    try:
        task = definitions.find(claim.name)
    except BaseException as error:
        # Also SystemExit: a module may do anything when it is imported.
        return Failed(error=describe(error), retry_in=_UNKNOWN_RETRY_SECONDS)
    if task is None:
        return _unknown(claim, options, started)
    try:
        behaviour = definitions.behaviour_of_claim(claim.name, claim.queue, claim.options, task, options)
        return Run(claim, task, alias, behaviour=behaviour, options=options, started=started, offset=offset)
    except Exception as error:
        # Options or metadata that are not what we write: no JSON, another shape, nested too deep.
        return Undecodable(error=describe(error))


def _unknown(claim: Claim, options: conf.Options, now: float) -> Outcome:
    """Put the task aside for a worker that knows it; dead once nobody knew it for the grace time."""
    try:
        since = (payload.decode_value(claim.options) or {}).get("unknown_since", now)
        since = float(since)
    except (ValueError, TypeError, AttributeError, RecursionError):
        since = now
    is_final = now - since >= options.unknown_task_grace.total_seconds()
    return Unknown(is_final=is_final, retry_in=_UNKNOWN_RETRY_SECONDS, since=since)


def call(run: Run) -> tuple[Outcome, BaseException | None]:
    """Run the task in this thread. Return how it ended, and the exception if there was one."""
    if definitions.is_coroutine(run.task):
        # On a loop of its own, for its timeout must end it wherever it runs.
        return async_to_sync(acall)(run)
    token = current.set(run)
    try:
        args, kwargs = payload.decode_arguments(run.claim.args)
    except InvalidPayload as error:
        current.reset(token)
        return Undecodable(error=describe(error)), error
    try:
        if run.claim.options is not None and _REFERENCES in run.claim.options:
            _fill(run.claim.options, args, kwargs, run.alias)
        if run.task.takes_context:
            args.insert(0, _context_of(run))
        function = _wrapped(run) if run.behaviour.has_around else run.task.func
        if run.metadata:
            with restored(run.metadata):
                value = function(*args, **kwargs)
        else:
            value = function(*args, **kwargs)
        return _succeeded(run, value), None
    except BaseException as error:
        return outcome_of(run, error), error
    finally:
        current.reset(token)


def _context_of(run: Run) -> Any:
    # Loaded by those who take a context.
    from django_taskq.lifecycle.results import context_of

    return context_of(run)


async def acall(run: Run) -> tuple[Outcome, BaseException | None]:
    """Run a coroutine task on this event loop, cancelled when its time is over."""
    token = current.set(run)
    try:
        args, kwargs = payload.decode_arguments(run.claim.args)
    except InvalidPayload as error:
        current.reset(token)
        return Undecodable(error=describe(error)), error
    try:
        if run.claim.options is not None and _REFERENCES in run.claim.options:
            await asyncio.to_thread(on_a_good_connection, _fill, run.claim.options, args, kwargs, run.alias)
        if run.task.takes_context:
            args.insert(0, await asyncio.to_thread(on_a_good_connection, _context_of, run))
        remaining = run.remaining
        limit = asyncio.timeout(None if remaining is None else remaining.total_seconds())
        with restored(run.metadata):
            try:
                async with limit:
                    function = _wrapped(run) if run.behaviour.has_around else run.task.func
                    value = await function(*args, **kwargs)
            except TimeoutError:
                if not limit.expired():
                    raise
                return timed_out(run), None
        return _succeeded(run, value), None
    except BaseException as error:
        return outcome_of(run, error), error
    finally:
        current.reset(token)


def _wrapped(run: Run) -> Callable[..., Any]:
    """Return the function with its middleware, and its arguments and result made of their annotations."""
    # Loaded by tasks that have any of it.
    from django_taskq.lifecycle import around

    return partial(around.acall if definitions.is_coroutine(run.task) else around.call, run)


def _fill(options: str, args: list[Any], kwargs: dict[str, Any], alias: str) -> None:
    """Put the results of others where the arguments wait for them."""
    from django_taskq.lifecycle import references

    references.fill(options, args, kwargs, alias)


def on_a_good_connection(work: Callable[..., Any], *args: Any) -> Any:
    """Do something for a coroutine, on a thread of the loop's pool whose connection may have died meanwhile."""
    close_old_connections()
    try:
        return work(*args)
    finally:
        close_old_connections()


def _succeeded(run: Run, value: Any) -> Outcome:
    if value is None:
        return Succeeded()
    return Succeeded(payload.encode_value(value, limit=run.options.max_result_bytes))


def timed_out(run: Run) -> Outcome:
    """Return the outcome of an attempt whose time is over."""
    if run.budget_at is not None and clock.now() >= run.budget_at:
        return BudgetOver(error=describe(BudgetExceeded(f"the budget ended at {run.budget_at.isoformat()}")))
    error = TaskTimeout(f"attempt {run.attempt} ran longer than {run.timeout or 0:g} seconds")
    return TimedOut(error=describe(error), retry_in=_backoff(run, error))


def outcome_of(run: Run, error: BaseException) -> Outcome:
    """Return the outcome of an attempt that raised."""
    return _as_decided(run, error) or _as_raised(run, error)


def _as_decided(run: Run, error: BaseException) -> Outcome | None:
    """Return the outcome that does not depend on what kind of error it is."""
    match _verdict(run, error):
        case Verdict.UNDECODABLE:
            return Undecodable(error=describe(error))
        case Verdict.GIVE_UP:
            return GaveUp(error=describe(error))
    return Skipped(clean_text(str(error), 300)) if isinstance(error, Skip) else None


def _as_raised(run: Run, error: BaseException) -> Outcome:
    match error:
        case Snooze(delay=delay):
            return Snoozed(delay)
        case Retry(delay=delay):
            wait = _backoff(run, error) if delay is None else delay
            return Failed(error=describe(error), retry_in=wait)
        case GiveUp():
            return GaveUp(error=describe(error))
        case TaskCancelled() if run.interrupted and not run.cancelled:
            # Nobody asked the task to stop: its worker had to go.
            return Interrupted()
        case Cancel():
            was_asked = run.cancelled and isinstance(error, TaskCancelled)
            return Cancelled(clean_text(str(error), 300), was_asked=was_asked)
        case BudgetExceeded():
            return BudgetOver(error=describe(error))
        case TaskTimeout():
            return TimedOut(error=describe(error), retry_in=_backoff(run, error))
        case asyncio.CancelledError() if run.interrupted:
            return Interrupted()
        case asyncio.CancelledError() if run.cancelled:
            return Cancelled("cancel requested", was_asked=True)
        case InvalidPayload() if not run.interrupted and (_is_from_result(error) or _is_from_step(run, error)):
            return Undecodable(error=describe(error))
    if _is_crash(error, run.options.crash_exceptions):
        return Crashed(error=describe(error))
    return Failed(error=describe(error), retry_in=_backoff(run, error))


def _verdict(run: Run, error: BaseException) -> str | None:
    """Return what a middleware decided of this exception; None where none did."""
    found = getattr(run, "verdict", None)
    return found[1] if found is not None and found[0] is error else None


def _is_from_result(error: BaseException) -> bool:
    """Return whether encoding the returned value failed, not some enqueue inside the task."""
    frame = error.__traceback__
    return frame is not None and frame.tb_next is not None and frame.tb_next.tb_frame.f_code is _succeeded.__code__


def _is_from_step(run: Run, error: BaseException) -> bool:
    """Return whether encoding the result of a step failed: its function has run, and would only run again."""
    return run.steps is not None and run.steps.refused is error


def _is_crash(error: BaseException, listed: tuple[str, ...]) -> bool:
    if isinstance(error, asyncio.CancelledError):
        return False
    if not isinstance(error, Exception) or isinstance(error, MemoryError | RecursionError):
        return True
    return bool(listed) and any(error_class_path(kind) in listed for kind in type(error).__mro__)


def _backoff(run: Run, error: BaseException) -> float | None:
    """Return the seconds to wait, or None for "do not retry"; a callable that fails counts as the default curve."""
    if _verdict(run, error) == Verdict.RETRY:
        return run.verdict[2]
    backoff: Curve | Callable[[BaseException, Any], float | None] = run.behaviour.backoff
    if isinstance(backoff, Curve):
        return backoff.delay(run.attempt, random.random())
    try:
        result = _context_of(run).task_result
        wait = backoff(error, result)
        return None if wait is None else max(float(wait), 0.0)
    except Exception as failure:
        error.add_note(f"The backoff of this task failed too: {error_class_path(failure)}: {failure}")
        return conf.Options().backoff.delay(run.attempt, random.random())  # type: ignore[no-any-return]


def run_immediately(result: Any, *, sender: type[Any]) -> None:
    """
    Run the task of a new result in this thread and write into the result how it ended.

    The signals of ``django.tasks`` are sent on the way; KeyboardInterrupt passes through.
    """
    from django_taskq.compat import contract_of

    contract = contract_of(result.task)
    status = contract.base.TaskResultStatus

    def put(**values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(result, name, value)

    now = clock.now()
    result.worker_ids.append("immediate")
    put(status=status.RUNNING, state="running", started_at=now, last_attempted_at=now)
    contract.signals.task_started.send(sender=sender, task_result=result)
    try:
        value = _call_immediately(_immediate_run(result, now))
        text = payload.encode_value(value, limit=conf.options().max_result_bytes)
        put(_return_value=payload.decode_value(text))
    except KeyboardInterrupt:
        raise
    except Skip:
        put(status=status.SUCCESSFUL, state="succeeded", finished_at=clock.now())
        contract.signals.task_finished.send(sender, task_result=result)
    except BaseException as error:
        found = describe(error)
        result.errors.append(contract.base.TaskError(exception_class_path=found.class_path, traceback=found.traceback))
        put(status=status.FAILED, state="dead", finished_at=clock.now())
        contract.signals.task_finished.send(sender, task_result=result)
    else:
        put(status=status.SUCCESSFUL, state="succeeded", finished_at=clock.now())
        contract.signals.task_finished.send(sender, task_result=result)


def _call_immediately(run: _ImmediateRun) -> Any:
    task, result = run.task, run.result
    args = [_context_of(run)] if task.takes_context else []
    if not run.behaviour.has_around:
        return task.call(*args, *result.args, **result.kwargs)
    function = _wrapped(run)
    called = async_to_sync(function) if definitions.is_coroutine(task) else function
    return called(*args, *result.args, **result.kwargs)


class _ImmediateRun(Run):
    """The run of a task that has no row: nobody can cancel it or look at its progress."""

    __slots__ = ("result",)

    result: Any

    is_stored = False

    def progress(self, done: float, total: float | None = None, note: str = "") -> bool:
        return False


def _immediate_run(result: Any, started: datetime) -> _ImmediateRun:
    options = conf.options()
    behaviour = definitions.behaviour_of(result.task, result.task.queue_name, options)
    user = getattr(result.task, "metadata", None)
    claim = Claim(
        key=result.id,
        queue=result.task.queue_name,
        rank=-int(result.task.priority),
        attempt=1,
        max_attempts=1,
        ack=int(behaviour.ack),
        name=definitions.stored_name(result.task),
        args="",
        options=None,
        metadata=payload.encode_value({"user": dict(user)}, limit=None) if user else None,
        run_after=None,
        created_at=result.enqueued_at,
        deadline_at=None if behaviour.max_time is None else started + timedelta(seconds=behaviour.max_time),
        expires_at=None,
        cancel=False,
        workflow_id=None,
        role=None,
        slots=None,
        lease=0,
    )
    run = _ImmediateRun(claim, result.task, "", behaviour=behaviour, options=options, started=started.timestamp())
    run._public_id = result.id
    run.result = result
    return run
