"""
Background tasks for Django in the database a project already has.

    from django_taskq import task

    @task(queue_name="email", max_attempts=5)
    def send_receipt(order_id): ...

    send_receipt.enqueue(order.pk)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_taskq.api import (
    acancel,
    afinished_since,
    areplay,
    cancel,
    discard,
    enqueue_many,
    find_task,
    finished_since,
    pause_queue,
    replay,
    resume_queue,
    subscribe_results,
)
from django_taskq.domain.retry import Exponential, Fixed, Steps
from django_taskq.exceptions import (
    BudgetExceeded,
    Cancel,
    EnqueueCancelled,
    EnqueueTimeout,
    GiveUp,
    InvalidOptions,
    InvalidPayload,
    InvalidWorkflow,
    PayloadTooLarge,
    ResultNotReady,
    Retry,
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
    from django_taskq.lifecycle.handles import WorkflowHandle
    from django_taskq.lifecycle.results import TaskContext, TaskResult
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
    "EnqueueCancelled",
    "EnqueueTimeout",
    "Exponential",
    "Fixed",
    "GiveUp",
    "InvalidOptions",
    "InvalidPayload",
    "InvalidWorkflow",
    "PayloadTooLarge",
    "ResultNotReady",
    "Retry",
    "Signature",
    "Snooze",
    "Steps",
    "Task",
    "TaskCancelled",
    "TaskContext",
    "TaskNotFound",
    "TaskResult",
    "TaskTimeout",
    "TaskqError",
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
    "discard",
    "enqueue_many",
    "find_batch",
    "find_chain",
    "find_task",
    "find_workflow",
    "finished_since",
    "pause_queue",
    "previous",
    "prune_workflows",
    "replay",
    "result_of",
    "resume_queue",
    "subscribe_results",
    "task",
    "workflow",
]


# Loaded by those who use them: a worker that has none keeps less in memory.
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
    if name in _OF_WORKFLOWS:
        from django_taskq import workflows

        return getattr(workflows, name)
    # Needs the models, which are not there while INSTALLED_APPS is being imported.
    if name in ("TaskContext", "TaskResult"):
        from django_taskq.lifecycle import results

        return getattr(results, name)
    if name == "WorkflowHandle":
        from django_taskq.lifecycle.handles import WorkflowHandle

        return WorkflowHandle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
