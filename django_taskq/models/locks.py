"""Locks of tasks that must not overlap: which attempt has a key."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_taskq.schema import NameField, TaskIdField

__all__ = ["Lock"]


class Lock(models.Model):
    """An attempt has a key, as long as its task's live row carries this lease."""

    key = NameField(_("key"), max_length=200, primary_key=True)
    task_id = TaskIdField(_("task"))
    lease = models.BigIntegerField(_("lease"))
    taken_at = models.DateTimeField(_("taken at"))
    until = models.DateTimeField(_("held until"), null=True, blank=True)

    class Meta:
        verbose_name = _("lock")
        verbose_name_plural = _("locks")
        indexes = [models.Index(name="taskq_lock_taken_at", fields=["taken_at"])]

    def __str__(self) -> str:
        return self.key
