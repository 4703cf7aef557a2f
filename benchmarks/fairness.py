"""Shares of weighted queues and of tenants in one queue, measured on running workers; and what turns cost."""

from __future__ import annotations

import argparse
import time

import common

WEIGHTS = {"a": 6, "b": 3, "c": 1}
MEASURED = 20_000


def load(count, **options):
    """Enqueue no-op tasks with options."""
    import tasks

    made = tasks.noop.using(**options) if options else tasks.noop
    for start in range(0, count, 10_000):
        made.enqueue_many((i,) for i in range(start, min(start + 10_000, count)))


def finish(admin, count, *arguments, processes=1):
    """Run workers until so many tasks are done."""
    common.calm(admin)
    workers = [common.worker(*arguments) for _ in range(processes)]
    try:
        until = time.monotonic() + 600
        while admin.execute(f"SELECT count(*) FROM {common.FINISHED}").fetchone()[0] < count:
            if time.monotonic() > until:
                raise SystemExit(f"{count} tasks were not done after 600 s")
            time.sleep(0.1)
    finally:
        for process in workers:
            common.stop(process)


def weights(admin, processes):
    """Print the share of each queue in the first 20,000 ends, against its weight."""
    common.empty(admin)
    for queue, weight in WEIGHTS.items():
        load(weight * MEASURED // 10 + 2000, queue_name=queue)
    wanted = ",".join(f"{queue}:{weight}" for queue, weight in WEIGHTS.items())
    finish(admin, MEASURED, "--queues", wanted, processes=processes)
    rows = admin.execute(
        f"SELECT queue, count(*) FROM (SELECT queue FROM {common.FINISHED} ORDER BY finished_at, id LIMIT %s) f"
        " GROUP BY queue ORDER BY queue",
        [MEASURED],
    ).fetchall()
    print(f"\nWeights {wanted}, {processes} worker(s): share of {MEASURED:,} tasks, as a ratio to the weight")
    for queue, count in rows:
        print(f"  {queue:32} {count:12,}  ratio {count / (MEASURED * WEIGHTS[queue] / 10):6.3f}")


def tenants(admin, backlog, few, processes, *, keyed):
    """Print after how many ends the small tenant was done, against its ideal share."""
    common.empty(admin)
    load(backlog, **({"fair_key": "big"} if keyed else {}))
    load(few, metadata={"tenant": "small"}, **({"fair_key": "small"} if keyed else {}))
    finish(admin, backlog + few, "--queues", "default", processes=processes)
    position = admin.execute(
        "SELECT max(n) FROM (SELECT metadata, row_number() OVER (ORDER BY finished_at, id) AS n"
        f" FROM {common.FINISHED}) f WHERE metadata LIKE %s",
        ["%small%"],
    ).fetchone()[0]
    kind = "with fair keys" if keyed else "without"
    print(
        f"\nA tenant with {few:,} tasks behind one with {backlog:,}, {processes} worker(s), {kind}:"
        f" done after {position:,} ends, {position / (2 * few):,.2f} of its ideal share"
    )


def cost(admin, count, rounds):
    """Print the no-op drain of a queue with so many keys, against one without."""
    keys = {"no keys": 0, "1 key": 1, "10 keys": 10, "1,000 keys": 1000}

    def measure(name):
        common.empty(admin)
        most = keys[name]
        load(count, **({"fair_key": lambda number: f"tenant {number % most}"} if most else {}))
        return common.drain(admin, count, "--threads", "1")

    common.report("No-op drain in turns", "tasks/s", common.rounds(list(keys), measure, rounds), "no keys")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backlog", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    admin = common.setup()
    for processes in (1, 2):
        weights(admin, processes)
    for processes in (1, 2):
        tenants(admin, options.backlog, options.few, processes, keyed=True)
    tenants(admin, options.backlog // 10, options.few, 1, keyed=False)
    cost(admin, options.tasks, options.rounds)


if __name__ == "__main__":
    main()
