"""
Tasks: one table of live rows that claims read, one of finished rows that is only appended to and pruned.

No foreign key leads into either: a task moves from one to the other under the
same id, and a hot row must not be locked for somebody's reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from django_taskq.domain import lease as leases
from django_taskq.domain import payload
from django_taskq.domain.states import Ack, DeadReason, State
from django_taskq.domain.workflows import Role
from django_taskq.ids import uuid7
from django_taskq.schema import LiveIndex, NameField, TaskIdField

if TYPE_CHECKING:
    from django_taskq.domain.schedules import Occurrence

__all__ = ["STATE_CHOICES", "Attempt", "DeadTask", "FinishedTask", "Progress", "Task", "TaskRow"]

# Migrations keep plain numbers, so that they need none of today's code.
_RUNNING = int(State.RUNNING)

# Ranges and not a list: a comma and a number in a constraint is more than Django's introspection of SQLite can read.
_IS_LIVE = Q(state__range=(int(State.SCHEDULED), int(State.RUNNING))) | Q(
    state__range=(int(State.PARKED), int(State.WAITING))
)
_IS_FINAL = Q(state__range=(int(State.SUCCEEDED), int(State.DEAD))) | Q(state=int(State.CANCELLED))

STATE_CHOICES = [
    (int(State.WAITING), _("waiting")),
    (int(State.SCHEDULED), _("scheduled")),
    (int(State.READY), _("ready")),
    (int(State.RUNNING), _("running")),
    (int(State.PARKED), _("parked")),
    (int(State.SUCCEEDED), _("succeeded")),
    (int(State.DEAD), _("dead")),
    (int(State.CANCELLED), _("cancelled")),
]


ROLE_CHOICES = [
    (int(Role.MEMBER), _("member")),
    (int(Role.THEN), _("then")),
    (int(Role.CATCH), _("catch")),
    (int(Role.FINALLY), _("finally")),
    (int(Role.PROGRESS), _("progress")),
]


class TaskRow(models.Model):
    """The columns that a task has all its life."""

    id = TaskIdField(_("id"), primary_key=True, default=uuid7, editable=False)
    queue = NameField(_("queue"), max_length=64)
    rank = models.SmallIntegerField(_("rank"), default=0, help_text=_("minus the priority: lower runs first"))
    state = models.SmallIntegerField(_("state"), choices=STATE_CHOICES, default=int(State.READY))
    attempt = models.IntegerField(_("attempt"), default=0)
    max_attempts = models.IntegerField(_("maximum attempts"), default=3)
    ack = models.SmallIntegerField(_("acknowledgement"), default=int(Ack.LATE))
    lease = models.BigIntegerField(_("lease"), null=True, blank=True)
    run_after = models.DateTimeField(_("run after"), null=True, blank=True)
    created_at = models.DateTimeField(_("created at"))
    started_at = models.DateTimeField(_("started at"), null=True, blank=True, help_text=_("of the latest attempt"))
    deadline_at = models.DateTimeField(_("deadline"), null=True, blank=True)
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    name = NameField(_("task"), max_length=200)
    args = models.TextField(_("arguments"), default='{"args":[],"kwargs":{}}')
    options = models.TextField(_("options"), null=True, blank=True)  # noqa: DJ001 - null costs nothing, "" would be a value
    metadata = models.TextField(_("metadata"), null=True, blank=True)  # noqa: DJ001
    parent_id = TaskIdField(_("parent"), null=True, blank=True)  # type: ignore[misc]  # a subclass is not generic
    replays = models.SmallIntegerField(_("replays"), default=0)
    # Null where there is none: no column of a plain task costs anything for it.
    workflow_id: Any = TaskIdField(_("workflow"), null=True, blank=True)  # type: ignore[misc]
    role = models.SmallIntegerField(_("role in the workflow"), null=True, blank=True, choices=ROLE_CHOICES)
    limits = models.TextField(_("limits"), null=True, blank=True)  # noqa: DJ001 - the keys, one in a line
    fair_key: Any = NameField(_("fair share key"), max_length=64, null=True, blank=True)  # type: ignore[misc]
    unique_key: Any = NameField(_("unique key"), max_length=100, null=True, blank=True)  # type: ignore[misc]

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.name} {self.pk}"

    @property
    def priority(self) -> int:
        return -self.rank

    @property
    def worker_id(self) -> int | None:
        """The id of the worker that holds the task, or held it last."""
        return None if self.lease is None else leases.worker_of(self.lease)

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments. Raise InvalidPayload where the stored text is damaged."""
        return payload.decode_arguments(self.args)

    @property
    def option_values(self) -> dict[str, Any]:
        return payload.decode_value(self.options) or {}

    @property
    def schedule(self) -> Occurrence | None:
        """The schedule and the tick that made it; None for a task that something else enqueued."""
        if self.options is None or '"schedule"' not in self.options:
            return None
        from django_taskq.domain.schedules import occurrence_of

        try:
            return occurrence_of(self.option_values)
        except (ValueError, LookupError, TypeError):
            # Damaged text; whoever looks at the task shall see the rest.
            return None

    @property
    def metadata_values(self) -> dict[str, Any]:
        return payload.decode_value(self.metadata) or {}


