"""Keep schedules, and what became of each of their ticks."""

import django.db.models.deletion
from django.db import migrations, models

import django_taskq.schema


class Migration(migrations.Migration):
    dependencies = [
        ("django_taskq", "0008_pauses"),
    ]

    operations = [
        migrations.CreateModel(
            name="Schedule",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", django_taskq.schema.NameField(max_length=100, unique=True, verbose_name="name")),
                ("task", django_taskq.schema.NameField(max_length=200, verbose_name="task")),
                (
                    "kind",
                    models.SmallIntegerField(
                        choices=[(1, "cron"), (2, "interval"), (3, "once")], verbose_name="kind of rule"
                    ),
                ),
                ("rule", models.CharField(max_length=200, verbose_name="rule")),
                ("timezone", models.CharField(max_length=64, verbose_name="time zone")),
                ("args", models.TextField(verbose_name="arguments")),
                ("options", models.TextField(default="{}", verbose_name="options")),
                (
                    "source",
                    models.CharField(
                        choices=[("code", "code"), ("admin", "admin")],
                        default="admin",
                        max_length=10,
                        verbose_name="source",
                    ),
                ),
                ("enabled", models.BooleanField(default=True, verbose_name="enabled")),
                ("gone_at", models.DateTimeField(blank=True, null=True, verbose_name="no longer in the code since")),
                ("seen_at", models.DateTimeField(blank=True, null=True, verbose_name="last seen in the code")),
                ("paused_at", models.DateTimeField(blank=True, null=True, verbose_name="paused at")),
                ("paused_until", models.DateTimeField(blank=True, null=True, verbose_name="paused until")),
                ("paused_by", models.CharField(blank=True, max_length=150, verbose_name="paused by")),
                ("pause_reason", models.CharField(blank=True, max_length=200, verbose_name="reason")),
                ("skip_next", models.BooleanField(default=False, verbose_name="skip the next tick")),
                ("start_at", models.DateTimeField(blank=True, null=True, verbose_name="start")),
                ("end_at", models.DateTimeField(blank=True, null=True, verbose_name="end")),
                ("next_at", models.DateTimeField(blank=True, null=True, verbose_name="next tick")),
                ("due_at", models.DateTimeField(blank=True, db_index=True, null=True, verbose_name="looked at next")),
                ("last_at", models.DateTimeField(blank=True, null=True, verbose_name="last tick")),
                ("last_task_id", django_taskq.schema.TaskIdField(blank=True, null=True, verbose_name="last task")),
                ("last_error", models.CharField(blank=True, max_length=300, verbose_name="last error")),
                ("created_at", models.DateTimeField(verbose_name="created at")),
                ("changed_at", models.DateTimeField(verbose_name="changed at")),
            ],
            options={
                "verbose_name": "schedule",
                "verbose_name_plural": "schedules",
                "permissions": [("run_schedule", "Can run, pause, resume and switch schedules")],
            },
        ),
        migrations.CreateModel(
            name="ScheduleTick",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField(verbose_name="tick")),
                ("since", models.DateTimeField(blank=True, null=True, verbose_name="since")),
                (
                    "kind",
                    models.SmallIntegerField(
                        choices=[
                            (1, "made"),
                            (2, "run by hand"),
                            (3, "left out: the previous task was live"),
                            (4, "left out: paused"),
                            (5, "missed"),
                            (6, "skipped"),
                        ],
                        verbose_name="what became of it",
                    ),
                ),
                ("task_id", django_taskq.schema.TaskIdField(blank=True, null=True, verbose_name="task")),
                ("made_at", models.DateTimeField(verbose_name="dealt with at")),
                (
                    "schedule",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="ticks",
                        to="django_taskq.schedule",
                        verbose_name="schedule",
                    ),
                ),
            ],
            options={
                "verbose_name": "tick",
                "verbose_name_plural": "ticks",
                "indexes": [models.Index(fields=["made_at"], name="taskq_tick_made_at")],
                "constraints": [models.UniqueConstraint(fields=("schedule", "at"), name="taskq_tick_once")],
            },
        ),
    ]
