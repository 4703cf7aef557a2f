"""
The operator's pages inside the project's own admin.

Django imports this package when it looks for admin modules; that registers the
pages on the default site. For another site: ``site.register(Task, TaskAdmin)`` and so on.
"""

from django_taskq.admin.audit import AuditEntryAdmin, DutyAdmin
from django_taskq.admin.keys import IdempotencyKeyAdmin
from django_taskq.admin.limits import LimitAdmin
from django_taskq.admin.queues import QueueAdmin, TaskTypeAdmin
from django_taskq.admin.schedules import ScheduleAdmin
from django_taskq.admin.tasks import DeadTaskAdmin, FinishedTaskAdmin, TaskAdmin
from django_taskq.admin.workers import WorkerAdmin
from django_taskq.admin.workflows import WorkflowAdmin

__all__ = [
    "AuditEntryAdmin",
    "DeadTaskAdmin",
    "DutyAdmin",
    "FinishedTaskAdmin",
    "IdempotencyKeyAdmin",
    "LimitAdmin",
    "QueueAdmin",
    "ScheduleAdmin",
    "TaskAdmin",
    "TaskTypeAdmin",
    "WorkerAdmin",
    "WorkflowAdmin",
]
