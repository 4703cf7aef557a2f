"""The task that a signal lets run: it returns what the signal brought."""

from __future__ import annotations

from typing import Any

from django_taskq.task import task

__all__ = ["received"]


@task
def received(payload: Any) -> Any:
    """Return the payload, so that it is the result of the node that waited for it."""
    return payload
