"""Tasks for the tests; each leaves an Effect when it has run."""

from django_taskq import task
from tests.app.models import Effect


@task
def leave_effect(key: str, task_id: str = "") -> str:
    """Store the effect and return its key; a second run with the same key fails."""
    Effect.objects.create(key=key, task_id=task_id)
    return key
