"""
Index the open dead letters by the moment they died.

Without it the list of dead letters reads past every discarded one, which are kept
for ever unless a project says otherwise.
"""

from django.db import migrations, models

from django_taskq.schema import LiveIndex


class Migration(migrations.Migration):
    dependencies = [("django_taskq", "0003_operator_permissions")]

    operations = [
        migrations.AddIndex(
            model_name="finishedtask",
            index=LiveIndex(
                name="taskq_finished_open",
                fields=["state", "resolved_at", "finished_at"],
                partial=["finished_at", "id"],
                where=models.Q(("resolved_at__isnull", True), ("state", 4)),
            ),
        ),
    ]
