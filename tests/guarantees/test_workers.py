"""What a running worker promises: it survives its database, its own death certificate, and its tasks."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection

from django_taskq import Fixed
from django_taskq.domain.states import State
from django_taskq.duties import promote
from django_taskq.lifecycle import settle
from django_taskq.models import Attempt, FinishedTask, Task, Worker
from django_taskq.store import duties as duty_store
from django_taskq.store import pauses as pause_store
from django_taskq.store import workers as worker_store
from django_taskq.store.vendors import vendor_for
from tests.app.models import Effect
from tests.worker import tasks
from tests.worker.conftest import gates, quick  # noqa: F401 - fixtures
from tests.worker.running import drain, eventually, make_worker, running

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("gates", "quick")]


class Flaky:
    """A function of the store that raises a database error the first ``times`` it is called, then works."""

    def __init__(self, work: Any, times: int) -> None:
        self._work = work
        self.left = times
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self.left -= 1
            is_failing = self.left >= 0
        if is_failing:
            raise OperationalError("the server has gone away")
        return self._work(*args, **kwargs)


VENDOR_CALLS = ["claim", "finish", "put_back", "record_attempts", "add_stats", "now", "promote", "next_due"]
STORE_CALLS = [
    (worker_store, "beat"),
    (worker_store, "announce_task_types"),
    (worker_store, "cancel_requests"),
    (worker_store, "mark_stopping"),
    (worker_store, "forget"),
    (duty_store, "take"),
    (duty_store, "report"),
    (pause_store, "every"),
]


def _work_that_touches_everything() -> list[Any]:
    Effect.objects.create(key="taken")
    return [
        tasks.leave.enqueue("done"),
        tasks.leave.using(max_attempts=1).enqueue("taken"),
        tasks.leave.using(max_attempts=2, backoff=Fixed(0)).enqueue("taken"),
        tasks.leave.using(delay=0.3).enqueue("later"),
    ]


def _all_done() -> bool:
    return not Task.objects.exists()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", VENDOR_CALLS)
def test_a_worker_survives_a_database_error_in_any_call(name: str, times: int, monkeypatch: Any) -> None:
    """S2-41."""
    vendor = vendor_for("default")
    flaky = Flaky(getattr(vendor, name), times)
    with running() as worker:
        monkeypatch.setattr(vendor, name, flaky, raising=False)

        _work_that_touches_everything()

        eventually(lambda: _all_done() and flaky.left < 0, seconds=40, what=f"all work done in spite of {name}")
        assert worker.state == "running"
    states = sorted(FinishedTask.objects.values_list("state", flat=True))
    assert states == sorted([State.SUCCEEDED, State.SUCCEEDED, State.DEAD, State.DEAD])
    assert Effect.objects.count() == 3


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(("module", "name"), STORE_CALLS, ids=lambda value: getattr(value, "__name__", value))
def test_a_worker_survives_a_database_error_in_its_own_upkeep(module, name, times, monkeypatch: Any) -> None:
    """S2-41."""
    flaky = Flaky(getattr(module, name), times)
    monkeypatch.setattr(module, name, flaky)
    held = tasks.held.enqueue()
    worker = make_worker(threads=6)
    worker.start()
    try:
        assert tasks.entered.acquire(timeout=30)
        _work_that_touches_everything()
        eventually(lambda: Task.objects.count() == 1, seconds=40, what=f"all work done in spite of {name}")
        if name not in ("mark_stopping", "forget"):
            eventually(lambda: flaky.left < 0, seconds=30)
    finally:
        tasks.gate.set()
        worker.stop()
        worker.join(30)
    assert not worker.has_failed
    held.refresh()
    assert held.state == "succeeded"
    assert flaky.left < times


@pytest.mark.slow  # test_rescuing.py tells the same of one whose task is rescued before it hears of it
def test_a_worker_that_was_declared_dead_goes_on_under_a_new_id() -> None:
    """Its late outcome is refused: whoever rescued the task has the last word."""
    held = tasks.held.enqueue()
    with running() as worker:
        assert tasks.entered.acquire(timeout=20)
        first = worker.id

        row = Worker.objects.get(pk=first)
        while not worker_store.declare_dead("default", row):
            row.refresh_from_db()

        eventually(lambda: worker.id != first)
        # Rescued, and run again under the new id.
        assert tasks.entered.acquire(timeout=20)
        tasks.gate.set()
        eventually(lambda: FinishedTask.objects.filter(pk=held.id).exists())
        eventually(lambda: not worker._unwritten())
        assert worker.state == "running"
        # More than one if it claimed again before its next heartbeat told it.
        assert worker._refused >= 1
    finished = FinishedTask.objects.get(pk=held.id)
    # Not "==" the new id: on a machine that starves it, it may have been declared dead once more since. Nor
    # above the first: what it claimed before it heard of it holds a lease of its own, which nobody else has.
    assert first <= finished.worker_id <= worker.id
    assert finished.attempt >= 2
    assert set(Attempt.objects.filter(task_id=held.id).values_list("outcome", flat=True)) == {"lost"}


@pytest.mark.slow  # test_timeouts.py tells the same of one task behind it; here are several
def test_a_thread_that_overruns_its_time_and_its_lease_is_settled_and_its_slot_replaced(settings: Any) -> None:
    settings.TASKQ = {"LEASE_SECONDS": 2, "HEARTBEAT_SECONDS": 0.2}
    deaf = tasks.held.using(timeout=0.2, max_attempts=1, priority=5).enqueue()
    with running(threads=1) as worker:
        assert tasks.entered.acquire(timeout=20)
        after = tasks.leave.enqueue("after")

        finished = eventually(lambda: FinishedTask.objects.filter(pk=deaf.id).first())
        assert after.get(20) == "after"

        assert finished.error_class == "django_taskq.exceptions.TaskTimeout"
        tasks.gate.set()
        more = [tasks.leave.enqueue(f"more {number}") for number in range(5)]
        assert [result.get(20) for result in more] == [f"more {number}" for number in range(5)]
        assert not worker._unwritten() or eventually(lambda: not worker._unwritten())
    assert FinishedTask.objects.get(pk=deaf.id).state == State.DEAD


@pytest.mark.parametrize("threads", [1, 4])
def test_a_worker_never_starts_more_than_max_tasks(threads: int) -> None:
    for number in range(40):
        tasks.leave.enqueue(str(number))
    worker = make_worker(max_tasks=7, threads=threads)

    worker.start()

    worker.join(30)
    assert Effect.objects.count() == 7
    assert worker.stop_reason == "7 tasks done"
    assert set(Task.objects.values_list("state", "attempt")) == {(State.READY, 0)}


def test_a_worker_stops_when_it_uses_more_memory_than_max_memory() -> None:
    worker = make_worker(max_memory=1)

    worker.start()

    worker.join(20)
    assert "MB of memory" in worker.stop_reason


def test_a_worker_stops_at_max_age() -> None:
    worker = make_worker(max_age=timedelta(seconds=0.5))

    worker.start()

    worker.join(20)
    assert worker.stop_reason == "max age reached"


def test_a_burst_runs_what_is_ready_and_due_and_leaves_the_future() -> None:
    due = tasks.leave.using(delay=3600).enqueue("due")
    future = tasks.leave.using(delay=3600).enqueue("future")
    Task.objects.filter(pk=due.id).update(run_after="2020-01-01T00:00:00Z")
    tasks.leave.enqueue("ready")

    worker = drain(duties=False)

    assert worker.stop_reason == "burst done"
    assert set(Effect.objects.values_list("key", flat=True)) == {"due", "ready"}
    assert Task.objects.get().pk == Task.objects.get(pk=future.id).pk


def test_a_burst_runs_what_its_tasks_enqueue_on_new_queues() -> None:
    for number in range(5):
        tasks.enqueue_on.enqueue(f"new-{number}")

    drain()

    assert FinishedTask.objects.count() == 10


def test_a_burst_runs_retries_that_are_due_at_once() -> None:
    Effect.objects.create(key="taken")
    result = tasks.leave.using(max_attempts=5, backoff=Fixed(0)).enqueue("taken")

    drain()

    assert FinishedTask.objects.get(pk=result.id).attempt == 5


def test_a_poke_is_never_lost() -> None:
    """A poke between the wake-up's read and its reset must not silence the next ones."""
    from django_taskq.worker.wakeup import Wakeup

    wakeup = Wakeup("default", 60.0)
    woken = threading.Semaphore(0)
    is_over = threading.Event()

    def sleep() -> None:
        while not is_over.is_set():
            wakeup._select(60.0, None)
            woken.release()

    sleeper = threading.Thread(target=sleep, daemon=True)
    sleeper.start()
    for _ in range(20_000):
        wakeup.poke()
    while woken.acquire(blocking=False):
        pass

    threading.Event().wait(0.05)
    wakeup.poke()

    assert woken.acquire(timeout=10)
    is_over.set()
    wakeup.poke()
    sleeper.join(10)
    wakeup.close()
    wakeup.poke()


