"""Rows as the admin and the commands meet them, stored without running anything."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from django_taskq import clock
from django_taskq.domain.lease import make_lease
from django_taskq.domain.states import DeadReason, State
from django_taskq.ids import uuid7
from django_taskq.models import FinishedTask, Queue, Task, TaskType, Worker

NAME = "tests.app.tasks.leave_effect"


def id_at(moment: datetime, number: int = 0) -> uuid.UUID:
    """Return an id that says it was made at this moment."""
    return uuid.UUID(int=int(moment.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | number)


def _facts(facts: dict[str, Any]) -> dict[str, Any]:
    arguments = {"args": facts.pop("args", ["a"]), "kwargs": facts.pop("kwargs", {})}
    return {
        "id": uuid7(),
        "queue": "default",
        "name": NAME,
        "created_at": clock.now(),
        "args": facts.pop("raw_args", None) or json.dumps(arguments),
        **facts,
    }


def live_task(state: State = State.READY, **facts: Any) -> Task:
    """Store a live task."""
    values = _facts(facts)
    if state == State.SCHEDULED:
        values.setdefault("run_after", clock.now() + timedelta(hours=1))
    if state == State.RUNNING:
        values.setdefault("lease", make_lease(1, 1))
        values.setdefault("attempt", 1)
        values.setdefault("started_at", clock.now())
    return Task.objects.create(state=state, **values)


def finished_task(state: State = State.SUCCEEDED, **facts: Any) -> FinishedTask:
    """Store a task that has ended."""
    values = {"attempt": 1, "finished_at": clock.now(), **_facts(facts)}
    return FinishedTask.objects.create(state=state, **values)


def dead_task(**facts: Any) -> FinishedTask:
    """Store a dead letter that nobody has looked at yet."""
    return finished_task(
        State.DEAD,
        **{
            "attempt": 3,
            "reason": DeadReason.EXHAUSTED,
            "error_class": "builtins.ValueError",
            "error_line": "no such order",
            "fingerprint": "f" * 16,
            **facts,
        },
    )


def dead_tasks(count: int, **facts: Any) -> list[FinishedTask]:
    """Store dead letters that died one second after the other; the last one died last."""
    start = datetime(2026, 3, 1, tzinfo=UTC)
    return FinishedTask.objects.bulk_create(
        FinishedTask(
            **{
                "id": id_at(start + timedelta(seconds=number)),
                "state": State.DEAD,
                "finished_at": start + timedelta(seconds=number, minutes=1),
                "error_line": f"error {number}",
                "reason": DeadReason.EXHAUSTED,
                "attempt": 3,
                "queue": "default",
                "name": NAME,
                "created_at": start + timedelta(seconds=number),
                **facts,
            }
        )
        for number in range(count)
    )


def registered(*queues: str, names: tuple[str, ...] = (NAME,)) -> None:
    """Make queues and task types known, as workers do."""
    Queue.objects.bulk_create([Queue(name=name) for name in queues], ignore_conflicts=True)
    TaskType.objects.bulk_create([TaskType(name=name, seen_at=clock.now()) for name in names], ignore_conflicts=True)


def worker(**facts: Any) -> Worker:
    """Store a worker that beats."""
    now = clock.now()
    values = {"name": "web-1:4711", "host": "web-1", "pid": 4711, "started_at": now, "beat_at": now, **facts}
    return Worker.objects.create(**values)
