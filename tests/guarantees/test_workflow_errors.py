"""What is refused, and in which words: before the database is asked where possible, and without a trace."""

import uuid
from typing import Any

import pytest

from django_taskq import batch, chain, find_batch, find_chain, find_workflow, previous, replay, result_of, workflow
from django_taskq.compat import contracts
from django_taskq.domain.states import State
from django_taskq.exceptions import (
    InvalidOptions,
    InvalidPayload,
    InvalidTransition,
    InvalidWorkflow,
    PayloadTooLarge,
    WaitTimeout,
    WorkflowEnded,
    WorkflowNotFound,
)
from django_taskq.models import Dependency, Task, Workflow
from django_taskq.workflows import Composition
from tests.engine import drain
from tests.guarantees.flows import by_tag, claim_all, collect, refuse, say, settle
from tests.guarantees.tasks import ran, return_this

pytestmark = pytest.mark.django_db(transaction=True)

# Written like the engine's own words for references, options and gates.
HOSTILE: list[Any] = [
    {"$ref": "previous"},
    {"refs": [[["args", 0], str(uuid.UUID(int=1))]]},
    {"args": [1], "kwargs": {"refs": [[["args", 0], "x"]]}},
    {"gate": True, "later": {"delay": 3600.0}, "max_time": 0, "attempts": 0},
    {"__placeholder__": "previous", "name": None},
    {"name": "0", "_type": "Placeholder"},
    "previous",
    "result_of('a')",
    ["refs", [["args", 0]], None],
    {"unknown_since": 1.0, "keep_result": 0, "timeout": 0.001},
]


def nothing_is_stored() -> bool:
    return not (Workflow.objects.exists() or Task.objects.exists() or Dependency.objects.exists())


def test_an_empty_chain_or_graph_is_refused_also_inside() -> None:
    """S0-137: only a batch may be empty."""
    for made in (chain(), chain([]), workflow(), batch(say.s(1), chain()), chain(say.s(1), workflow())):
        with pytest.raises(InvalidWorkflow, match="only a batch may be empty"):
            made.enqueue()
    assert nothing_is_stored()
    assert batch().enqueue().status == "completed"


def test_what_is_no_task_is_no_member_and_no_callback() -> None:
    for wrong in (1, None, "name", b"name", {"a": 1}, lambda: None, object(), int, Composition):
        for make in (
            lambda wrong=wrong: chain(say.s(1), wrong),
            lambda wrong=wrong: batch(wrong),
            lambda wrong=wrong: workflow().add("a", wrong),
            lambda wrong=wrong: batch([say.s(1), wrong]),
        ):
            with pytest.raises(InvalidWorkflow, match="a member must be a signature"):
                make()
        for kind in ("then", "catch", "finally_", "progress"):
            with pytest.raises(InvalidWorkflow, match="a callback of"):
                getattr(batch(say.s(1)), kind)(wrong)
    with pytest.raises(InvalidWorkflow, match="a callback of then"):
        batch(say.s(1)).then(chain(say.s(2)))


def test_a_task_without_arguments_is_a_member_and_a_callback() -> None:
    assert len(chain(say, say.s(1))) == 2
    batch(say.s(1)).then(say)


def test_a_circle_is_spelled_out() -> None:
    made = (
        workflow()
        .add("a", say.s(1), after="c")
        .add("b", say.s(2), after=("a", "x"))
        .add("c", say.s(3), after="b")
        .add("x", say.s(4))
    )
    with pytest.raises(InvalidWorkflow, match="a → c → b → a"):
        made.enqueue()
    with pytest.raises(InvalidWorkflow, match="a → a"):
        workflow().add("a", say.s(1), after="a").enqueue()
    with pytest.raises(InvalidWorkflow, match="a → a"):
        chain(say.s(1), workflow().add("a", say.s(1), after="a")).enqueue()
    assert nothing_is_stored()


def test_a_name_that_leads_nowhere_or_twice_is_refused() -> None:
    with pytest.raises(InvalidWorkflow, match="'a' waits for 'b', which is not in the workflow"):
        workflow().add("a", say.s(1), after="b").enqueue()
    with pytest.raises(InvalidWorkflow, match="has a node 'a' already"):
        workflow().add("a", say.s(1)).add("a", say.s(2))
    for name in ("", "x" * 101, None, 1):
        with pytest.raises(InvalidWorkflow, match="a name of 1 to 100 characters"):
            workflow().add(name, say.s(1))
    with pytest.raises(InvalidWorkflow, match="up to 200 characters"):
        batch(say.s(1)).name("x" * 201)
    with pytest.raises(InvalidWorkflow, match="is for workflow"):
        batch(say.s(1)).add("a", say.s(2))


