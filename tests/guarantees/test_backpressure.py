"""Back-pressure: a queue with a bound refuses, waits or drops; nothing accepted is lost, and a full queue drains."""

import pickle
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

import django_taskq
from django_taskq import EnqueueCancelled, EnqueueRefused, Fixed, QueueFull, ResultNotReady, chain, events
from django_taskq.domain.states import State
from django_taskq.lifecycle import admission
from django_taskq.models import FinishedTask, Task
from tests import engine
from tests.engine import ALIAS, claim_one, db_now, drain, in_threads, ready_task, running_worker, state_of, wait_for
from tests.guarantees.tasks import fail_slowly, note, ran, return_this

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def dropped() -> Iterator[list[events.EnqueueDropped]]:
    """Collect what is told of drops."""
    found: list[events.EnqueueDropped] = []
    events.subscribe(events.EnqueueDropped, found.append)
    yield found
    events.unsubscribe(events.EnqueueDropped, found.append)


def bounded(bound: int, policy: str = "raise", **more: Any) -> Any:
    """Give the default queue a bound for a block."""
    return override_settings(TASKQ={"QUEUES": {"default": {"MAX_READY": bound, "FULL_POLICY": policy}}, **more})


def fill(count: int) -> None:
    Task.objects.bulk_create(Task(name=note.module_path, queue="default", created_at=db_now()) for _ in range(count))


# Refusing


def test_a_full_queue_refuses_and_says_how_full_it_is() -> None:
    """S0-105: raising is the default; the caller can carry on."""
    with bounded(3):
        for at in range(3):
            note.enqueue(at)
        with pytest.raises(QueueFull, match="MAX_READY allows 3") as caught:
            note.enqueue("too much")
        note.using(queue_name="mail").enqueue("elsewhere")

    assert isinstance(caught.value, EnqueueRefused)
    assert (caught.value.queue, caught.value.depth, caught.value.bound, caught.value.count) == ("default", 3, 3, 1)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.depth) == (str(caught.value), 3)
    assert Task.objects.count() == 4


def test_many_at_once_are_stored_all_or_none() -> None:
    """S0-105: also where some would fit."""
    with bounded(10):
        note.enqueue_many([(at,) for at in range(8)])
        with pytest.raises(QueueFull) as caught:
            note.enqueue_many([(at,) for at in range(3)])
        assert Task.objects.count() == 8
        note.enqueue_many([(at,) for at in range(2)])

    assert caught.value.count == 3
    assert Task.objects.count() == 10


def test_what_counts_is_what_could_run_now() -> None:
    """S0-105: ready tasks and due ones; not what runs, waits, has ended, or is for later."""
    with bounded(2):
        ready_task(note, state=State.SCHEDULED, run_after=db_now() - timedelta(seconds=1))
        ready_task(note, state=State.SCHEDULED, run_after=db_now() + timedelta(hours=1))
        ready_task(note, state=State.WAITING)
        ready_task(note, queue="mail")
        ready_task(note, state=State.RUNNING, lease=1)
        note.enqueue()
        with pytest.raises(QueueFull):
            note.enqueue()
        note.using(delay=60).enqueue()

    assert Task.objects.count() == 7


def test_a_queue_takes_tasks_again_when_there_is_room() -> None:
    """S0-109: at once; a refusal is never remembered for longer than 20 ms."""
    with bounded(2):
        note.enqueue_many([(1,), (2,)])
        with pytest.raises(QueueFull):
            note.enqueue(3)
        engine.run_and_settle(claim_one())
        time.sleep(0.03)

        note.enqueue(3)


def test_accepted_work_is_never_refused() -> None:
    """S0-105: retries, members of workflows and replays are stored in a full queue."""
    with bounded(2):
        dead = fail_slowly.using(max_attempts=1).enqueue()
        drain()
        retried = fail_slowly.using(backoff=Fixed(0), max_attempts=2).enqueue()
        claimed = claim_one()
        fill(2)

        engine.run_and_settle(claimed)
        django_taskq.replay(dead.id)
        chain(note.s(1), note.s(2)).enqueue()

    assert state_of(retried) == state_of(dead) == "ready"
    assert Task.objects.count() == 6


def test_a_refused_task_stays_out_of_the_callers_transaction_which_goes_on() -> None:
    """S0-105: nothing was sent to the database but the question."""
    with bounded(1), transaction.atomic():
        note.enqueue("first")
        with pytest.raises(QueueFull):
            note.enqueue("second")
        note.using(queue_name="mail").enqueue("third")

    assert Task.objects.count() == 2


