"""
Background tasks for Django in the database a project already has.

    from django_taskq import task

    @task(queue_name="email", max_attempts=5)
    def send_receipt(order_id): ...

    send_receipt.enqueue(order.pk)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_taskq.domain.retry import Exponential, Fixed, Steps
from django_taskq.exceptions import (
    BudgetExceeded,
    Cancel,
    DuplicateTask,
    EnqueueCancelled,
    EnqueuePaused,
    EnqueueRefused,
    EnqueueTimeout,
    GiveUp,
    IdempotencyConflict,
    InvalidArguments,
    InvalidOptions,
    InvalidPayload,
    InvalidWorkflow,
    LimitNotFound,
    PayloadTooLarge,
    QueueFull,
    ResultNotReady,
    Retry,
    Skip,
    Snooze,
    TaskCancelled,
    TaskNotFound,
    TaskqError,
    TaskTimeout,
    UnsupportedCapability,
    WaitTimeout,
    WorkflowEnded,
    WorkflowNotFound,
)

# Bound here and now: the submodule of that name would else take its place.
from django_taskq.task import Signature, Task, task

if TYPE_CHECKING:
    from django_taskq.api import (
        acancel,
        afinished_since,
        areplay,
        cancel,
        discard,
        enqueue_many,
        find_limits,
        find_task,
        finished_since,
        pause,
        pause_queue,
        pauses,
        replay,
        reset_limit,
        resume,
        resume_queue,
        set_limit,
        subscribe_results,
    )
    from django_taskq.domain.limits import Concurrency, Rate
    from django_taskq.domain.unique import Unique, debounce, throttle
    from django_taskq.lifecycle.handles import WorkflowHandle
    from django_taskq.lifecycle.results import TaskContext, TaskResult
    from django_taskq.schedules import schedule
    from django_taskq.workflows import (
        batch,
        chain,
        find_batch,
        find_chain,
        find_workflow,
        previous,
        prune_workflows,
        result_of,
        workflow,
    )

__version__ = "0.1.0"

__all__ = [
    "BudgetExceeded",
    "Cancel",
    "Concurrency",
    "DuplicateTask",
    "EnqueueCancelled",
    "EnqueuePaused",
    "EnqueueRefused",
    "EnqueueTimeout",
    "Exponential",
    "Fixed",
    "GiveUp",
    "IdempotencyConflict",
    "InvalidArguments",
    "InvalidOptions",
    "InvalidPayload",
    "InvalidWorkflow",
    "LimitNotFound",
    "PayloadTooLarge",
    "QueueFull",
    "Rate",
    "ResultNotReady",
    "Retry",
    "Signature",
    "Skip",
    "Snooze",
    "Steps",
    "Task",
    "TaskCancelled",
    "TaskContext",
    "TaskNotFound",
    "TaskResult",
    "TaskTimeout",
    "TaskqError",
    "Unique",
    "UnsupportedCapability",
    "WaitTimeout",
    "WorkflowEnded",
    "WorkflowHandle",
    "WorkflowNotFound",
    "acancel",
    "afinished_since",
    "areplay",
    "batch",
    "cancel",
    "chain",
    "debounce",
    "discard",
    "enqueue_many",
    "find_batch",
    "find_chain",
    "find_limits",
    "find_task",
    "find_workflow",
    "finished_since",
    "pause",
    "pause_queue",
    "pauses",
    "previous",
    "prune_workflows",
    "replay",
    "reset_limit",
    "result_of",
    "resume",
    "resume_queue",
    "schedule",
    "set_limit",
    "subscribe_results",
    "task",
    "throttle",
    "workflow",
]


# Loaded by those who use them: a worker that has none keeps less in memory.
_OF_API = (
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
)
_OF_WORKFLOWS = (
    "batch",
    "chain",
    "find_batch",
    "find_chain",
    "find_workflow",
    "previous",
    "prune_workflows",
    "result_of",
    "workflow",
)


def __getattr__(name: str) -> Any:
    if name in _OF_API:
        from django_taskq import api

        return getattr(api, name)
    if name in ("Unique", "debounce", "throttle"):
        from django_taskq.domain import unique

        return getattr(unique, name)
    if name in _OF_WORKFLOWS:
        from django_taskq import workflows

        return getattr(workflows, name)
    if name in ("Concurrency", "Rate"):
        from django_taskq.domain import limits

        return getattr(limits, name)
    if name == "schedule":
        from django_taskq.schedules import schedule

        return schedule
    # Needs the models, which are not there while INSTALLED_APPS is being imported.
    if name in ("TaskContext", "TaskResult"):
        from django_taskq.lifecycle import results

        return getattr(results, name)
    if name == "WorkflowHandle":
        from django_taskq.lifecycle.handles import WorkflowHandle

        return WorkflowHandle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
