"""What a program holds of a stored workflow."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django_taskq.domain.workflows import Counts, Kind, WorkflowState
from django_taskq.exceptions import WorkflowNotFound
from django_taskq.lifecycle import references, workflows
from django_taskq.models import Workflow

if TYPE_CHECKING:
    from typing import Self

__all__ = ["WorkflowHandle", "find"]


class WorkflowHandle:
    """
    A stored chain, batch or workflow. What it says is as of the last ``refresh``.

    Made by ``enqueue``, and by ``find_chain``, ``find_batch`` and ``find_workflow``.
    """

    __slots__ = ("_row",)

    def __init__(self, row: Workflow) -> None:
        self._row = row

    def __repr__(self) -> str:
        return f"<{self.kind} {self.id} {self.status}>"

    @property
    def id(self) -> str:
        """The id, 36 characters."""
        return str(self._row.pk)

    @property
    def kind(self) -> str:
        """One of "chain", "batch", "workflow"."""
        kind = Kind(self._row.kind)
        return "workflow" if kind is Kind.GRAPH else kind.name.lower()

    @property
    def name(self) -> str:
        """What it was called."""
        return self._row.name

    @property
    def status(self) -> str:
        """One of "waiting", "running", "completed", "failed", "cancelled"."""
        return WorkflowState(self._row.state).name.lower()

    @property
    def is_finished(self) -> bool:
        """Whether it has ended."""
        return self._row.has_ended

    @property
    def counts(self) -> Counts:
        """How many members there are: total, open, succeeded, failed, cancelled. What is inside a member is not."""
        return self._row.counts

    def refresh(self) -> Self:
        """Load how it stands now, and return this handle. Raise WorkflowNotFound if it is gone."""
        self._row = _row(self.id, None)
        return self

    def wait(self, timeout: float | timedelta | None = None) -> Self:
        """
        Wait until it has ended, and return this handle, refreshed. Callbacks may still run.

        ``timeout`` is in seconds. Raise WaitTimeout when it is over.
        """
        workflows.wait(lambda: self.refresh().is_finished, timeout, f"{self.kind} {self.id}")
        return self

    def cancel(self, *, actor: str = "api", reason: str = "") -> bool:
        """
        Cancel what waits at once and ask what runs to stop; the workflow ends when nothing in it runs.

        Return False if it had ended. Its finally callbacks are called, then and catch are not.
        """
        return workflows.cancel(self._row.pk, actor=actor, reason=reason)

    def replay(
        self, *, from_start: bool = False, attempts: int | None = None, actor: str = "api", reason: str = ""
    ) -> int:
        """
        Run again what did not succeed, and what waited for it; what succeeded keeps its results.

        ``from_start``: run everything again. Return how many tasks were sent back. Raise
        InvalidTransition for a workflow that has not ended, or that completed (but from the start).
        """
        return workflows.replay(self._row.pk, from_start=from_start, attempts=attempts, actor=actor, reason=reason)

    def add(self, *members: Any) -> int:
        """
        Add members to a batch that has not ended, in the caller's transaction; return how many.

        A member of the batch may do so while it runs: the batch cannot end before it. Raise
        WorkflowEnded if the batch has ended or is being cancelled, InvalidWorkflow if it is no batch.
        """
        return workflows.add(self._row.pk, members)

    def signal(self, name: str, payload: Any = None) -> bool:
        """
        Let the node made by ``wait_for(name)`` end with ``payload`` as its result, in the caller's transaction.

        It may come before the node's turn. Return False if it was signalled before. Raise
        InvalidWorkflow for a name no such node has, WorkflowEnded once the node cannot be reached.
        """
        return workflows.signal(self._row.pk, name, payload)

    def results(self) -> Iterator[Any]:
        """
        Yield the members' results in their order, read in portions; None for one without success.

        A member that is a chain, batch or workflow yields what ``previous`` would stand for after it.
        """
        return references.results(self._row.pk)

    def tasks(self) -> Iterator[Any]:
        """Yield the rows of all members that are tasks, in their order, live and finished."""
        return references.members(self._row.pk)


def _row(workflow_id: Any, kind: Kind | None) -> Workflow:
    row = workflows.find(workflow_id)
    if row is None or (kind is not None and row.kind != kind):
        what = "workflow" if kind is None else kind.name.lower()
        raise WorkflowNotFound(f"no {what} has the id {workflow_id!r}")
    return row


def find(workflow_id: Any, kind: Kind | None = None) -> WorkflowHandle:
    """Return a stored workflow, of one kind if that is given. Raise WorkflowNotFound."""
    return WorkflowHandle(_row(workflow_id, kind))