class Task(TaskRow):
    """A task that has not ended."""

    cancel = models.BooleanField(_("cancel requested"), default=False)
    waits_for = models.IntegerField(_("waits for"), null=True, blank=True, help_text=_("how many nodes, while waiting"))
    # Keys of the limits that it counts in while it runs; of one that was released and waits, the promise that it has.
    slots = models.TextField(_("slots"), null=True, blank=True)  # noqa: DJ001 - NULL is none
    parked_on: Any = NameField(_("parked on"), max_length=200, null=True, blank=True)  # type: ignore[misc]

    class Meta:
        verbose_name = _("task")
        verbose_name_plural = _("tasks")
        # One per verb, for tasks in every table.
        permissions = [
            ("cancel_task", _("Can cancel tasks")),
            ("replay_task", _("Can replay dead and cancelled tasks")),
            ("discard_task", _("Can discard dead tasks")),
            ("kill_task", _("Can move waiting tasks to the dead letters")),
        ]
        indexes = [
            LiveIndex(
                name="taskq_task_claim",
                fields=["queue", "state", "rank", "id"],
                partial=["queue", "rank", "id"],
                where=Q(state=int(State.READY)),
            ),
            LiveIndex(
                name="taskq_task_due",
                fields=["state", "run_after"],
                partial=["run_after"],
                where=Q(state=int(State.SCHEDULED)),
            ),
            LiveIndex(name="taskq_task_lease", fields=["lease"], where=Q(lease__isnull=False)),
            LiveIndex(name="taskq_task_workflow", fields=["workflow_id", "id"], where=Q(workflow_id__isnull=False)),
            LiveIndex(name="taskq_task_parked", fields=["parked_on", "rank", "id"], where=Q(parked_on__isnull=False)),
            LiveIndex(
                name="taskq_task_fair",
                fields=["queue", "state", "fair_key", "rank", "id"],
                partial=["queue", "fair_key", "rank", "id"],
                where=Q(state=int(State.READY), fair_key__isnull=False),
            ),
            LiveIndex(name="taskq_task_unique", fields=["unique_key"], where=Q(unique_key__isnull=False), unique=True),
        ]
        constraints = [
            models.CheckConstraint(condition=_IS_LIVE, name="taskq_task_state_is_live"),
            models.CheckConstraint(
                condition=Q(state=_RUNNING, lease__isnull=False) | (~Q(state=_RUNNING) & Q(lease__isnull=True)),
                name="taskq_task_running_has_lease",
            ),
            models.CheckConstraint(condition=Q(attempt__gte=0, max_attempts__gte=1), name="taskq_task_attempts"),
        ]


