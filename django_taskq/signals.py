"""
Django signals, one per event of ``events.py``.

Each is sent after the commit that made the event true, with ``sender`` the
event's class and ``event`` the event. They are sent with ``send_robust``: a
receiver that fails is logged and hurts nobody. Order and multiplicity are
stated in the reference, under "Events".
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = [
    "callback_dead",
    "callback_enqueued",
    "enqueue_deduplicated",
    "enqueue_dropped",
    "enqueue_rejected",
    "everything_paused",
    "everything_resumed",
    "limit_changed",
    "queue_paused",
    "queue_resumed",
    "schedule_failed",
    "schedule_skipped",
    "schedule_ticked",
    "settlement_refused",
    "step_failed",
    "step_started",
    "step_succeeded",
    "task_cancelled",
    "task_dead",
    "task_discarded",
    "task_enqueued",
    "task_failed",
    "task_interrupted",
    "task_replayed",
    "task_rescued",
    "task_retried",
    "task_skipped",
    "task_snoozed",
    "task_started",
    "task_succeeded",
    "task_type_paused",
    "task_type_resumed",
    "tasks_pruned",
    "worker_lost",
    "worker_started",
    "worker_stopped",
    "workflow_advanced",
    "workflow_cancelled",
    "workflow_completed",
    "workflow_failed",
    "workflow_mended",
    "workflow_replayed",
    "workflow_started",
]

task_enqueued = Signal()
task_started = Signal()
task_succeeded = Signal()
task_failed = Signal()
task_retried = Signal()
task_snoozed = Signal()
task_skipped = Signal()
task_interrupted = Signal()
task_rescued = Signal()
task_dead = Signal()
task_cancelled = Signal()
task_replayed = Signal()
task_discarded = Signal()
step_started = Signal()
step_succeeded = Signal()
step_failed = Signal()
settlement_refused = Signal()
enqueue_rejected = Signal()
enqueue_deduplicated = Signal()
enqueue_dropped = Signal()
worker_started = Signal()
worker_stopped = Signal()
worker_lost = Signal()
limit_changed = Signal()
queue_paused = Signal()
queue_resumed = Signal()
task_type_paused = Signal()
task_type_resumed = Signal()
everything_paused = Signal()
everything_resumed = Signal()
tasks_pruned = Signal()
schedule_ticked = Signal()
schedule_skipped = Signal()
schedule_failed = Signal()
workflow_started = Signal()
workflow_advanced = Signal()
workflow_completed = Signal()
workflow_failed = Signal()
workflow_cancelled = Signal()
workflow_replayed = Signal()
workflow_mended = Signal()
callback_enqueued = Signal()
callback_dead = Signal()
