"""The one sentence that says why a task runs, does not run, or is over."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_taskq import clock
from django_taskq.domain.lease import make_lease
from django_taskq.domain.states import DeadReason, State
from django_taskq.lifecycle import control
from django_taskq.models import Duty, Worker
from django_taskq.ops import snapshot
from django_taskq.ops.explain import duration, explain
from tests.faces.rows import dead_task, finished_task, live_task, registered, worker

pytestmark = pytest.mark.django_db


def test_a_ready_task_of_a_paused_queue_names_who_paused_it_and_why() -> None:
    registered("default")
    worker()
    control.pause("default", actor="ana", reason="provider outage")

    why = explain("default", live_task())

    assert "paused by ana" in why
    assert "provider outage" in why


def test_a_ready_task_without_any_worker_says_so() -> None:
    registered("default")
    worker(beat_at=clock.now() - timedelta(hours=1))

    assert explain("default", live_task()) == "No worker is alive."


@pytest.mark.parametrize(
    ("queues", "is_served"),
    [("", True), ("default", True), ("email:3,default:1", True), ("email", False), ("default2", False)],
)
def test_a_ready_task_knows_whether_a_worker_serves_its_queue(queues: str, is_served: bool) -> None:
    registered("default")
    worker(queues=queues)

    assert ("does not serve" not in explain("default", live_task())) is is_served


def test_a_stopping_worker_serves_no_queue() -> None:
    assert not snapshot.listens_to(worker(state=Worker.State.STOPPING), "default")


def test_a_ready_task_that_no_worker_announced_says_so() -> None:
    registered("default")
    worker()

    assert "announced a task called “shop.new”" in explain("default", live_task(name="shop.new"))


def test_a_ready_task_says_how_many_come_first() -> None:
    registered("default")
    worker()
    row = live_task()
    live_task(rank=-1)
    live_task(rank=1)
    live_task(queue="other", rank=-1)

    assert explain("default", row) == "It is ready; 1 task of its queue comes first."


def test_a_ready_task_with_a_fair_key_says_how_many_of_its_key_come_first() -> None:
    registered("default")
    worker()
    live_task(fair_key="b", rank=-1)
    row = live_task(fair_key="a")
    live_task(fair_key="a", rank=-1)

    told = "It is ready; 1 task of its fair key comes first, and the keys take turns."
    assert explain("default", row) == told


def test_the_first_of_its_queue_only_waits_for_a_slot() -> None:
    registered("default")
    worker()

    assert "the next of its queue" in explain("default", live_task())


def test_a_task_that_expired_before_it_started_says_what_will_happen() -> None:
    row = live_task(expires_at=clock.now() - timedelta(minutes=5))

    assert explain("default", row).startswith("It expired 5 min ago and dies")


def test_a_scheduled_task_says_when_it_may_start_and_what_would_hold_it_then() -> None:
    now = clock.now()
    why = explain("default", live_task(State.SCHEDULED, run_after=now + timedelta(seconds=90)), now=now)

    assert why == "Its time has not come: it may start in 1 min 30 s. No worker is alive."


def test_a_task_between_attempts_says_which_one_failed() -> None:
    now = clock.now()
    row = live_task(State.SCHEDULED, attempt=2, max_attempts=5, run_after=now + timedelta(seconds=40))

    assert explain("default", row, now=now).startswith("Attempt 2 of 5 did not succeed; the next may start in 40 s.")


@pytest.mark.parametrize("is_led", [True, False])
def test_a_task_that_is_overdue_says_whether_anybody_makes_it_ready(is_led: bool) -> None:
    now = clock.now()
    registered("default")
    worker()
    Duty.objects.create(name="lead", worker_id=1, until=now + timedelta(seconds=10 if is_led else -10))

    why = explain("default", live_task(State.SCHEDULED, run_after=now - timedelta(minutes=3)), now=now)

    assert why.startswith("It has been due for 3 min.")
    assert ("No worker does the upkeep" not in why) is is_led


@pytest.mark.parametrize("facts", [{"state": Worker.State.DEAD}, None])
def test_a_task_whose_worker_is_gone_waits_for_its_rescue(facts) -> None:
    worker_id = 99 if facts is None else worker(**facts).pk

    assert "Its worker is gone" in explain("default", live_task(State.RUNNING, lease=make_lease(worker_id, 1)))


def test_a_running_task_that_was_asked_to_stop_says_so() -> None:
    row = live_task(State.RUNNING, lease=make_lease(worker().pk, 1), cancel=True)

    assert "was asked to stop" in explain("default", row)


@pytest.mark.parametrize("reason", DeadReason)
def test_each_way_to_die_has_a_sentence(reason: DeadReason) -> None:
    now = clock.now()
    why = explain("default", dead_task(reason=reason, finished_at=now - timedelta(hours=2)), now=now)

    assert why.startswith("It died 2 h ago: ")
    assert why.endswith("It runs again only if somebody replays it.")
    assert "no reason was recorded" not in why


def test_a_discarded_task_says_so() -> None:
    assert "It was discarded" in explain("default", dead_task(resolved_at=clock.now()))


@pytest.mark.parametrize(("state", "start"), [(State.SUCCEEDED, "It succeeded"), (State.CANCELLED, "It was cancelled")])
def test_other_ends_have_a_sentence(state: State, start: str) -> None:
    assert explain("default", finished_task(state)).startswith(start)


@pytest.mark.parametrize("state", [State.WAITING, State.PARKED])
def test_what_waits_for_others_has_a_sentence(state: State) -> None:
    assert explain("default", live_task(state)).startswith("It waits until")


def test_an_explanation_needs_few_queries_whatever_waits() -> None:
    registered("default")
    for _ in range(5):
        worker()
        live_task()
    row = live_task()

    with CaptureQueriesContext(connection) as queries:
        explain("default", row)

    assert len(queries) <= 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0.0 s"), (0.44, "0.4 s"), (9.99, "10.0 s"), (72, "1 min 12 s"), (3600, "1 h"), (273_600, "3 d 4 h")],
)
def test_a_span_reads_as_people_write_it(seconds: float, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text
