"""Memory of one idle worker process, against a bare Django process with a database connection."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import common

BARE = (
    "import django, time; django.setup(); from django.db import connection;"
    " connection.cursor().execute('SELECT 1'); print('up', flush=True); time.sleep(60)"
)


def proportional_megabytes(pid):
    """Return the proportional set size of a process in MiB (shared pages counted by share)."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    raise SystemExit("this system does not tell the proportional set size")


def bare():
    process = subprocess.Popen([sys.executable, "-c", BARE], cwd=common.HERE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        return proportional_megabytes(process.pid)
    finally:
        process.kill()
        process.wait()


def idle_worker(admin):
    import tasks

    common.empty(admin)
    process = common.worker("--threads", "1")
    try:
        tasks.noop.enqueue(1)
        until = time.monotonic() + 30
        while admin.execute(f"SELECT count(*) FROM {common.TASK}").fetchone()[0]:
            if time.monotonic() > until:
                raise SystemExit("the first task did not run")
            time.sleep(0.05)
        time.sleep(2)
        return proportional_megabytes(process.pid)
    finally:
        common.stop(process)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    admin = common.setup()
    found = common.rounds(
        ["bare Django", "idle worker"],
        lambda name: bare() if name == "bare Django" else idle_worker(admin),
        options.rounds,
    )
    common.report("Proportional set size", "MiB", found, "bare Django")


if __name__ == "__main__":
    main()
