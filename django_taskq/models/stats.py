"""Statistics: the only source of dashboards and metrics, so that none of them ever counts tasks."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_taskq.schema import NameField

__all__ = ["BUCKETS_MS", "Snapshot", "Stat"]

# Upper bounds in milliseconds of the histogram columns; the last column takes the rest.
BUCKETS_MS = (10, 50, 100, 500, 1_000, 5_000, 30_000, 60_000, 300_000, 3_600_000)


class Stat(models.Model):
    """
    What one worker settled of one task on one queue in one minute.

    Each worker adds to rows of its own, in the transaction that settles, so the sums are
    exact and no two workers wait for one row. Worker 0 stands for admin, commands and duties.
    """

    minute = models.DateTimeField(_("minute"))
    queue = NameField(_("queue"), max_length=64)
    task = NameField(_("task"), max_length=200)
    worker_id = models.BigIntegerField(_("worker"), default=0)
    succeeded = models.IntegerField(_("succeeded"), default=0)
    failed = models.IntegerField(_("failed attempts"), default=0)
    retried = models.IntegerField(_("retried"), default=0)
    dead = models.IntegerField(_("dead"), default=0)
    cancelled = models.IntegerField(_("cancelled"), default=0)
    rescued = models.IntegerField(_("rescued"), default=0)
    run_ms = models.BigIntegerField(_("run time, ms"), default=0)
    wait_ms = models.BigIntegerField(_("waiting time, ms"), default=0)
    run_0 = models.IntegerField(default=0)
    run_1 = models.IntegerField(default=0)
    run_2 = models.IntegerField(default=0)
    run_3 = models.IntegerField(default=0)
    run_4 = models.IntegerField(default=0)
    run_5 = models.IntegerField(default=0)
    run_6 = models.IntegerField(default=0)
    run_7 = models.IntegerField(default=0)
    run_8 = models.IntegerField(default=0)
    run_9 = models.IntegerField(default=0)
    run_10 = models.IntegerField(default=0)
    wait_0 = models.IntegerField(default=0)
    wait_1 = models.IntegerField(default=0)
    wait_2 = models.IntegerField(default=0)
    wait_3 = models.IntegerField(default=0)
    wait_4 = models.IntegerField(default=0)
    wait_5 = models.IntegerField(default=0)
    wait_6 = models.IntegerField(default=0)
    wait_7 = models.IntegerField(default=0)
    wait_8 = models.IntegerField(default=0)
    wait_9 = models.IntegerField(default=0)
    wait_10 = models.IntegerField(default=0)

    class Meta:
        verbose_name = _("statistic")
        verbose_name_plural = _("statistics")
        constraints = [
            models.UniqueConstraint(fields=["minute", "queue", "task", "worker_id"], name="taskq_stat_key"),
        ]

    def __str__(self) -> str:
        return f"{self.minute:%Y-%m-%d %H:%M} {self.queue} {self.task}"


class Snapshot(models.Model):
    """How deep one queue was at one moment, written by the duty *snapshot*; one row a minute is kept."""

    queue = NameField(_("queue"), max_length=64)
    at = models.DateTimeField(_("at"))
    ready = models.IntegerField(_("ready"), default=0)
    scheduled = models.IntegerField(_("scheduled"), default=0)
    running = models.IntegerField(_("running"), default=0)
    waiting = models.IntegerField(_("waiting"), default=0)
    parked = models.IntegerField(_("parked"), default=0)
    dead = models.IntegerField(_("dead"), default=0)
    oldest_ready_at = models.DateTimeField(_("oldest ready since"), null=True, blank=True)
    exact = models.BooleanField(_("exact"), default=True)

    class Meta:
        verbose_name = _("snapshot")
        verbose_name_plural = _("snapshots")
        constraints = [models.UniqueConstraint(fields=["queue", "at"], name="taskq_snapshot_key")]
        indexes = [models.Index(name="taskq_snapshot_at", fields=["at"])]

    def __str__(self) -> str:
        return f"{self.queue} {self.at:%Y-%m-%d %H:%M}"
