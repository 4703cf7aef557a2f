"""
Workflows: chains, batches and graphs, and who waits for whom in them.

Whoever changes a workflow's counts, or lets one of its tasks go on, holds the
lock of its row. No foreign keys, as everywhere around tasks.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from django_taskq.domain.workflows import ENDED, Counts, Kind, WorkflowState, allowed_failures
from django_taskq.ids import uuid7
from django_taskq.schema import LiveIndex, TaskIdField

__all__ = ["Batch", "Chain", "Dependency", "Workflow"]

_KINDS = [(int(Kind.CHAIN), _("chain")), (int(Kind.BATCH), _("batch")), (int(Kind.GRAPH), _("workflow"))]
_STATES = [
    (int(WorkflowState.WAITING), _("waiting")),
    (int(WorkflowState.RUNNING), _("running")),
    (int(WorkflowState.COMPLETED), _("completed")),
    (int(WorkflowState.FAILED), _("failed")),
    (int(WorkflowState.CANCELLED), _("cancelled")),
]


class Workflow(models.Model):
    """One chain, batch or graph; a node of another one where ``parent_id`` says so."""

    id = TaskIdField(_("id"), primary_key=True, default=uuid7, editable=False)
    kind = models.SmallIntegerField(_("kind"), choices=_KINDS)
    name = models.CharField(_("name"), max_length=200, blank=True)
    state = models.SmallIntegerField(_("state"), choices=_STATES, default=int(WorkflowState.RUNNING))
    total = models.IntegerField(_("members"), default=0)
    open = models.IntegerField(_("open"), default=0)
    succeeded = models.IntegerField(_("succeeded"), default=0)
    failed = models.IntegerField(_("failed"), default=0)
    cancelled = models.IntegerField(_("cancelled"), default=0)
    # What may fail, as it was given: JSON keeps True, 3 and 0.25 apart.
    allowance = models.CharField(_("allowed failures"), max_length=30, blank=True)
    cancel = models.BooleanField(_("cancel requested"), default=False)
    caught = models.BooleanField(_("catch was called"), default=False)
    callbacks = models.TextField(_("callbacks"), null=True, blank=True)  # noqa: DJ001 - null costs nothing
    names = models.TextField(_("names of the nodes"), null=True, blank=True)  # noqa: DJ001
    parent_id = TaskIdField(_("part of"), null=True, blank=True)  # type: ignore[misc]  # a subclass is not generic
    waits_for = models.IntegerField(_("waits for"), default=0)
    replays = models.SmallIntegerField(_("replays"), default=0)
    created_at = models.DateTimeField(_("created at"))
    started_at = models.DateTimeField(_("started at"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)
    progress_at = models.DateTimeField(_("progress told at"), null=True, blank=True)

    class Meta:
        verbose_name = _("workflow")
        verbose_name_plural = _("workflows")
        permissions = [
            ("cancel_workflow", _("Can cancel workflows")),
            ("replay_workflow", _("Can replay failed and cancelled workflows")),
        ]
        indexes = [
            LiveIndex(name="taskq_workflow_parent", fields=["parent_id"], where=Q(parent_id__isnull=False)),
            models.Index(name="taskq_workflow_state", fields=["state", "id"]),
            LiveIndex(name="taskq_workflow_ended", fields=["finished_at"], where=Q(finished_at__isnull=False)),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(open__gte=0, succeeded__gte=0, failed__gte=0, cancelled__gte=0),
                name="taskq_workflow_counts",
            ),
        ]

    def __str__(self) -> str:
        # Without its name, which is the project's text and may hold anything.
        return f"{self.get_kind_display()} {self.pk}"

    @property
    def counts(self) -> Counts:
        """The nodes by how they stand."""
        return Counts(
            total=self.total, open=self.open, succeeded=self.succeeded, failed=self.failed, cancelled=self.cancelled
        )

    @property
    def allowed(self) -> int:
        """How many members may fail."""
        return allowed_failures(json.loads(self.allowance) if self.allowance else None, self.total)

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def node_names(self) -> dict[str, str]:
        """The ids of the nodes that have names."""
        found: dict[str, str] = json.loads(self.names) if self.names else {}
        return found

    @property
    def callback_values(self) -> dict[str, list[Any]]:
        """What is to be enqueued at each turn: lists of stored signatures by "then", "catch", "finally", "progress"."""
        found: dict[str, list[Any]] = json.loads(self.callbacks) if self.callbacks else {}
        return found


class _OfKind(models.Manager[Any]):
    """The workflows of one kind."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def get_queryset(self) -> models.QuerySet[Any]:
        return super().get_queryset().filter(kind=int(self.kind))


class Chain(Workflow):
    """A chain: one after another."""

    objects: ClassVar[_OfKind] = _OfKind(Kind.CHAIN)

    class Meta:
        proxy = True
        verbose_name = _("chain")
        verbose_name_plural = _("chains")


class Batch(Workflow):
    """A batch: many at once."""

    objects: ClassVar[_OfKind] = _OfKind(Kind.BATCH)

    class Meta:
        proxy = True
        verbose_name = _("batch")
        verbose_name_plural = _("batches")


class Dependency(models.Model):
    """
    One node waits for another. Both are ids of tasks or of workflows.

    ``always``: any end will do, as for what is called finally.
    """

    workflow_id = TaskIdField(_("workflow"))
    node_id = TaskIdField(_("node"))
    predecessor_id = TaskIdField(_("waits for"))
    always = models.BooleanField(_("whatever its end"), default=False)

    class Meta:
        verbose_name = _("dependency")
        verbose_name_plural = _("dependencies")
        indexes = [
            models.Index(name="taskq_dependency_before", fields=["predecessor_id"]),
            models.Index(name="taskq_dependency_node", fields=["node_id"]),
            models.Index(name="taskq_dependency_flow", fields=["workflow_id"]),
        ]

    def __str__(self) -> str:
        return f"{self.node_id} after {self.predecessor_id}"
