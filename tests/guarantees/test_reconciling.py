"""Reconciling: what somebody's SQL broke is found, mended, and told."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from django_taskq import batch, chain, conf, events, previous, workflow
from django_taskq.domain.states import State
from django_taskq.domain.workflows import Role, WorkflowState
from django_taskq.duties import reconcile
from django_taskq.models import Dependency, FinishedTask, Task, Workflow
from tests.engine import ALIAS, claim_one, db_now, drain, run_and_settle, state_of
from tests.guarantees.flows import collect, refuse, say
from tests.guarantees.tasks import ran

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def told() -> Iterator[list[Any]]:
    found: list[Any] = []
    events.subscribe(events.WorkflowMended, found.append)
    yield found
    events.unsubscribe(events.WorkflowMended, found.append)


def mend() -> int:
    """Let the duty look at everything once."""
    return reconcile.run_once(ALIAS, conf.options(), db_now())


def run_some(count: int) -> None:
    """Run so many tasks."""
    for _ in range(count):
        run_and_settle(claim_one())


def test_a_sound_workflow_is_left_alone(told: list[Any]) -> None:
    """S0-94: at every step of its life."""
    chain(say.s("a"), batch(say.s("b"), refuse.s(1)).allow_failures(), say.s("d")).finally_(say.s("f")).enqueue()
    workflow("gate").add("x", say.s("x")).wait_for("ok", after="x").add("y", say.s(previous), after="ok").enqueue()
    batch(refuse.s(1), say.s("e")).catch(say.s("c")).enqueue()

    while Task.objects.filter(state=State.READY).exists():
        assert mend() == 0
        run_some(1)

    assert mend() == 0
    assert not told


def test_counts_that_were_changed_are_counted_anew(told: list[Any]) -> None:
    """S0-94: the workflow ends when its last member does, whatever its row said in between."""
    handle = batch(say.s(at) for at in range(4)).then(say.s("then")).enqueue()
    run_some(2)
    Workflow.objects.update(open=40, succeeded=0, failed=3)

    assert mend() == 1
    drain()

    assert handle.refresh().status == "completed"
    assert ran[-1] == "then"
    assert [(event.workflow_id, event.kind) for event in told] == [(handle.id, "batch")]
    assert "open was 40, is 2" in told[0].found


def test_members_whose_rows_are_gone_count_as_failed(told: list[Any]) -> None:
    """S0-94: nobody can know that they succeeded."""
    handle = batch(say.s(at) for at in range(3)).catch(say.s("catch")).finally_(say.s("finally")).enqueue()
    run_some(2)
    Task.objects.all().delete()

    assert mend() == 1
    drain()

    assert handle.refresh().status == "failed"
    assert (handle.counts.succeeded, handle.counts.failed, handle.counts.open) == (2, 1, 0)
    assert ran[-2:] == ["catch", "finally"]
    assert mend() == 0


def test_a_member_that_waits_for_what_has_succeeded_is_let_on(told: list[Any]) -> None:
    """S0-94: a lost release."""
    handle = chain(say.s("a"), say.s("b"), say.s("c")).enqueue()
    dependencies = list(Dependency.objects.all())
    Dependency.objects.all().delete()
    run_some(1)
    Dependency.objects.bulk_create(dependencies)
    assert not Task.objects.filter(state=State.READY).exists()

    assert mend() == 1
    drain()

    assert ran == ["a", "b", "c"]
    assert handle.refresh().status == "completed"


def test_what_waits_for_a_deleted_member_is_cancelled(told: list[Any]) -> None:
    """S0-94: it would wait for ever."""
    handle = chain(say.s("a"), say.s("b"), chain(say.s("c"), say.s("d"))).finally_(say.s("finally")).enqueue()
    Task.objects.filter(state=State.READY).delete()

    assert mend() == 1
    drain()

    assert ran == ["finally"]
    assert handle.refresh().status == "failed"
    assert not Workflow.objects.filter(state__in=(WorkflowState.RUNNING, WorkflowState.WAITING)).exists()


def test_an_inner_workflow_whose_end_was_not_told_lets_the_outer_one_on(told: list[Any]) -> None:
    """S0-94."""
    handle = chain(batch(say.s("a"), say.s("b")), say.s("c")).enqueue()
    inner = Workflow.objects.get(parent_id=handle.id)
    FinishedTask.objects.all().delete()
    Task.objects.filter(workflow_id=inner.pk).delete()
    Workflow.objects.filter(pk=inner.pk).update(
        state=WorkflowState.COMPLETED, open=0, succeeded=2, finished_at=db_now()
    )

    assert mend() == 1
    drain()

    assert ran == ["c"]
    assert handle.refresh().status == "completed"


def test_tasks_of_a_workflow_that_is_gone_do_not_wait_for_ever() -> None:
    """S0-94."""
    chain(say.s("a"), say.s("b")).enqueue()
    waiting = Task.objects.get(state=State.WAITING)
    Workflow.objects.all().delete()

    assert mend() == 1

    assert state_of(waiting) == "cancelled"
    drain()
    assert ran == ["a"]


def test_a_finally_task_that_waits_for_deleted_callbacks_is_let_on() -> None:
    """S0-94: also after the workflow has ended."""
    batch(say.s("a")).then(collect.s(previous)).finally_(say.s("finally")).enqueue()
    run_some(1)
    Task.objects.filter(role=Role.THEN).delete()

    assert mend() == 1
    drain()

    assert ran == ["a", "finally"]


def test_a_gate_that_nobody_signalled_dies_when_the_deadline_is_over(told: list[Any]) -> None:
    """A workflow with a deadline ends; that is its rule, and nothing to be told as mended."""
    made = workflow("approval").wait_for("ok").add("go", say.s(previous), after="ok").catch(say.s("catch"))
    handle = made.deadline(timedelta(hours=1)).enqueue()

    before = reconcile.run_once(ALIAS, conf.options(), db_now() + timedelta(minutes=59))
    assert state_of(next(handle.tasks())) == "waiting"
    after = reconcile.run_once(ALIAS, conf.options(), db_now() + timedelta(minutes=61))
    Task.objects.filter(state=State.READY).update(deadline_at=db_now() - timedelta(seconds=1), run_after=db_now())
    drain()

    assert (before, after) == (0, 0)
    assert handle.refresh().status == "failed"
    assert FinishedTask.objects.get(state=State.DEAD).reason == "budget_expired"
    assert ran == ["catch"]
    assert not told
