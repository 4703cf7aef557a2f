"""
Chains, batches and workflows as operators look at them: lists, members, callbacks, trees.

Bounded like every list: pages go by key, nothing is counted but by the row's own
counts. A member is a task, live or finished, or a workflow; its id says its place.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Q

from django_taskq.domain.states import State
from django_taskq.domain.workflows import ENDED, KIND_NAMES, Kind, Role, WorkflowState
from django_taskq.models import Dependency, FinishedTask, Task, Workflow
from django_taskq.models.tasks import TaskRow
from django_taskq.ops.search import LONG_COLUMNS, NEWEST, Page, first_id, id_span, paged

__all__ = [
    "KINDS",
    "MOST_MEMBERS",
    "Branch",
    "Member",
    "Members",
    "WorkflowFilter",
    "blockers",
    "callbacks",
    "gate_name",
    "kind_name",
    "listed",
    "members",
    "planned",
    "state_name",
    "title",
    "tree",
]

MOST_MEMBERS = 200
"""So many members are shown at once."""

MOST_BRANCHES = 500
MOST_DEPTH = 20
# Callbacks are stored after the members there are, so they are looked for from the newest on.
_LOOKED_AT = 2000
_MOST_CALLBACKS = 50
_MOST_DEPENDENCIES = 1000

KINDS = {name: kind for kind, name in KIND_NAMES.items()}


def kind_name(row: Workflow) -> str:
    """Return "chain", "batch" or "workflow"."""
    return KIND_NAMES[Kind(row.kind)]


def state_name(row: TaskRow | Workflow) -> str:
    """Return the state of a task or workflow as a word."""
    if isinstance(row, Workflow):
        return WorkflowState(row.state).name.lower()
    return State(row.state).name.lower()


def title(row: TaskRow | Workflow) -> str:
    """Return what a task or workflow is called in one line."""
    if isinstance(row, Workflow):
        return f"{kind_name(row)} {row.name}".strip()
    return row.name


# Lists


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowFilter:
    """
    What to look for; everything given must hold, and one of the values in a set is enough.

    ``id``: a whole id or at least its first six digits. ``name``: the whole name. ``outermost``: only
    those that are inside no other.
    """

    id: str = ""
    name: str = ""
    states: frozenset[WorkflowState] = frozenset()
    kinds: frozenset[Kind] = frozenset()
    outermost: bool = False
    created_since: datetime | None = None


def listed(
    alias: str, wanted: WorkflowFilter, *, limit: int = 50, after: str | None = None, before: str | None = None
) -> Page:
    """Return a page of workflows, newest first. Raise InvalidCursor."""
    base = Workflow.objects.using(alias).all()
    tests: list[tuple[str, Any]] = []
    if wanted.id:
        span = id_span(wanted.id)
        base = base.none() if span is None else base.filter(pk__range=span)
    if wanted.created_since is not None:
        base = base.filter(pk__gte=first_id(wanted.created_since))
    if len(wanted.states) == 1:
        base = base.filter(state=int(next(iter(wanted.states))))
    elif wanted.states:
        tests.append(("state", frozenset(map(int, wanted.states)).__contains__))
    if wanted.kinds:
        tests.append(("kind", frozenset(map(int, wanted.kinds)).__contains__))
    if wanted.name:
        tests.append(("name", wanted.name.__eq__))
    if wanted.outermost:
        tests.append(("parent_id", lambda value: value is None))

    def keep(values: Sequence[Any]) -> bool:
        return all(test(value) for (_, test), value in zip(tests, values, strict=True))

    columns = tuple(name for name, _ in tests)
    return paged(base, NEWEST, limit=limit, after=after, before=before, keep=keep if tests else None, columns=columns)


# Members


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node of a workflow: a task or a workflow, and the name that a graph gives it."""

    row: Task | FinishedTask | Workflow
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """Some members in their order; ``more`` is the id to go on behind, None at the end."""

    rows: list[Member]
    more: uuid.UUID | None = None


def members(alias: str, row: Workflow, *, after: uuid.UUID | None = None, limit: int = MOST_MEMBERS) -> Members:
    """Return up to ``limit`` members behind an id, in three queries."""
    names = {key: name for name, key in row.node_names.items()}
    found = _nodes(alias, [row.pk], after=after, limit=limit + 1)
    shown = found[:limit]
    return Members(
        rows=[Member(row=node, name=names.get(str(node.pk), "")) for node in shown],
        more=shown[-1].pk if len(found) > limit else None,
    )


