"""No-op drain of one batch against the same tasks without a batch, with one, two and four workers; chains, too."""

from __future__ import annotations

import argparse
import time

import common

TABLES = "django_taskq_workflow, django_taskq_dependency"


def empty(admin):
    common.empty(admin)
    admin.execute(f"TRUNCATE {TABLES}")


def load(kind, count):
    """Store no-op tasks of one kind; return how long it took."""
    import tasks

    from django_taskq import batch, chain

    began = time.monotonic()
    if kind == "plain":
        common.load(count)
    elif kind == "batch":
        batch(tasks.noop.s(at) for at in range(count)).enqueue()
    else:
        for at in range(0, count, 10):
            chain(tasks.noop.s(at + step) for step in range(10)).enqueue()
    return time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--chained", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    options = parser.parse_args()
    admin = common.setup()
    stored = {"plain": [], "batch": []}
    for workers in options.workers:
        found = {"plain": [], "batch": []}
        for _ in range(options.rounds):
            for kind, rates in found.items():
                empty(admin)
                stored[kind].append(options.tasks / load(kind, options.tasks))
                rates.append(common.drain(admin, options.tasks, "--threads", "1", processes=workers))
        common.report(f"One batch of {options.tasks:,} no-ops, {workers} workers", "tasks/s", found, "plain")
    common.report(f"Storing {options.tasks:,} tasks", "tasks/s", stored, "plain")
    found = {"plain": [], "chains of 10": []}
    for _ in range(options.rounds):
        for kind, rates in found.items():
            empty(admin)
            load(kind.split()[0].rstrip("s"), options.chained)
            rates.append(common.drain(admin, options.chained, "--threads", "1"))
    common.report(f"{options.chained:,} no-ops in chains, 1 worker", "tasks/s", found, "plain")


if __name__ == "__main__":
    main()
