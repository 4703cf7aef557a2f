"""
Durable steps: named parts of one task whose results survive a retry, a rescue and a replay.

A step is stored twice, each time fenced by the lease: as running before its function is called, and with its
result before ``step`` returns. What was stored as succeeded is returned and not run again. Killed in between,
a step runs again, as a task does; an ``atomic`` one commits its effects and its record together.
Its surprise: what ends an attempt from outside is not stored here, but by the transaction that
settles the attempt (``close_steps.py``): a step cannot tell how its task will end.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation

from django_taskq import clock, events
from django_taskq.domain import lease as leases
from django_taskq.domain import payload
from django_taskq.domain.outcomes import clean_text
from django_taskq.domain.states import Ack, StepState
from django_taskq.exceptions import Cancel, InvalidPayload, InvalidStep, LeaseLost, Snooze
from django_taskq.lifecycle.context import Run
from django_taskq.lifecycle.errors import describe
from django_taskq.store import steps as store
from django_taskq.store.vendors import vendor_for

__all__ = ["astep", "plan", "step"]

logger = logging.getLogger("django_taskq")

T = TypeVar("T")

NAME_LENGTH = 100
# How often a step is written when the connection breaks meanwhile, and the first wait between.
_WRITES = 4
_WRITE_AGAIN_SECONDS = 0.1


class AttemptSteps:
    """The steps of one attempt: what earlier attempts left, and which one runs."""

    __slots__ = ("_holder", "_kept", "_names", "_run", "_started", "current", "refused")

    def __init__(self, run: Run) -> None:
        if run.claim.ack == Ack.ATOMIC:
            raise InvalidStep(
                "a task with ack='atomic' has no steps: it is one transaction, so nothing of it outlives a failed "
                "attempt. Use ack='late' and context.step(..., atomic=True)"
            )
        self._run = run
        self._holder: store.Holder | None = None
        # The results of the steps that succeeded in earlier attempts, as JSON text.
        self._kept: dict[str, str | None] | None = None
        self._names: set[str] = set()
        self._started = 0.0
        self.current: str | None = None
        # The error of a result that cannot be stored: that ends the task, as it does for the task's own result.
        self.refused: BaseException | None = None

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """Let nothing but one step run for a block, and each name once in an attempt."""
        _check_name(name)
        if self.current is not None:
            raise InvalidStep(f"step {name!r} was begun while step {self.current!r} ran; steps follow one another")
        if name in self._names:
            raise InvalidStep(f"step {name!r} was begun before in this attempt; give each step a name of its own")
        self._names.add(name)
        self.current = name
        try:
            yield
        finally:
            self.current = None

    def begin(self, name: str) -> tuple[Any] | None:
        """
        Return the stored result in a tuple if the step has succeeded before; else store that it runs.

        Raise TaskCancelled if somebody asked the task to stop.
        """
        run = self._run
        run.raise_if_cancelled()
        self._started = clock.timestamp()
        if not run.is_stored:
            return None
        holder = self._held()
        if self._kept is None:
            self._kept = _kept(holder)
        if name in self._kept:
            return (payload.decode_value(self._kept.pop(name)),)
        is_started = self._surely(name, lambda: store.start(holder, name, now=clock.now()))
        if not is_started:
            run.stop_heard = True
            run.raise_if_cancelled()
        self._tell(events.StepStarted, name)
        return None

    def _held(self) -> store.Holder:
        """Return who writes. Raise InvalidStep inside a transaction of the caller's, which could undo that."""
        run = self._run
        if self._holder is None:
            claim = run.claim
            self._holder = store.Holder(
                run.alias, uuid.UUID(run.public_id), claim.lease, claim.attempt, leases.worker_of(claim.lease)
            )
        blocks = vendor_for(run.alias).connection.atomic_blocks
        # The rule of atomic(durable=True): what TestCase opens does not count.
        if blocks and not getattr(blocks[-1], "_from_testcase", False):
            raise InvalidStep(
                "a step cannot begin inside transaction.atomic(): its record would be undone with it. "
                "Open the transaction inside the step, or use context.step(..., atomic=True)"
            )
        return self._holder

    def encode(self, name: str, value: Any) -> str | None:
        """Return the result of a step as JSON text."""
        try:
            return payload.encode_value(
                value, limit=self._run.options.max_result_bytes, where=f"the result of step {name!r}"
            )
        except InvalidPayload as error:
            self.refused = error
            raise

    def record(self, name: str, text: str | None) -> None:
        """Store that a step succeeded, in the caller's transaction if there is one."""
        if self._holder is not None:
            written = store.finish(self._holder, name, StepState.SUCCEEDED, now=clock.now(), result=text)
            self._run.stop_heard = self._run.stop_heard or written.is_cancelled

    def record_surely(self, name: str, text: str | None) -> None:
        """Store that a step succeeded: its effects are there, and would be had twice."""
        self._surely(name, lambda: self.record(name, text))

    def _surely(self, name: str, write: Callable[[], T]) -> T:
        """
        Write, and write again if the connection breaks; a server may have closed it while a long step ran.

        Written twice it changes nothing, and never after the lease was lost.
        """
        for turn in range(_WRITES):
            try:
                return write()
            except LeaseLost:
                raise
            except Exception as error:
                # It may be committed: only the answer is known to be lost.
                self._run.left_step = True
                vendor = vendor_for(self._run.alias)
                is_last = turn == _WRITES - 1 or vendor.connection.in_atomic_block
                if is_last or not vendor.is_lost_connection(error):
                    raise
                logger.warning("Step %r could not be stored; it is tried again: %s", name, error)
                with suppress(Exception):
                    vendor.connection.close()
            time.sleep(_WRITE_AGAIN_SECONDS * 2**turn)
        raise AssertionError("unreachable")

    def succeeded(self, name: str) -> None:
        """Tell that a step succeeded, once that is committed."""
        self._tell(events.StepSucceeded, name, run_seconds=clock.timestamp() - self._started)

    def failed(self, name: str, error: Exception) -> None:
        """Store that a step raised. What it raised to steer its task leaves the step to what becomes of that."""
        if isinstance(error, Cancel):
            self._run.left_step = True
            return
        if self._holder is None or isinstance(error, LeaseLost):
            return
        info = describe(error)
        state = StepState.PENDING if isinstance(error, Snooze) else StepState.FAILED
        told = {} if state == StepState.PENDING else {"error_class": info.class_path, "error_line": info.line}
        try:
            written = store.finish(self._holder, name, state, now=clock.now(), **told)
        except Exception as failure:
            # Settling will find it; what the step raised is what counts.
            self._run.left_step = True
            logger.warning("The end of step %r could not be stored: %s", name, failure)
            return
        # Not so where only the answer of an atomic step's commit was lost.
        if state == StepState.FAILED and written.was_running:
            self._tell(events.StepFailed, name, run_seconds=clock.timestamp() - self._started, error=info)

    def plan(self, names: Sequence[str]) -> None:
        for name in names:
            _check_name(name)
        if self._run.is_stored:
            store.plan(self._held(), list(dict.fromkeys(names)))

    def _tell(self, kind: type[events.StepEvent], name: str, **facts: Any) -> None:
        run = self._run
        if not events.wanted(kind) or self._holder is None:
            return
        event = kind(
            task_id=run.public_id,
            task=run.claim.name,
            queue=run.claim.queue,
            attempt=run.attempt,
            alias=run.alias,
            step=name,
            worker_id=self._holder.worker_id,
            **facts,
        )
        events.emit_on_commit(kind, [event], using=run.alias)


