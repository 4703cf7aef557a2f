from django.db import migrations, models

import django_taskq.ids
import django_taskq.schema


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Duty",
            fields=[
                ("name", models.CharField(max_length=50, primary_key=True, serialize=False, verbose_name="duty")),
                ("worker_id", models.BigIntegerField(default=0, verbose_name="worker")),
                ("term", models.BigIntegerField(default=0, verbose_name="term")),
                ("until", models.DateTimeField(blank=True, null=True, verbose_name="held until")),
                ("ran_at", models.DateTimeField(blank=True, null=True, verbose_name="last run")),
                ("took_ms", models.IntegerField(default=0, verbose_name="took, ms")),
                ("count", models.IntegerField(default=0, verbose_name="last count")),
                ("error", models.CharField(blank=True, max_length=300, verbose_name="last error")),
            ],
            options={
                "verbose_name": "duty",
                "verbose_name_plural": "duties",
            },
        ),
        migrations.CreateModel(
            name="Progress",
            fields=[
                ("task_id", django_taskq.schema.TaskIdField(primary_key=True, serialize=False, verbose_name="task")),
                ("done", models.FloatField(verbose_name="done")),
                ("total", models.FloatField(blank=True, null=True, verbose_name="total")),
                ("note", models.CharField(blank=True, max_length=200, verbose_name="note")),
                ("at", models.DateTimeField(verbose_name="at")),
            ],
            options={
                "verbose_name": "progress",
                "verbose_name_plural": "progress",
            },
        ),
        migrations.CreateModel(
            name="Queue",
            fields=[
                (
                    "name",
                    django_taskq.schema.NameField(
                        max_length=64, primary_key=True, serialize=False, verbose_name="name"
                    ),
                ),
                (
                    "position",
                    models.IntegerField(
                        default=0, help_text="lower first, where a worker names no order", verbose_name="position"
                    ),
                ),
                ("weight", models.PositiveIntegerField(default=1, verbose_name="weight")),
                ("paused", models.BooleanField(default=False, verbose_name="paused")),
                ("paused_at", models.DateTimeField(blank=True, null=True, verbose_name="paused at")),
                ("paused_by", models.CharField(blank=True, max_length=150, verbose_name="paused by")),
                ("pause_reason", models.CharField(blank=True, max_length=200, verbose_name="reason")),
            ],
            options={
                "verbose_name": "queue",
                "verbose_name_plural": "queues",
                "ordering": ["position", "name"],
            },
        ),
        migrations.CreateModel(
            name="TaskType",
            fields=[
                (
                    "name",
                    django_taskq.schema.NameField(
                        max_length=200, primary_key=True, serialize=False, verbose_name="task"
                    ),
                ),
                ("queue", django_taskq.schema.NameField(blank=True, max_length=64, verbose_name="queue")),
                ("seen_at", models.DateTimeField(verbose_name="last announced")),
            ],
            options={
                "verbose_name": "task type",
                "verbose_name_plural": "task types",
                "ordering": ["name"],
            },
        ),
        migrations.CreateModel(
            name="Worker",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=200, verbose_name="name")),
                ("host", models.CharField(blank=True, max_length=200, verbose_name="host")),
                ("pid", models.IntegerField(default=0, verbose_name="process")),
                ("queues", models.CharField(blank=True, max_length=500, verbose_name="queues")),
                (
                    "state",
                    models.SmallIntegerField(
                        choices=[(1, "alive"), (2, "stopping"), (3, "dead")], default=1, verbose_name="state"
                    ),
                ),
                ("slots", models.IntegerField(default=1, verbose_name="slots")),
                ("executor", models.CharField(blank=True, max_length=100, verbose_name="executor")),
                ("running", models.IntegerField(default=0, verbose_name="running")),
                ("release", models.CharField(blank=True, max_length=100, verbose_name="release")),
                ("started_at", models.DateTimeField(verbose_name="started at")),
                ("beat_at", models.DateTimeField(verbose_name="last heartbeat")),
                ("lease_seconds", models.IntegerField(default=30, verbose_name="lease")),
            ],
            options={
                "verbose_name": "worker",
                "verbose_name_plural": "workers",
            },
        ),
        migrations.CreateModel(
            name="Attempt",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("task_id", django_taskq.schema.TaskIdField(verbose_name="task")),
                ("number", models.IntegerField(verbose_name="attempt")),
                ("worker_id", models.BigIntegerField(verbose_name="worker")),
                ("outcome", models.CharField(max_length=20, verbose_name="outcome")),
                ("started_at", models.DateTimeField(blank=True, null=True, verbose_name="started at")),
                ("ended_at", models.DateTimeField(verbose_name="ended at")),
                ("error_class", models.CharField(blank=True, max_length=200, verbose_name="error class")),
                ("message", models.TextField(blank=True, verbose_name="message")),
                ("traceback", models.TextField(blank=True, verbose_name="traceback")),
            ],
            options={
                "verbose_name": "attempt",
                "verbose_name_plural": "attempts",
                "indexes": [models.Index(fields=["task_id", "id"], name="taskq_attempt_task")],
            },
        ),
        migrations.CreateModel(
            name="AuditEntry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField(verbose_name="at")),
                ("actor", models.CharField(max_length=150, verbose_name="actor")),
                ("action", models.CharField(max_length=50, verbose_name="action")),
                ("target", models.CharField(blank=True, max_length=200, verbose_name="target")),
                ("task_id", django_taskq.schema.TaskIdField(blank=True, null=True, verbose_name="task")),
                ("reason", models.CharField(blank=True, max_length=300, verbose_name="reason")),
                ("detail", models.JSONField(blank=True, default=dict, verbose_name="detail")),
            ],
            options={
                "verbose_name": "audit entry",
                "verbose_name_plural": "audit log",
                "indexes": [
                    models.Index(fields=["task_id", "id"], name="taskq_audit_task"),
                    models.Index(fields=["at"], name="taskq_audit_at"),
                ],
            },
        ),
        migrations.CreateModel(
            name="FinishedTask",
            fields=[
                (
                    "id",
                    django_taskq.schema.TaskIdField(
                        default=django_taskq.ids.uuid7,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                        verbose_name="id",
                    ),
                ),
                ("queue", django_taskq.schema.NameField(max_length=64, verbose_name="queue")),
                (
                    "rank",
                    models.SmallIntegerField(
                        default=0, help_text="minus the priority: lower runs first", verbose_name="rank"
                    ),
                ),
                (
                    "state",
                    models.SmallIntegerField(
                        choices=[
                            (6, "waiting"),
                            (0, "scheduled"),
                            (1, "ready"),
                            (2, "running"),
                            (5, "parked"),
                            (3, "succeeded"),
                            (4, "dead"),
                            (7, "cancelled"),
                        ],
                        default=1,
                        verbose_name="state",
                    ),
                ),
                ("attempt", models.IntegerField(default=0, verbose_name="attempt")),
                ("max_attempts", models.IntegerField(default=3, verbose_name="maximum attempts")),
                ("ack", models.SmallIntegerField(default=0, verbose_name="acknowledgement")),
                ("lease", models.BigIntegerField(blank=True, null=True, verbose_name="lease")),
                ("run_after", models.DateTimeField(blank=True, null=True, verbose_name="run after")),
                ("created_at", models.DateTimeField(verbose_name="created at")),
                (
                    "started_at",
                    models.DateTimeField(
                        blank=True, help_text="of the latest attempt", null=True, verbose_name="started at"
                    ),
                ),
                ("deadline_at", models.DateTimeField(blank=True, null=True, verbose_name="deadline")),
                ("expires_at", models.DateTimeField(blank=True, null=True, verbose_name="expires at")),
                ("name", django_taskq.schema.NameField(max_length=200, verbose_name="task")),
                ("args", models.TextField(default='{"args":[],"kwargs":{}}', verbose_name="arguments")),
                ("options", models.TextField(blank=True, null=True, verbose_name="options")),
                ("metadata", models.TextField(blank=True, null=True, verbose_name="metadata")),
                ("parent_id", django_taskq.schema.TaskIdField(blank=True, null=True, verbose_name="parent")),
                ("replays", models.SmallIntegerField(default=0, verbose_name="replays")),
                ("finished_at", models.DateTimeField(verbose_name="finished at")),
                ("result", models.TextField(blank=True, null=True, verbose_name="result")),
                (
                    "reason",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("exhausted", "exhausted"),
                            ("crashed", "crashed"),
                            ("budget_expired", "budget_expired"),
                            ("expired", "expired"),
                            ("gave_up", "gave_up"),
                            ("unknown_task", "unknown_task"),
                            ("undecodable", "undecodable"),
                            ("lost", "lost"),
                            ("moved", "moved"),
                        ],
                        max_length=20,
                        null=True,
                        verbose_name="reason",
                    ),
                ),
                ("error_class", models.CharField(blank=True, max_length=200, null=True, verbose_name="error class")),
                ("error_line", models.CharField(blank=True, max_length=300, null=True, verbose_name="error")),
                ("fingerprint", models.CharField(blank=True, max_length=16, null=True, verbose_name="fingerprint")),
                ("delete_at", models.DateTimeField(blank=True, null=True, verbose_name="delete at")),
                ("resolved_at", models.DateTimeField(blank=True, null=True, verbose_name="discarded at")),
            ],
            options={
                "verbose_name": "finished task",
                "verbose_name_plural": "finished tasks",
                "indexes": [
                    models.Index(fields=["finished_at"], name="taskq_finished_at"),
                    django_taskq.schema.LiveIndex(
                        fields=["state", "id"], name="taskq_finished_dead", partial=["id"], where=models.Q(("state", 4))
                    ),
                    django_taskq.schema.LiveIndex(
                        fields=["delete_at"],
                        name="taskq_finished_delete_at",
                        where=models.Q(("delete_at__isnull", False)),
                    ),
                    django_taskq.schema.LiveIndex(
                        fields=["fingerprint", "id"],
                        name="taskq_finished_fingerprint",
                        where=models.Q(("fingerprint__isnull", False)),
                    ),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("state__range", (3, 4)), ("state", 7), _connector="OR"),
                        name="taskq_finished_state_is_final",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="DeadTask",
            fields=[],
            options={
                "verbose_name": "dead letter",
                "verbose_name_plural": "dead letters",
                "proxy": True,
                "indexes": [],
                "constraints": [],
            },
            bases=("django_taskq.finishedtask",),
        ),
        migrations.CreateModel(
            name="Snapshot",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("queue", django_taskq.schema.NameField(max_length=64, verbose_name="queue")),
                ("at", models.DateTimeField(verbose_name="at")),
                ("ready", models.IntegerField(default=0, verbose_name="ready")),
                ("scheduled", models.IntegerField(default=0, verbose_name="scheduled")),
                ("running", models.IntegerField(default=0, verbose_name="running")),
                ("waiting", models.IntegerField(default=0, verbose_name="waiting")),
                ("parked", models.IntegerField(default=0, verbose_name="parked")),
                ("dead", models.IntegerField(default=0, verbose_name="dead")),
                ("oldest_ready_at", models.DateTimeField(blank=True, null=True, verbose_name="oldest ready since")),
                ("exact", models.BooleanField(default=True, verbose_name="exact")),
            ],
            options={
                "verbose_name": "snapshot",
                "verbose_name_plural": "snapshots",
                "indexes": [models.Index(fields=["at"], name="taskq_snapshot_at")],
                "constraints": [models.UniqueConstraint(fields=("queue", "at"), name="taskq_snapshot_key")],
            },
        ),
        migrations.CreateModel(
            name="Stat",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("minute", models.DateTimeField(verbose_name="minute")),
                ("queue", django_taskq.schema.NameField(max_length=64, verbose_name="queue")),
                ("task", django_taskq.schema.NameField(max_length=200, verbose_name="task")),
                ("worker_id", models.BigIntegerField(default=0, verbose_name="worker")),
                ("succeeded", models.IntegerField(default=0, verbose_name="succeeded")),
                ("failed", models.IntegerField(default=0, verbose_name="failed attempts")),
                ("retried", models.IntegerField(default=0, verbose_name="retried")),
                ("dead", models.IntegerField(default=0, verbose_name="dead")),
                ("cancelled", models.IntegerField(default=0, verbose_name="cancelled")),
                ("rescued", models.IntegerField(default=0, verbose_name="rescued")),
                ("run_ms", models.BigIntegerField(default=0, verbose_name="run time, ms")),
                ("wait_ms", models.BigIntegerField(default=0, verbose_name="waiting time, ms")),
                ("run_0", models.IntegerField(default=0)),
                ("run_1", models.IntegerField(default=0)),
                ("run_2", models.IntegerField(default=0)),
                ("run_3", models.IntegerField(default=0)),
                ("run_4", models.IntegerField(default=0)),
                ("run_5", models.IntegerField(default=0)),
                ("run_6", models.IntegerField(default=0)),
                ("run_7", models.IntegerField(default=0)),
                ("run_8", models.IntegerField(default=0)),
                ("run_9", models.IntegerField(default=0)),
                ("run_10", models.IntegerField(default=0)),
                ("wait_0", models.IntegerField(default=0)),
                ("wait_1", models.IntegerField(default=0)),
                ("wait_2", models.IntegerField(default=0)),
                ("wait_3", models.IntegerField(default=0)),
                ("wait_4", models.IntegerField(default=0)),
                ("wait_5", models.IntegerField(default=0)),
                ("wait_6", models.IntegerField(default=0)),
                ("wait_7", models.IntegerField(default=0)),
                ("wait_8", models.IntegerField(default=0)),
                ("wait_9", models.IntegerField(default=0)),
                ("wait_10", models.IntegerField(default=0)),
            ],
            options={
                "verbose_name": "statistic",
                "verbose_name_plural": "statistics",
                "constraints": [
                    models.UniqueConstraint(fields=("minute", "queue", "task", "worker_id"), name="taskq_stat_key")
                ],
            },
        ),
        migrations.CreateModel(
            name="Task",
            fields=[
                (
                    "id",
                    django_taskq.schema.TaskIdField(
                        default=django_taskq.ids.uuid7,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                        verbose_name="id",
                    ),
                ),
                ("queue", django_taskq.schema.NameField(max_length=64, verbose_name="queue")),
                (
                    "rank",
                    models.SmallIntegerField(
                        default=0, help_text="minus the priority: lower runs first", verbose_name="rank"
                    ),
                ),
                (
                    "state",
                    models.SmallIntegerField(
                        choices=[
                            (6, "waiting"),
                            (0, "scheduled"),
                            (1, "ready"),
                            (2, "running"),
                            (5, "parked"),
                            (3, "succeeded"),
                            (4, "dead"),
                            (7, "cancelled"),
                        ],
                        default=1,
                        verbose_name="state",
                    ),
                ),
                ("attempt", models.IntegerField(default=0, verbose_name="attempt")),
                ("max_attempts", models.IntegerField(default=3, verbose_name="maximum attempts")),
                ("ack", models.SmallIntegerField(default=0, verbose_name="acknowledgement")),
                ("lease", models.BigIntegerField(blank=True, null=True, verbose_name="lease")),
                ("run_after", models.DateTimeField(blank=True, null=True, verbose_name="run after")),
                ("created_at", models.DateTimeField(verbose_name="created at")),
                (
                    "started_at",
                    models.DateTimeField(
                        blank=True, help_text="of the latest attempt", null=True, verbose_name="started at"
                    ),
                ),
                ("deadline_at", models.DateTimeField(blank=True, null=True, verbose_name="deadline")),
                ("expires_at", models.DateTimeField(blank=True, null=True, verbose_name="expires at")),
                ("name", django_taskq.schema.NameField(max_length=200, verbose_name="task")),
                ("args", models.TextField(default='{"args":[],"kwargs":{}}', verbose_name="arguments")),
                ("options", models.TextField(blank=True, null=True, verbose_name="options")),
                ("metadata", models.TextField(blank=True, null=True, verbose_name="metadata")),
                ("parent_id", django_taskq.schema.TaskIdField(blank=True, null=True, verbose_name="parent")),
                ("replays", models.SmallIntegerField(default=0, verbose_name="replays")),
                ("cancel", models.BooleanField(default=False, verbose_name="cancel requested")),
            ],
            options={
                "verbose_name": "task",
                "verbose_name_plural": "tasks",
                "indexes": [
                    django_taskq.schema.LiveIndex(
                        fields=["queue", "state", "rank", "id"],
                        name="taskq_task_claim",
                        partial=["queue", "rank", "id"],
                        where=models.Q(("state", 1)),
                    ),
                    django_taskq.schema.LiveIndex(
                        fields=["state", "run_after"],
                        name="taskq_task_due",
                        partial=["run_after"],
                        where=models.Q(("state", 0)),
                    ),
                    django_taskq.schema.LiveIndex(
                        fields=["lease"], name="taskq_task_lease", where=models.Q(("lease__isnull", False))
                    ),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("state__range", (0, 2)), ("state__range", (5, 6)), _connector="OR"),
                        name="taskq_task_state_is_live",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("lease__isnull", False), ("state", 2)),
                            models.Q(models.Q(("state", 2), _negated=True), ("lease__isnull", True)),
                            _connector="OR",
                        ),
                        name="taskq_task_running_has_lease",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("attempt__gte", 0), ("max_attempts__gte", 1)), name="taskq_task_attempts"
                    ),
                ],
            },
        ),
    ]
