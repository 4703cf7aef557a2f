"""What retention would delete now, looked up without deleting anything."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django_taskq import conf
from django_taskq.domain.states import State
from django_taskq.domain.workflows import WorkflowState
from django_taskq.store import retention as retention_store
from django_taskq.store.vendors import vendor_for

__all__ = ["Due", "due"]

# So many keys are looked at for each line, however many there are.
CAP = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Tasks of one state, or workflows, whose time to be kept is over; ``more``: at least this many."""

    state: str
    kept_for: timedelta | None
    count: int
    more: bool


def due(alias: str, retention: conf.Retention, *, now: datetime) -> list[Due]:
    """
    Return what the duty *prune* would delete: a line per state, one for tasks with a time of their own, and workflows.

    Members of workflows are counted with those, as a whole.
    """
    ended = vendor_for(alias).prunable()
    own = len(ended.filter(delete_at__lte=now).order_by("delete_at").values_list("pk")[:CAP])
    found = [Due(state="own", kept_for=None, count=own, more=own == CAP)]
    for state, span in (
        (State.SUCCEEDED, retention.succeeded),
        (State.CANCELLED, retention.cancelled),
        (State.DEAD, retention.dead),
    ):
        if span is None:
            continue
        old = ended.filter(finished_at__lt=now - span).order_by("finished_at").values_list("state", "delete_at")[:CAP]
        rows = list(old)
        count = sum(row == (state, None) for row in rows)
        found.append(Due(state=state.name.lower(), kept_for=span, count=count, more=len(rows) == CAP))
    count = sum(
        len(retention_store.old_workflows(alias, state=state, before=now - span, limit=CAP))
        for state, span in (
            (WorkflowState.COMPLETED, retention.succeeded),
            (WorkflowState.CANCELLED, retention.cancelled),
            (WorkflowState.FAILED, retention.dead),
        )
        if span is not None
    )
    return [*found, Due(state="workflow", kept_for=None, count=count, more=count >= CAP)]
