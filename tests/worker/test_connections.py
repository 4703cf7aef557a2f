"""The worker's database connections: bounded, from a pool, after a fork, and cut off."""

import multiprocessing
import threading

import pytest
from django.db import connection, connections

from django_taskq.models import FinishedTask
from tests.app.models import Effect
from tests.capabilities import requires
from tests.worker import tasks
from tests.worker.running import drain, eventually, running

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quick")]


def _own_sessions() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        return int(cursor.fetchone()[0])


@pytest.fixture
def pooled():
    """Let the connections of new threads come from psycopg's pool, of two connections at most."""
    from django.db.backends.postgresql.base import DatabaseWrapper

    # The test's own connection must not be one of the two.
    connection.ensure_connection()
    options = connections.settings["default"]["OPTIONS"]
    options["pool"] = {"min_size": 1, "max_size": 2, "timeout": 10}
    yield
    for pool in DatabaseWrapper._connection_pools.values():
        pool.close()
    DatabaseWrapper._connection_pools.clear()
    del options["pool"]


@requires("listen_notify")
def test_a_worker_lives_on_a_pool_that_is_smaller_than_its_threads_are_many(pooled) -> None:
    before = _own_sessions()
    keys = [str(number) for number in range(60)]
    for key in keys:
        tasks.leave.enqueue(key)
    with running(threads=6) as worker:
        most = 0

        def is_done() -> bool:
            nonlocal most
            most = max(most, _own_sessions())
            return FinishedTask.objects.count() == len(keys)

        eventually(is_done, seconds=40)
        assert worker.is_healthy
        assert most <= before + 2
    assert Effect.objects.count() == len(keys)


@requires("listen_notify")
def test_threads_hold_one_connection_each_and_give_them_back() -> None:
    before = _own_sessions()
    with running(threads=3, async_slots=0):
        for number in range(30):
            tasks.leave.enqueue(str(number))
        eventually(lambda: FinishedTask.objects.count() == 30)

        # Claimer, flusher, heartbeat, duties, and three slots.
        assert _own_sessions() <= before + 7
    eventually(lambda: _own_sessions() <= before)


def _drain_in_a_fork() -> None:
    drain()


def test_a_worker_may_start_in_a_forked_process() -> None:
    """It opens connections of its own, and those of its parent stay usable."""
    tasks.leave.enqueue("in the fork")
    assert Effect.objects.count() == 0

    child = multiprocessing.get_context("fork").Process(target=_drain_in_a_fork)
    child.start()
    child.join(60)

    assert child.exitcode == 0
    assert Effect.objects.get().key == "in the fork"


@requires("listen_notify")
def test_a_fork_begins_with_a_pool_of_its_own(pooled) -> None:
    def use() -> None:
        Effect.objects.count()
        connections.close_all()

    # A pool with a connection, in the parent.
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    tasks.leave.enqueue("in the fork")

    child = multiprocessing.get_context("fork").Process(target=_drain_in_a_fork)
    child.start()
    child.join(60)

    assert child.exitcode == 0
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert Effect.objects.get().key == "in the fork"


@requires("server_connections")
def test_a_worker_whose_connections_are_cut_connects_again_and_goes_on() -> None:
    held = tasks.held.enqueue()
    with running() as worker:
        assert tasks.entered.acquire(timeout=20)

        _cut_all_others()

        tasks.gate.set()
        tasks.leave.enqueue("after")
        eventually(lambda: FinishedTask.objects.count() == 2, seconds=40)
        assert worker.state == "running"
    held.refresh()
    assert (held.state, held.attempts) == ("succeeded", 1)


@requires("server_connections")
def test_coroutines_whose_connection_was_cut_get_another() -> None:
    with running():
        assert tasks.aleave.enqueue("before").get(20) == "before"

        _cut_all_others()

        assert tasks.aleave.enqueue("after").get(40) == "after"


@requires("server_connections")
def test_a_stopped_worker_leaves_no_connection_open() -> None:
    """Not even that of the thread of the ORM's async methods, which outlives the worker."""
    before = _others()

    with running(threads=2):
        assert tasks.aleave.enqueue("a").get(20) == "a"
        assert tasks.leave.enqueue("b").get(20) == "b"

    eventually(lambda: _others() <= before)


def _others() -> set[int]:
    """Return the server's numbers of all other connections to this database."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        else:
            cursor.execute(
                "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"
            )
        return {number for (number,) in cursor.fetchall()}


def _cut_all_others() -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return
        cursor.execute("SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()")
        for (number,) in cursor.fetchall():
            cursor.execute(f"KILL {number}")