def test_a_worker_can_start_inside_its_callers_transaction_without_being_part_of_it() -> None:
    """S2-01: the worker is a class that any program may use; its threads have connections of their own."""
    from django.db import transaction

    if connection.vendor == "sqlite":
        pytest.skip("on SQLite an open write transaction keeps every other writer out, the worker too")
    with transaction.atomic():
        Effect.objects.create(key="rolled back")
        worker = make_worker()
        worker.start()
        transaction.set_rollback(True)
    assert Worker.objects.filter(pk=worker.id).exists()
    worker.stop()
    worker.join(20)


def test_a_heartbeat_is_renewed_and_seen() -> None:
    """S1-39."""
    with running() as worker:
        first = Worker.objects.get(pk=worker.id).beat_at

        assert eventually(lambda: Worker.objects.get(pk=worker.id).beat_at > first)
        assert worker.is_healthy
        assert worker.beat_age < 3


def test_no_more_tasks_run_at_once_than_there_are_slots() -> None:
    """S1-35."""
    for _ in range(8):
        tasks.held.enqueue()
    with running(threads=3) as worker:
        for _ in range(3):
            assert tasks.entered.acquire(timeout=20)

        assert not tasks.entered.acquire(timeout=0.5)
        assert worker.running == 3
        tasks.gate.set()
        eventually(_all_done)


