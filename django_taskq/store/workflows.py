"""
Workflows: lock and write their rows, let waiting nodes go on, cut off those that never will.

Whoever calls anything here that changes something has opened a transaction
and, but for ``insert``, locked the workflow's row. Rows are locked from the
highest id to the lowest: a workflow is made before what is inside it, so those
who lock an inner one and then the outer one never meet others crosswise.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from django.db.models import F, Q

from django_taskq import clock
from django_taskq.domain import payload
from django_taskq.domain.states import DeadReason, State
from django_taskq.domain.workflows import ENDED, Role, WorkflowState
from django_taskq.models import Dependency, FinishedTask, Task, Workflow
from django_taskq.store import steps
from django_taskq.store.rows import NewTask
from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import CARRIED

__all__ = [
    "block",
    "children_of",
    "cut_tasks",
    "cut_workflow",
    "deadline_of",
    "dependencies_of",
    "ended_inside",
    "find",
    "followers",
    "forget_ends",
    "hand_on_waits",
    "innermost",
    "insert",
    "live_callbacks",
    "lock",
    "open_below",
    "open_gate",
    "predecessors_of",
    "release",
    "set_waits",
    "start",
    "unblock_tasks",
    "unblock_workflows",
    "waiting_members",
    "waiting_nodes",
    "write",
]

# Members of a statement with a list of ids.
CHUNK = 1000
_COUNTED = (
    "state",
    "total",
    "open",
    "succeeded",
    "failed",
    "cancelled",
    "cancel",
    "caught",
    "started_at",
    "finished_at",
    "progress_at",
    "replays",
)


def insert(
    alias: str, workflows: Sequence[Workflow], tasks: Sequence[NewTask], dependencies: Sequence[Dependency]
) -> None:
    """Store workflows with all their tasks, in one transaction."""
    vendor = vendor_for(alias)
    with vendor.atomic():
        Workflow.objects.using(alias).bulk_create(workflows, batch_size=500)
        vendor.insert(tasks)
        Dependency.objects.using(alias).bulk_create(dependencies, batch_size=2000)


def find(alias: str, key: uuid.UUID) -> Workflow | None:
    """Return a workflow, None where there is none."""
    return Workflow.objects.using(alias).filter(pk=key).first()


def lock(alias: str, keys: Collection[uuid.UUID]) -> list[Workflow]:
    """Lock workflows until the transaction ends, highest id first, and return those that exist."""
    rows = Workflow.objects.using(alias).filter(pk__in=keys).order_by("-pk")
    if vendor_for(alias).connection.features.has_select_for_update:
        rows = rows.select_for_update()
    return list(rows)


def write(alias: str, rows: Sequence[Workflow]) -> None:
    """Write the counts and states of locked workflows."""
    if len(rows) <= 3:
        for row in rows:
            Workflow.objects.using(alias).filter(pk=row.pk).update(**{name: getattr(row, name) for name in _COUNTED})
        return
    vendor_for(alias).save_workflows(rows, _COUNTED)


def innermost(alias: str, keys: Collection[uuid.UUID]) -> list[uuid.UUID]:
    """Return those of these workflows that have none of the others inside."""
    if len(keys) == 1:
        return list(keys)
    outer: set[uuid.UUID] = set()
    frontier: Collection[uuid.UUID] = keys
    while frontier:
        found = Workflow.objects.using(alias).filter(pk__in=frontier, parent_id__isnull=False)
        parents = set(found.values_list("parent_id", flat=True))
        frontier = parents - outer
        outer |= parents
    return [key for key in keys if key not in outer]


def followers(
    alias: str, keys: Collection[uuid.UUID], *, always: bool | None = None
) -> list[tuple[uuid.UUID, uuid.UUID, bool]]:
    """Return (node, predecessor, whatever its end) of all that wait for one of these nodes."""
    found = Dependency.objects.using(alias).filter(predecessor_id__in=keys)
    if always is not None:
        found = found.filter(always=always)
    return list(found.values_list("node_id", "predecessor_id", "always"))


def dependencies_of(alias: str, workflow_id: uuid.UUID) -> list[tuple[uuid.UUID, uuid.UUID]]:
    """Return (node, predecessor) of a workflow, callbacks left out."""
    found = Dependency.objects.using(alias).filter(workflow_id=workflow_id, always=False)
    return list(found.values_list("node_id", "predecessor_id"))


def predecessors_of(alias: str, key: uuid.UUID) -> list[uuid.UUID]:
    """Return what one node waits for, whatever its end."""
    return list(Dependency.objects.using(alias).filter(node_id=key).values_list("predecessor_id", flat=True))


def forget_ends(alias: str, keys: Collection[uuid.UUID]) -> None:
    """Let nothing wait for the ends of these callbacks any more."""
    Dependency.objects.using(alias).filter(predecessor_id__in=keys, always=True).delete()


def waiting_nodes(alias: str, workflow_id: uuid.UUID) -> tuple[set[uuid.UUID], set[uuid.UUID]]:
    """Return the members of a workflow that wait: tasks, and workflows."""
    tasks = Task.objects.using(alias).filter(workflow_id=workflow_id, role=Role.MEMBER, state=State.WAITING)
    flows = Workflow.objects.using(alias).filter(parent_id=workflow_id, state=WorkflowState.WAITING)
    return set(tasks.values_list("pk", flat=True)), set(flows.values_list("pk", flat=True))


def hand_on_waits(alias: str, workflow_id: uuid.UUID, keys: Collection[uuid.UUID]) -> None:
    """Let those that wait for these ended nodes also wait for what these still waited for when they ended."""
    own = Dependency.objects.using(alias).filter(node_id__in=keys, always=False)
    before = set(own.values_list("predecessor_id", flat=True))
    flows = Workflow.objects.using(alias).filter(pk__in=before).exclude(state__in=[int(state) for state in ENDED])
    live = {
        *Task.objects.using(alias).filter(pk__in=before).values_list("pk", flat=True),
        *flows.values_list("pk", flat=True),
    }
    if not live:
        return
    waits: dict[uuid.UUID, set[uuid.UUID]] = {}
    after: dict[uuid.UUID, list[uuid.UUID]] = {}
    for node, predecessor in dependencies_of(alias, workflow_id):
        waits.setdefault(node, set()).add(predecessor)
        after.setdefault(predecessor, []).append(node)
    added: list[Dependency] = []
    more: Counter[uuid.UUID] = Counter()
    # Made in their order, so that of two that ended together the one before comes first.
    for key in sorted(keys):
        for node in after.get(key, ()):
            inherited = (waits.get(key, set()) & live) - waits[node]
            waits[node] |= inherited
            more[node] += len(inherited)
            added += [Dependency(workflow_id=workflow_id, node_id=node, predecessor_id=found) for found in inherited]
    Dependency.objects.using(alias).bulk_create(added, batch_size=2000)
    block(alias, more)


def block(alias: str, counts: Counter[uuid.UUID]) -> None:
    """Let waiting tasks and workflows wait for so many nodes more."""
    for key, count in counts.items():
        for waiting in (
            Task.objects.using(alias).filter(pk=key, state=State.WAITING),
            Workflow.objects.using(alias).filter(pk=key, state=WorkflowState.WAITING),
        ):
            if count and waiting.update(waits_for=F("waits_for") + count):
                break


def children_of(alias: str, workflow_id: uuid.UUID) -> list[Workflow]:
    """Return the workflows that are nodes of this one."""
    return list(Workflow.objects.using(alias).filter(parent_id=workflow_id).order_by("pk"))


def ended_inside(alias: str, workflow_id: uuid.UUID) -> list[Workflow]:
    """Return the workflows that are nodes of this one and have ended, in their order."""
    return [child for child in children_of(alias, workflow_id) if child.has_ended]


def live_callbacks(alias: str, workflow_id: uuid.UUID) -> list[uuid.UUID]:
    """Return the then and catch tasks of a workflow that have not ended."""
    found = Task.objects.using(alias).filter(workflow_id=workflow_id, role__in=(Role.THEN, Role.CATCH))
    return list(found.values_list("pk", flat=True))


def waiting_members(alias: str, workflow_id: uuid.UUID) -> list[uuid.UUID]:
    """Return the members of a workflow that wait for its start alone."""
    found = Task.objects.using(alias).filter(
        Q(waits_for__isnull=True) | Q(waits_for__lte=0),
        workflow_id=workflow_id,
        role=Role.MEMBER,
        state=State.WAITING,
    )
    return list(found.values_list("pk", flat=True))


def unblock_tasks(alias: str, counts: Counter[uuid.UUID]) -> list[uuid.UUID]:
    """Take so many predecessors off each waiting task; return those that wait for nobody any more."""
    return _unblock(Task.objects.using(alias).filter(state=State.WAITING), counts)


def unblock_workflows(alias: str, counts: Counter[uuid.UUID]) -> list[uuid.UUID]:
    """Take so many predecessors off each waiting workflow; return those that wait for nobody any more."""
    return _unblock(Workflow.objects.using(alias).filter(state=WorkflowState.WAITING), counts)


def _unblock(waiting: Any, counts: Counter[uuid.UUID]) -> list[uuid.UUID]:
    by_count: dict[int, list[uuid.UUID]] = {}
    for key, count in counts.items():
        by_count.setdefault(count, []).append(key)
    for count, keys in by_count.items():
        for part in _chunks(keys):
            waiting.filter(pk__in=part).update(waits_for=F("waits_for") - count)
    free: list[uuid.UUID] = []
    for part in _chunks(list(counts)):
        free += waiting.filter(pk__in=part, waits_for__lte=0).values_list("pk", flat=True)
    return free


def deadline_of(alias: str, key: uuid.UUID) -> datetime | None:
    """
    Return the deadline that the members of a workflow share, as the newest of them remembers it.

    None where there is none, or where it has neither a member that is a task nor a task inside its newest member.
    """
    newest_inside = Workflow.objects.using(alias).filter(parent_id=key).order_by("-pk").values_list("pk", flat=True)
    for flow in (key, newest_inside.first()):
        for model in (Task, FinishedTask):
            members = model._default_manager.using(alias).filter(workflow_id=flow, role=Role.MEMBER)
            row = None if flow is None else members.order_by("-pk").first()
            if row is not None:
                until = row.option_values.get("later", {}).get("until")
                return None if until is None else clock.from_timestamp(until)
    return None


def release(alias: str, keys: Collection[uuid.UUID], *, now: datetime, later: Any) -> set[str]:
    """
    Let waiting tasks go on: ready, or scheduled where their time is ahead. Return the queues of the ready ones.

    ``later(options, now, run_after)`` says what a task's own options make of the moment: a dict of columns,
    empty for most.
    """
    queues: set[str] = set()
    for part in _chunks(list(keys)):
        waiting = Task.objects.using(alias).filter(pk__in=part, state=State.WAITING)
        plain: list[uuid.UUID] = []
        for key, queue, run_after, options in waiting.values_list("pk", "queue", "run_after", "options"):
            changes = later(options, now, run_after) if options is not None else {}
            moment = changes.pop("run_after", run_after)
            if moment is not None and moment > now:
                own = {**changes, "run_after": moment, "state": int(State.SCHEDULED)}
            elif changes:
                own = {**changes, "run_after": now, "state": int(State.READY)}
            else:
                plain.append(key)
                queues.add(queue)
                continue
            waiting.filter(pk=key).update(**own, waits_for=None)
            if own["state"] == State.READY:
                queues.add(queue)
        if plain:
            waiting.filter(pk__in=plain).update(state=int(State.READY), run_after=now, waits_for=None)
    return queues


def set_waits(alias: str, key: uuid.UUID, count: int) -> None:
    """Let a workflow that is brought back wait for so many others."""
    Workflow.objects.using(alias).filter(pk=key).update(waits_for=count)


def start(alias: str, keys: Collection[uuid.UUID], *, now: datetime) -> list[Workflow]:
    """Start waiting workflows, and return them, locked."""
    Workflow.objects.using(alias).filter(pk__in=keys, state=WorkflowState.WAITING).update(
        state=int(WorkflowState.RUNNING), started_at=now
    )
    return lock(alias, keys)


def cut_tasks(alias: str, keys: Collection[uuid.UUID], *, now: datetime) -> list[FinishedTask]:
    """Cancel waiting tasks whose turn will never come; return those that were waiting."""
    ended: list[FinishedTask] = []
    for part in _chunks(list(keys)):
        waiting = Task.objects.using(alias).filter(pk__in=part, state=State.WAITING)
        rows = [
            FinishedTask(**row, state=int(State.CANCELLED), finished_at=now, reason=DeadReason.UPSTREAM)
            for row in waiting.values(*CARRIED, "attempt", "started_at")
        ]
        FinishedTask.objects.using(alias).bulk_create(rows, batch_size=500)
        waiting.filter(pk__in=[row.pk for row in rows]).delete()
        # A replayed member has steps before its turn comes.
        steps.cancel(alias, [row.pk for row in rows], now=now)
        ended += rows
    return ended


def cut_workflow(alias: str, key: uuid.UUID, *, now: datetime) -> tuple[list[Workflow], list[FinishedTask]]:
    """Cancel a waiting workflow with all inside it; return the workflows and tasks that were cancelled by it."""
    rows = [row for row in lock(alias, [key]) if row.state == WorkflowState.WAITING]
    if not rows:
        return [], []
    row = rows[0]
    inside = Task.objects.using(alias).filter(workflow_id=key, role=Role.MEMBER, state=State.WAITING)
    tasks = cut_tasks(alias, list(inside.values_list("pk", flat=True)), now=now)
    workflows = [row]
    for child in children_of(alias, key):
        more, ended = cut_workflow(alias, child.pk, now=now)
        workflows += more
        tasks += ended
    row.state, row.finished_at = int(WorkflowState.CANCELLED), now
    row.cancelled, row.open = row.cancelled + row.open, 0
    write(alias, [row])
    return workflows, tasks


def open_below(alias: str, key: uuid.UUID) -> list[uuid.UUID]:
    """Return the ids of a workflow and of all inside it that have not ended, outermost first."""
    found = [key]
    for at in found:
        children = Workflow.objects.using(alias).filter(parent_id=at).exclude(state__in=[int(state) for state in ENDED])
        found += children.values_list("pk", flat=True)
    return found


def open_gate(alias: str, row: Task, text: str) -> bool:
    """Give a waiting gate its payload, and take the signal off what it waits for; return False if it had come."""
    values = row.option_values
    if row.state != State.WAITING or not values.pop("gate", False):
        return False
    options = payload.encode_value(values, limit=None) if values else None
    gates = Task.objects.using(alias).filter(pk=row.pk, state=State.WAITING)
    return gates.update(args=text, options=options, waits_for=F("waits_for") - 1) == 1


def _chunks(keys: Sequence[uuid.UUID]) -> Iterable[Sequence[uuid.UUID]]:
    for at in range(0, len(keys), CHUNK):
        yield keys[at : at + CHUNK]
