"""The registry of queues and of task paths, so that no page ever needs a DISTINCT over tasks."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_taskq.schema import NameField

__all__ = ["Queue", "TaskType"]


class Queue(models.Model):
    """A queue that somebody enqueued to or listens to."""

    name = NameField(_("name"), max_length=64, primary_key=True)
    position = models.IntegerField(_("position"), default=0, help_text=_("lower first, where a worker names no order"))
    weight = models.PositiveIntegerField(_("weight"), default=1)

    class Meta:
        verbose_name = _("queue")
        verbose_name_plural = _("queues")
        permissions = [("pause_queue", _("Can pause and resume queues"))]
        ordering = ["position", "name"]

    def __str__(self) -> str:
        return self.name


class TaskType(models.Model):
    """A task path that some worker knew when it started."""

    name = NameField(_("task"), max_length=200, primary_key=True)
    queue = NameField(_("queue"), max_length=64, blank=True)
    seen_at = models.DateTimeField(_("last announced"))

    class Meta:
        verbose_name = _("task type")
        verbose_name_plural = _("task types")
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
