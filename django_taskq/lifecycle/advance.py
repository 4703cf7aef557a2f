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
from collections.abc import Collection, Iterable, Sequence
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
    "set_off",
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
    pending: dict[uuid.UUID, list[EndedNode]] = {}
    for node in ended:
        pending.setdefault(node.workflow_id, []).append(node)
    while pending:
        # Inside first: what an outer one cuts off must have been counted and written by then.
        keys = store.innermost(alias, pending.keys())
        upward = _advance_rows(store.lock(alias, keys), pending, told, now)
        for key in keys:
            del pending[key]
        for node in upward:
            pending.setdefault(node.workflow_id, []).append(node)
    return told


def _advance_rows(
    rows: Sequence[Workflow], by_workflow: dict[uuid.UUID, list[EndedNode]], told: Advanced, now: datetime
) -> list[EndedNode]:
    """Advance locked workflows, none inside another; return what ended by it, as nodes of the ones around."""
    done: set[uuid.UUID] = set()
    held: set[uuid.UUID] = set()
    upward: list[EndedNode] = []
    for row in rows:
        found = count(row, by_workflow[row.pk], told, now)
        done |= found
        if row.state == WorkflowState.WAITING:
            held |= found
    if done:
        upward += _let_go_on(told.alias, done, told, now, held=held)
    for row in rows:
        if conclude(row, by_workflow[row.pk], told, now) and row.parent_id is not None:
            upward.append(as_node(row))
    store.write(told.alias, rows)
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
    failed: list[uuid.UUID] = []
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
        if row.kind == Kind.BATCH:
            continue
        is_fine = node.state == State.SUCCEEDED
        if row.cancel or not (is_fine or row.failed + row.cancelled <= row.allowed):
            # What is being cancelled goes no further, even if whoever cancels it died half-way.
            stuck.append(node.key)
            continue
        done.add(node.key)
        if not is_fine:
            failed.append(node.key)
    if failed:
        # One that was cancelled before its turn: its followers still come after what it waited for.
        store.hand_on_waits(told.alias, row.pk, failed)
    if stuck:
        cut(row, stuck, told, now)
    return done


def absorb(row: Workflow, nodes: Sequence[EndedNode], told: Advanced, now: datetime) -> None:
    """Count nodes that ended at once, and let on what waited for them, until nothing more ends by it."""
    while nodes:
        done = count(row, nodes, told, now)
        nodes = _let_go_on(told.alias, done, told, now) if done else []


def cut(row: Workflow, stuck: Sequence[uuid.UUID], told: Advanced, now: datetime) -> None:
    """Cancel all that waits, directly or not, for nodes that did not succeed."""
    after: dict[uuid.UUID, list[uuid.UUID]] = {}
    for node, before in store.dependencies_of(told.alias, row.pk):
        after.setdefault(before, []).append(node)
    if not any(key in after for key in stuck):
        return
    tasks, flows = store.waiting_nodes(told.alias, row.pk)
    doomed: dict[uuid.UUID, None] = {}
    frontier: list[uuid.UUID] = list(stuck)
    for at in frontier:
        for node in after.get(at, ()):
            if node not in doomed and (node in tasks or node in flows):
                doomed[node] = None
                frontier.append(node)
    cut = store.cut_tasks(told.alias, [key for key in doomed if key in tasks], now=now)
    told.tell_cut(cut)
    count = len(cut)
    for key in doomed.keys() & flows:
        workflows, inside = store.cut_workflow(told.alias, key, now=now)
        told.tell_cut(inside)
        for workflow in workflows:
            call_back(workflow, Role.FINALLY, workflow.callback_values, told, now)
            told.tell(events.WorkflowCancelled, workflow, counts=workflow.counts)
        count += bool(workflows)
    row.open = max(row.open - count, 0)
    row.cancelled += count


