"""Keep the steps of a task, so that a retry goes on after the last one that finished."""

from django.db import migrations, models

import django_taskq.schema


class Migration(migrations.Migration):
    dependencies = [("django_taskq", "0004_open_dead_letters")]

    operations = [
        migrations.CreateModel(
            name="Step",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("task_id", django_taskq.schema.TaskIdField(verbose_name="task")),
                ("name", django_taskq.schema.NameField(max_length=100, verbose_name="step")),
                ("position", models.IntegerField(verbose_name="position")),
                (
                    "state",
                    models.SmallIntegerField(
                        choices=[
                            (0, "pending"),
                            (1, "running"),
                            (2, "succeeded"),
                            (3, "failed"),
                            (4, "cancelled"),
                            (5, "interrupted"),
                        ],
                        default=0,
                        verbose_name="state",
                    ),
                ),
                ("result", models.TextField(blank=True, null=True, verbose_name="result")),
                ("error_class", models.CharField(blank=True, max_length=200, verbose_name="error class")),
                ("error_line", models.CharField(blank=True, max_length=300, verbose_name="error")),
                ("attempt", models.IntegerField(blank=True, null=True, verbose_name="attempt")),
                ("worker_id", models.BigIntegerField(blank=True, null=True, verbose_name="worker")),
                ("started_at", models.DateTimeField(blank=True, null=True, verbose_name="started at")),
                ("finished_at", models.DateTimeField(blank=True, null=True, verbose_name="finished at")),
            ],
            options={
                "verbose_name": "step",
                "verbose_name_plural": "steps",
                "indexes": [models.Index(fields=["task_id", "position"], name="taskq_step_task")],
                "constraints": [models.UniqueConstraint(fields=("task_id", "name"), name="taskq_step_key")],
            },
        ),
    ]
