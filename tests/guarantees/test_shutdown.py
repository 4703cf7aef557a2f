"""What starting and stopping a worker promises, whenever and however often it is asked for."""

import threading

import psutil
import pytest
from django.db import connection, connections

from django_taskq.domain.states import State
from django_taskq.exceptions import ShutdownTimeout
from django_taskq.models import Attempt, FinishedTask, Task, Worker
from tests.app.models import Effect
from tests.worker import tasks
from tests.worker.conftest import gates, quick  # noqa: F401 - fixtures
from tests.worker.running import drain, eventually, make_worker, running

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("gates", "quick")]


def _own_threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("taskq-"))


def _open_connections() -> int:
    """Count the connections of this process to the test database."""
    if connection.vendor == "sqlite":
        name = connection.settings_dict["NAME"]
        return sum(file.path == name for file in psutil.Process().open_files())
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        else:
            cursor.execute("SELECT count(*) FROM information_schema.processlist WHERE db = database()")
        return int(cursor.fetchone()[0])


def test_starting_a_worker_twice_changes_nothing() -> None:
    """S0-10, S0-71."""
    with running() as worker:
        first = worker.id

        assert worker.start() == "running"

        assert worker.id == first
        assert Worker.objects.count() == 1
        assert _own_threads().count("taskq-claimer") == 1


def test_stopping_a_worker_twice_changes_nothing() -> None:
    """S0-72, S4-28."""
    worker = make_worker()
    worker.start()

    assert worker.stop("the first reason") == "stopping"
    worker.stop("the second reason")
    worker.stop_now()

    worker.join(20)
    assert worker.stop() == "stopped"
    assert worker.stop_reason == "the first reason"
    assert not Worker.objects.exists()


def test_a_worker_that_was_stopped_before_it_started_never_starts() -> None:
    """S0-10."""
    worker = make_worker()

    worker.stop()

    assert worker.start() == "stopped"
    worker.join(1)
    assert not Worker.objects.exists()


