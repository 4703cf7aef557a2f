"""Pauses: one row for each queue, task type, or the whole project that workers leave alone."""

from __future__ import annotations

from datetime import datetime

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_taskq.domain.pauses import PauseScope
from django_taskq.schema import NameField

__all__ = ["Pause"]


class Pause(models.Model):
    """
    Why workers take no tasks of a queue, of a task type, or none at all.

    Its surprise: a row whose time is over does not count, and may lie there until somebody looks.
    """

    scope = models.SmallIntegerField(
        _("scope"),
        choices=[
            (int(PauseScope.EVERYTHING), _("everything")),
            (int(PauseScope.QUEUE), _("queue")),
            (int(PauseScope.TASK), _("task type")),
        ],
    )
    name = NameField(_("name"), max_length=200, blank=True)
    paused_at = models.DateTimeField(_("paused at"))
    paused_by = models.CharField(_("paused by"), max_length=150, blank=True)
    reason = models.CharField(_("reason"), max_length=200, blank=True)
    until = models.DateTimeField(_("until"), null=True, blank=True)
    rejects = models.BooleanField(
        _("refuses new tasks"), null=True, blank=True, help_text=_("empty: what the settings of the queue say")
    )

    class Meta:
        verbose_name = _("pause")
        verbose_name_plural = _("pauses")
        ordering = ["scope", "name"]
        constraints = [models.UniqueConstraint(name="taskq_pause_key", fields=["scope", "name"])]

    def __str__(self) -> str:
        return self.name or "everything"

    def is_over(self, now: datetime) -> bool:
        """Return whether the pause has ended by itself at ``now``, a moment on the database's clock."""
        return self.until is not None and self.until <= now
