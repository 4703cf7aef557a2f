"""
Tell PostgreSQL how the tables live: tasks come and go by the thousand, a few rows change all the time.

The live table is vacuumed after a fixed number of dead rows, since a share of
a table that is mostly empty says nothing. Rows that are updated in place get
room for their new version on the same page.
"""

from django.db import migrations

from django_taskq.schema import reset_storage, set_storage

LIVE = {
    "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_threshold": 20000,
    "autovacuum_vacuum_cost_delay": 0,
    "autovacuum_analyze_scale_factor": 0,
    "autovacuum_analyze_threshold": 50000,
}
UPDATED = {"fillfactor": 50}


class Migration(migrations.Migration):
    dependencies = [("django_taskq", "0001_initial")]

    operations = [
        migrations.RunPython(set_storage("Task", **LIVE), reset_storage("Task", *LIVE), elidable=False),
        migrations.RunPython(set_storage("Worker", **UPDATED), reset_storage("Worker", *UPDATED), elidable=False),
        migrations.RunPython(set_storage("Progress", **UPDATED), reset_storage("Progress", *UPDATED), elidable=False),
        migrations.RunPython(set_storage("Stat", **UPDATED), reset_storage("Stat", *UPDATED), elidable=False),
    ]
