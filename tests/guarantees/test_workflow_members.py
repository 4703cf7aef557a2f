"""Members are tasks: their retries, delays, priorities, queues and limits of time hold inside workflows, too."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction
from django.test import override_settings

from django_taskq import Fixed, batch, chain, find_workflow, previous, result_of, task, workflow
from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Task, Workflow
from tests.engine import claim, db_now, drain, in_a_loop, row_of, run, state_of, write
from tests.guarantees.flows import assert_all_ended, by_tag, claim_all, refuse, say, settle, state_by_tag, tag
from tests.guarantees.tasks import fail_until, ran

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


@task(priority=7, queue_name="slow", max_attempts=9, expires=3600, max_time=7200)
def with_options(value: Any) -> Any:
    """Be defined with everything."""
    ran.append(value)
    return value


def away(moment: datetime | None) -> float:
    """Return in how many seconds a moment is."""
    assert moment is not None
    return (moment - db_now()).total_seconds()


def is_about(moment: datetime | None, seconds: float) -> bool:
    return abs(away(moment) - seconds) < 60


def test_a_member_is_retried_and_its_follower_waits_for_the_success() -> None:
    handle = chain(fail_until.using(max_attempts=3).s(3, "a"), say.s(previous)).enqueue()

    drain()

    assert ran == [("a", 1), ("a", 2), ("a", 3), 3]
    assert handle.refresh().status == "completed"
    assert handle.counts.failed == 0
    assert_all_ended()


def test_a_member_that_waits_for_its_retry_holds_its_workflow_open() -> None:
    handle = chain(fail_until.using(max_attempts=2, backoff=Fixed(3600)).s(2, "a"), say.s("b")).enqueue()

    drain()

    assert state_by_tag() == {2: "scheduled", "b": "waiting"}
    assert handle.refresh().status == "running"


def test_a_delay_counts_from_the_turn_of_a_member() -> None:
    handle = chain(say.s("a"), say.s("b").using(delay=3600), say.using(run_after=HOUR).s("c")).enqueue()
    assert state_by_tag() == {"a": "ready", "b": "waiting", "c": "waiting"}
    Workflow.objects.filter(pk=handle.id).update(created_at=db_now() - 5 * HOUR)

    drain()

    row = by_tag("b")
    assert row.state == State.SCHEDULED
    assert is_about(row.run_after, 3600)
    Task.objects.filter(pk=row.pk).update(run_after=db_now())
    drain()
    assert by_tag("c").state == State.SCHEDULED
    assert is_about(by_tag("c").run_after, 3600)


def test_a_moment_is_kept_until_the_turn_of_a_member_and_after() -> None:
    later, past = db_now() + HOUR, db_now() - HOUR
    chain(say.s("a"), batch(say.using(run_after=later).s("b"), say.using(run_after=past).s("c"))).enqueue()

    settle(claim_all()["a"])

    assert state_by_tag() == {"a": "succeeded", "b": "scheduled", "c": "ready"}
    assert is_about(by_tag("b").run_after, 3600)


def test_spans_of_a_member_count_from_its_turn_or_from_its_moment_after_that() -> None:
    """A budget and an expiry that began with the enqueue would be over before a long chain comes to it."""
    later = db_now() + 10 * HOUR
    chain(
        say.s("a"),
        batch(
            say.using(max_time=60, expires=30).s("now"),
            say.using(max_time=60, expires=30).s("delayed").using(delay=3600),
            say.using(max_time=60, expires=30, run_after=later).s("moment"),
        ),
    ).enqueue()
    for name in ("now", "delayed", "moment"):
        row = by_tag(name)
        assert (row.deadline_at, row.expires_at) == (None, None)

    settle(claim_all()["a"])

    for name, start in (("now", 0), ("delayed", 3600), ("moment", 36000)):
        row = by_tag(name)
        assert is_about(row.deadline_at, start + 60), name
        assert is_about(row.expires_at, start + 30), name


def test_a_moment_of_expiry_is_the_same_wherever_a_member_stands() -> None:
    handle = chain(say.s("a"), say.using(expires=db_now() - HOUR).s("b"), say.s("c")).catch(say.s("catch")).enqueue()

    drain()

    row = by_tag("b")
    assert isinstance(row, FinishedTask)
    assert row.reason == "expired"
    assert ran == ["a", "catch"]
    assert handle.refresh().status == "failed"


def test_callbacks_have_options_of_their_own() -> None:
    later = db_now() + HOUR
    made = batch(say.s("a")).on_queue("members")
    made = made.then(with_options.using(expires=30).s("t1"), say.using(run_after=later).s("t2"))
    made = made.then(say.s("t3").using(delay=60)).finally_(say.using(run_after=later, max_time=60).s("f"))
    made.then(say.using(expires=later).s("t4")).enqueue()

    settle(claim(queues="members")[0])

    first, second, third, fourth, last = (by_tag(name) for name in ("t1", "t2", "t3", "t4", "f"))
    assert (first.queue, first.rank, first.max_attempts) == ("slow", -7, 9)
    assert is_about(first.expires_at, 30)
    assert is_about(first.deadline_at, 7200)
    assert (second.queue, second.state) == ("default", State.SCHEDULED)
    assert is_about(second.run_after, 3600)
    assert is_about(third.run_after, 60)
    assert is_about(fourth.expires_at, 3600)
    assert last.state == State.WAITING
    for row in (first, second, third, fourth):
        Task.objects.filter(pk=row.pk).update(state=State.READY, run_after=db_now())
    for claimed in claim(queues="default,slow", limit=10):
        settle(claimed)
    last = by_tag("f")
    assert last.state == State.SCHEDULED
    assert is_about(last.run_after, 3600)
    assert is_about(last.deadline_at, 3660)


def test_members_keep_what_their_definitions_say() -> None:
    chain(with_options.s("a"), with_options.using(priority=-3).s("b")).enqueue()

    first, second = by_tag("a"), by_tag("b")
    assert (first.queue, first.rank, first.max_attempts) == ("slow", -7, 9)
    assert is_about(first.deadline_at, 7200)
    assert is_about(first.expires_at, 3600)
    assert (second.queue, second.rank, second.deadline_at) == ("slow", 3, None)


def test_options_of_a_workflow_are_those_of_all_its_members() -> None:
    """The outer ones win, as they are what the caller says last; callbacks stay as they are."""
    inner = chain(with_options.s("a"), say.s("b")).on_queue("inner").using(priority=1, max_attempts=2)
    batch(inner, say.s("c")).on_queue("outer").then(say.s("then")).enqueue()

    rows = {tag(row): row for row in Task.objects.all()}
    assert {row.queue for row in rows.values()} == {"outer"}
    assert (rows["a"].rank, rows["b"].rank, rows["c"].rank) == (-1, -1, 0)
    assert (rows["a"].max_attempts, rows["b"].max_attempts) == (2, 2)
    drain(queues="outer")
    assert by_tag("then").queue == "default"


def test_a_start_is_put_off_for_those_that_wait_for_nobody() -> None:
    batch(chain(say.s("a"), say.s("b")), say.s("c")).using(delay=3600).enqueue()
    batch(chain(say.s("d"), say.s("e")), say.s("f")).using(run_after=db_now() + HOUR).enqueue()
    graph = workflow().add("g", say.s("g")).add("h", say.s("h"), after="g").using(run_after=HOUR)
    graph.enqueue()

    assert {name: state for name, state in state_by_tag().items() if state != "scheduled"} == {
        "b": "waiting",
        "e": "waiting",
        "h": "waiting",
    }
    assert all(is_about(row.run_after, 3600) for row in Task.objects.filter(state=State.SCHEDULED))
    Task.objects.filter(state=State.SCHEDULED).update(run_after=db_now())
    drain()
    assert sorted(ran) == list("abcdefgh")
    assert_all_ended()


def test_a_late_start_inside_counts_from_its_turn() -> None:
    chain(say.s("a"), batch(say.s("b"), say.s("c")).using(delay=3600)).enqueue()

    drain()

    assert state_by_tag() == {"a": "succeeded", "b": "scheduled", "c": "scheduled"}
    assert is_about(by_tag("b").run_after, 3600)


def test_members_run_by_their_priority() -> None:
    batch(say.using(priority=at).s(at) for at in (0, 5, -5, 10)).enqueue()

    drain()

    assert ran == [10, 5, 0, -5]


def test_members_of_several_queues_make_one_chain() -> None:
    handle = chain(say.using(queue_name="one").s("a"), say.using(queue_name="two").s("b"), say.s("c")).enqueue()
    drain(queues="one")
    assert ran == ["a"]
    drain(queues="default")
    assert ran == ["a"]

    drain(queues="default,two")

    assert ran == ["a", "b", "c"]
    assert handle.refresh().status == "completed"


def test_a_workflow_exists_if_and_only_if_its_callers_transaction_commits() -> None:
    with transaction.atomic():
        handle = chain(say.s("a")).enqueue()
        assert find_workflow(handle.id).status == "running"
        transaction.set_rollback(True)
    assert not Workflow.objects.exists()
    assert not Task.objects.exists()

    with transaction.atomic():
        kept = chain(say.s("a"), batch(say.s("b"))).enqueue()
    drain()
    assert kept.refresh().status == "completed"


def test_with_enqueue_on_commit_a_workflow_is_stored_after_the_commit() -> None:
    options = {"ENQUEUE_ON_COMMIT": True}
    with override_settings(TASKQ=options):
        with transaction.atomic():
            chain(say.s("never")).enqueue()
            transaction.set_rollback(True)
        with transaction.atomic():
            handle = batch(say.s("a"), batch()).then(say.s("then")).enqueue()
            empty = batch().then(say.s("empty")).enqueue()
            assert not Workflow.objects.exists()
        assert Workflow.objects.count() == 3
        assert empty.refresh().status == "completed"
        at_once = chain(say.s("b")).enqueue()
        assert at_once.refresh().status == "running"

    drain()

    assert sorted(ran) == ["a", "b", "empty", "then"]
    assert handle.refresh().status == "completed"


def test_a_workflow_can_be_stored_from_a_coroutine() -> None:
    handle = in_a_loop(chain(say.s("a"), say.s(previous)).aenqueue())

    drain()

    assert ran == ["a", "a"]
    assert handle.refresh().status == "completed"


def test_results_of_members_outlive_their_own_retention_until_the_workflow_goes() -> None:
    """Others may wait for them: also where a task keeps none, or keeps it for a moment."""
    from django_taskq.store.vendors import vendor_for

    first = say.using(keep_result=0).s("a")
    handle = chain(first, say.s("b"), workflow().wait_for("go")).enqueue()
    drain()
    later = db_now() + 10 * HOUR
    vendor_for("default").prune_marked(later, 100)
    vendor_for("default").prune(State.SUCCEEDED, before=later, limit=100)

    assert [row_of(row) is not None for row in handle.tasks()] == [True, True]
    assert [state_of(row) for row in handle.tasks()] == ["succeeded", "succeeded"]
    assert list(handle.results()) == ["a", "b"]


def test_a_catch_callback_sees_the_results_there_are() -> None:
    """It is called while others run: what has not ended is None, or not in the list of a batch."""
    graph = (
        workflow().add("a", say.s("a")).add("b", refuse.s("b")).wait_for("go").add("in", chain(say.s("c"), say.s("d")))
    )
    graph.catch(say.s(previous), say.s([result_of("go")])).enqueue()
    batch(say.s("e"), refuse.s("f"), workflow().wait_for("go"), chain(say.s("g"))).catch(say.s(previous)).enqueue()
    found = claim_all()
    for name in "aefb":
        write([run(found[name])])

    drain()

    assert ran == ["a", "e", ["e", None], {"a": "a", "b": None, "go": None, "in": None}, [None]]