class FinishedTask(TaskRow):
    """A task that has ended, under the id it always had."""

    finished_at = models.DateTimeField(_("finished at"))
    result = models.TextField(_("result"), null=True, blank=True)  # noqa: DJ001
    reason = models.CharField(  # noqa: DJ001
        _("reason"),
        max_length=20,
        null=True,
        blank=True,
        choices=[(reason.value, reason.value) for reason in DeadReason],
    )
    error_class = models.CharField(_("error class"), max_length=200, null=True, blank=True)  # noqa: DJ001
    error_line = models.CharField(_("error"), max_length=300, null=True, blank=True)  # noqa: DJ001
    fingerprint = models.CharField(_("fingerprint"), max_length=16, null=True, blank=True)  # noqa: DJ001
    delete_at = models.DateTimeField(_("delete at"), null=True, blank=True)
    resolved_at = models.DateTimeField(_("discarded at"), null=True, blank=True)

    class Meta:
        verbose_name = _("finished task")
        verbose_name_plural = _("finished tasks")
        indexes = [
            models.Index(name="taskq_finished_at", fields=["finished_at"]),
            LiveIndex(name="taskq_finished_workflow", fields=["workflow_id", "id"], where=Q(workflow_id__isnull=False)),
            LiveIndex(
                name="taskq_finished_dead",
                fields=["state", "id"],
                partial=["id"],
                where=Q(state=int(State.DEAD)),
            ),
            # The open dead letters, last died first. Costs a success nothing where indexes can be partial.
            LiveIndex(
                name="taskq_finished_open",
                fields=["state", "resolved_at", "finished_at"],
                partial=["finished_at", "id"],
                where=Q(state=int(State.DEAD), resolved_at__isnull=True),
            ),
            LiveIndex(name="taskq_finished_delete_at", fields=["delete_at"], where=Q(delete_at__isnull=False)),
            LiveIndex(
                name="taskq_finished_fingerprint", fields=["fingerprint", "id"], where=Q(fingerprint__isnull=False)
            ),
        ]
        constraints = [
            models.CheckConstraint(condition=_IS_FINAL, name="taskq_finished_state_is_final"),
        ]

    @property
    def result_value(self) -> Any:
        return payload.decode_value(self.result)


class DeadTask(FinishedTask):
    """The dead letters: finished tasks that a human has to look at."""

    class Meta:
        proxy = True
        verbose_name = _("dead letter")
        verbose_name_plural = _("dead letters")


class Attempt(models.Model):
    """An attempt that did not succeed. What a success leaves is read off its finished row."""

    task_id = TaskIdField(_("task"))
    number = models.IntegerField(_("attempt"))
    worker_id = models.BigIntegerField(_("worker"))
    outcome = models.CharField(_("outcome"), max_length=20)
    started_at = models.DateTimeField(_("started at"), null=True, blank=True)
    ended_at = models.DateTimeField(_("ended at"))
    error_class = models.CharField(_("error class"), max_length=200, blank=True)
    message = models.TextField(_("message"), blank=True)
    traceback = models.TextField(_("traceback"), blank=True)

    class Meta:
        verbose_name = _("attempt")
        verbose_name_plural = _("attempts")
        indexes = [models.Index(name="taskq_attempt_task", fields=["task_id", "id"])]

    def __str__(self) -> str:
        return f"{self.task_id} #{self.number} {self.outcome}"


class Progress(models.Model):
    """How far a running task says it is. Written at most once a second; kept as long as its task."""

    task_id = TaskIdField(_("task"), primary_key=True)
    done = models.FloatField(_("done"))
    total = models.FloatField(_("total"), null=True, blank=True)
    note = models.CharField(_("note"), max_length=200, blank=True)
    at = models.DateTimeField(_("at"))

    class Meta:
        verbose_name = _("progress")
        verbose_name_plural = _("progress")

    def __str__(self) -> str:
        return f"{self.done:g}/{self.total:g} {self.note}" if self.total else f"{self.done:g} {self.note}"
