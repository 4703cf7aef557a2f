"""Tasks for the tests of the backends. Each kind of definition that the contract knows."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

from django_taskq import TaskContext, task
from django_taskq.compat import primary
from django_taskq.exceptions import GiveUp, Snooze, TaskCancelled

plain_task = primary.base.task


@task
def add(a: int, b: int = 0) -> int:
    return a + b


@task
async def add_later(a: int, b: int = 0) -> int:
    return a + b


@task(max_attempts=1)
def fail(message: str = "no") -> None:
    raise ValueError(message)


@task(max_attempts=3, backoff=lambda error, result: 0)
def fail_until(attempt: int) -> str:
    from django_taskq.lifecycle.context import current

    run = current.get()
    assert run is not None
    if run.attempt < attempt:
        raise LookupError(f"attempt {run.attempt}")
    return "done"


@task(max_attempts=1)
def leave() -> None:
    sys.exit(3)


@task
def give_up() -> None:
    raise GiveUp("no use")


@task
def cancel_itself() -> None:
    raise TaskCancelled


@task
def snooze() -> None:
    raise Snooze(timedelta(hours=1))


@task(max_attempts=1)
def return_a_set() -> set[int]:
    return {1}


@task(takes_context=True)
def tell_attempt(context: TaskContext, extra: int = 0) -> dict[str, Any]:
    return {"attempt": context.attempt, "id": context.task_id, "result_id": context.task_result.id, "extra": extra}


@task(takes_context=True)
def use_steps(context: TaskContext, twice: bool = False) -> list[Any]:
    context.plan("pair", "same")
    pair = context.step("pair", lambda: (1, 2), atomic=True)
    return [pair, context.step("pair" if twice else "same", str, 7)]


@task(takes_context=True)
async def use_steps_async(context: TaskContext) -> list[Any]:
    await context.aplan("pair", "later")
    return [await context.astep("pair", lambda: (1, 2)), await context.astep("later", add_later.func, 1)]


@task(takes_context=True)
def use_context(context: TaskContext) -> list[Any]:
    context.raise_if_cancelled()
    context.log.info("at work")
    return [context.progress(1, 2, "half"), context.cancelled, context.metadata]


@plain_task()
def add_plainly(a: int, b: int = 0) -> int:
    """A task made by the decorator of ``django.tasks``: our backend is the default, so it is of our class."""
    return a + b


def _add_foreign(a: int, b: int = 0) -> int:
    return a + b


_add_foreign.__qualname__ = "add_foreign"
#: What a third-party app ships: a plain Task of the contract, of no backend in particular.
add_foreign = primary.base.Task(
    func=_add_foreign, priority=0, backend="default", queue_name="default", run_after=None, takes_context=False
)
