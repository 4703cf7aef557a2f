"""Chains, batches and graphs: who starts when, how they end, what is called back."""

from datetime import timedelta
from typing import Any

import pytest

from django_taskq import batch, chain, clock, find_batch, find_chain, previous, result_of, workflow
from django_taskq.domain.states import State
from django_taskq.domain.workflows import Role
from django_taskq.lifecycle.settle import settle
from django_taskq.models import Dependency, FinishedTask, Task, Workflow
from tests.engine import claim, claim_one, drain, run, run_and_settle, state_of, write
from tests.guarantees.flows import collect, fail_once, refuse, say, wait_open
from tests.guarantees.tasks import ran

pytestmark = pytest.mark.django_db(transaction=True)


def states(handle: Any) -> list[str]:
    return [state_of(row) for row in handle.tasks()]


def test_a_member_of_a_chain_starts_when_the_one_before_it_has_succeeded() -> None:
    """S0-85."""
    handle = chain(say.s("a"), say.s("b"), say.s("c")).enqueue()
    assert states(handle) == ["ready", "waiting", "waiting"]

    drain()

    assert ran == ["a", "b", "c"]
    assert handle.refresh().status == "completed"
    assert (handle.counts.total, handle.counts.open, handle.counts.succeeded) == (3, 0, 3)
    assert find_chain(handle.id).status == "completed"


def test_results_are_passed_on() -> None:
    handle = (
        chain(say.s("a"), say.s(previous), batch(say.s(previous), say.s("x")), collect.s(previous))
        .then(collect.s(previous))
        .enqueue()
    )

    drain()

    assert handle.refresh().status == "completed"
    assert ran == ["a", "a", "a", "x", ["a", "x"], ["a", "x"]]


def test_a_failed_member_ends_a_chain_and_catch_and_finally_are_called() -> None:
    """S0-86."""
    handle = (
        chain(say.s("a"), refuse.s("b"), say.s("c"))
        .then(say.s("then"))
        .catch(say.s("catch"))
        .finally_(say.s("finally"))
    ).enqueue()

    drain()

    assert ran == ["a", "catch", "finally"]
    assert handle.refresh().status == "failed"
    assert states(handle) == ["succeeded", "dead", "cancelled"]
    assert handle.replay() == 2
    assert handle.refresh().status == "running"


def test_a_batch_goes_on_after_a_failure() -> None:
    """S0-87, S0-88."""
    handle = (
        batch(say.s("a"), refuse.s("b"), say.s("c"))
        .then(say.s("then"))
        .catch(say.s("catch"))
        .finally_(say.s("finally"))
        .enqueue()
    )

    drain()

    assert ran == ["a", "c", "catch", "finally"]
    assert handle.refresh().status == "failed"
    assert find_batch(handle.id).counts.failed == 1


def test_an_allowed_failure_lets_it_complete() -> None:
    handle = batch(say.s("a"), refuse.s("b"), say.s("c")).allow_failures(1).then(collect.s(previous)).enqueue()

    drain()

    assert handle.refresh().status == "completed"
    assert ran == ["a", "c", ["a", None, "c"]]


def test_a_graph_joins() -> None:
    made = (
        workflow("g")
        .add("d", collect.s([result_of("b"), result_of("c")]), after=("b", "c"))
        .add("a", say.s("a"))
        .add("b", say.s("b"), after="a")
        .add("c", say.s("c"), after="a")
    )
    handle = made.enqueue()

    drain()

    assert ran[0] == "a"
    assert ran[3] == ["b", "c"]
    assert handle.refresh().status == "completed"


def test_an_empty_batch_completes_at_once_also_inside_a_chain() -> None:
    handle = batch().then(say.s("then")).enqueue()
    outer = chain(batch([]), say.s("a"), batch([]), collect.s(previous)).enqueue()

    assert handle.status == "completed"
    drain()

    assert sorted(map(str, ran)) == ["[]", "a", "then"]
    assert outer.refresh().status == "completed"


def test_cancel() -> None:
    handle = (
        chain(say.s("a"), batch(say.s("b"), say.s("c")), say.s("d")).then(say.s("t")).finally_(say.s("f")).enqueue()
    )

    assert handle.cancel()

    drain()
    assert ran == ["f"]
    assert handle.refresh().status == "cancelled"
    assert not handle.cancel()
    assert not Workflow.objects.exclude(state=4).exists()
    assert handle.replay() == 4
    drain()
    assert ran == ["f", "a", "b", "c", "d", "t", "f"]
    assert handle.refresh().status == "completed"


