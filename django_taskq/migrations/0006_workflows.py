"""Chains, batches and workflows: their rows, who waits for whom, and what each task is to one."""

from django.db import migrations, models

import django_taskq.ids
import django_taskq.schema
from django_taskq.schema import reset_storage, set_storage


class Migration(migrations.Migration):
    dependencies = [
        ("django_taskq", "0005_steps"),
    ]

    operations = [
        migrations.CreateModel(
            name="Dependency",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("workflow_id", django_taskq.schema.TaskIdField(verbose_name="workflow")),
                ("node_id", django_taskq.schema.TaskIdField(verbose_name="node")),
                ("predecessor_id", django_taskq.schema.TaskIdField(verbose_name="waits for")),
                ("always", models.BooleanField(default=False, verbose_name="whatever its end")),
            ],
            options={
                "verbose_name": "dependency",
                "verbose_name_plural": "dependencies",
            },
        ),
        migrations.CreateModel(
            name="Workflow",
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
                (
                    "kind",
                    models.SmallIntegerField(
                        choices=[(1, "chain"), (2, "batch"), (3, "workflow")], verbose_name="kind"
                    ),
                ),
                ("name", models.CharField(blank=True, max_length=200, verbose_name="name")),
                (
                    "state",
                    models.SmallIntegerField(
                        choices=[(0, "waiting"), (1, "running"), (2, "completed"), (3, "failed"), (4, "cancelled")],
                        default=1,
                        verbose_name="state",
                    ),
                ),
                ("total", models.IntegerField(default=0, verbose_name="members")),
                ("open", models.IntegerField(default=0, verbose_name="open")),
                ("succeeded", models.IntegerField(default=0, verbose_name="succeeded")),
                ("failed", models.IntegerField(default=0, verbose_name="failed")),
                ("cancelled", models.IntegerField(default=0, verbose_name="cancelled")),
                ("allowance", models.CharField(blank=True, max_length=30, verbose_name="allowed failures")),
                ("cancel", models.BooleanField(default=False, verbose_name="cancel requested")),
                ("caught", models.BooleanField(default=False, verbose_name="catch was called")),
                ("callbacks", models.TextField(blank=True, null=True, verbose_name="callbacks")),
                ("names", models.TextField(blank=True, null=True, verbose_name="names of the nodes")),
                ("parent_id", django_taskq.schema.TaskIdField(blank=True, null=True, verbose_name="part of")),
                ("waits_for", models.IntegerField(default=0, verbose_name="waits for")),
                ("replays", models.SmallIntegerField(default=0, verbose_name="replays")),
                ("created_at", models.DateTimeField(verbose_name="created at")),
                ("started_at", models.DateTimeField(blank=True, null=True, verbose_name="started at")),
                ("finished_at", models.DateTimeField(blank=True, null=True, verbose_name="finished at")),
                ("progress_at", models.DateTimeField(blank=True, null=True, verbose_name="progress told at")),
            ],
            options={
                "verbose_name": "workflow",
                "verbose_name_plural": "workflows",
                "permissions": [
                    ("cancel_workflow", "Can cancel workflows"),
                    ("replay_workflow", "Can replay failed and cancelled workflows"),
                ],
            },
        ),
        migrations.AddField(
            model_name="finishedtask",
            name="role",
            field=models.SmallIntegerField(
                blank=True,
                choices=[(1, "member"), (2, "then"), (3, "catch"), (4, "finally"), (5, "progress")],
                null=True,
                verbose_name="role in the workflow",
            ),
        ),
        migrations.AddField(
            model_name="finishedtask",
            name="workflow_id",
            field=django_taskq.schema.TaskIdField(blank=True, null=True, verbose_name="workflow"),
        ),
        migrations.AddField(
            model_name="task",
            name="role",
            field=models.SmallIntegerField(
                blank=True,
                choices=[(1, "member"), (2, "then"), (3, "catch"), (4, "finally"), (5, "progress")],
                null=True,
                verbose_name="role in the workflow",
            ),
        ),
        migrations.AddField(
            model_name="task",
            name="waits_for",
            field=models.IntegerField(
                blank=True, help_text="how many nodes, while waiting", null=True, verbose_name="waits for"
            ),
        ),
        migrations.AddField(
            model_name="task",
            name="workflow_id",
            field=django_taskq.schema.TaskIdField(blank=True, null=True, verbose_name="workflow"),
        ),
        migrations.AlterField(
            model_name="finishedtask",
            name="reason",
            field=models.CharField(
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
                    ("upstream", "upstream"),
                ],
                max_length=20,
                null=True,
                verbose_name="reason",
            ),
        ),
        migrations.AddIndex(
            model_name="finishedtask",
            index=django_taskq.schema.LiveIndex(
                fields=["workflow_id", "id"],
                name="taskq_finished_workflow",
                where=models.Q(("workflow_id__isnull", False)),
            ),
        ),
        migrations.AddIndex(
            model_name="task",
            index=django_taskq.schema.LiveIndex(
                fields=["workflow_id", "id"], name="taskq_task_workflow", where=models.Q(("workflow_id__isnull", False))
            ),
        ),
        migrations.AddIndex(
            model_name="dependency",
            index=models.Index(fields=["predecessor_id"], name="taskq_dependency_before"),
        ),
        migrations.AddIndex(
            model_name="dependency",
            index=models.Index(fields=["node_id"], name="taskq_dependency_node"),
        ),
        migrations.AddIndex(
            model_name="dependency",
            index=models.Index(fields=["workflow_id"], name="taskq_dependency_flow"),
        ),
        migrations.AddIndex(
            model_name="workflow",
            index=django_taskq.schema.LiveIndex(
                fields=["parent_id", "id"], name="taskq_workflow_parent", where=models.Q(("parent_id__isnull", False))
            ),
        ),
        migrations.AddIndex(
            model_name="workflow",
            index=models.Index(fields=["state", "id"], name="taskq_workflow_state"),
        ),
        migrations.AddIndex(
            model_name="workflow",
            index=django_taskq.schema.LiveIndex(
                fields=["finished_at"], name="taskq_workflow_ended", where=models.Q(("finished_at__isnull", False))
            ),
        ),
        migrations.AddConstraint(
            model_name="workflow",
            constraint=models.CheckConstraint(
                condition=models.Q(("cancelled__gte", 0), ("failed__gte", 0), ("open__gte", 0), ("succeeded__gte", 0)),
                name="taskq_workflow_counts",
            ),
        ),
        migrations.CreateModel(
            name="Batch",
            fields=[],
            options={
                "verbose_name": "batch",
                "verbose_name_plural": "batches",
                "proxy": True,
                "indexes": [],
                "constraints": [],
            },
            bases=("django_taskq.workflow",),
        ),
        migrations.CreateModel(
            name="Chain",
            fields=[],
            options={
                "verbose_name": "chain",
                "verbose_name_plural": "chains",
                "proxy": True,
                "indexes": [],
                "constraints": [],
            },
            bases=("django_taskq.workflow",),
        ),
        # Its counts change in place all the time.
        migrations.RunPython(
            set_storage("Workflow", fillfactor=50), reset_storage("Workflow", "fillfactor"), elidable=False
        ),
    ]