def test_a_result_is_to_be_had_only_of_what_comes_before() -> None:
    """Also where the other happens to be written down, or to run, earlier."""
    side = workflow().add("a", say.s(1)).add("b", say.s(result_of("a")))
    after = workflow().add("a", say.s(result_of("b"))).add("b", say.s(1), after="a")
    cousin = workflow().add("a", say.s(1)).add("b", say.s(2), after="a").add("c", say.s(result_of("b")), after="a")
    unknown = workflow().add("a", say.s(result_of("nobody")))
    itself = workflow().add("a", say.s(result_of("a")))
    sibling = batch(say.s(1), say.s(result_of("0")))
    outside = workflow().add("a", say.s(1)).add("b", chain(say.s(result_of("a"))), after="a")
    for made in (side, after, cousin, unknown, itself, sibling, outside):
        with pytest.raises(InvalidWorkflow, match="does not come after"):
            made.enqueue()
    assert nothing_is_stored()

    far = workflow().add("a", say.s(1)).add("b", say.s(2), after="a").add("c", say.s([result_of("a")]), after="b")
    far.then(say.s({"all": [result_of("b"), previous]})).enqueue()
    drain()
    assert ran == [1, 2, [1], {"all": [2, {"a": 1, "b": 2, "c": [1]}]}]


def test_previous_needs_exactly_one_before() -> None:
    two = workflow().add("a", say.s(1)).add("b", say.s(2)).add("c", say.s(previous), after=("a", "b"))
    for made in (chain(say.s(previous)), batch(say.s(1), say.s(previous)), workflow().add("a", say.s(previous)), two):
        with pytest.raises(InvalidWorkflow, match="not exactly one node comes before"):
            made.enqueue()
    assert nothing_is_stored()


def test_a_placeholder_outside_of_a_workflow_is_no_argument() -> None:
    with pytest.raises(InvalidPayload):
        say.enqueue(previous)
    with pytest.raises(InvalidPayload):
        chain(say.s(1), say.s({1: previous})).enqueue()
    assert nothing_is_stored()


def test_payloads_that_look_like_references_come_out_as_they_went_in() -> None:
    """Where a result goes is kept apart from the arguments, so nobody can forge it."""
    members = [return_this.s(value) for value in HOSTILE]
    handle = batch(members).then(collect.s(previous)).catch(say.s("never")).enqueue()
    passed = chain(return_this.s(HOSTILE), say.s([previous, {"refs": previous, "more": HOSTILE}])).enqueue()
    gate = workflow().wait_for("go").add("a", say.s(previous), after="go").enqueue()
    gate.signal("go", HOSTILE)

    drain()

    assert [handle.refresh().status, passed.refresh().status, gate.refresh().status] == ["completed"] * 3
    assert list(handle.results()) == HOSTILE
    assert len(ran) == 3
    assert HOSTILE in ran
    assert [HOSTILE, {"refs": HOSTILE, "more": HOSTILE}] in ran


def test_allowances_out_of_range_are_refused() -> None:
    for wrong in (-1, 1.01, -0.1, float("nan"), float("inf"), "1", None, [1], 1j):
        with pytest.raises(InvalidWorkflow, match="allow_failures must be"):
            batch(say.s(1)).allow_failures(wrong)
    for right in (True, False, 0, 100, 0.0, 1.0):
        batch(say.s(1)).allow_failures(right)


def test_an_option_that_cannot_be_is_refused_and_nothing_is_stored() -> None:
    for options in ({"cancel": None}, {"enqueue_timeout": 1}, {"enqueue_on_commit": True}, {"backend": "x"}):
        with pytest.raises(InvalidOptions, match="cannot be given to a workflow"):
            batch(say.s(1)).using(**options)
    with pytest.raises(contracts()[0].error("InvalidTask")):
        batch(say.s(1)).using(priority=1000).enqueue()
    with pytest.raises(TypeError, match="no_such"):
        batch(say.s(1)).using(no_such=1).enqueue()
    for member in (say.s(object()), say.s("x" * 10_000_000)):
        with pytest.raises(InvalidPayload if member.args != ("x" * 10_000_000,) else PayloadTooLarge):
            chain(say.s(1), member).enqueue()
    assert nothing_is_stored()


