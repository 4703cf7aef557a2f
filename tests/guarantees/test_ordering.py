"""Ordering: what is promised, and as plainly what is not."""

from collections import Counter
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command

from django_taskq import Fixed
from django_taskq.lifecycle.claim import Claimer, parse_queues
from django_taskq.models import FinishedTask, Queue
from tests import engine
from tests.engine import announce, claim, db_now, drain, ready_task, run_burst, running_worker, state_of, wait_for
from tests.guarantees.tasks import fail_until, gates, note, pause_deaf, ran

pytestmark = pytest.mark.django_db(transaction=True)


def test_one_slot_and_no_retry_means_first_in_first_out() -> None:
    """S0-64, S0-65: within one queue and one priority."""
    for at in range(40):
        note.enqueue(at)

    run_burst(threads=1)

    assert ran == list(range(40))


def test_enqueue_many_keeps_the_order_of_its_calls() -> None:
    """S0-65: ids ascend within a batch."""
    note.enqueue_many([(at,) for at in range(200)])

    run_burst(threads=1)

    assert ran == list(range(200))


def test_several_slots_promise_completeness_not_order() -> None:
    """S0-66: best effort under contention."""
    note.enqueue_many([(at,) for at in range(200)])

    with running_worker(threads=4), running_worker(threads=4):
        wait_for(lambda: FinishedTask.objects.count() == 200, 30)

    assert sorted(ran) == list(range(200))


def test_a_slow_task_is_overtaken_where_there_are_two_slots() -> None:
    """S0-69, non-guarantee: tasks start in order, and end as they like."""
    with running_worker(threads=2):
        slow = pause_deaf.enqueue("slow")
        assert gates["slow runs"].wait(10)
        quick = note.enqueue("quick")
        wait_for(lambda: state_of(quick) == "succeeded")
        slow_was = state_of(slow)
        gates["slow"].set()
        wait_for(lambda: state_of(slow) == "succeeded")

    assert slow_was == "running"


def test_higher_priority_runs_first() -> None:
    """S1-22: whatever was enqueued before."""
    for priority in (0, -100, 50, 100, 0):
        note.using(priority=priority).enqueue(priority)

    run_burst(threads=1)

    assert ran == [100, 50, 0, 0, -100]


def test_priority_does_not_cross_queues() -> None:
    """S0-63, non-guarantee: a worker's order of queues comes before the priority of their tasks."""
    note.using(queue_name="second", priority=100).enqueue("urgent, elsewhere")
    note.using(queue_name="first", priority=-100).enqueue("idle, here")

    run_burst(threads=1, queues="first,second")

    assert ran == ["idle, here", "urgent, elsewhere"]


def test_queues_are_served_in_the_order_of_the_list() -> None:
    """S4-100: the first is emptied before the second."""
    for at in range(5):
        note.using(queue_name="second").enqueue(f"second {at}")
    for at in range(5):
        note.using(queue_name="first").enqueue(f"first {at}")

    run_burst(threads=1, queues="first,second")

    assert [key.split()[0] for key in ran] == ["first"] * 5 + ["second"] * 5


def test_without_a_list_queues_are_served_by_their_position() -> None:
    """S4-100: as the operator ordered them."""
    Queue.objects.create(name="a", position=2)
    Queue.objects.create(name="b", position=1)
    for name in ("a", "b"):
        note.using(queue_name=name).enqueue(name)

    run_burst(threads=1, queues="")

    assert ran == ["b", "a"]


def test_weights_share_the_claims() -> None:
    """S4-100: three to one, over 200 claims; only where the first turn begins is drawn at random."""
    for queue in ("heavy", "light"):
        note.using(queue_name=queue).enqueue_many([(at,) for at in range(200)])
    claimer = Claimer(engine.ALIAS, announce(), parse_queues("heavy:3,light:1"))

    found = Counter(claimer.claim(1, now=db_now())[0].queue for _ in range(200))

    assert 150 - 2 <= found["heavy"] <= 150 + 2


def test_a_queue_with_weight_still_gets_all_when_the_others_are_empty() -> None:
    """S4-100: weights share what there is, and idle nobody."""
    for _ in range(10):
        ready_task(queue="light")
    claimer = Claimer(engine.ALIAS, announce(), parse_queues("heavy:9,light:1"))

    assert len(claimer.claim(10, now=db_now())) == 10


def test_a_delayed_task_is_overtaken_and_keeps_its_time() -> None:
    """S0-68, S0-52: immediate ones go first; delayed ones among themselves by the time they are due."""
    with running_worker(threads=1):
        note.using(delay=2.4).enqueue("later")
        note.using(delay=0.4).enqueue("soon")
        note.enqueue("now")
        wait_for(lambda: len(ran) == 3, 20)

    assert ran == ["now", "soon", "later"]


def test_tasks_that_were_due_while_nobody_worked_run_in_the_order_of_their_ids() -> None:
    """S0-68, non-guarantee: once ready, the time a task was due says nothing any more."""
    first = note.using(run_after=db_now() + timedelta(seconds=0.4)).enqueue("stored first, due second")
    second = note.using(run_after=db_now() + timedelta(seconds=0.2)).enqueue("stored second, due first")
    wait_for(lambda: db_now() > first.task.run_after)

    drain()

    assert ran == ["stored first, due second", "stored second, due first"]
    assert state_of(second) == "succeeded"


def test_a_retry_may_come_after_what_was_enqueued_later() -> None:
    """S0-67, non-guarantee: injected retries reorder."""
    fail_until.using(backoff=Fixed(0.3)).enqueue(2, "first")
    note.enqueue("second")

    with running_worker(threads=1):
        wait_for(lambda: len(ran) == 3)

    assert ran == [("first", 1), "second", ("first", 2)]


def test_a_steady_stream_of_urgent_tasks_starves_the_others() -> None:
    """S1-22, non-guarantee: unless the queue has ageing; or use queues with weights for a share."""
    low = ready_task(rank=10)
    for _ in range(30):
        ready_task(rank=-10)
        [taken] = claim()
        assert taken.rank == -10

    for _ in range(30):
        ready_task(rank=-10)
    claim(limit=30)
    assert state_of(low) == "ready"


@pytest.mark.slow
def test_a_worker_wakes_up_for_delayed_tasks_however_seldom_it_polls() -> None:
    """S1-08, S3-35: each starts at its time, not a poll later, and never before."""
    with running_worker(poll=timedelta(seconds=60)):
        note.enqueue("awake")
        wait_for(lambda: ran == ["awake"])
        delayed = [note.using(delay=0.4 + 0.37 * at).enqueue(at) for at in range(6)]
        wait_for(lambda: {state_of(task) for task in delayed} == {"succeeded"}, 20)

    rows = FinishedTask.objects.filter(pk__in=[task.id for task in delayed])
    due = {task.id: task.task.run_after for task in delayed}
    late = sorted((row.started_at - due[str(row.pk)]).total_seconds() for row in rows)
    assert late[0] >= 0
    assert late[len(late) // 2] < 1, late
    assert ran == ["awake", *range(6)]


def test_a_queue_that_a_worker_names_is_known_before_its_first_task() -> None:
    """S4-100, S0-98: so that operators can arrange, pause and limit it; a name that no queue can have is none."""
    with running_worker(queues=f"urgent:6,default,{'x' * 65}"):
        wait_for(lambda: set(Queue.objects.values_list("name", flat=True)) == {"urgent", "default"})
        call_command("taskq", "arrange", "urgent", "--weight", "6", verbosity=0, stdout=StringIO())

    assert Queue.objects.get(name="urgent").weight == 6
