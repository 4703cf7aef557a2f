"""
Schedules, and what became of each of their ticks.

Every worker loads this file; the rules of schedules, in ``domain``, are loaded by those who have some.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_taskq.domain import payload
from django_taskq.schema import NameField, TaskIdField

__all__ = ["Schedule", "ScheduleTick"]

if TYPE_CHECKING:
    from django_taskq.domain.schedules import Policy, Rule

# Kind and TickKind of domain.schedules.
_KINDS = [(1, _("cron")), (2, _("interval")), (3, _("once"))]
_SOURCES = [("code", _("code")), ("admin", _("admin"))]
_TICKS = [
    (1, _("made")),
    (2, _("run by hand")),
    (3, _("left out: the previous task was live")),
    (4, _("left out: paused")),
    (5, _("missed")),
    (6, _("skipped")),
]


class Schedule(models.Model):
    """
    A rule by which tasks of one kind are made.

    ``next_at`` is the first tick that nobody has dealt with; ``due_at`` is when a
    leader looks at it: the same moment, a later one after a failure or while paused, never for one that is off.
    """

    name = NameField(_("name"), max_length=100, unique=True)
    task = NameField(_("task"), max_length=200)
    kind = models.SmallIntegerField(_("kind of rule"), choices=_KINDS)
    rule = models.CharField(_("rule"), max_length=200)
    timezone = models.CharField(_("time zone"), max_length=64)
    args = models.TextField(_("arguments"))
    options = models.TextField(_("options"), default="{}")
    source = models.CharField(_("source"), max_length=10, choices=_SOURCES, default="admin")
    enabled = models.BooleanField(_("enabled"), default=True)
    gone_at = models.DateTimeField(_("no longer in the code since"), null=True, blank=True)
    seen_at = models.DateTimeField(_("last seen in the code"), null=True, blank=True)
    paused_at = models.DateTimeField(_("paused at"), null=True, blank=True)
    paused_until = models.DateTimeField(_("paused until"), null=True, blank=True)
    paused_by = models.CharField(_("paused by"), max_length=150, blank=True)
    pause_reason = models.CharField(_("reason"), max_length=200, blank=True)
    skip_next = models.BooleanField(_("skip the next tick"), default=False)
    start_at = models.DateTimeField(_("start"), null=True, blank=True)
    end_at = models.DateTimeField(_("end"), null=True, blank=True)
    next_at = models.DateTimeField(_("next tick"), null=True, blank=True)
    due_at = models.DateTimeField(_("looked at next"), null=True, blank=True, db_index=True)
    last_at = models.DateTimeField(_("last tick"), null=True, blank=True)
    last_task_id = TaskIdField(_("last task"), null=True, blank=True)  # type: ignore[misc]  # a subclass is not generic
    last_error = models.CharField(_("last error"), max_length=300, blank=True)
    created_at = models.DateTimeField(_("created at"))
    changed_at = models.DateTimeField(_("changed at"))

    class Meta:
        verbose_name = _("schedule")
        verbose_name_plural = _("schedules")
        permissions = [("run_schedule", _("Can run, pause, resume and switch schedules"))]

    def __str__(self) -> str:
        return self.name

    @property
    def rule_value(self) -> Rule:
        """When it ticks."""
        from django_taskq.domain.schedules import Kind, Rule

        return Rule(kind=Kind(self.kind), text=self.rule, timezone=self.timezone, start=self.start_at, end=self.end_at)

    @property
    def option_values(self) -> dict[str, Any]:
        """What it says beside its rule: only what differs from the defaults."""
        return payload.decode_value(self.options) or {}

    @property
    def policy(self) -> Policy:
        """How it treats its ticks."""
        from django_taskq.domain.schedules import policy_of

        return policy_of(self.option_values)

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the call. Raise InvalidPayload where the stored text is damaged."""
        return payload.decode_arguments(self.args)

    @property
    def is_on(self) -> bool:
        """Whether it ticks at all: enabled, and not gone from the code."""
        return self.enabled and self.gone_at is None

    def is_paused(self, now: datetime) -> bool:
        """Whether its ticks are left out at a moment."""
        return self.paused_at is not None and (self.paused_until is None or self.paused_until > now)


class ScheduleTick(models.Model):
    """
    What became of a tick; one row per schedule and moment, which is what makes a tick exact.

    ``since`` is the first of the ticks that the row stands for, where there are several.
    """

    schedule = models.ForeignKey(Schedule, models.CASCADE, related_name="ticks", verbose_name=_("schedule"))
    at = models.DateTimeField(_("tick"))
    since = models.DateTimeField(_("since"), null=True, blank=True)
    kind = models.SmallIntegerField(_("what became of it"), choices=_TICKS)
    task_id = TaskIdField(_("task"), null=True, blank=True)  # type: ignore[misc]  # a subclass is not generic
    made_at = models.DateTimeField(_("dealt with at"))

    class Meta:
        verbose_name = _("tick")
        verbose_name_plural = _("ticks")
        indexes = [models.Index(name="taskq_tick_made_at", fields=["made_at"])]
        constraints = [models.UniqueConstraint(name="taskq_tick_once", fields=["schedule", "at"])]

    def __str__(self) -> str:
        return f"{self.schedule_id} {self.at.isoformat()}"
