"""Delete workflows that have ended, whole, a chunk of their tasks at a time."""

from __future__ import annotations

from datetime import datetime

from django_taskq.domain.workflows import WorkflowState
from django_taskq.store import retention
from django_taskq.store.vendors import vendor_for

__all__ = ["CHUNK", "prune_workflows"]

CHUNK = 5000
_LOOKED_AT = 1000


def prune_workflows(
    alias: str, state: WorkflowState, *, before: datetime, dead_before: datetime | None, most: int
) -> int:
    """
    Delete outermost workflows that ended in a state before a moment; return how many rows of tasks and workflows.

    Stops at ``most`` of them. Dead letters that are younger than ``dead_before`` stay; None keeps all of them.
    """
    vendor = vendor_for(alias)
    count = 0
    for key in retention.old_workflows(alias, state=state, before=before, limit=_LOOKED_AT):
        while True:
            deleted, is_over = vendor.retrying(
                lambda key=key: retention.delete_workflow(alias, key, limit=CHUNK, dead_before=dead_before)  # type: ignore[misc]
            )
            count += deleted
            if is_over:
                break
        if count >= most:
            break
    return count