@pytest.mark.parametrize("turn", range(5))
def test_starts_and_stops_may_race(turn: int) -> None:
    """S0-10, S0-75: whoever wins, the worker ends stopped and nothing of it is left."""
    worker = make_worker()
    barrier = threading.Barrier(6)
    failures: list[BaseException] = []

    def meet(act) -> None:
        barrier.wait()
        try:
            act()
        except BaseException as error:
            failures.append(error)
        finally:
            connections.close_all()

    threads = [
        threading.Thread(target=meet, args=(act,)) for act in (worker.start, worker.start, worker.stop, worker.stop)
    ]
    threads += [threading.Thread(target=meet, args=(act,)) for act in (worker.start, worker.stop_now)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    worker.stop()

    worker.join(20)
    assert not failures
    assert worker.state == "stopped"
    assert not _own_threads()
    assert not Worker.objects.exists()


@pytest.mark.slow
def test_fifty_starts_and_stops_leak_no_thread_file_or_connection() -> None:
    """S0-76, S4-04, S4-38."""
    tasks.nothing.enqueue()
    drain()
    process = psutil.Process()
    files, opened = process.num_fds(), _open_connections()

    for _ in range(50):
        tasks.nothing.enqueue()
        drain(threads=2)

    assert not _own_threads()
    # SQLite may keep a closed file's number until another connection has let go of its locks; a leak would be 50.
    assert process.num_fds() <= files + 2
    assert eventually(lambda: _open_connections() <= opened + 2, what="connections closed")
    assert FinishedTask.objects.count() == 51


def test_what_runs_may_finish_when_the_worker_stops() -> None:
    """S0-73, S4-29."""
    result = tasks.held.enqueue()
    with running() as worker:
        assert tasks.entered.acquire(timeout=20)

        worker.stop()
        tasks.gate.set()

        worker.join(20)
    result.refresh()
    assert result.state == "succeeded"
    assert worker.state == "stopped"


def test_what_has_not_begun_is_handed_back_with_its_attempt() -> None:
    """S0-73, S4-88: stopping takes no longer because tasks are waiting, and leaves them as they were."""
    held = tasks.held.using(priority=10).enqueue()
    with running(threads=1) as worker:
        assert tasks.entered.acquire(timeout=20)
        waiting = [tasks.nothing.enqueue() for _ in range(100)]

        worker.stop()
        tasks.gate.set()

        worker.join(20)
    held.refresh()
    assert held.state == "succeeded"
    rows = Task.objects.filter(pk__in=[result.id for result in waiting])
    assert [(row.state, row.attempt) for row in rows] == [(State.READY, 0)] * 100
    assert not Attempt.objects.exists()


def test_a_stop_during_a_delay_leaves_the_task_and_it_finishes_later() -> None:
    """S0-54."""
    later = tasks.leave.using(delay=3600).enqueue("later")
    failed = tasks.leave.using(max_attempts=2).enqueue("twice")
    Effect.objects.create(key="twice")
    with running() as worker:
        eventually(lambda: Attempt.objects.filter(task_id=failed.id).exists())
        worker.stop()
        worker.join(20)

    rows = {str(row.pk): row for row in Task.objects.all()}
    assert {row.state for row in rows.values()} == {State.SCHEDULED}
    assert (rows[later.id].attempt, rows[failed.id].attempt) == (0, 1)
    Effect.objects.all().delete()
    Task.objects.update(run_after="2020-01-01T00:00:00Z")
    drain()
    assert set(Effect.objects.values_list("key", flat=True)) == {"later", "twice"}


def test_a_task_that_outlasts_the_grace_time_is_handed_back_and_the_timeout_is_told() -> None:
    """S0-74, S2-19, S3-09, S3-10, S3-20: everything is cleaned up first, and then ShutdownTimeout is raised."""
    result = tasks.held.enqueue()
    worker = make_worker(grace=0.2)
    worker.start()
    assert tasks.entered.acquire(timeout=20)

    worker.stop()

    with pytest.raises(ShutdownTimeout, match="held"):
        worker.join(20)
    row = Task.objects.get(pk=result.id)
    assert (row.state, row.attempt, row.lease) == (State.READY, 0, None)
    assert Attempt.objects.get(task_id=result.id).outcome == "interrupted"
    assert not Worker.objects.exists()
    tasks.gate.set()
    eventually(lambda: not _own_threads(), what="the slot ended with its task")
    drain()
    result.refresh()
    assert (result.state, result.attempts) == ("succeeded", 1)


def test_a_hard_stop_waits_for_nobody() -> None:
    """S4-28, S4-29: running tasks go back to ready, not to cancelled."""
    result = tasks.held.enqueue()
    worker = make_worker(grace=3600)
    worker.start()
    assert tasks.entered.acquire(timeout=20)

    worker.stop()
    worker.stop_now()

    with pytest.raises(ShutdownTimeout):
        worker.join(20)
    row = Task.objects.get(pk=result.id)
    assert (row.state, row.attempt) == (State.READY, 0)


def test_a_worker_that_does_not_stop_in_the_time_given_is_told_by_join() -> None:
    """S2-19."""
    tasks.held.enqueue()
    with running() as worker:
        assert tasks.entered.acquire(timeout=20)
        worker.stop()

        with pytest.raises(ShutdownTimeout):
            worker.join(0.1)

        assert worker.state == "stopping"


def test_outcomes_that_come_during_a_stop_are_all_written() -> None:
    """S4-30: nothing is told after the flusher has left."""
    results = [tasks.nothing.enqueue() for _ in range(300)]
    worker = make_worker(threads=8)
    worker.start()
    eventually(lambda: worker.finished > 20)

    worker.stop()

    worker.join(20)
    assert worker._unwritten() == 0
    states = set(Task.objects.values_list("state", "attempt"))
    assert states <= {(State.READY, 0)}
    assert Task.objects.count() + FinishedTask.objects.count() == len(results)
    assert not Attempt.objects.exists()


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(3))
def test_workers_that_join_and_leave_lose_nothing_and_repeat_nothing(turn: int) -> None:
    """S0-75."""
    keys = [f"{turn}-{number}" for number in range(120)]
    for key in keys:
        tasks.leave.enqueue(key)

    for _ in range(6):
        worker = make_worker(threads=3)
        worker.start()
        eventually(lambda worker=worker: worker.finished > 3 or not Task.objects.exists())
        worker.stop()
        worker.join(20)
    drain()

    assert Effect.objects.count() == len(keys)
    assert FinishedTask.objects.filter(state=State.SUCCEEDED).count() == len(keys)
    assert not Attempt.objects.exists()
