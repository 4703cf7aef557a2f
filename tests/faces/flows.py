"""Chains, batches and workflows as the admin and the commands meet them, stored without running anything."""

from __future__ import annotations

from typing import Any

from django_taskq import batch, chain, workflow
from django_taskq.lifecycle import control
from django_taskq.models import Task
from tests.app.tasks import leave_effect

say = leave_effect


def nested() -> Any:
    """Store a chain of a task, a batch of two, and a task."""
    made = chain(say.s("a"), batch(say.s("b"), say.s("c")).name("middle"), say.s("d")).name("month end")
    return made.then(say.s("then")).catch(say.s("catch")).finally_(say.s("finally")).enqueue()


def failed() -> Any:
    """Store a chain of three whose first member is dead, so that the others were cancelled."""
    handle = chain(say.s("a"), say.s("b"), say.s("c")).catch(say.s("catch")).finally_(say.s("finally")).enqueue()
    kill_first(handle)
    return handle.refresh()


def kill_first(handle: Any) -> None:
    """Make a dead letter of the first member."""
    control.kill(str(Task.objects.filter(workflow_id=handle.id, role=1).order_by("pk")[0].pk), reason="for a test")


def graph() -> Any:
    """Store a graph in which a task waits for an approval and for another task."""
    made = (
        workflow("release")
        .add("build", say.s("a"))
        .wait_for("approval")
        .add("ship", say.s("b"), after=("build", "approval"))
    )
    return made.enqueue()
