"""Give each verb of an operator a permission of its own."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("django_taskq", "0002_storage_parameters")]

    operations = [
        migrations.AlterModelOptions(
            name="queue",
            options={
                "ordering": ["position", "name"],
                "permissions": [("pause_queue", "Can pause and resume queues")],
                "verbose_name": "queue",
                "verbose_name_plural": "queues",
            },
        ),
        migrations.AlterModelOptions(
            name="task",
            options={
                "permissions": [
                    ("cancel_task", "Can cancel tasks"),
                    ("replay_task", "Can replay dead and cancelled tasks"),
                    ("discard_task", "Can discard dead tasks"),
                    ("kill_task", "Can move waiting tasks to the dead letters"),
                ],
                "verbose_name": "task",
                "verbose_name_plural": "tasks",
            },
        ),
    ]
