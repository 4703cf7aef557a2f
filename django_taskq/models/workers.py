"""Workers: one heartbeat row each, which keeps all their leases alive."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

__all__ = ["Worker"]


class Worker(models.Model):
    """
    A worker process. The id is the upper half of each of its leases and is never used twice.

    A worker that stops deletes its row; one that falls silent is declared dead, and
    its row stays until pruned. A dead worker never comes back under the same id.
    """

    class State(models.IntegerChoices):
        ALIVE = 1, _("alive")
        STOPPING = 2, _("stopping")
        DEAD = 3, _("dead")

    id = models.AutoField(primary_key=True)
    name = models.CharField(_("name"), max_length=200)
    host = models.CharField(_("host"), max_length=200, blank=True)
    pid = models.IntegerField(_("process"), default=0)
    queues = models.CharField(_("queues"), max_length=500, blank=True)
    state = models.SmallIntegerField(_("state"), choices=State.choices, default=State.ALIVE)
    slots = models.IntegerField(_("slots"), default=1)
    executor = models.CharField(_("executor"), max_length=100, blank=True)
    running = models.IntegerField(_("running"), default=0)
    release = models.CharField(_("release"), max_length=100, blank=True)
    started_at = models.DateTimeField(_("started at"))
    beat_at = models.DateTimeField(_("last heartbeat"))
    lease_seconds = models.IntegerField(_("lease"), default=30)

    class Meta:
        verbose_name = _("worker")
        verbose_name_plural = _("workers")

    def __str__(self) -> str:
        return self.name
