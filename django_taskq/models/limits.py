"""
Limits that all workers share: how many at once, and how often.

A row per key, made by the first task that needs it. ``held`` and ``tokens`` change only in the
transaction that starts or settles the tasks they count, so they cannot drift from them.
"""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from django_taskq.schema import LiveIndex, NameField

__all__ = ["Limit"]


class Limit(models.Model):
    """One bound: a concurrency limit counts slots, a rate limit is a token bucket. The key says which."""

    key = NameField(_("key"), max_length=200, primary_key=True)
    held = models.IntegerField(_("held"), default=0, help_text=_("slots of tasks that are claimed just now"))
    amount = models.IntegerField(_("amount"), null=True, blank=True, help_text=_("what the code says"))
    per_seconds = models.FloatField(_("per seconds"), null=True, blank=True)
    burst = models.IntegerField(_("burst"), null=True, blank=True)
    tokens = models.FloatField(_("tokens"), null=True, blank=True)
    refilled_at = models.DateTimeField(_("refilled at"), null=True, blank=True)
    waits = models.BooleanField(_("tasks are parked"), default=False)
    promised = models.IntegerField(_("promised"), default=0, help_text=_("released tasks that nobody claimed yet"))
    promised_at = models.DateTimeField(_("promised at"), null=True, blank=True)
    next_at = models.DateTimeField(_("next look"), null=True, blank=True)
    used_at = models.DateTimeField(_("last used"), null=True, blank=True)
    set_amount = models.IntegerField(_("amount, set by hand"), null=True, blank=True)
    set_per_seconds = models.FloatField(_("per seconds, set by hand"), null=True, blank=True)
    set_burst = models.IntegerField(_("burst, set by hand"), null=True, blank=True)
    set_until = models.DateTimeField(_("set until"), null=True, blank=True)
    set_by = models.CharField(_("set by"), max_length=150, blank=True)
    set_reason = models.CharField(_("reason"), max_length=200, blank=True)

    class Meta:
        verbose_name = _("limit")
        verbose_name_plural = _("limits")
        ordering = ["key"]
        indexes = [LiveIndex(name="taskq_limit_next", fields=["next_at"], where=Q(next_at__isnull=False))]

    def __str__(self) -> str:
        return self.key
