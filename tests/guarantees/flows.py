"""Tasks that members of workflows are made of."""

from typing import Any

from django_taskq import task
from tests.app.models import Effect
from tests.guarantees.tasks import ran


@task
def say(value: Any) -> Any:
    """Note a value, and return it."""
    ran.append(value)
    return value


@task
def collect(values: Any) -> Any:
    """Note many values."""
    ran.append(values)
    return values


@task(max_attempts=1)
def refuse(value: Any) -> None:
    """Die."""
    raise ValueError(f"no {value}")


@task(max_attempts=1)
def fail_once(key: str) -> str:
    """Die the first time."""
    if not Effect.objects.filter(key=key).exists():
        Effect.objects.create(key=key)
        raise ValueError(key)
    ran.append(key)
    return key


@task(takes_context=True)
def wait_open(context: Any, count: int) -> int:
    """Add so many members to the batch that this is one of."""
    assert context.workflow is not None
    context.workflow.add(say.s(at) for at in range(count))
    return count
