"""
Results passed on: what ``previous`` and ``result_of`` stand for when a task runs.

A reference is kept beside the arguments, as a path into them and the id of a
node. A task's result is its own; a chain's is that of its last member, a batch's
the list of its members', a graph's a dict by name.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from django_taskq.domain import payload
from django_taskq.domain.states import State
from django_taskq.domain.workflows import Kind, Placeholder, Role
from django_taskq.exceptions import PayloadTooLarge, ResultNotReady
from django_taskq.lifecycle.databases import main_database
from django_taskq.models import FinishedTask, Task, Workflow
from django_taskq.store import workflows as store

__all__ = ["COLLECTED_MOST", "Reference", "fill", "members", "results", "take_out"]

# How many results one argument may collect; more are streamed by ``context.workflow.results()``.
COLLECTED_MOST = 10_000
_CHUNK = 1000

# Where in {"args": […], "kwargs": {…}} it stands, and the name it asks for, None for the one before.
Reference = tuple[list[str | int], str | None]


def take_out(
    args: list[Any] | tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[Any] | tuple[Any, ...], Mapping[str, Any], list[Reference]]:
    """Return the arguments with None for each placeholder, and where they stood."""
    found: list[Reference] = []

    def clean(value: Any, path: list[str | int]) -> Any:
        if isinstance(value, Placeholder):
            found.append((path, value.name))
            return None
        kind = type(value)
        if kind is list or kind is tuple:
            return [clean(item, [*path, at]) for at, item in enumerate(value)]
        if kind is dict:
            return {key: clean(item, [*path, key]) for key, item in value.items()}
        return value

    plain_args = [clean(value, ["args", at]) for at, value in enumerate(args)]
    plain_kwargs = {name: clean(value, ["kwargs", name]) for name, value in kwargs.items()}
    return (plain_args, plain_kwargs, found) if found else (args, kwargs, found)


def fill(options: str, args: list[Any], kwargs: dict[str, Any], alias: str) -> None:
    """
    Put the results where the references say. Raise ResultNotReady for one that is gone.

    ``options`` are those of the stored task; a user's arguments are never looked at for references.
    """
    values = payload.decode_value(options)
    root = {"args": args, "kwargs": kwargs}
    known: dict[str, Any] = {}
    for path, key in values.get("refs", ()):
        if key not in known:
            known[key] = result_of_node(alias, uuid.UUID(key))
        place: Any = root
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = known[key]


def result_of_node(alias: str, key: uuid.UUID) -> Any:
    """Return the result of a task or workflow; None for a task that did not succeed, or has not ended."""
    row = FinishedTask.objects.using(alias).filter(pk=key).first()
    if row is not None:
        return row.result_value if row.state == State.SUCCEEDED else None
    flow = store.find(alias, key)
    if flow is None:
        if Task.objects.using(alias).filter(pk=key).exists():
            # What is called back before the end may ask for what still runs.
            return None
        raise ResultNotReady(f"the result of {key} is gone: its row was deleted")
    return _collected(alias, flow)


def _collected(alias: str, flow: Workflow) -> Any:
    match flow.kind:
        case Kind.CHAIN:
            # Made in their order, so the last has the highest id, but for what is inside a member.
            last = _last_of(alias, flow.pk)
            return None if last is None else _of_ended(alias, last)
        case Kind.GRAPH:
            return {name: _of_ended(alias, uuid.UUID(key)) for name, key in flow.node_names.items()}
    if flow.total > COLLECTED_MOST:
        raise PayloadTooLarge(
            f"batch {flow.pk} has {flow.total} results, and at most {COLLECTED_MOST} are passed as an argument; "
            "read them with context.workflow.results()"
        )
    return [value for _, value in _values(alias, flow.pk)]


def _of_ended(alias: str, key: uuid.UUID) -> Any:
    """Return the result of a node, None for a workflow that has not ended."""
    flow = store.find(alias, key)
    return None if flow is not None and not flow.has_ended else result_of_node(alias, key)


def _last_of(alias: str, flow_id: uuid.UUID) -> uuid.UUID | None:
    last = FinishedTask.objects.using(alias).filter(workflow_id=flow_id, role=Role.MEMBER).order_by("-pk").first()
    inner = Workflow.objects.using(alias).filter(parent_id=flow_id).order_by("-pk").first()
    keys = [row.pk for row in (last, inner) if row is not None]
    return max(keys, default=None)


def _values(alias: str, flow_id: uuid.UUID) -> Iterator[tuple[uuid.UUID, Any]]:
    """Yield (id, result) of the members of a workflow, in their order."""
    inner = iter(store.ended_inside(alias, flow_id))
    coming = next(inner, None)
    after: uuid.UUID | None = None
    while True:
        rows = FinishedTask.objects.using(alias).filter(workflow_id=flow_id, role=Role.MEMBER).order_by("pk")
        if after is not None:
            rows = rows.filter(pk__gt=after)
        part = list(rows.only("pk", "state", "result")[:_CHUNK])
        for row in part:
            while coming is not None and coming.pk < row.pk:
                yield coming.pk, _collected(alias, coming)
                coming = next(inner, None)
            yield row.pk, row.result_value if row.state == State.SUCCEEDED else None
        if len(part) < _CHUNK:
            break
        after = part[-1].pk
    while coming is not None:
        yield coming.pk, _collected(alias, coming)
        coming = next(inner, None)


def results(flow_id: uuid.UUID) -> Iterator[Any]:
    """Yield the results of a workflow's members that have ended, in their order."""
    for _, value in _values(main_database(), flow_id):
        yield value


def members(flow_id: uuid.UUID) -> Iterator[Task | FinishedTask]:
    """Yield the rows of a workflow's members that are tasks, in their order."""
    alias = main_database()
    after: uuid.UUID | None = None
    while True:
        part: list[Task | FinishedTask] = []
        for model in (Task, FinishedTask):
            rows = model._default_manager.using(alias).filter(workflow_id=flow_id, role=Role.MEMBER).order_by("pk")
            part += rows.filter(pk__gt=after)[:_CHUNK] if after is not None else rows[:_CHUNK]
        if not part:
            return
        part = sorted({row.pk: row for row in part}.values(), key=lambda row: row.pk)[:_CHUNK]
        yield from part
        after = part[-1].pk
