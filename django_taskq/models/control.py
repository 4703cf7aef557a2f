"""Who does which duty, who did what and why, and which requests were accepted before."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_taskq.schema import NameField, TaskIdField

__all__ = ["AuditEntry", "Duty", "IdempotencyKey"]


class Duty(models.Model):
    """Which worker does one piece of upkeep until when. A compare-and-set on ``term`` moves it."""

    name = models.CharField(_("duty"), max_length=50, primary_key=True)
    worker_id = models.BigIntegerField(_("worker"), default=0)
    term = models.BigIntegerField(_("term"), default=0)
    until = models.DateTimeField(_("held until"), null=True, blank=True)
    ran_at = models.DateTimeField(_("last run"), null=True, blank=True)
    took_ms = models.IntegerField(_("took, ms"), default=0)
    count = models.IntegerField(_("last count"), default=0)
    error = models.CharField(_("last error"), max_length=300, blank=True)

    class Meta:
        verbose_name = _("duty")
        verbose_name_plural = _("duties")

    def __str__(self) -> str:
        return self.name


class AuditEntry(models.Model):
    """One action of an operator: who did what to which task or queue, when and why. Never changed."""

    at = models.DateTimeField(_("at"))
    actor = models.CharField(_("actor"), max_length=150)
    action = models.CharField(_("action"), max_length=50)
    target = models.CharField(_("target"), max_length=200, blank=True)
    task_id = TaskIdField(_("task"), null=True, blank=True)  # type: ignore[misc]  # a subclass is not generic
    reason = models.CharField(_("reason"), max_length=300, blank=True)
    detail = models.JSONField(_("detail"), default=dict, blank=True)

    class Meta:
        verbose_name = _("audit entry")
        verbose_name_plural = _("audit log")
        indexes = [
            models.Index(name="taskq_audit_task", fields=["task_id", "id"]),
            models.Index(name="taskq_audit_at", fields=["at"]),
        ]

    def __str__(self) -> str:
        return f"{self.actor} {self.action} {self.target}"


class IdempotencyKey(models.Model):
    """A key that an enqueue was accepted under. It outlives its task, until its time is over."""

    key = NameField(_("key"), max_length=200, primary_key=True)
    task_id: Any = TaskIdField(_("task"))
    fingerprint = models.CharField(_("fingerprint"), max_length=32, help_text=_("of task and arguments"))
    created_at = models.DateTimeField(_("created at"))
    expires_at = models.DateTimeField(_("expires at"))

    class Meta:
        verbose_name = _("idempotency key")
        verbose_name_plural = _("idempotency keys")
        indexes = [models.Index(name="taskq_idempotency_expires", fields=["expires_at"])]

    def __str__(self) -> str:
        return self.key
