"""
Advance workflows: count what ended, let go on what waited for it, end what is complete, call back.

Part of the transaction that ends the tasks, so no crash can stop a chain between
two of them, and no callback is lost or stored twice. All of it happens under
the lock of the workflow's row: two workers that end the last two members of a
batch do so one after the other, and only the second sees that none is open.
The lock is taken last and held to the commit, a millisecond for a group of 500.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django_taskq import clock, conf, events
from django_taskq.domain import payload
from django_taskq.domain.states import State
from django_taskq.domain.workflows import Kind, Role, WorkflowState, end_of, node_state
from django_taskq.ids import task_ids
from django_taskq.lifecycle import wake
from django_taskq.models import Dependency, Workflow
from django_taskq.models.tasks import TaskRow
from django_taskq.store import workflows as store
from django_taskq.store.rows import NewTask
from django_taskq.store.vendors import vendor_for

__all__ = [
    "Advanced",
    "EndedNode",
    "absorb",
    "advance",
    "as_node",
    "as_state",
    "conclude",
    "count",
    "cut",
    "facts_of",
    "later",
    "nodes_of",
    "publish",
    "start_workflows",
]

PROGRESS_SECONDS = 1.0


class EndedNode(NamedTuple):
    """A task or a workflow that ended, as a node of the workflow around it."""

    key: uuid.UUID
    workflow_id: uuid.UUID
    role: int
    state: State
    name: str = ""


class Advanced:
    """What an advance leads to once it is committed: events, and queues with something ready."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.events: list[events.Event] = []
        self.queues: set[str] = set()

    def tell(self, kind: type[Any], row: Workflow, **facts: Any) -> None:
        """Remember an event of a workflow, if somebody wants it."""
        if events.wanted(kind):
            self.events.append(kind(**facts_of(row, self.alias), **facts))

    def tell_cut(self, rows: Iterable[TaskRow]) -> None:
        """Remember that tasks were cancelled because what they waited for did not succeed."""
        if events.wanted(events.TaskCancelled):
            self.events += [
                events.TaskCancelled(
                    task_id=str(row.pk), task=row.name, queue=row.queue, attempt=row.attempt, alias=self.alias
                )
                for row in rows
            ]


def publish(told: Advanced) -> None:
    """Emit the events and wake workers, once the current transaction commits; at once where there is none."""
    for event in told.events:
        events.emit_on_commit(type(event), [event], using=told.alias)
    notify = conf.options().notify
    for queue in sorted(told.queues):
        wake.after_commit(told.alias, queue, ready=True, notify=notify)


def facts_of(row: Workflow, alias: str) -> dict[str, Any]:
    """Return what every event of a workflow says."""
    kind = Kind(row.kind)
    return {
        "workflow_id": str(row.pk),
        "kind": "workflow" if kind is Kind.GRAPH else kind.name.lower(),
        "name": row.name,
        "alias": alias,
    }


def advance(alias: str, ended: Iterable[EndedNode], *, now: datetime) -> Advanced:
    """
    Write what follows from nodes that ended. The caller has opened the transaction that ended them.

    Each node is counted once: whoever ends it by a row that it alone could move calls this with it.
    """
    told = Advanced(alias)
    nodes = list(ended)
    while nodes:
        by_workflow: dict[uuid.UUID, list[EndedNode]] = {}
        for node in nodes:
            by_workflow.setdefault(node.workflow_id, []).append(node)
        rows = store.lock(alias, by_workflow.keys())
        nodes = _advance_rows(rows, by_workflow, told, now)
    return told


def _advance_rows(
    rows: Sequence[Workflow], by_workflow: dict[uuid.UUID, list[EndedNode]], told: Advanced, now: datetime
) -> list[EndedNode]:
    """Advance locked workflows; return those that ended by it, as nodes of the ones around them."""
    alias = told.alias
    done: set[uuid.UUID] = set()
    upward: list[EndedNode] = []
    for row in rows:
        done |= count(row, by_workflow[row.pk], told, now)
    if done:
        upward += _let_go_on(alias, done, told, now)
    for row in rows:
        # Its callbacks end after it: that must not be told to the one around it once more.
        had_ended = row.has_ended
        conclude(row, by_workflow[row.pk], told, now)
        if row.has_ended and not had_ended and row.parent_id is not None:
            upward.append(as_node(row))
    store.write(alias, rows)
    return upward


def as_state(row: Workflow) -> State:
    """Return as what a workflow that has ended counts in the one around it."""
    return node_state(WorkflowState(row.state))


