"""Workers killed at every point of the walk: no workflow stays open, no member is lost, no callback is stored twice."""

import random
from collections import Counter
from typing import Any

import pytest

from django_taskq import batch, chain, previous, workflow
from django_taskq.domain.states import State
from django_taskq.domain.workflows import Role
from django_taskq.models import FinishedTask, Task, Workflow
from tests.app.models import Effect
from tests.engine import WorkerProcess, wait_for, worker_process
from tests.guarantees.flows import assert_all_ended, die, leave, open_flows

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.chaos, pytest.mark.timeout(180)]

ADVANCE, SETTLE, STORE = (
    "django_taskq.lifecycle.advance",
    "django_taskq.lifecycle.settle",
    "django_taskq.store.workflows",
)

POINTS = {
    "claimed, not executed": ("django_taskq.lifecycle.claim.Claimer", "claim", True),
    "executed, not settled": (SETTLE, "_write", False),
    "ended, not counted": ("vendor", "finish", True),
    "counted, not written": (ADVANCE, "conclude", True),
    "followers let on, not written": (STORE, "release", True),
    "inner workflow started, not written": (STORE, "start", True),
    "called back, not written": (ADVANCE, "call_back", True),
    "written, not committed": (STORE, "write", True),
    "committed, not told": (SETTLE, "_emit", False),
}


def nested(name: str) -> Any:
    """Return a workflow in which everything happens: members, joins, inner workflows, each callback."""
    inner = batch(leave.s(f"{name} b1"), leave.s(f"{name} b2"), batch()).then(leave.s(f"{name} then b"))
    graph = (
        workflow()
        .add("x", leave.s(f"{name} x"))
        .add("y", chain(leave.s(f"{name} y1"), leave.s(f"{name} y2")), after="x")
        .add("z", leave.s(f"{name} z"), after=("x", "y"))
    )
    made = chain(leave.s(f"{name} a"), inner, graph, leave.s(f"{name} end"))
    return made.then(leave.s(f"{name} then")).catch(leave.s("never")).finally_(leave.s(f"{name} finally")).name(name)


TASKS_EACH, FLOWS_EACH, CALLS_EACH = 11, 5, {"then": 2, "finally": 1}


def status_of(**order: Any) -> int:
    """Run a worker process until it dies, which it may do before it says that it is ready."""
    victim = WorkerProcess(**order)
    try:
        return victim.wait()
    finally:
        victim.close()


def assert_each_happened_once(count: int) -> None:
    assert_all_ended()
    assert set(FinishedTask.objects.values_list("state", flat=True)) == {State.SUCCEEDED}
    assert FinishedTask.objects.count() == count * TASKS_EACH
    assert Workflow.objects.count() == count * FLOWS_EACH
    assert set(Workflow.objects.values_list("state", flat=True)) == {2}
    assert Effect.objects.count() == count * TASKS_EACH
    roles = Counter(FinishedTask.objects.exclude(role=Role.MEMBER).values_list("workflow_id", "role"))
    assert set(roles.values()) == {1}
    kinds = Counter(Role(role).name.lower() for _, role in roles if role)
    assert kinds == {kind: each * count for kind, each in CALLS_EACH.items()}


def test_workers_killed_at_every_point_of_the_walk_leave_no_workflow_open() -> None:
    """S0-92, S0-95, S0-96, S0-97: one killed worker after the other, then one that lives."""
    for at, point in enumerate(POINTS.values()):
        nested(f"f{at}").enqueue()
        assert status_of(threads=2, prepare="tests.chaos.breaking.kill_at", prepare_with=list(point)) == -9, point

    with worker_process(threads=2):
        wait_for(lambda: not open_flows() and not Task.objects.exists(), 60)

    assert_each_happened_once(len(POINTS))


def test_workers_killed_at_random_under_load_leave_no_workflow_open() -> None:
    """S0-95, S0-96: chains and batches, nested, on three processes."""
    count = 24
    for at in range(count):
        nested(f"f{at}").enqueue()
    draw = random.Random(11)
    workers = [WorkerProcess(threads=2) for _ in range(3)]
    try:
        for worker in workers:
            worker.wait_until_ready()
        for turn in range(4):
            goal = (turn + 1) * count * TASKS_EACH // 8
            wait_for(lambda goal=goal: FinishedTask.objects.count() >= goal, 60)
            victim = draw.randrange(3)
            workers[victim].kill()
            workers[victim].close()
            workers[victim] = WorkerProcess(threads=2)
            workers[victim].wait_until_ready()
        wait_for(lambda: not open_flows() and not Task.objects.exists(), 90)
    finally:
        for worker in workers:
            worker.close()

    assert_each_happened_once(count)


def test_members_that_kill_their_workers_end_their_workflow_as_failed() -> None:
    """Each time the worker that runs it dies with it, until its attempts are used up."""
    deadly = chain(leave.s("a"), die.using(max_attempts=2).s("x"), leave.s("b"))
    handle = deadly.catch(leave.s("catch")).finally_(leave.s(previous)).enqueue()
    for _ in range(2):
        assert status_of(threads=1) == -9

    with worker_process(threads=1):
        wait_for(lambda: not Task.objects.exists(), 40)

    assert handle.refresh().status == "failed"
    assert set(Effect.objects.values_list("key", flat=True)) == {"a", "catch", "None"}
    assert_all_ended()
