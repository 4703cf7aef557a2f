"""
Assertions about tasks, the same for tasks that were recorded and for tasks that were stored.

A failure says what was expected and lists what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django_taskq import conf
from django_taskq.domain import payload
from django_taskq.domain.states import State
from django_taskq.lifecycle import definitions
from django_taskq.lifecycle.databases import database_for
from django_taskq.models import FinishedTask, Task
from django_taskq.store import tasks as store

__all__ = ["StoredTask", "StoredTasks", "TaskAssertions", "assert_state", "stored_tasks"]

_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTask:
    """A task as an assertion sees it. Arguments are what the function will get: tuples have become lists."""

    task_id: str
    name: str
    args: list[Any]
    kwargs: dict[str, Any]
    queue: str
    priority: int
    run_after: datetime | None
    state: str
    created_at: datetime

    def __str__(self) -> str:
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        facts = [f"queue={self.queue}"]
        if self.priority:
            facts.append(f"priority={self.priority}")
        if self.run_after is not None:
            facts.append(f"run_after={self.run_after.isoformat()}")
        facts.append(self.state)
        return f"{self.name}({', '.join(given)}) [{', '.join(facts)}]"


def _name_of(task: Any) -> str:
    return task if isinstance(task, str) else definitions.stored_name(task)


def _as_stored(args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """Return arguments as they come back from JSON, so that a tuple compares equal to the list it became."""
    text = payload.encode_arguments(tuple(args or ()), dict(kwargs or {}), limit=None)
    plain_args, plain_kwargs = payload.decode_arguments(text)
    return (None if args is None else plain_args), (None if kwargs is None else plain_kwargs)


class TaskAssertions:
    """What can be asserted of a number of tasks. ``tasks`` holds them, in the order they were enqueued."""

    @property
    def tasks(self) -> Sequence[StoredTask]:
        """The tasks, in the order they were enqueued."""
        raise NotImplementedError

    def matching(
        self,
        task: Any = None,
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        run_after: datetime | None = None,
        state: str | None = None,
    ) -> list[StoredTask]:
        """
        Return the tasks that fit everything given; None fits anything.

        ``task`` is a definition or the name it is stored under.
        """
        plain_args, plain_kwargs = _as_stored(args, kwargs)
        wanted = {
            "name": None if task is None else _name_of(task),
            "args": plain_args,
            "kwargs": plain_kwargs,
            "queue": queue,
            "priority": priority,
            "run_after": run_after,
            "state": state,
        }
        asked = {name: value for name, value in wanted.items() if value is not None}
        return [found for found in self.tasks if all(getattr(found, name) == asked[name] for name in asked)]

    def assert_enqueued(self, task: Any, *, times: int | None = None, **wanted: Any) -> list[StoredTask]:
        """
        Assert that a task was enqueued, and how often if ``times`` says so; return the tasks that fit.

        ``wanted``: ``args``, ``kwargs``, ``queue``, ``priority``, ``run_after``, ``state``; see ``matching``.
        """
        found = self.matching(task, **wanted)
        if times is None and not found:
            raise AssertionError(f"{_described(task, wanted)} was not enqueued.\n{self._listed()}")
        if times is not None and len(found) != times:
            raise AssertionError(
                f"{_described(task, wanted)} was enqueued {_times(len(found))}, expected {_times(times)}.\n"
                f"{self._listed()}"
            )
        return found

    def assert_not_enqueued(self, task: Any, **wanted: Any) -> None:
        """Assert that no task fits; see ``matching`` for what can be asked."""
        found = self.matching(task, **wanted)
        if found:
            raise AssertionError(
                f"{_described(task, wanted)} was enqueued {_times(len(found))}, expected never.\n{self._listed()}"
            )

    def assert_nothing_enqueued(self) -> None:
        """Assert that no task at all was enqueued."""
        if self.tasks:
            raise AssertionError(f"Nothing was to be enqueued.\n{self._listed()}")

    def assert_enqueued_on(self, queue: str, task: Any = None, *, times: int | None = None) -> list[StoredTask]:
        """Assert that a task (any, if none is given) went to a queue; return the tasks that did."""
        found = self.matching(task, queue=queue)
        if (times is None and not found) or (times is not None and len(found) != times):
            expected = "at least once" if times is None else _times(times)
            raise AssertionError(
                f"{_described(task, {})} was enqueued {_times(len(found))} on queue {queue!r}, expected {expected}.\n"
                f"{self._listed()}"
            )
        return found

    def assert_count(self, count: int, task: Any = None) -> None:
        """Assert how many tasks were enqueued in all, or of one definition."""
        found = self.matching(task)
        if len(found) != count:
            raise AssertionError(
                f"{_described(task, {})} was enqueued {_times(len(found))}, expected {_times(count)}.\n{self._listed()}"
            )

    def _listed(self) -> str:
        if not self.tasks:
            return "Nothing was enqueued."
        lines = [f"  {found}" for found in self.tasks[:_SHOWN]]
        if len(self.tasks) > _SHOWN:
            lines.append(f"  … and {len(self.tasks) - _SHOWN} more")
        return "\n".join([f"Enqueued, {len(self.tasks)} in all:", *lines])


def _described(task: Any, wanted: Mapping[str, Any]) -> str:
    asked = ", ".join(f"{name}={value!r}" for name, value in wanted.items() if value is not None)
    name = "Any task" if task is None else _name_of(task)
    return f"{name} with {asked}" if asked else name


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


class StoredTasks(TaskAssertions):
    """The rows of the tables, live and finished, read anew with each assertion."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    @property
    def tasks(self) -> Sequence[StoredTask]:
        """All stored tasks, oldest first."""
        live: Iterable[Task | FinishedTask] = Task.objects.using(self._alias).all()
        rows = [*live, *FinishedTask.objects.using(self._alias).all()]
        return [_seen(row) for row in sorted(rows, key=lambda row: row.pk)]


def _seen(row: Task | FinishedTask) -> StoredTask:
    args, kwargs = row.arguments
    return StoredTask(
        task_id=str(row.pk),
        name=row.name,
        args=args,
        kwargs=kwargs,
        queue=row.queue,
        priority=row.priority,
        run_after=row.run_after,
        state=State(row.state).name.lower(),
        created_at=row.created_at,
    )


def stored_tasks(backend: str = "default") -> StoredTasks:
    """Return the stored tasks of a backend alias, to assert on."""
    return StoredTasks(database_for(conf.options(backend)))


def assert_state(task: Any, state: str, *, reason: str | None = None, backend: str = "default") -> Task | FinishedTask:
    """
    Assert that a stored task, given by its result or id, is in a state such as "ready" or "dead"; return its row.

    ``reason``: why it is dead, such as "exhausted". The message of a failure shows the last error.
    """
    public_id = getattr(task, "id", task)
    row = store.find(database_for(conf.options(backend)), public_id)
    if row is None:
        raise AssertionError(f"No task has the id {public_id}; a task whose result is not kept leaves no row.")
    found = State(row.state).name.lower()
    found_reason = getattr(row, "reason", None)
    if found != state or (reason is not None and found_reason != reason):
        expected = state if reason is None else f"{state} ({reason})"
        shown = found if found_reason is None else f"{found} ({found_reason})"
        error = getattr(row, "error_class", None)
        told = f"\n  {error}: {row.error_line}" if error and isinstance(row, FinishedTask) else ""
        raise AssertionError(f"Task {row.name} ({row.pk}) is {shown}, expected {expected}.{told}")
    return row
