"""
Mend workflows that are at odds with their tasks: the net below *advance*.

Nothing of ours leaves one so; an operator's SQL, a restored backup or an old bug
can. Each workflow is looked at under its lock, so what a settlement is writing
just now is either seen whole or not at all. What vanished counts as failed,
since nobody can know that it succeeded.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime

from django.db.models import Count

from django_taskq import events
from django_taskq.domain.states import State
from django_taskq.domain.workflows import Kind, Role, WorkflowState
from django_taskq.lifecycle import advance as advancing
from django_taskq.models import FinishedTask, Task, Workflow
from django_taskq.store import workflows as store
from django_taskq.store.vendors import vendor_for

__all__ = ["reconcile", "reconcile_one"]

CHUNK = 100
_LOST_MOST = 1000
_NAMES = {State.SUCCEEDED: "succeeded", State.DEAD: "failed", State.CANCELLED: "cancelled"}


def reconcile(alias: str, *, now: datetime, after: uuid.UUID | None = None) -> tuple[int, uuid.UUID | None]:
    """
    Look at up to 100 open workflows behind ``after``, and at tasks that wait in vain.

    Return how many were mended, and where to go on; None: from the beginning.
    """
    open_ones = Workflow.objects.using(alias).filter(state=WorkflowState.RUNNING).order_by("pk")
    keys = list((open_ones if after is None else open_ones.filter(pk__gt=after)).values_list("pk", flat=True)[:CHUNK])
    count = sum(bool(reconcile_one(alias, key, now=now)) for key in keys)
    if len(keys) < CHUNK:
        count += _stranded(alias, now)
    return count, keys[-1] if len(keys) == CHUNK else None


def reconcile_one(alias: str, key: uuid.UUID, *, now: datetime) -> str:
    """Compare a running workflow with its tasks and mend it; return what was wrong, "" where nothing was."""
    vendor = vendor_for(alias)

    def once() -> tuple[str, advancing.Advanced]:
        told = advancing.Advanced(alias)
        with vendor.atomic():
            rows = store.lock(alias, [key])
            if not rows or rows[0].state != WorkflowState.RUNNING:
                return "", told
            [row] = rows
            found = [*_recount(alias, row), *_let_on(alias, row, told, now)]
            if not found and row.open:
                return "", told
            advancing.conclude(row, [], told, now)
            store.write(alias, [row])
            if not found:
                found = ["nothing in it was open"]
            if row.has_ended and row.parent_id is not None:
                outer = advancing.advance(alias, [advancing.as_node(row)], now=now)
                told.events += outer.events
                told.queues |= outer.queues
            text = "; ".join(found)
            told.tell(events.WorkflowMended, row, found=text)
        return text, told

    text, told = vendor.retrying(once)
    advancing.publish(told)
    return text


def _recount(alias: str, row: Workflow) -> list[str]:
    """Count the nodes anew; return what was counted otherwise."""
    members = FinishedTask.objects.using(alias).filter(workflow_id=row.pk, role=Role.MEMBER).order_by()
    ended: Counter[str] = Counter()
    for state, count in members.values_list("state").annotate(Count("pk")):
        ended[_NAMES[State(state)]] += count
    still = Task.objects.using(alias).filter(workflow_id=row.pk, role=Role.MEMBER).count()
    for child in store.children_of(alias, row.pk):
        if child.has_ended:
            ended[_NAMES[advancing.as_state(child)]] += 1
        else:
            still += 1
    seen = still + ended.total()
    gone = max(row.total - seen, 0)
    ended["failed"] += gone
    facts = {"total": max(row.total, seen), "open": still, **{name: ended[name] for name in _NAMES.values()}}
    wrong = [
        f"{name} was {getattr(row, name)}, is {value}" for name, value in facts.items() if getattr(row, name) != value
    ]
    if wrong and gone:
        wrong.append(f"{gone} of its members are gone and count as failed")
    for name, value in facts.items():
        setattr(row, name, value)
    return wrong


def _let_on(alias: str, row: Workflow, told: advancing.Advanced, now: datetime) -> list[str]:
    """Let on what waits for nobody or for a signal past its deadline; cut off what waits for what did not succeed."""
    waiting = {
        task.pk: task
        for task in Task.objects.using(alias).filter(workflow_id=row.pk, role=Role.MEMBER, state=State.WAITING)
    }
    inner = {child.pk: child for child in store.children_of(alias, row.pk) if child.state == WorkflowState.WAITING}
    if (not waiting and not inner) or row.cancel:
        return []
    before: dict[uuid.UUID, list[uuid.UUID]] = {}
    if row.kind != Kind.BATCH:
        for waiter, other in store.dependencies_of(alias, row.pk):
            before.setdefault(waiter, []).append(other)
    others = {other for found in before.values() for other in found}
    is_open, is_good = _standing(alias, others)
    tolerant = row.failed + row.cancelled <= row.allowed
    free: list[uuid.UUID] = []
    nodes: dict[uuid.UUID, Task | Workflow] = {**waiting, **inner}
    stuck: set[uuid.UUID] = set()
    found: list[str] = []
    for key, node in nodes.items():
        mine = before.get(key, ())
        bad = [other for other in mine if other not in is_open and other not in is_good]
        if bad and not tolerant:
            stuck.update(bad)
            continue
        waits = sum(other in is_open for other in mine)
        if waits:
            continue
        if isinstance(node, Task) and node.option_values.get("gate"):
            if _is_overdue(node, now):
                # No signal comes in time any more: its claim finds the deadline over, and it dies of that.
                free.append(key)
            continue
        free.append(key)
        found.append(f"{key} waited for nobody")
    if stuck:
        advancing.cut(row, sorted(stuck), told, now)
        found.append(f"what waited for {len(stuck)} nodes without success had not been cancelled")
    told.queues |= store.release(alias, [key for key in free if key in waiting], now=now, later=advancing.later)
    starting = [key for key in free if key in inner]
    if starting:
        advancing.absorb(row, advancing.start_workflows(alias, starting, told, now), told, now)
    return found


def _is_overdue(gate: Task, now: datetime) -> bool:
    until = gate.option_values.get("later", {}).get("until")
    return until is not None and until <= now.timestamp()


def _standing(alias: str, nodes: set[uuid.UUID]) -> tuple[set[uuid.UUID], set[uuid.UUID]]:
    """Return which of these nodes are open, and which succeeded."""
    is_open: set[uuid.UUID] = set(Task.objects.using(alias).filter(pk__in=nodes).values_list("pk", flat=True))
    ended = FinishedTask.objects.using(alias).filter(pk__in=nodes, state=State.SUCCEEDED)
    is_good: set[uuid.UUID] = set(ended.values_list("pk", flat=True))
    for child in Workflow.objects.using(alias).filter(pk__in=nodes):
        if not child.has_ended:
            is_open.add(child.pk)
        elif child.state == WorkflowState.COMPLETED:
            is_good.add(child.pk)
    return is_open, is_good


def _stranded(alias: str, now: datetime) -> int:
    """End or let on tasks that wait in a workflow that has ended or is gone."""
    waiting = Task.objects.using(alias).filter(state=State.WAITING).order_by("pk")
    rows = list(waiting.values_list("pk", "workflow_id", "role")[:_LOST_MOST])
    flows = {key: None for _, key, _ in rows if key is not None}
    alive = _alive(Workflow.objects.using(alias).filter(pk__in=flows))
    members = {key: flow for key, flow, role in rows if role == Role.MEMBER and flow not in alive}
    callbacks = {key: flow for key, flow, role in rows if role is not None and role != Role.MEMBER}
    return _cut_off(alias, members, now) + _call_finally(alias, callbacks, now)


def _alive(rows: Iterable[Workflow]) -> set[uuid.UUID | None]:
    return {row.pk for row in rows if row.state in (WorkflowState.RUNNING, WorkflowState.WAITING)}


def _cut_off(alias: str, members: Mapping[uuid.UUID, uuid.UUID | None], now: datetime) -> int:
    """Cancel members of workflows that have ended, unless they were cut off or replayed meanwhile."""
    if not members:
        return 0
    vendor = vendor_for(alias)

    def once() -> tuple[int, advancing.Advanced]:
        told = advancing.Advanced(alias)
        with vendor.atomic():
            alive = _alive(store.lock(alias, {flow for flow in members.values() if flow is not None}))
            cut = store.cut_tasks(alias, [key for key, flow in members.items() if flow not in alive], now=now)
            told.tell_cut(cut)
        return len(cut), told

    count, told = vendor.retrying(once)
    advancing.publish(told)
    return count


def _call_finally(alias: str, callbacks: Mapping[uuid.UUID, uuid.UUID | None], now: datetime) -> int:
    """Let on callbacks whose predecessors have ended without telling them."""
    return sum(_call(alias, key, flow, now) for key, flow in callbacks.items() if not _waits_for_some(alias, key))


def _waits_for_some(alias: str, key: uuid.UUID) -> bool:
    return Task.objects.using(alias).filter(pk__in=store.predecessors_of(alias, key)).exists()


def _call(alias: str, key: uuid.UUID, flow: uuid.UUID | None, now: datetime) -> bool:
    vendor = vendor_for(alias)

    def once() -> tuple[bool, advancing.Advanced]:
        told = advancing.Advanced(alias)
        with vendor.atomic():
            # Asked again under the lock: the settlement that lets it on may just be at it.
            store.lock(alias, [] if flow is None else [flow])
            waiting = Task.objects.using(alias).filter(pk=key, state=State.WAITING)
            if not waiting.exists() or _waits_for_some(alias, key):
                return False, told
            told.queues |= store.release(alias, [key], now=now, later=advancing.later)
        return True, told

    found, told = vendor.retrying(once)
    advancing.publish(told)
    return found