def as_node(row: Workflow) -> EndedNode:
    """Return a workflow that has ended as a node of the one around it."""
    assert row.parent_id is not None
    return EndedNode(row.pk, row.parent_id, Role.MEMBER, as_state(row), row.name)


def count(row: Workflow, nodes: Sequence[EndedNode], told: Advanced, now: datetime) -> set[uuid.UUID]:
    """Count ended nodes; cut off what will never go on, and return the nodes whose followers may."""
    done: set[uuid.UUID] = set()
    stuck: list[uuid.UUID] = []
    has_edges = row.kind != Kind.BATCH
    for node in nodes:
        if node.role != Role.MEMBER:
            # Whatever waits for a callback waits for its end alone.
            done.add(node.key)
            if node.state == State.DEAD:
                told.tell(events.CallbackDead, row, task_id=str(node.key), callback=Role(node.role).name.lower())
            continue
        # Never below 0: an operator's SQL must not keep a worker from settling. The duty *reconcile* counts anew.
        row.open = max(row.open - 1, 0)
        match node.state:
            case State.SUCCEEDED:
                row.succeeded += 1
            case State.DEAD:
                row.failed += 1
            case _:
                row.cancelled += 1
        if not has_edges:
            continue
        if node.state == State.SUCCEEDED or row.failed + row.cancelled <= row.allowed:
            done.add(node.key)
        else:
            stuck.append(node.key)
    if stuck:
        cut(row, stuck, told, now)
    # What is being cancelled goes no further.
    return {node.key for node in nodes if node.key in done and (node.role != Role.MEMBER or not row.cancel)}


def absorb(row: Workflow, nodes: Sequence[EndedNode], told: Advanced, now: datetime) -> None:
    """Count nodes that ended at once, and let on what waited for them, until nothing more ends by it."""
    while nodes:
        done = count(row, nodes, told, now)
        nodes = _let_go_on(told.alias, done, told, now) if done else []


def cut(row: Workflow, stuck: Sequence[uuid.UUID], told: Advanced, now: datetime) -> None:
    """Cancel all that waits, directly or not, for nodes that did not succeed."""
    doomed: dict[uuid.UUID, None] = {}
    frontier: list[uuid.UUID] = list(stuck)
    while frontier:
        found = [node for node, _, _ in store.followers(told.alias, frontier, always=False) if node not in doomed]
        frontier = list(dict.fromkeys(found))
        doomed.update(dict.fromkeys(frontier))
    if not doomed:
        return
    tasks = store.cut_tasks(told.alias, doomed, now=now)
    told.tell_cut(tasks)
    left = doomed.keys() - {task.pk for task in tasks}
    count = len(tasks)
    for key in left:
        workflows, inside = store.cut_workflow(told.alias, key, now=now)
        told.tell_cut(inside)
        for workflow in workflows:
            told.tell(events.WorkflowCancelled, workflow, counts=workflow.counts)
        count += bool(workflows)
    row.open = max(row.open - count, 0)
    row.cancelled += count


def _let_go_on(alias: str, done: set[uuid.UUID], told: Advanced, now: datetime) -> list[EndedNode]:
    """Let the followers of nodes go on; return workflows that ended at once since there is nothing in them."""
    counts = Counter(node for node, _, _ in store.followers(alias, done))
    if not counts:
        return []
    free = store.unblock_tasks(alias, counts)
    told.queues |= store.release(alias, free, now=now, later=later)
    rest = Counter({key: counts[key] for key in counts.keys() - set(free)})
    started = store.unblock_workflows(alias, rest) if rest else []
    return start_workflows(alias, started, told, now) if started else []


def start_workflows(alias: str, keys: Sequence[uuid.UUID], told: Advanced, now: datetime) -> list[EndedNode]:
    """Start workflows inside others; return those that ended at once since there is nothing in them."""
    ended: list[EndedNode] = []
    for row in store.start(alias, keys, now=now):
        told.tell(events.WorkflowStarted, row, total=row.total)
        told.queues |= store.release(alias, store.waiting_members(alias, row.pk), now=now, later=later)
        children = store.children_of(alias, row.pk)
        inner = [child.pk for child in children if child.state == WorkflowState.WAITING and child.waits_for <= 0]
        at_once = start_workflows(alias, inner, told, now) if inner else []
        absorb(row, at_once, told, now)
        conclude(row, at_once, told, now)
        store.write(alias, [row])
        if row.has_ended:
            ended.append(as_node(row))
    return ended