def _let_go_on(
    alias: str, done: set[uuid.UUID], told: Advanced, now: datetime, *, held: Collection[uuid.UUID] = frozenset()
) -> list[EndedNode]:
    """
    Let the followers of nodes go on; return workflows that ended at once since there is nothing in them.

    ``held``: those in workflows whose own turn has not come; their followers still wait for that.
    """
    found = store.followers(alias, done)
    waits = Counter(node for node, before, always in found if before in held and not always)
    if waits:
        store.unblock_tasks(alias, waits)
        store.unblock_workflows(alias, waits)
    counts = Counter(node for node, before, always in found if before not in held or always)
    if not counts:
        return []
    free = store.unblock_tasks(alias, counts)
    told.queues |= store.release(alias, free, now=now, later=later)
    if ended := {before for _, before, always in found if always}:
        # Once: a callback that is replayed ends a second time, and others may still be waited for.
        store.forget_ends(alias, ended)
    rest = Counter({key: counts[key] for key in counts.keys() - set(free)})
    started = store.unblock_workflows(alias, rest) if rest else []
    return start_workflows(alias, started, told, now) if started else []


def start_workflows(alias: str, keys: Sequence[uuid.UUID], told: Advanced, now: datetime) -> list[EndedNode]:
    """Start workflows inside others; return those that ended at once since there is nothing in them."""
    ended: list[EndedNode] = []
    for row in store.start(alias, keys, now=now):
        told.tell(events.WorkflowStarted, row, total=row.total)
        if set_off(row, told, now):
            ended.append(as_node(row))
    return ended


def set_off(row: Workflow, told: Advanced, now: datetime) -> bool:
    """Let go on what waits for nobody in a locked workflow that runs; return whether it ended by it."""
    alias = told.alias
    told.queues |= store.release(alias, store.waiting_members(alias, row.pk), now=now, later=later)
    children = store.children_of(alias, row.pk)
    inner = [child.pk for child in children if child.state == WorkflowState.WAITING and child.waits_for <= 0]
    at_once = start_workflows(alias, inner, told, now) if inner else []
    absorb(row, at_once, told, now)
    has_ended = conclude(row, at_once, told, now)
    store.write(alias, [row])
    return has_ended


def conclude(row: Workflow, nodes: Sequence[EndedNode], told: Advanced, now: datetime) -> bool:
    """Call back what the counts ask for, and end the workflow if nothing in it is open; return whether it ended."""
    if row.has_ended:
        return False
    allowed = row.allowed
    callbacks = row.callback_values
    if row.failed > allowed and not row.caught and not row.cancel:
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
        return False
    row.state, row.finished_at = int(end), now
    if end == WorkflowState.COMPLETED:
        call_back(row, Role.THEN, callbacks, told, now)
    call_back(row, Role.FINALLY, callbacks, told, now)
    told.tell(_ENDS[end], row, counts=row.counts)
    return True


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
        own = _moment(stored.get("run_after"))
        values = later(stored["options"], now, own) if stored["options"] else {}
        run_after = values.get("run_after", own)
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
                values.get("expires_at", _moment(stored.get("expires_at"))),
                stored["name"],
                stored["options"],
                stored["metadata"],
                None,
                stored["args"],
                row.pk.int,
                int(role),
                len(before) or None,
            )._replace(**stored.get("extras", {}))
        )
        dependencies += [
            Dependency(workflow_id=row.pk, node_id=uuid.UUID(int=number), predecessor_id=key, always=True)
            for key in before
        ]
        if state == State.READY:
            told.queues.add(stored["queue"])
        told.tell(events.CallbackEnqueued, row, task_id=str(uuid.UUID(int=number)), callback=role.name.lower())
    store.insert(alias, [], tasks, dependencies)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def later(options: str, now: datetime, run_after: datetime | None) -> dict[str, Any]:
    """Return the columns that a task's options set when its turn comes: spans count from then, or from its time."""
    values = payload.decode_value(options)
    found: dict[str, Any] = {}
    spans = values.get("later", {}) if isinstance(values, dict) else {}
    eligible = now if run_after is None else max(now, run_after)
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