def test_a_queue_without_a_bound_is_never_counted() -> None:
    """No cost where there is no bound, and few questions where there is one."""
    note.enqueue()
    with CaptureQueriesContext(connection) as plain:
        note.enqueue()
    with bounded(10_000):
        note.enqueue()
        began = time.monotonic()
        with CaptureQueriesContext(connection) as counted:
            for _ in range(50):
                note.enqueue()
        looks = (time.monotonic() - began) / admission.LOOK_SECONDS

    counts = [query["sql"] for query in (*plain, *counted) if "COUNT(" in query["sql"].upper()]
    assert len(plain) <= 4
    assert len(counts) <= 1 + looks


def test_a_transaction_is_judged_by_what_it_sees_itself() -> None:
    """S0-109: what filled the queue may have been rolled back a moment ago."""
    with bounded(1):
        for _ in range(3):
            with transaction.atomic():
                note.enqueue()
                with pytest.raises(QueueFull):
                    note.enqueue()
                transaction.set_rollback(True)

    assert not Task.objects.exists()


# How exact


def test_threads_of_one_process_never_overshoot_by_more_than_what_is_on_its_way() -> None:
    """S0-105: 8 producers at once, none of which sees what another has not committed."""
    refused: list[int] = []

    def produce() -> None:
        for at in range(40):
            try:
                note.enqueue(at)
            except QueueFull:
                refused.append(1)

    with bounded(100):
        in_threads(*[produce] * 8)

    stored = Task.objects.count()
    assert 100 <= stored <= 100 + 7
    assert stored + len(refused) == 320


def test_eight_racing_processes_overshoot_by_no_more_than_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-105, S0-156: each with a memory of its own, as processes have."""
    mine = threading.local()

    class Each:
        def forget(self) -> None:
            """Each forgets for itself."""

        def take(self, *args: Any, **options: Any) -> int | None:
            if not hasattr(mine, "bounds"):
                mine.bounds = admission.Bounds()
            found: int | None = mine.bounds.take(*args, **options)
            return found

    monkeypatch.setattr(admission, "bounds", Each())
    done: list[int] = []

    def produce() -> None:
        stored = 0
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                note.enqueue()
                stored += 1
            except QueueFull:
                break
        done.append(stored)

    with bounded(200):
        in_threads(*[produce] * 8)

    assert sum(done) == Task.objects.count()
    assert 200 <= sum(done) <= 200 + 8 * (200 // admission.SHARE)


def test_a_process_believes_what_it_saw_for_a_part_of_the_room_and_a_tenth_of_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The soft bound, in numbers."""
    ticks, depth = [0.0], [0]
    looks: list[int] = []

    def count(alias: str, queue: str, cap: int) -> int:
        looks.append(cap)
        return min(depth[0], cap)

    monkeypatch.setattr(admission.time, "monotonic", lambda: ticks[0])
    bounds = admission.Bounds(count)
    for _ in range(10):
        assert bounds.take(ALIAS, "q", 1, 320) is None
    assert looks == [321]
    assert bounds.take(ALIAS, "q", 1, 320) is None
    assert len(looks) == 2
    ticks[0] += 0.1
    assert bounds.take(ALIAS, "q", 1, 320) is None
    assert len(looks) == 3
    depth[0] = 320
    ticks[0] += 0.1
    assert bounds.take(ALIAS, "q", 1, 320) == 320
    assert bounds.take(ALIAS, "q", 1, 320) == 320
    assert len(looks) == 4
    ticks[0] += 0.03
    depth[0] = 310
    assert bounds.take(ALIAS, "q", 11, 320) == 310
    assert bounds.take(ALIAS, "q", 10, 320) is None


# Waiting


def test_a_blocking_enqueue_waits_until_there_is_room() -> None:
    """S0-105: and then it is stored."""
    with bounded(1, "block"):
        first = note.enqueue("first")

        def make_room() -> None:
            time.sleep(0.2)
            engine.run_and_settle(claim_one())

        results = in_threads(lambda: note.enqueue("second").id, make_room)

    assert state_of(first) == "succeeded"
    assert state_of(results[0]) == "ready"


def test_a_blocking_enqueue_gives_up_after_its_enqueue_timeout() -> None:
    """S0-105: with QueueFull, and nothing stored."""
    with bounded(1, "block"):
        note.enqueue()
        began = time.monotonic()
        with pytest.raises(QueueFull):
            note.using(enqueue_timeout=0.2).enqueue()
        took = time.monotonic() - began

    assert 0.2 <= took < 5
    assert Task.objects.count() == 1


def test_in_a_transaction_a_blocking_enqueue_raises_at_once() -> None:
    """S0-105: it would wait for tasks that nobody else sees before its own commit."""
    with bounded(1, "block"), transaction.atomic():
        note.enqueue()
        began = time.monotonic()
        with pytest.raises(QueueFull):
            note.enqueue()

    assert time.monotonic() - began < 5
    assert Task.objects.count() == 1


