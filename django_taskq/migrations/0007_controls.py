"""
Give tasks the columns of limits, fair shares and unique keys, and limits and idempotency keys their tables.

Null for tasks that have none of it. The indexes are partial where the database has such.
"""

from django.db import migrations, models

import django_taskq.schema

# Room for the next version of a row on the same page, as for other rows that are updated in place.
UPDATED = {"fillfactor": 50}


class Migration(migrations.Migration):
    dependencies = [
        ("django_taskq", "0006_workflows"),
    ]

    operations = [
        migrations.CreateModel(
            name="IdempotencyKey",
            fields=[
                (
                    "key",
                    django_taskq.schema.NameField(
                        max_length=200, primary_key=True, serialize=False, verbose_name="key"
                    ),
                ),
                ("task_id", django_taskq.schema.TaskIdField(verbose_name="task")),
                (
                    "fingerprint",
                    models.CharField(help_text="of task and arguments", max_length=32, verbose_name="fingerprint"),
                ),
                ("created_at", models.DateTimeField(verbose_name="created at")),
                ("expires_at", models.DateTimeField(verbose_name="expires at")),
            ],
            options={
                "verbose_name": "idempotency key",
                "verbose_name_plural": "idempotency keys",
            },
        ),
        migrations.CreateModel(
            name="Limit",
            fields=[
                (
                    "key",
                    django_taskq.schema.NameField(
                        max_length=200, primary_key=True, serialize=False, verbose_name="key"
                    ),
                ),
                (
                    "held",
                    models.IntegerField(
                        default=0, help_text="slots of tasks that are claimed just now", verbose_name="held"
                    ),
                ),
                (
                    "amount",
                    models.IntegerField(blank=True, help_text="what the code says", null=True, verbose_name="amount"),
                ),
                ("per_seconds", models.FloatField(blank=True, null=True, verbose_name="per seconds")),
                ("burst", models.IntegerField(blank=True, null=True, verbose_name="burst")),
                ("tokens", models.FloatField(blank=True, null=True, verbose_name="tokens")),
                ("refilled_at", models.DateTimeField(blank=True, null=True, verbose_name="refilled at")),
                ("waits", models.BooleanField(default=False, verbose_name="tasks are parked")),
                (
                    "promised",
                    models.IntegerField(
                        default=0, help_text="released tasks that nobody claimed yet", verbose_name="promised"
                    ),
                ),
                ("promised_at", models.DateTimeField(blank=True, null=True, verbose_name="promised at")),
                ("next_at", models.DateTimeField(blank=True, null=True, verbose_name="next look")),
                ("used_at", models.DateTimeField(blank=True, null=True, verbose_name="last used")),
                ("set_amount", models.IntegerField(blank=True, null=True, verbose_name="amount, set by hand")),
                ("set_per_seconds", models.FloatField(blank=True, null=True, verbose_name="per seconds, set by hand")),
                ("set_burst", models.IntegerField(blank=True, null=True, verbose_name="burst, set by hand")),
                ("set_until", models.DateTimeField(blank=True, null=True, verbose_name="set until")),
                ("set_by", models.CharField(blank=True, max_length=150, verbose_name="set by")),
                ("set_reason", models.CharField(blank=True, max_length=200, verbose_name="reason")),
            ],
            options={
                "verbose_name": "limit",
                "verbose_name_plural": "limits",
                "ordering": ["key"],
            },
        ),
        migrations.AddField(
            model_name="finishedtask",
            name="fair_key",
            field=django_taskq.schema.NameField(blank=True, max_length=64, null=True, verbose_name="fair share key"),
        ),
        migrations.AddField(
            model_name="finishedtask",
            name="limits",
            field=models.TextField(blank=True, null=True, verbose_name="limits"),
        ),
        migrations.AddField(
            model_name="finishedtask",
            name="unique_key",
            field=django_taskq.schema.NameField(blank=True, max_length=100, null=True, verbose_name="unique key"),
        ),
        migrations.AddField(
            model_name="task",
            name="fair_key",
            field=django_taskq.schema.NameField(blank=True, max_length=64, null=True, verbose_name="fair share key"),
        ),
        migrations.AddField(
            model_name="task",
            name="limits",
            field=models.TextField(blank=True, null=True, verbose_name="limits"),
        ),
        migrations.AddField(
            model_name="task",
            name="parked_on",
            field=django_taskq.schema.NameField(blank=True, max_length=200, null=True, verbose_name="parked on"),
        ),
        migrations.AddField(
            model_name="task",
            name="slots",
            field=models.TextField(blank=True, null=True, verbose_name="slots"),
        ),
        migrations.AddField(
            model_name="task",
            name="unique_key",
            field=django_taskq.schema.NameField(blank=True, max_length=100, null=True, verbose_name="unique key"),
        ),
        migrations.AddIndex(
            model_name="task",
            index=django_taskq.schema.LiveIndex(
                fields=["parked_on", "rank", "id"],
                name="taskq_task_parked",
                where=models.Q(("parked_on__isnull", False)),
            ),
        ),
        migrations.AddIndex(
            model_name="task",
            index=django_taskq.schema.LiveIndex(
                fields=["queue", "state", "fair_key", "rank", "id"],
                name="taskq_task_fair",
                partial=["queue", "fair_key", "rank", "id"],
                where=models.Q(("fair_key__isnull", False), ("state", 1)),
            ),
        ),
        migrations.AddIndex(
            model_name="task",
            index=django_taskq.schema.LiveIndex(
                fields=["unique_key"],
                name="taskq_task_unique",
                unique=True,
                where=models.Q(("unique_key__isnull", False)),
            ),
        ),
        migrations.AddIndex(
            model_name="idempotencykey",
            index=models.Index(fields=["expires_at"], name="taskq_idempotency_expires"),
        ),
        migrations.AddIndex(
            model_name="limit",
            index=django_taskq.schema.LiveIndex(
                fields=["next_at"], name="taskq_limit_next", where=models.Q(("next_at__isnull", False))
            ),
        ),
        migrations.RunPython(
            django_taskq.schema.set_storage("Limit", **UPDATED),
            django_taskq.schema.reset_storage("Limit", *UPDATED),
            elidable=False,
        ),
    ]
