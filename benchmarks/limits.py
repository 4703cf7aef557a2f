"""No-op drain of tasks with limits against the same number without, in one run: what a limit costs."""

from __future__ import annotations

import argparse

import common

KINDS = ("unlimited", "1000 keys, cap 5", "100 keys, cap 1", "1 key, cap 10", "queue cap 50", "1000 keys, rate")


def load(kind, count):
    """Store no-op tasks of one kind."""
    import tasks

    if kind in ("unlimited", "queue cap 50"):
        common.load(count)
        return
    task, keys = {
        "1000 keys, cap 5": (tasks.five_of_a_key, 1000),
        "100 keys, cap 1": (tasks.one_of_a_key, 100),
        "1 key, cap 10": (tasks.ten_of_a_key, 1),
        "1000 keys, rate": (tasks.often_of_a_key, 1000),
    }[kind]
    for at in range(0, count, 5000):
        task.enqueue_many([(number % keys,) for number in range(at, min(at + 5000, count))])


def empty(admin, kind):
    common.empty(admin)
    admin.execute("TRUNCATE django_taskq_limit")
    if kind == "queue cap 50":
        admin.execute(
            "INSERT INTO django_taskq_limit (key, held, waits, promised, set_amount, set_by, set_reason)"
            " VALUES ('1c:queue:default', 0, false, 0, 50, '', '')"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    options = parser.parse_args()
    admin = common.setup()
    for workers in options.workers:
        found = {kind: [] for kind in options.kinds}
        for _ in range(options.rounds):
            for kind, rates in found.items():
                empty(admin, kind)
                load(kind, options.tasks)
                rates.append(common.drain(admin, options.tasks, "--threads", "1", processes=workers))
        common.report(f"{options.tasks:,} no-ops, {workers} workers", "tasks/s", found, options.kinds[0])


if __name__ == "__main__":
    main()
