"""No-op drain with millions of ready, scheduled or finished rows behind it, against small tables, in turn."""

from __future__ import annotations

import argparse

import common

TABLES = (common.TASK, common.FINISHED)
COLUMNS = "id, queue, rank, state, attempt, max_attempts, ack, run_after, created_at, name, args, replays"


def put_aside(admin, name):
    """Make empty tables like ours under another name."""
    for table in TABLES:
        admin.execute(f"DROP TABLE IF EXISTS {name}_{table}")
        admin.execute(f"CREATE TABLE {name}_{table} (LIKE {table} INCLUDING ALL)")


def swap(admin, name):
    """Exchange our tables with those put aside, in one transaction."""
    with admin.transaction():
        for table in TABLES:
            admin.execute(f"ALTER TABLE {table} RENAME TO swapped")
            admin.execute(f"ALTER TABLE {name}_{table} RENAME TO {table}")
            admin.execute(f"ALTER TABLE swapped RENAME TO {name}_{table}")


def fill(admin, kind, rows):
    """Put rows of one kind into our tables; ready ones on the queue that is measured."""
    ids = "('01900000-0000-7000-8000-' || lpad(to_hex(g), 12, '0'))::uuid"
    source = f"FROM generate_series(1, {rows}) g"
    facts = """now(), 'tasks.noop', '{"args":[1],"kwargs":{}}', 0"""
    if kind == "finished":
        admin.execute(
            f"INSERT INTO {common.FINISHED} ({COLUMNS}, finished_at)"
            f" SELECT {ids}, 'default', 0, 3, 1, 3, 0, NULL::timestamptz, {facts}, now() {source}"
        )
    elif kind == "scheduled":
        admin.execute(
            f"INSERT INTO {common.TASK} ({COLUMNS}, cancel)"
            f" SELECT {ids}, 'default', 0, 0, 0, 3, 0, now() + interval '1 day' + g * interval '1 ms', {facts}, false"
            f" {source}"
        )
    else:
        admin.execute(
            f"INSERT INTO {common.TASK} ({COLUMNS}, cancel)"
            f" SELECT {ids}, 'default', 0, 1, 0, 3, 0, NULL::timestamptz, {facts}, false {source}"
        )
    common.calm(admin)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--tasks", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["ready", "scheduled", "finished"])
    options = parser.parse_args()
    admin = common.setup()
    for kind in options.kinds:
        common.empty(admin)
        put_aside(admin, "large")
        swap(admin, "large")
        fill(admin, kind, options.rows)
        found = {"small": [], kind: []}
        for _ in range(options.rounds):
            common.load(options.tasks)
            found[kind].append(common.drain(admin, options.tasks, "--threads", "1"))
            swap(admin, "large")
            common.load(options.tasks)
            found["small"].append(common.drain(admin, options.tasks, "--threads", "1"))
            swap(admin, "large")
        swap(admin, "large")
        common.report(f"No-op drain, {options.rows:,} {kind} rows behind it", "tasks/s", found, "small")


if __name__ == "__main__":
    main()