def test_more_than_the_bound_allows_at_all_is_not_waited_for() -> None:
    """S0-105: there will never be room for it."""
    with bounded(2, "block"):
        began = time.monotonic()
        with pytest.raises(QueueFull):
            note.enqueue_many([(at,) for at in range(3)])

    assert time.monotonic() - began < 5
    assert not Task.objects.exists()


def test_a_blocking_enqueue_can_be_given_up() -> None:
    """S3-30: by the event that the caller holds."""
    given_up = threading.Event()
    with bounded(1, "block"):
        note.enqueue()

        def enqueue() -> str:
            try:
                note.using(cancel=given_up).enqueue()
            except EnqueueCancelled:
                return "given up"
            return "stored"

        results = in_threads(enqueue, lambda: (time.sleep(0.2), given_up.set(), "set")[-1])

    assert results[0] == "given up"
    assert Task.objects.count() == 1


def test_a_coroutine_waits_without_blocking_its_loop() -> None:
    """S0-105: others run meanwhile."""
    import asyncio

    async def work() -> int:
        waiting = asyncio.ensure_future(note.using(enqueue_timeout=0.3).aenqueue())
        turns = 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(QueueFull):
            waiting.result()
        return turns

    with bounded(1, "block"):
        note.enqueue()
        assert async_to_sync(work)() > 5


# Dropping


def test_a_dropping_queue_stores_nothing_and_says_so(dropped: list[events.EnqueueDropped]) -> None:
    """S0-105: by the result's state, and by an event; nobody has to catch anything."""
    with bounded(1, "drop"):
        kept = note.enqueue("kept")
        gone = note.enqueue("gone")
        again = note.enqueue("gone, too")

    assert (kept.state, gone.state, str(gone.status)) == ("ready", "dropped", "FAILED")
    assert gone.is_finished
    assert gone.errors[0].exception_class_path == "django_taskq.exceptions.QueueFull"
    gone.refresh()
    assert gone.wait(1).state == again.state == "dropped"
    assert gone.cancel() is False
    with pytest.raises(ResultNotReady, match="dropped"):
        gone.get()
    assert [(event.task, event.queue, event.count, event.depth, event.bound) for event in dropped] == [
        ("tests.guarantees.tasks.note", "default", 1, 1, 1)
    ] * 2
    assert Task.objects.count() == 1


def test_of_many_all_are_dropped_or_none(dropped: list[events.EnqueueDropped]) -> None:
    """S0-105: and the sequence says which."""
    with bounded(2, "drop"):
        kept = note.enqueue_many([(1,)])
        gone = note.enqueue_many([(1,), (2,)])

    assert (kept.is_dropped, gone.is_dropped) == (False, True)
    assert [result.state for result in gone] == ["dropped", "dropped"]
    assert [event.count for event in dropped] == [2]
    assert Task.objects.count() == 1


# Saturated


@pytest.mark.slow
def test_a_probe_completes_under_saturation_and_nothing_is_lost() -> None:
    """S0-56, S0-104, S0-110: four producers that never let up, delayed and failing tasks among them."""
    stop = threading.Event()
    accepted: list[str] = []
    refused: list[int] = []

    def produce() -> None:
        at = 0
        while not stop.is_set():
            at += 1
            kind = (note, note.using(delay=0.05), fail_slowly.using(max_attempts=2, backoff=Fixed(0)))[at % 3]
            try:
                accepted.append(kind.enqueue(at).id)
            except QueueFull:
                refused.append(1)
                time.sleep(0.005)

    def probe() -> float:
        try:
            wait_for(lambda: len(refused) > 20, 30)
            began = time.monotonic()
            found = None
            while found is None:
                try:
                    found = return_this.using(priority=50).enqueue("probe")
                except QueueFull:
                    time.sleep(0.005)
            wait_for(lambda: state_of(found) == "succeeded", 30)
            return time.monotonic() - began
        finally:
            stop.set()

    with bounded(30, LEASE_SECONDS=30), running_worker(threads=2):
        took = in_threads(*[lambda: produce() or 0.0] * 4, probe)[-1]
        wait_for(lambda: not Task.objects.exists(), 60)

    assert took < 5
    assert len(accepted) == FinishedTask.objects.count() - 1


@pytest.mark.slow
def test_after_a_saturation_tasks_are_taken_and_run_as_before() -> None:
    """S0-109: depth back at 0, no refusal left over, and a fresh task is quick."""
    with bounded(50), running_worker(threads=2, poll=timedelta(seconds=0.2)):
        refused = 0
        for at in range(400):
            try:
                note.enqueue(at)
            except QueueFull:
                refused += 1
        fill(50)
        wait_for(lambda: not Task.objects.exists(), 60)
        time.sleep(0.03)

        began = time.monotonic()
        fresh = note.enqueue("fresh")
        wait_for(lambda: state_of(fresh) == "succeeded", 10)

    assert time.monotonic() - began < 5
    assert ran[-1] == "fresh"
