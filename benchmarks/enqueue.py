"""Enqueue: one by one against a bare committed INSERT, in bulk against bulk_create."""

from __future__ import annotations

import argparse
import os
import time

import common


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--bulk", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    admin = common.setup()
    import psycopg
    import tasks
    from django.utils import timezone

    from django_taskq.models import Task

    bare = psycopg.connect(os.environ["TASKQ_BENCH_DATABASE"], autocommit=True, prepare_threshold=0)
    bare.execute(
        "CREATE TABLE IF NOT EXISTS bare (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, state smallint NOT NULL"
        " DEFAULT 0, func text NOT NULL, args jsonb NOT NULL, created timestamptz NOT NULL DEFAULT now())"
    )
    bare.execute("CREATE INDEX IF NOT EXISTS bare_ready ON bare (id) WHERE state = 0")

    def insert_bare(number):
        bare.execute("INSERT INTO bare (func, args) VALUES (%s, jsonb_build_array(%s::bigint))", ["noop", number])

    def create(number):
        Task.objects.create(queue="default", name="tasks.noop", created_at=timezone.now(), args="[]")

    one_by_one = {"bare INSERT": insert_bare, "enqueue": tasks.noop.enqueue, "objects.create": create}

    def rate(name):
        common.empty(admin)
        admin.execute("TRUNCATE bare")
        call, count, began = one_by_one[name], 0, time.perf_counter()
        while time.perf_counter() - began < options.seconds:
            call(count)
            count += 1
        return count / (time.perf_counter() - began)

    common.report("One by one", "tasks/s", common.rounds(list(one_by_one), rate, options.rounds), "bare INSERT")

    def bulk_create():
        now = timezone.now()
        Task.objects.bulk_create(
            [Task(queue="default", name="tasks.noop", created_at=now, args=f"[{i}]") for i in range(options.bulk)]
        )

    in_bulk = {
        "bulk_create": bulk_create,
        "enqueue_many": lambda: tasks.noop.enqueue_many((i,) for i in range(options.bulk)),
    }

    def bulk_rate(name):
        common.empty(admin)
        began = time.perf_counter()
        in_bulk[name]()
        return options.bulk / (time.perf_counter() - began)

    in_bulk["enqueue_many"]()
    found = common.rounds(list(in_bulk), bulk_rate, options.rounds * 3)
    common.report(f"{options.bulk:,} in bulk", "tasks/s", found, "bulk_create")


if __name__ == "__main__":
    main()
