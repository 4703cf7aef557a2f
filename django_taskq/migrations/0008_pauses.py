"""Pause queues, task types or everything, with an end; the pauses of queues move into a table of their own."""

from typing import Any

from django.db import migrations, models
from django.db.models.functions import Now

import django_taskq.schema

_QUEUE = 1


def _move_out(apps: Any, schema_editor: Any) -> None:
    alias = schema_editor.connection.alias
    pauses = apps.get_model("django_taskq", "Pause")
    queues = apps.get_model("django_taskq", "Queue").objects.using(alias).filter(paused=True)
    pauses.objects.using(alias).bulk_create(
        pauses(
            scope=_QUEUE,
            name=queue.name,
            # A row that was changed by hand may not say since when.
            paused_at=queue.paused_at or Now(),
            paused_by=queue.paused_by,
            reason=queue.pause_reason,
            # These promised that enqueueing goes on.
            rejects=False,
        )
        for queue in queues
    )


def _move_back(apps: Any, schema_editor: Any) -> None:
    alias = schema_editor.connection.alias
    queues = apps.get_model("django_taskq", "Queue").objects.using(alias)
    pauses = apps.get_model("django_taskq", "Pause").objects.using(alias).filter(scope=_QUEUE)
    # The older tables know no end: one that has passed by then is not taken along.
    for pause in pauses.exclude(until__lte=Now()):
        queues.update_or_create(
            name=pause.name,
            defaults={
                "paused": True,
                "paused_at": pause.paused_at,
                "paused_by": pause.paused_by,
                "pause_reason": pause.reason,
            },
        )


class Migration(migrations.Migration):
    dependencies = [("django_taskq", "0007_controls")]

    operations = [
        migrations.CreateModel(
            name="Pause",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "scope",
                    models.SmallIntegerField(
                        choices=[(0, "everything"), (1, "queue"), (2, "task type")], verbose_name="scope"
                    ),
                ),
                ("name", django_taskq.schema.NameField(blank=True, max_length=200, verbose_name="name")),
                ("paused_at", models.DateTimeField(verbose_name="paused at")),
                ("paused_by", models.CharField(blank=True, max_length=150, verbose_name="paused by")),
                ("reason", models.CharField(blank=True, max_length=200, verbose_name="reason")),
                ("until", models.DateTimeField(blank=True, null=True, verbose_name="until")),
                (
                    "rejects",
                    models.BooleanField(
                        blank=True,
                        help_text="empty: what the settings of the queue say",
                        null=True,
                        verbose_name="refuses new tasks",
                    ),
                ),
            ],
            options={
                "verbose_name": "pause",
                "verbose_name_plural": "pauses",
                "ordering": ["scope", "name"],
                "constraints": [models.UniqueConstraint(fields=("scope", "name"), name="taskq_pause_key")],
            },
        ),
        migrations.RunPython(_move_out, _move_back),
        migrations.RemoveField(model_name="queue", name="pause_reason"),
        migrations.RemoveField(model_name="queue", name="paused_by"),
        migrations.RemoveField(model_name="queue", name="paused_at"),
        migrations.RemoveField(model_name="queue", name="paused"),
    ]
