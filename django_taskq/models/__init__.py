"""The tables: fields, constraints, indexes and read-only properties. Rows are written in ``store`` only."""

from django_taskq.models.control import AuditEntry, Duty, IdempotencyKey
from django_taskq.models.limits import Limit
from django_taskq.models.locks import Lock
from django_taskq.models.pauses import Pause
from django_taskq.models.queues import Queue, TaskType
from django_taskq.models.schedules import Schedule, ScheduleTick
from django_taskq.models.stats import Snapshot, Stat
from django_taskq.models.steps import Step
from django_taskq.models.tasks import Attempt, DeadTask, FinishedTask, Progress, Task
from django_taskq.models.workers import Worker
from django_taskq.models.workflows import Batch, Chain, Dependency, Workflow

__all__ = [
    "Attempt",
    "AuditEntry",
    "Batch",
    "Chain",
    "DeadTask",
    "Dependency",
    "Duty",
    "FinishedTask",
    "IdempotencyKey",
    "Limit",
    "Lock",
    "Pause",
    "Progress",
    "Queue",
    "Schedule",
    "ScheduleTick",
    "Snapshot",
    "Stat",
    "Step",
    "Task",
    "TaskType",
    "Worker",
    "Workflow",
]
