"""
Note what is enqueued instead of storing it.

Everything up to the database happens: options are checked, arguments encoded. Nothing is
stored, nobody is woken, no signal is sent. Its surprise: what is enqueued in a transaction
that is rolled back disappears from the record, as its row would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import connections, transaction

from django_taskq.domain import payload
from django_taskq.domain.states import State
from django_taskq.domain.workflows import KIND_NAMES, Kind
from django_taskq.lifecycle import enqueue
from django_taskq.models import Workflow
from django_taskq.store.rows import NewTask
from django_taskq.testing.assertions import StoredTask, TaskAssertions
from django_taskq.testing.workflows import RecordedWorkflow, WorkflowAssertions

__all__ = ["RecordedTask", "TaskRecorder", "record_tasks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTask(StoredTask):
    """A task that would have been stored. ``task`` is the definition as it was enqueued, options and all."""

    task: Any = field(repr=False)
    alias: str
    is_on_commit: bool
    workflow_id: str | None = None
    unique_key: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class TaskRecorder(TaskAssertions, WorkflowAssertions):
    """What ``record_tasks`` yields. Its record stays readable after the block."""

    def __init__(self) -> None:
        self._noted: list[tuple[RecordedTask, Callable[[], bool]]] = []
        self._flows: list[tuple[Sequence[Workflow], Callable[[], bool]]] = []

    @property
    def tasks(self) -> Sequence[RecordedTask]:
        """The tasks that would be stored by now or by the commit, in the order they were enqueued."""
        return [task for task, stays in self._noted if stays()]

    @property
    def workflows(self) -> Sequence[RecordedWorkflow]:
        """The chains, batches and workflows that would be stored, in the order they were enqueued."""
        tasks = self.tasks
        return [_built(rows[0], rows, tasks) for rows, stays in self._flows if stays()]

    def clear(self) -> None:
        """Forget what was recorded so far."""
        self._noted.clear()
        self._flows.clear()

    def _note_workflows(self, rows: Sequence[Workflow], alias: str) -> None:
        self._flows.append((rows, _watch_commit(alias)))

    def _note(self, task: Any, stored: enqueue.Stored, rows: Sequence[NewTask], *, on_commit: bool) -> None:
        stays = _watch_commit(stored.alias)
        for row in rows:
            self._noted.append((_recorded(task, stored.alias, row, on_commit), stays))


def _recorded(task: Any, alias: str, row: NewTask, on_commit: bool) -> RecordedTask:
    args, kwargs = payload.decode_arguments(row.args)
    return RecordedTask(
        task_id=enqueue.public_id(row.id),
        name=row.name,
        args=args,
        kwargs=kwargs,
        queue=row.queue,
        priority=-row.rank,
        run_after=row.run_after,
        state=State(row.state).name.lower(),
        created_at=row.created_at,
        task=task,
        alias=alias,
        is_on_commit=on_commit,
        workflow_id=None if row.workflow_id is None else enqueue.public_id(row.workflow_id),
        unique_key=row.unique_key,
        metadata=(payload.decode_value(row.metadata) or {}).get("user", {}),
    )


def _built(row: Workflow, rows: Sequence[Workflow], tasks: Sequence[RecordedTask]) -> RecordedWorkflow:
    """Return a workflow with its members; their ids say their order."""
    members: dict[str, RecordedTask | RecordedWorkflow] = {
        task.task_id: task for task in tasks if task.workflow_id == str(row.pk)
    }
    members |= {str(inner.pk): _built(inner, rows, tasks) for inner in rows if inner.parent_id == row.pk}
    return RecordedWorkflow(
        workflow_id=str(row.pk),
        kind=KIND_NAMES[Kind(row.kind)],
        name=row.name,
        members=tuple(members[key] for key in sorted(members)),
        callbacks={turn: tuple(call["name"] for call in calls) for turn, calls in row.callback_values.items()},
    )


def _watch_commit(alias: str) -> Callable[[], bool]:
    """Return a test whether the current transaction, or savepoint, has not been rolled back."""
    connection = connections[alias]
    if not connection.in_atomic_block:
        return lambda: True
    committed: list[bool] = []

    def commit() -> None:
        committed.append(True)

    transaction.on_commit(commit, using=alias)
    # Django keeps what waits for the commit in a list, and drops from it what is rolled back.
    return lambda: bool(committed) or any(entry[1] is commit for entry in connection.run_on_commit)


@contextmanager
def record_tasks() -> Iterator[TaskRecorder]:
    """
    Record what is enqueued in the block, by any thread and by whichever kind of enqueue, instead of storing it.

    Works for ``@task`` of this app and for Django's own on our database backend, with
    ``enqueue_many``, ``aenqueue`` and ``enqueue_on_commit``. Unique tasks are recorded each time, with their key, as
    nothing is there that could hold it. The results that callers get look as always, but there
    is no row to look up. May be nested: the inner one records.
    """
    recorder = TaskRecorder()
    enqueue.recorders.append(recorder._note)
    enqueue.workflow_recorders.append(recorder._note_workflows)
    try:
        yield recorder
    finally:
        enqueue.recorders.remove(recorder._note)
        enqueue.workflow_recorders.remove(recorder._note_workflows)