def test_an_idle_worker_looks_less_and_less_often() -> None:
    """S2-40: where nothing wakes it the pause grows, and work makes it short again."""
    from django_taskq.worker import wakeup as wakeups

    wakeup = wakeups.Wakeup("default", 1.0)
    wakeup._worked_at -= wakeups._QUICK_SECONDS + 1
    pauses = [wakeup._next_pause() for _ in range(30)]

    assert pauses == sorted(pauses)
    assert pauses[-1] == 1.0
    wakeup.worked()
    assert wakeup._next_pause() == vendor_for("default").poll_seconds
    wakeup.close()


def test_the_names_used_above_are_the_ones_the_worker_calls() -> None:
    """Or a renamed function would let the error tests pass without testing anything."""
    vendor = vendor_for("default")
    assert all(callable(getattr(vendor, name)) for name in VENDOR_CALLS)
    assert promote.vendor_for is vendor_for is settle.vendor_for


def test_a_burst_runs_what_another_promotes_just_after_its_claim_was_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-54: due tasks are work to be done, whoever makes them ready."""
    due = tasks.leave.using(delay=3600).enqueue("due")
    Task.objects.update(run_after="2020-01-01T00:00:00Z")
    kind = type(vendor_for("default"))
    claim = kind.claim

    def claim_and_let_another_promote(self: Any, *args: Any, **options: Any) -> Any:
        rows = claim(self, *args, **options)
        if not rows:
            self.promote(self.now(), 100)
        return rows

    monkeypatch.setattr(kind, "claim", claim_and_let_another_promote)

    drain(duties=False)

    assert Effect.objects.filter(key="due").exists()
    assert FinishedTask.objects.filter(pk=due.id, state=State.SUCCEEDED).exists()