def _nodes(
    alias: str, keys: Sequence[uuid.UUID], *, after: uuid.UUID | None = None, limit: int
) -> list[Task | FinishedTask | Workflow]:
    """Return the first nodes of workflows by id. A task that moves between the looks is there once."""
    found: dict[uuid.UUID, Any] = {}
    for model, wanted in (
        (Task, Q(workflow_id__in=keys, role=Role.MEMBER)),
        (FinishedTask, Q(workflow_id__in=keys, role=Role.MEMBER)),
        (Workflow, Q(parent_id__in=keys)),
    ):
        rows = _light(model._default_manager.using(alias).filter(wanted).order_by("pk"))
        if after is not None:
            rows = rows.filter(pk__gt=after)
        found.update({row.pk: row for row in rows[:limit]})
    return [found[key] for key in sorted(found)][:limit]


def _light(rows: Any) -> Any:
    names = {column.attname for column in rows.model._meta.concrete_fields}
    return rows.defer(*(name for name in LONG_COLUMNS if name in names))


# Callbacks


def planned(row: Workflow) -> list[tuple[str, str]]:
    """Return (turn, name of the task) of all callbacks that a workflow was given."""
    values = row.callback_values
    return [
        (turn, str(stored["name"]))
        for turn in ("then", "catch", "finally", "progress")
        for stored in values.get(turn, ())
    ]


def callbacks(alias: str, key: uuid.UUID) -> list[Task | FinishedTask]:
    """Return the newest tasks that a workflow has called, newest first; at most fifty, among its newest rows."""
    found: dict[uuid.UUID, Task | FinishedTask] = {}
    for model in (Task, FinishedTask):
        rows = model._default_manager.using(alias).filter(workflow_id=key).order_by("-pk")
        keys = [pk for pk, role in rows.values_list("pk", "role")[:_LOOKED_AT] if role != Role.MEMBER]
        if keys:
            called = _light(model._default_manager.using(alias).filter(pk__in=keys[:_MOST_CALLBACKS]))
            found.update({row.pk: row for row in called})
    return [found[pk] for pk in sorted(found, reverse=True)][:_MOST_CALLBACKS]


# Who waits for whom


def blockers(alias: str, node_id: uuid.UUID) -> list[Task | Workflow]:
    """Return the tasks and workflows that a waiting node waits for and that have not ended, in their order."""
    edges = Dependency.objects.using(alias).filter(node_id=node_id)
    keys = list(edges.values_list("predecessor_id", flat=True)[:_MOST_DEPENDENCIES])
    if not keys:
        return []
    tasks = list(_light(Task.objects.using(alias).filter(pk__in=keys)))
    ended = [int(state) for state in ENDED]
    # Fewer tasks than keys: the rest has ended, or is a workflow.
    flows = (
        [] if len(tasks) == len(keys) else Workflow.objects.using(alias).filter(pk__in=keys).exclude(state__in=ended)
    )
    found: list[Task | Workflow] = [*tasks, *flows]
    return sorted(found, key=lambda row: row.pk)


def gate_name(flow: Workflow, row: Task) -> str | None:
    """Return the name of the signal that a waiting task waits for, None for one that waits for none."""
    if not row.option_values.get("gate"):
        return None
    return next((name for name, key in flow.node_names.items() if key == str(row.pk)), "")


# Trees


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One line of a tree: a node and how deep it lies; without a node, so many more that are not shown."""

    depth: int
    member: Member | None = None
    more: int = 0


def tree(alias: str, root: Workflow, *, limit: int = MOST_BRANCHES) -> list[Branch]:
    """
    Return a workflow with all inside it, each node below the one it belongs to, at most about ``limit`` nodes.

    Three queries for each level, however many workflows are on it.
    """
    inside: dict[uuid.UUID, list[Any]] = {}
    level: list[Workflow] = [root]
    left = limit
    for _ in range(MOST_DEPTH):
        if not level or left <= 0:
            break
        nodes = _nodes(alias, [row.pk for row in level], limit=left)
        left -= len(nodes)
        for node in nodes:
            outer = node.parent_id if isinstance(node, Workflow) else node.workflow_id
            inside.setdefault(outer, []).append(node)
        level = [node for node in nodes if isinstance(node, Workflow)]
    return list(_branches(Member(row=root), inside, 0))


def _branches(member: Member, inside: dict[uuid.UUID, list[Any]], depth: int) -> Iterable[Branch]:
    yield Branch(depth=depth, member=member)
    row = member.row
    if not isinstance(row, Workflow):
        return
    names = {key: name for name, key in row.node_names.items()}
    found = inside.get(row.pk, [])
    for node in found:
        yield from _branches(Member(row=node, name=names.get(str(node.pk), "")), inside, depth + 1)
    if row.total > len(found):
        yield Branch(depth=depth + 1, more=row.total - len(found))
