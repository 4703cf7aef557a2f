"""Retention of workflows: they stay or go as a whole, and what lives is never touched."""

from datetime import timedelta

import pytest
from django.test import override_settings

from django_taskq import batch, chain, conf, find_workflow, previous, prune_workflows
from django_taskq.domain.states import State
from django_taskq.duties import prune
from django_taskq.exceptions import InvalidOptions, WorkflowNotFound
from django_taskq.models import Dependency, FinishedTask, Task, Workflow
from tests.engine import ALIAS, claim_one, db_now, drain, run_and_settle
from tests.guarantees.flows import collect, refuse, say
from tests.guarantees.tasks import ran

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)


def prune_after(days: float) -> None:
    """Let the duty look at everything so many days from now."""
    prune.run_once(ALIAS, conf.options(), db_now() + days * DAY)


def test_a_completed_workflow_goes_as_a_whole_when_successes_do() -> None:
    """S0-89, S4-109: members, callbacks, inner workflows and who waits for whom."""
    handle = chain(say.s("a"), batch(say.s("b"), say.s("c")), say.s("d")).then(say.s("t")).enqueue()
    drain()

    prune_after(0.9)
    kept = FinishedTask.objects.count()
    prune_after(1.1)

    assert kept == 5
    assert not FinishedTask.objects.exists()
    assert not Workflow.objects.exists()
    assert not Dependency.objects.exists()
    with pytest.raises(WorkflowNotFound):
        find_workflow(handle.id)


def test_members_outlive_their_own_retention_while_their_workflow_is_open() -> None:
    """S4-109: somebody may still need their results, also those that were not to be kept at all."""
    handle = chain(say.s("a").using(keep_result=0), say.s(previous), collect.s(previous)).enqueue()
    run_and_settle(claim_one())
    run_and_settle(claim_one())

    prune_after(100)

    assert FinishedTask.objects.filter(workflow_id=handle.id).count() == 2
    drain()
    assert ran == ["a", "a", "a"]
    assert handle.refresh().status == "completed"


def test_results_stay_until_the_callbacks_that_collect_them_have_ended() -> None:
    """S4-109: a workflow that has ended but still calls back is not pruned."""
    batch(say.s(1).using(keep_result=0), say.s(2)).then(collect.s(previous)).enqueue()
    run_and_settle(claim_one())
    run_and_settle(claim_one())

    prune_after(100)
    drain()

    assert ran[-1] == [1, 2]


def test_a_failed_workflow_is_kept_as_long_as_dead_letters_are() -> None:
    """S4-33: for ever by default."""
    chain(say.s("a"), refuse.s("b"), say.s("c")).enqueue()
    drain()

    prune_after(1000)
    kept = sorted(FinishedTask.objects.values_list("state", flat=True))
    with override_settings(TASKQ={"RETENTION": {"DEAD": timedelta(days=30)}}):
        prune_after(29)
        still = Workflow.objects.count()
        prune_after(31)

    assert kept == sorted([State.SUCCEEDED, State.DEAD, State.CANCELLED])
    assert still == 1
    assert not FinishedTask.objects.exists()
    assert not Workflow.objects.exists()


def test_an_allowed_dead_letter_stays_when_its_workflow_goes() -> None:
    """S4-33: a human has not looked at it; it can still be replayed."""
    batch(say.s("a"), refuse.s("b")).allow_failures().enqueue()
    drain()

    prune_after(2)

    assert not Workflow.objects.exists()
    assert list(FinishedTask.objects.values_list("state", flat=True)) == [State.DEAD]


def test_pruning_by_hand_takes_what_has_ended_and_nothing_else() -> None:
    """S0-89: active workflows are never pruned."""
    ended = [chain(refuse.s("a"), say.s("b")).enqueue(), batch(say.s("c")).enqueue()]
    drain()
    live = chain(say.s("d"), say.s("e")).enqueue()
    run_and_settle(claim_one())

    count = prune_workflows(before=db_now() + DAY)

    assert count == 3 + 2
    assert [str(key) for key in Workflow.objects.values_list("pk", flat=True)] == [live.id]
    assert (FinishedTask.objects.count(), Task.objects.count()) == (1, 1)
    assert prune_workflows(before=db_now() + DAY) == 0
    for handle in ended:
        with pytest.raises(WorkflowNotFound):
            handle.refresh()
    with pytest.raises(InvalidOptions, match="aware"):
        prune_workflows(before=(db_now() + DAY).replace(tzinfo=None))
