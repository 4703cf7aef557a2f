"""Keep which attempt holds which key, for tasks that must not overlap."""

from django.db import migrations, models

import django_taskq.schema


class Migration(migrations.Migration):
    dependencies = [("django_taskq", "0009_schedules")]

    operations = [
        migrations.CreateModel(
            name="Lock",
            fields=[
                (
                    "key",
                    django_taskq.schema.NameField(
                        max_length=200, primary_key=True, serialize=False, verbose_name="key"
                    ),
                ),
                ("task_id", django_taskq.schema.TaskIdField(verbose_name="task")),
                ("lease", models.BigIntegerField(verbose_name="lease")),
                ("taken_at", models.DateTimeField(verbose_name="taken at")),
                ("until", models.DateTimeField(blank=True, null=True, verbose_name="held until")),
            ],
            options={
                "verbose_name": "lock",
                "verbose_name_plural": "locks",
                "indexes": [models.Index(fields=["taken_at"], name="taskq_lock_taken_at")],
            },
        ),
    ]
