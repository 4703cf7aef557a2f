"""
Memory of one idle worker process: after its first task, and after a thousand more.

Against a bare Django process with this app and a database connection, and against the worker of
django-tasks-db where that is installed: ``uv run --with django-tasks-db python benchmarks/memory.py``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import common

BARE = (
    "import django, time; django.setup(); from django.db import connection;"
    " connection.cursor().execute('SELECT 1'); print('up', flush=True); time.sleep(60)"
)
MANY = 1000

Figures = dict[str, float]


def figures(pid):
    """Return what is the process's own, and its proportional set size (shared pages counted by share), in MiB."""
    found = {}
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in ("Anonymous", "Pss"):
                found[name] = int(rest.split()[0]) / 1024
    if len(found) < 2:
        raise SystemExit("this system does not tell the memory of a process")
    return found


def bare():
    process = subprocess.Popen([sys.executable, "-c", BARE], cwd=common.HERE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        return {"bare Django": figures(process.pid)}
    finally:
        process.kill()
        process.wait()


def idle(name, process, enqueue, unfinished):
    """Return the figures of a worker after one task and after many, each time 3 s after the last of them."""
    found = {}
    try:
        for count, label in ((1, name), (MANY, f"{name}, {MANY:,} later")):
            enqueue(count)
            until = time.monotonic() + 60
            while unfinished():
                if time.monotonic() > until:
                    raise SystemExit(f"{name}: the tasks did not run")
                time.sleep(0.05)
            time.sleep(3)
            found[label] = figures(process.pid)
        return found
    finally:
        common.stop(process)


def ours(admin):
    common.empty(admin)

    def unfinished():
        return admin.execute(f"SELECT count(*) FROM {common.TASK}").fetchone()[0]

    return idle("idle worker", common.worker("--threads", "1"), common.load, unfinished)


def peer(admin):
    admin.execute("TRUNCATE django_tasks_database_dbtaskresult")
    with_peer = {**os.environ, "TASKQ_BENCH_PEER": "1"}
    command = [sys.executable, "-m", "django", "db_worker", "-v", "0"]
    process = subprocess.Popen(command, cwd=common.HERE, env=with_peer, stderr=subprocess.DEVNULL)

    def enqueue(count):
        program = (
            f"import django; django.setup(); import peer_tasks; [peer_tasks.noop.enqueue(i) for i in range({count})]"
        )
        subprocess.run([sys.executable, "-c", program], cwd=common.HERE, env=with_peer, check=True)

    def unfinished():
        table = "django_tasks_database_dbtaskresult"
        return admin.execute(f"SELECT count(*) FROM {table} WHERE status IN ('READY', 'RUNNING')").fetchone()[0]

    return idle("django-tasks-db", process, enqueue, unfinished)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    admin = common.setup()
    measures: list[Callable[[], dict[str, Figures]]] = [bare, lambda: ours(admin)]
    if find_spec("django_tasks_db"):
        migrate = [sys.executable, "-m", "django", "migrate", "-v", "0"]
        subprocess.run(migrate, cwd=common.HERE, env={**os.environ, "TASKQ_BENCH_PEER": "1"}, check=True)
        measures.append(lambda: peer(admin))
    # Once unmeasured: a process that has to compile what it imports is larger than one in production.
    for measure in measures:
        measure()
    found: dict[str, list[Figures]] = {}
    for _ in range(options.rounds):
        for measure in measures:
            for name, each in measure().items():
                found.setdefault(name, []).append(each)
    for figure, title in (("Anonymous", "Memory of its own"), ("Pss", "Proportional set size")):
        common.report(
            title, "MiB", {name: [each[figure] for each in taken] for name, taken in found.items()}, "idle worker"
        )


if __name__ == "__main__":
    main()
