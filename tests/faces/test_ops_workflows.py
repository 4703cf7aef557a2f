"""Why a member, a callback or a workflow waits, in one sentence."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_taskq import batch, chain, workflow
from django_taskq.models import FinishedTask, Task, Workflow
from django_taskq.ops.explain import explain, explain_workflow
from tests.faces import flows
from tests.faces.flows import say

pytestmark = pytest.mark.django_db

NAME = "tests.app.tasks.leave_effect"


def why_last(handle) -> str:
    return explain("default", Task.objects.filter(workflow_id=handle.id).order_by("pk").last())


def why(handle) -> str:
    return explain_workflow("default", Workflow.objects.get(pk=handle.id))


def test_a_member_of_a_chain_names_what_it_waits_for() -> None:
    handle = chain(say.s("a"), say.s("b")).enqueue()

    assert why_last(handle) == f"It waits for {NAME} (ready)."


def test_a_member_behind_many_names_some() -> None:
    made = workflow("join")
    for number in range(6):
        made = made.add(f"n{number}", say.s(str(number)))
    handle = made.add("join", say.s("x"), after=[f"n{number}" for number in range(6)]).enqueue()

    assert why_last(handle) == f"It waits for {NAME} (ready), {NAME} (ready), {NAME} (ready) and 3 more."


def test_a_member_inside_says_what_the_workflow_around_it_waits_for() -> None:
    handle = flows.nested()
    inner = Workflow.objects.get(parent_id=handle.id)
    task = Task.objects.filter(workflow_id=inner.pk)[0]

    sentence = f"The turn of batch middle (waiting) has not come: it waits for {NAME} (ready)."
    assert explain("default", task) == sentence
    assert explain_workflow("default", inner) == sentence


def test_a_member_deep_inside_finds_the_reason_further_out() -> None:
    chain(say.s("a"), chain(batch(say.s("b")), say.s("c"))).enqueue()
    task = Task.objects.order_by("pk")[1]

    with CaptureQueriesContext(connection) as queries:
        sentence = explain("default", task)

    assert "The turn of chain (waiting) has not come" in sentence
    assert f"it waits for {NAME} (ready)" in sentence
    assert len(queries) <= 9


def test_a_gate_names_its_signal_and_what_comes_before_it() -> None:
    handle = workflow().add("a", say.s("a")).wait_for("paid", after="a").enqueue()

    assert why_last(handle) == f"It waits for {NAME} (ready). It waits for the signal “paid”."
    handle.signal("paid", 1)
    assert why_last(handle) == f"It waits for {NAME} (ready)."


def test_what_is_called_finally_names_what_was_called_before() -> None:
    flows.failed()

    sentence = explain("default", Task.objects.get(role=4))

    assert sentence.endswith(f"it waits until what was called before it has ended: {NAME} (ready).")


def test_a_member_that_was_cut_off_says_so() -> None:
    flows.failed()

    sentence = explain("default", FinishedTask.objects.filter(reason="upstream")[0])

    assert "since what it waited for did not succeed" in sentence


def test_a_workflow_says_how_it_stands() -> None:
    running, ended = flows.nested(), flows.failed()
    allowed = batch(say.s("a"), say.s("b")).allow_failures(1).enqueue()
    flows.kill_first(allowed)

    assert why(running) == "3 of its 3 members have not ended."
    assert why(allowed) == "1 of its 2 members has not ended. 1 member is dead; it allows 1."
    assert why(ended).endswith("1 member is dead, and it allows 0. Replay what failed to go on.")
    assert why(batch().enqueue()).startswith("It completed")
    running.cancel()
    assert why(running).startswith("It was cancelled")