def conclude(row: Workflow, nodes: Sequence[EndedNode], told: Advanced, now: datetime) -> None:
    """Call back what the counts ask for, and end the workflow if nothing in it is open."""
    if row.has_ended:
        return
    allowed = row.allowed
    callbacks = row.callback_values
    if row.failed > allowed and not row.caught:
        row.caught = True
        call_back(row, Role.CATCH, callbacks, told, now)
    end = end_of(row.counts, allowed=allowed, cancel_requested=row.cancel)
    moved = any(node.role == Role.MEMBER for node in nodes)
    if moved:
        told.tell(events.WorkflowAdvanced, row, counts=row.counts)
        is_due = row.progress_at is None or now - row.progress_at >= timedelta(seconds=PROGRESS_SECONDS)
        if "progress" in callbacks and (end is not None or is_due):
            row.progress_at = now
            call_back(row, Role.PROGRESS, callbacks, told, now)
    if end is None:
        return
    row.state, row.finished_at = int(end), now
    if end == WorkflowState.COMPLETED:
        call_back(row, Role.THEN, callbacks, told, now)
    call_back(row, Role.FINALLY, callbacks, told, now)
    told.tell(_ENDS[end], row, counts=row.counts)


_ENDS: dict[WorkflowState, type[Any]] = {
    WorkflowState.COMPLETED: events.WorkflowCompleted,
    WorkflowState.FAILED: events.WorkflowFailed,
    WorkflowState.CANCELLED: events.WorkflowCancelled,
}


def call_back(row: Workflow, role: Role, callbacks: dict[str, list[Any]], told: Advanced, now: datetime) -> None:
    """Store the callbacks of one kind. What is called finally waits until then and catch have ended."""
    wanted = callbacks.get(role.name.lower())
    if not wanted:
        return
    alias = told.alias
    before = store.live_callbacks(alias, row.pk) if role == Role.FINALLY else []
    tasks: list[NewTask] = []
    dependencies: list[Dependency] = []
    for stored in wanted:
        number = task_ids.one()
        values = later(stored["options"], now) if stored["options"] else {}
        run_after = values.get("run_after")
        is_late = run_after is not None and run_after > now
        state = State.WAITING if before else State.SCHEDULED if is_late else State.READY
        tasks.append(
            NewTask(
                number,
                stored["queue"],
                stored["rank"],
                int(state),
                stored["max_attempts"],
                stored["ack"],
                run_after,
                now,
                values.get("deadline_at"),
                values.get("expires_at"),
                stored["name"],
                stored["options"],
                stored["metadata"],
                None,
                stored["args"],
                row.pk.int,
                int(role),
                len(before) or None,
            )
        )
        dependencies += [
            Dependency(workflow_id=row.pk, node_id=uuid.UUID(int=number), predecessor_id=key, always=True)
            for key in before
        ]
        if state == State.READY:
            told.queues.add(stored["queue"])
        told.tell(events.CallbackEnqueued, row, task_id=str(uuid.UUID(int=number)), callback=role.name.lower())
    store.insert(alias, [], tasks, dependencies)


def later(options: str, now: datetime) -> dict[str, Any]:
    """Return the columns that a task's options set when its turn comes: spans count from then."""
    values = payload.decode_value(options)
    found: dict[str, Any] = {}
    spans = values.get("later", {}) if isinstance(values, dict) else {}
    eligible = now
    if "delay" in spans:
        eligible = found["run_after"] = now + timedelta(seconds=spans["delay"])
    if "expires" in spans:
        found["expires_at"] = eligible + timedelta(seconds=spans["expires"])
    if values.get("max_time") is not None:
        found["deadline_at"] = eligible + timedelta(seconds=values["max_time"])
    if "until" in spans:
        until = clock.from_timestamp(spans["until"])
        found["deadline_at"] = min(found.get("deadline_at", until), until)
    return found


def nodes_of(rows: Iterable[tuple[Any, Any, int | None, int, str]], alias: str) -> list[EndedNode]:
    """Return as nodes those of (key, workflow, role, state, name) that belong to a workflow."""
    vendor = vendor_for(alias)
    return [
        EndedNode(_uuid(vendor, key), _uuid(vendor, workflow_id), role or Role.MEMBER, State(state), name)
        for key, workflow_id, role, state, name in rows
        if workflow_id is not None
    ]


def _uuid(vendor: Any, key: Any) -> uuid.UUID:
    return key if isinstance(key, uuid.UUID) else uuid.UUID(vendor.public_id(key))
