"""Steps: the named parts of a task whose results survive a retry. They live and go with their task."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_taskq.domain import payload
from django_taskq.domain.states import StepState
from django_taskq.schema import NameField, TaskIdField

__all__ = ["STEP_STATE_CHOICES", "Step"]

STEP_STATE_CHOICES = [
    (int(StepState.PENDING), _("pending")),
    (int(StepState.RUNNING), _("running")),
    (int(StepState.SUCCEEDED), _("succeeded")),
    (int(StepState.FAILED), _("failed")),
    (int(StepState.CANCELLED), _("cancelled")),
    (int(StepState.INTERRUPTED), _("interrupted")),
]


class Step(models.Model):
    """
    One step of a task. Attempt, worker and times are those of the attempt that ran it last.

    Like an attempt it has no foreign key: its task moves from table to table under the same id.
    """

    task_id = TaskIdField(_("task"))
    name = NameField(_("step"), max_length=100)
    position = models.IntegerField(_("position"))
    state = models.SmallIntegerField(_("state"), choices=STEP_STATE_CHOICES, default=int(StepState.PENDING))
    result = models.TextField(_("result"), null=True, blank=True)  # noqa: DJ001 - null is the result None
    error_class = models.CharField(_("error class"), max_length=200, blank=True)
    error_line = models.CharField(_("error"), max_length=300, blank=True)
    attempt = models.IntegerField(_("attempt"), null=True, blank=True)
    worker_id = models.BigIntegerField(_("worker"), null=True, blank=True)
    started_at = models.DateTimeField(_("started at"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)

    class Meta:
        verbose_name = _("step")
        verbose_name_plural = _("steps")
        constraints = [models.UniqueConstraint(fields=["task_id", "name"], name="taskq_step_key")]
        indexes = [models.Index(name="taskq_step_task", fields=["task_id", "position"])]

    def __str__(self) -> str:
        return f"{self.task_id} {self.name}"

    @property
    def result_value(self) -> Any:
        return payload.decode_value(self.result)