def _kept(holder: store.Holder) -> dict[str, str | None]:
    try:
        return store.results(holder.alias, holder.task_id)
    except SynchronousOnlyOperation:
        raise InvalidStep("context.step would block the event loop; in a coroutine, await context.astep(...)") from None


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH or clean_text(name) != name:
        raise InvalidStep(f"the name of a step must be text of 1 to {NAME_LENGTH} characters, got {name!r}")


def _of(run: Run) -> AttemptSteps:
    if run.steps is None:
        run.steps = AttemptSteps(run)
    steps: AttemptSteps = run.steps
    return steps


def plan(run: Run, names: Sequence[str]) -> None:
    """Store the steps ahead as pending. Those that are known already stay as they are."""
    _of(run).plan(names)


def step(
    run: Run,
    name: str,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    atomic: bool = False,
) -> Any:
    """Run a function as a step, or return the result it had; see ``TaskContext.step``."""
    if iscoroutinefunction(function):
        raise InvalidStep(f"the function of step {name!r} is a coroutine function; await context.astep(...)")
    steps = _of(run)
    with steps.one(name):
        kept = steps.begin(name)
        if kept is not None:
            return kept[0]
        try:
            if atomic and run.is_stored:
                # Whole or not at all, with the record last: the task's row is not locked while the function runs.
                with vendor_for(run.alias).bounded(None, given_up=lambda: False):
                    text = steps.encode(name, function(*args, **kwargs))
                    steps.record(name, text)
            else:
                text = steps.encode(name, function(*args, **kwargs))
        except Exception as error:
            steps.failed(name, error)
            raise
        except BaseException:
            run.left_step = True
            raise
        if not atomic:
            steps.record_surely(name, text)
        steps.succeeded(name)
    run.raise_if_cancelled()
    return payload.decode_value(text)


async def astep(
    run: Run,
    name: str,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    atomic: bool = False,
) -> Any:
    """Run a function or a coroutine function as a step, without blocking the event loop; see ``TaskContext.astep``."""
    if not iscoroutinefunction(function):
        return await sync_to_async(step)(run, name, function, args, kwargs, atomic=atomic)
    if atomic:
        raise InvalidStep(f"step {name!r} is a coroutine, which no transaction can span; give a plain function instead")
    steps = _of(run)
    with steps.one(name):
        kept = await sync_to_async(steps.begin)(name)
        if kept is not None:
            return kept[0]
        try:
            text = steps.encode(name, await function(*args, **kwargs))
        except Exception as error:
            await sync_to_async(steps.failed)(name, error)
            raise
        except BaseException:
            run.left_step = True
            raise
        await sync_to_async(steps.record_surely)(name, text)
        await sync_to_async(steps.succeeded)(name)
    run.raise_if_cancelled()
    return payload.decode_value(text)
