"""This project as a contender of a side-by-side benchmark of task libraries; see ../README.md."""

from adapters._django import DjangoPostgres

TASK, FINISHED = "django_taskq_task", "django_taskq_finishedtask"


class DjangoTaskQ(DjangoPostgres):
    name = "django_taskq"
    config = (
        "Django 6.1, psycopg3 C; runworker, 1 thread (50 for I/O), everything else as by default: retries, leases,"
        " heartbeat, duties, statistics, django.tasks signals, results kept; LISTEN/NOTIFY"
    )
    done = "its row moved from the live to the finished table, in one commit with its statistics"
    has_bulk = True
    has_fill = True
    drain_n = 100_000
    tables = (TASK, FINISHED, "django_taskq_attempt", "django_taskq_stat", "django_taskq_progress")
    pending_sql = f"SELECT count(*) FROM {TASK}"

    # setup(), enqueue() and the tasks come from _django.py and _tasks.py.

    def bulk(self, task, ids):
        from adapters import _tasks

        getattr(_tasks, task).enqueue_many((i,) for i in ids)

    def fill(self, kind, n):
        if kind == "backlog":
            for start in range(0, n, 50_000):
                self.bulk("noop", range(start, min(start + 50_000, n)))
            return
        self.enqueue("noop", 0)
        self.admin.execute(
            f"INSERT INTO {FINISHED} (id, queue, rank, state, attempt, max_attempts, ack, created_at, started_at,"
            " finished_at, name, args, replays)"
            " SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(g), 12, '0'))::uuid, queue, rank, 3, 1, max_attempts,"
            f" ack, created_at, created_at, created_at, name, args, 0 FROM {TASK}, generate_series(1, %s) g",
            [n],
        )
        self.admin.execute(f"DELETE FROM {TASK}")

    def workers(self, mode, procs):
        threads = str(self.io_slots) if mode == "io" else "1"
        return [self.command("runworker", "--threads", threads)] * procs


adapter = DjangoTaskQ()