def test_what_is_not_there_is_not_found() -> None:
    """S0-89, S0-137: unknown, malformed, and of another kind."""
    handle = chain(say.s(1)).enqueue()
    graph = workflow().add("a", say.s(1)).enqueue()
    task = by_tag(1) if Task.objects.count() == 1 else Task.objects.first()
    assert task is not None
    for find in (find_workflow, find_chain, find_batch):
        for wrong in (str(uuid.uuid4()), "nonsense", "", None, 7, b"x", "\x00", task.pk, [], {}):
            with pytest.raises(WorkflowNotFound):
                find(wrong)
    with pytest.raises(WorkflowNotFound, match="no batch has the id"):
        find_batch(handle.id)
    with pytest.raises(WorkflowNotFound, match="no chain has the id"):
        find_chain(graph.id)
    assert find_workflow(graph.id).kind == "workflow"
    assert find_chain(uuid.UUID(handle.id)).id == handle.id
    Workflow.objects.all().delete()
    with pytest.raises(WorkflowNotFound):
        handle.refresh()
    with pytest.raises(WorkflowNotFound):
        handle.wait(0)


def test_nothing_is_added_to_what_has_ended_or_is_no_batch() -> None:
    ended = batch(say.s(1)).enqueue()
    drain()
    with pytest.raises(WorkflowEnded, match="has ended"):
        ended.add(say.s(2))
    running = batch(say.s("a"), say.s("b")).enqueue()
    claim_all()
    running.cancel()
    with pytest.raises(WorkflowEnded, match="is being cancelled"):
        running.add(say.s(2))
    with pytest.raises(InvalidWorkflow, match="is no batch"):
        chain(say.s(1)).enqueue().add(say.s(2))
    for wrong in (1, None, "x"):
        with pytest.raises(InvalidWorkflow, match="a member must be"):
            running.add(wrong)
    with pytest.raises(InvalidWorkflow, match="only a batch may be empty"):
        batch(say.s(1)).enqueue().add(chain())


def test_what_runs_or_completed_is_not_replayed() -> None:
    handle = chain(say.s("a"), refuse.s("b")).enqueue()
    with pytest.raises(InvalidTransition, match=r"a running workflow cannot be replayed.*wait for its end"):
        handle.replay()
    with pytest.raises(InvalidTransition, match="a running workflow cannot be replayed"):
        handle.replay(from_start=True)
    drain()
    assert handle.replay() == 1
    settle(claim_all()["b"])
    with pytest.raises(InvalidTransition, match=r"a completed workflow cannot be replayed.*from_start=True"):
        handle.replay()
    assert handle.replay(from_start=True) == 2


def test_what_was_cut_off_is_not_replayed_alone() -> None:
    chain(refuse.s("a"), say.s("b")).enqueue()
    drain()
    skipped = replay([by_tag("b").pk]).skipped
    assert "what it waited for did not succeed" in skipped[0][1]


def test_a_signal_that_nobody_waits_for_is_refused() -> None:
    made = workflow().wait_for("go").add("a", say.s("a"), after="go").add("inner", chain(say.s("b"))).wait_for("late")
    handle = made.enqueue()
    for name in ("nobody", "a", "inner"):
        with pytest.raises(InvalidWorkflow, match=f"waits for no signal '{name}'"):
            handle.signal(name)
    with pytest.raises(InvalidPayload):
        handle.signal("go", object())
    assert handle.signal("go", 1)
    drain()
    for name in ("a", "inner"):
        with pytest.raises(InvalidWorkflow, match=f"waits for no signal '{name}'"):
            handle.signal(name)
    assert handle.signal("go", 2) is False
    handle.cancel()
    with pytest.raises(WorkflowEnded, match="came too late"):
        handle.signal("late")
    assert ran[0] == "b" or "a" in ran
    Workflow.objects.all().delete()
    with pytest.raises(InvalidWorkflow, match="waits for no signal"):
        handle.signal("go")


def test_a_wait_that_is_too_long_says_so() -> None:
    handle = chain(say.s("a")).enqueue()
    with pytest.raises(WaitTimeout, match=rf"chain {handle.id} had not ended after 0\.01 seconds"):
        handle.wait(0.01)
    drain()
    assert handle.wait(1).status == "completed"
    assert by_tag("a").state == State.SUCCEEDED
