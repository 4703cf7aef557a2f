"""Tasks that members of workflows are made of, and how the tests end and read them."""

import json
import os
import signal
from collections import Counter
from typing import Any

from django_taskq import Fixed, task
from django_taskq.domain.outcomes import Cancelled, ErrorInfo, GaveUp, Succeeded
from django_taskq.domain.states import State
from django_taskq.domain.workflows import ENDED, Counts, Role
from django_taskq.lifecycle.advance import as_state
from django_taskq.lifecycle.settle import Ended, Settled
from django_taskq.models import FinishedTask, Task, Workflow
from django_taskq.store.rows import Claim
from tests import engine
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


@task(ack="atomic", takes_context=True)
def say_atomic(context: Any, value: Any) -> Any:
    """Leave an effect in the transaction that settles, and advances."""
    Effect.objects.create(key=f"{value} {context.task_id}", task_id=context.task_id)
    ran.append(value)
    return value


@task(max_attempts=50, backoff=Fixed(0), takes_context=True)
def leave(context: Any, value: Any) -> Any:
    """Leave an effect, once however often it is delivered, and return the value."""
    Effect.objects.get_or_create(key=str(value), defaults={"task_id": context.task_id})
    return value


@task(backoff=Fixed(0))
def die(value: Any) -> None:
    """Kill the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def tag(row: Any) -> Any:
    """Return the first argument of a claim or row: the tests' name of it."""
    return json.loads(row.args)["args"][0]


def claim_all(worker_id: int | None = None) -> dict[Any, Claim]:
    """Claim everything that is ready, by first argument."""
    return {tag(found): found for found in engine.claim(worker_id, limit=1000)}


def ended(claimed: Claim, how: State = State.SUCCEEDED) -> Ended:
    """Return an end of an attempt, without running anything."""
    error = ErrorInfo(class_path="builtins.ValueError", message="no", traceback="", fingerprint="0" * 16)
    now = engine.db_now().timestamp()
    match how:
        case State.SUCCEEDED:
            outcome: Any = Succeeded("null")
        case State.DEAD:
            outcome = GaveUp(error=error)
        case _:
            outcome = Cancelled()
    return Ended(claimed, outcome, now, now)


def settle(claimed: Claim, how: State = State.SUCCEEDED) -> Settled:
    """End one claimed task."""
    return engine.write([ended(claimed, how)])


def by_tag(value: Any) -> Any:
    """Return the only row with this first argument, live or finished."""
    [row] = [row for model in (Task, FinishedTask) for row in model.objects.all() if tag(row) == value]
    return row


def state_by_tag() -> dict[Any, str]:
    """Return the state of each task by its first argument."""
    rows = [*Task.objects.all(), *FinishedTask.objects.all()]
    return {tag(row): State(row.state).name.lower() for row in rows}


def open_flows() -> list[Workflow]:
    """Return the workflows that have not ended."""
    return list(Workflow.objects.exclude(state__in=[int(state) for state in ENDED]))


def assert_all_ended() -> None:
    """Assert that nothing lives, and that every count is that of the rows."""
    assert not Task.objects.exists()
    assert open_flows() == []
    for flow in Workflow.objects.all():
        states = list(
            FinishedTask.objects.filter(workflow_id=flow.pk, role=Role.MEMBER).values_list("state", flat=True)
        )
        states += [int(as_state(child)) for child in Workflow.objects.filter(parent_id=flow.pk)]
        counts = Counter(State(state) for state in states)
        assert flow.counts == Counts(
            total=len(states),
            open=0,
            succeeded=counts[State.SUCCEEDED],
            failed=counts[State.DEAD],
            cancelled=counts[State.CANCELLED],
        )