def test_replay_of_a_failed_member_goes_on_with_the_chain_around() -> None:
    from django_taskq import replay

    handle = chain(say.s("a"), chain(fail_once.s("k"), say.s("b")), say.s("c")).catch(say.s("catch")).enqueue()
    drain()
    assert handle.refresh().status == "failed"
    [dead] = FinishedTask.objects.filter(state=4)

    replay(dead.pk)
    drain()

    assert handle.refresh().status == "completed"
    assert ran == ["a", "catch", "k", "b", "c"]


def test_a_gate() -> None:
    handle = (
        workflow("approve")
        .add("a", say.s("a"))
        .wait_for("ok", after="a")
        .add("b", say.s(previous), after="ok")
        .enqueue()
    )
    drain()
    assert ran == ["a"]

    assert handle.signal("ok", {"by": "me"})
    drain()

    assert ran == ["a", {"by": "me"}]
    assert handle.refresh().status == "completed"
    assert not handle.signal("ok", 1)


def test_one_deadline_holds_for_all_members_at_any_depth() -> None:
    """Deadlines are inherited; each member keeps an earlier one of its own."""
    until = clock.now() + timedelta(hours=1)
    handle = chain(say.s("a"), batch(say.s("b"), say.s("c").using(max_time=60)), say.s("d")).deadline(until).enqueue()
    run_and_settle(claim_one())

    deadlines = [row.deadline_at for row in Task.objects.order_by("pk") if row.state == State.READY]

    assert deadlines[0] == until
    assert deadlines[1] <= clock.now() + timedelta(seconds=60)
    Task.objects.filter(state=State.READY).update(deadline_at=clock.now() - timedelta(seconds=1))
    drain()
    assert handle.refresh().status == "failed"
    assert set(FinishedTask.objects.filter(state=State.DEAD).values_list("reason", flat=True)) == {"budget_expired"}


@pytest.mark.parametrize("member", [say.s("first"), chain(say.s("first"), say.s("second"))], ids=["task", "chain"])
def test_what_is_added_to_a_batch_inherits_its_deadline(member: Any) -> None:
    """S4-22: at any depth, and an earlier one of its own is kept."""
    until = clock.now() + timedelta(hours=1)
    handle = batch([member]).deadline(until).enqueue()

    handle.add(say.s("added"), batch([say.s("inside")]), say.using(max_time=60).s("sooner"))

    deadlines = {row.arguments[0][0]: row.deadline_at for row in Task.objects.filter(state=State.READY)}
    assert deadlines["added"] == deadlines["inside"] == until
    assert deadlines["sooner"] < until


def test_add_from_inside() -> None:
    handle = batch(wait_open.s(3)).then(collect.s(previous)).enqueue()

    drain()

    assert handle.refresh().status == "completed"
    assert handle.counts.total == 4
    assert ran[-1] == [3, 0, 1, 2]
    assert not Task.objects.exists()
    assert not Dependency.objects.exists()


def test_many_workflows_advance_in_one_settlement() -> None:
    """S0-95: each by its own counts."""
    handles = [chain(say.s(at), say.s(at + 100)).enqueue() for at in range(8)]
    claims = claim(limit=8)
    assert len(claims) == 8

    settled = write(run(found) for found in claims)

    assert settled.count == 8
    assert [(row.open, row.succeeded, row.state) for row in Workflow.objects.all()] == [(1, 1, 1)] * 8
    drain()
    assert {handle.refresh().status for handle in handles} == {"completed"}


def test_a_callback_that_ends_in_the_moment_of_its_workflow_is_not_taken_for_its_end() -> None:
    """S0-95: the workflow around counts its node once, whatever the clock says."""
    handle = chain(batch(say.s("a")).then(say.s("then")), say.s("b"), say.s("c")).enqueue()
    moment = clock.now()

    for _ in range(4):
        settle([run(claim_one())], alias="default", worker_id=1, now=moment)

    assert handle.refresh().status == "completed"
    assert (handle.counts.succeeded, handle.counts.open) == (3, 0)
    assert sorted(ran) == ["a", "b", "c", "then"]


def test_progress_is_called_at_most_once_a_second_and_at_the_end() -> None:
    """Many members that end together, or one soon after the other, make one call; the last one makes another."""
    handle = batch(say.s(at) for at in range(9)).progress(say.s("progress")).then(say.s("then")).enqueue()
    start = clock.now()

    for seconds in (0.0, 0.1, 0.9, 1.1, 1.2):
        found = [run(one) for one in claim(limit=2) if one.role == Role.MEMBER]
        settle(found, alias="default", worker_id=1, now=start + timedelta(seconds=seconds))

    callbacks = Task.objects.exclude(role=Role.MEMBER).order_by("pk")
    assert handle.refresh().status == "completed"
    assert [Role(row.role).name for row in callbacks] == ["PROGRESS", "PROGRESS", "PROGRESS", "THEN"]
