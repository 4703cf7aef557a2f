"""
Store workflows, and what people do with stored ones: cancel, replay, add to a batch, signal.

A composition is laid out as rows first, without the database: a row for each
workflow and each task, and one for each "waits for". Then all of it is stored
in one transaction, the caller's. So no fault leaves half a workflow.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from django.db import transaction
from django.db.models import QuerySet

from django_taskq import clock, conf, events
from django_taskq.domain import payload
from django_taskq.domain.states import DeadReason, State
from django_taskq.domain.workflows import ENDED, Kind, Role, WorkflowState, in_order
from django_taskq.exceptions import (
    InvalidTransition,
    InvalidWorkflow,
    UnsupportedCapability,
    WaitTimeout,
    WorkflowEnded,
)
from django_taskq.ids import task_ids
from django_taskq.lifecycle import advance as advancing
from django_taskq.lifecycle import databases, definitions, references, wake
from django_taskq.lifecycle import enqueue as enqueueing
from django_taskq.lifecycle.forgo import end_waiting
from django_taskq.models import Dependency, FinishedTask, Task, Workflow
from django_taskq.store import tasks as task_store
from django_taskq.store import workflows as store
from django_taskq.store.rows import NewTask
from django_taskq.store.vendors import vendor_for

__all__ = [
    "Composition",
    "Node",
    "add",
    "cancel",
    "end_members",
    "enqueue",
    "find",
    "item_of",
    "items_of",
    "replay",
    "replay_members",
    "signal",
    "wait",
]

_CHUNK = 1000
_TURNS = 20
# Where the deadline stands among the columns of ``columns_of``.
_DEADLINE = NewTask._fields.index("deadline_at") - 1
_GATE = "django_taskq.gates.received"
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Composition(Protocol):
    """What a program has put together: the front door's class of this name."""

    @property
    def kind(self) -> Kind: ...

    @property
    def nodes(self) -> Sequence[Any]: ...

    @property
    def label(self) -> str: ...

    @property
    def allowance(self) -> bool | float: ...

    @property
    def callbacks(self) -> Mapping[str, Any]: ...

    @property
    def options(self) -> Mapping[str, Any]: ...

    @property
    def start_options(self) -> Mapping[str, Any]: ...

    @property
    def until(self) -> timedelta | datetime | None: ...


class Node(NamedTuple):
    """A member of a composition: its name, a signature, composition or gate, and the names of those it waits for."""

    name: str
    item: Any
    after: tuple[str, ...] = ()


class _Layout:
    """The rows of a composition."""

    def __init__(self, options: conf.Options, now: datetime) -> None:
        self.alias = databases.database_for(options)
        self.now = now
        self.workflows: list[Workflow] = []
        self.tasks: list[NewTask] = []
        self.dependencies: list[Dependency] = []
        self.calls: list[tuple[int, Any, Sequence[Any], Mapping[str, Any]]] = []
        self._shared: dict[Any, tuple[str, tuple[Any, ...]]] = {}
        self._kept: list[Any] = []
        self._own_options: dict[int, conf.Options] = {}
        self._until: datetime | None = None

    def lay(
        self,
        made: Composition,
        *,
        outer: Workflow | None = None,
        before: str | None = None,
        given: Mapping[str, Any] | None = None,
        start: Mapping[str, Any] | None = None,
        waits: int = 0,
    ) -> Workflow:
        """
        Add the rows of a composition and return its own.

        ``before``: the id that ``previous`` stands for in members that wait for nobody here.
        """
        given = {**made.options, **(given or {})}
        start = {**made.start_options, **(start or {})}
        outer_until, self._until = self._until, self._earlier(made.until)
        row = Workflow(
            id=uuid.UUID(int=task_ids.one()),
            kind=int(made.kind),
            name=made.label,
            state=int(WorkflowState.RUNNING if outer is None else WorkflowState.WAITING),
            total=len(made.nodes),
            open=len(made.nodes),
            allowance="" if made.allowance is False else _json(made.allowance),
            parent_id=None if outer is None else outer.pk,
            waits_for=waits,
            created_at=self.now,
            started_at=self.now if outer is None else None,
        )
        self.workflows.append(row)
        nodes = made.nodes
        if made.kind is Kind.GRAPH:
            by_name = {node.name: node for node in nodes}
            nodes = [by_name[name] for name in in_order(list(by_name), {node.name: node.after for node in nodes})]
        ids = self.add_nodes(row, nodes, before=before, given=given, start=start)
        if made.kind is Kind.GRAPH:
            row.names = _json(ids)
        stored = {kind: [self._callback(call, row) for call in calls] for kind, calls in made.callbacks.items()}
        row.callbacks = _json(stored) if stored else None
        self._until = outer_until
        return row

    def inherit(self, until: datetime | None) -> None:
        """Let everything that is laid from here on have a deadline."""
        self._until = self._earlier(until)

    def _earlier(self, until: timedelta | datetime | None) -> datetime | None:
        """Return the earlier of the deadline around and one of its own."""
        if until is None:
            return self._until
        moment = self.now + until if isinstance(until, timedelta) else until
        return moment if self._until is None else min(moment, self._until)

    def add_nodes(
        self,
        row: Workflow,
        nodes: Iterable[Any],
        *,
        before: str | None = None,
        given: Mapping[str, Any] = _NOTHING,
        start: Mapping[str, Any] = _NOTHING,
    ) -> dict[str, str]:
        """Add the rows of nodes to a workflow, each behind those it waits for; return their ids by name."""
        ids: dict[str, str] = {}
        earlier: dict[str, set[str]] = {}
        for node in nodes:
            after = dict.fromkeys(node.after)
            earlier[node.name] = set(after).union(*(earlier[name] for name in after))
            last = ids[next(iter(after))] if len(after) == 1 else before if not after else None
            own_start = {} if after else start
            if hasattr(node.item, "nodes"):
                inner = self.lay(node.item, outer=row, before=last, given=given, start=own_start, waits=len(after))
                key = inner.pk
            else:
                known = {name: ids[name] for name in earlier[node.name]}
                key = self._task(row, node, last=last, ids=known, given=given, start=own_start, waits=len(after))
            ids[node.name] = str(key)
            self.dependencies += [
                Dependency(workflow_id=row.pk, node_id=key, predecessor_id=uuid.UUID(ids[name])) for name in after
            ]
        return ids

    def _task(
        self,
        row: Workflow,
        node: Any,
        *,
        last: str | None,
        ids: Mapping[str, str],
        given: Mapping[str, Any],
        start: Mapping[str, Any],
        waits: int,
    ) -> uuid.UUID:
        number = task_ids.one()
        extra: dict[str, Any] = {}
        if hasattr(node.item, "task"):
            call = node.item
        else:
            call, waits = _gate_call(), waits + 1
            extra["gate"] = True
        is_waiting = waits > 0 or row.state == WorkflowState.WAITING
        task, delay = call.task, call.delay
        if given or start:
            task, delay = self._changed(task, delay, given, start)
        if delay is not None:
            if is_waiting:
                extra["later"] = {**extra.get("later", {}), "delay": delay.total_seconds()}
            else:
                task = task.using(run_after=self.now + delay)
        options = self._options_of(task)
        task, own_args, own_kwargs = enqueueing.arranged(task, call.args, call.kwargs or {}, options)
        args, kwargs, found = references.take_out(own_args, own_kwargs)
        if found:
            extra["refs"] = [[path, _target(name, last, ids)] for path, name in found]
        if self._until is not None:
            extra["later"] = {**extra.get("later", {}), "until": self._until.timestamp()}
        name, shared = self._columns(task, options, is_waiting=is_waiting, extra=extra)
        if self._until is not None and not is_waiting:
            own = shared[_DEADLINE]
            shared = (*shared[:_DEADLINE], min(own or self._until, self._until), *shared[_DEADLINE + 1 :])
        text = payload.encode_arguments(args, kwargs, limit=options.max_payload_bytes)
        new = NewTask(number, *shared, text, row.pk.int, int(Role.MEMBER), waits or None)  # type: ignore[call-arg]  # a tuple of unknown length
        if enqueueing.has_extras(task):
            new = new._replace(**enqueueing.extras_of(task, name, own_args, own_kwargs))
        self.tasks.append(new)
        self.calls.append((number, task, args, kwargs))
        return uuid.UUID(int=number)

    def _changed(
        self, task: Any, delay: timedelta | None, given: Mapping[str, Any], start: Mapping[str, Any]
    ) -> tuple[Any, timedelta | None]:
        start = dict(start)
        if "delay" in start:
            value = start.pop("delay")
            delay = value if isinstance(value, timedelta) else timedelta(seconds=value)
        if isinstance(start.get("run_after"), timedelta):
            delay = start.pop("run_after")
        key = (id(task), id(given), tuple(start.items()))
        found = self._shared.get(key)
        if found is None:
            # Kept, so that no other object gets its id meanwhile.
            self._kept += [task, given]
            found = self._shared[key] = task.using(**{**given, **start})
        return found, delay

    def _options_of(self, task: Any) -> conf.Options:
        """Return the options of a task's backend, which hold in a workflow, too. Raise InvalidWorkflow."""
        found = self._own_options.get(id(task))
        if found is None:
            # Before its arguments are looked at: the rules for them are those of its backend.
            self._check(task)
            self._kept.append(task)
            found = self._own_options[id(task)] = task.get_backend().taskq_options
        return found

    def _columns(
        self, task: Any, options: conf.Options, *, is_waiting: bool, extra: Mapping[str, Any]
    ) -> tuple[str, tuple[Any, ...]]:
        key = (id(task), is_waiting)
        found = self._shared.get(key)
        if found is None:
            self._options_of(task)
        if found is None or extra:
            name = definitions.stored_name(task)
            is_late = task.run_after is not None and task.run_after > self.now
            state = State.WAITING if is_waiting else State.SCHEDULED if is_late else State.READY
            columns = enqueueing.columns_of(task, name, options, state=state, now=self.now, extra=extra)
            if extra:
                return name, columns
            self._kept.append(task)
            found = self._shared[key] = (name, columns)
        return found

    def _check(self, task: Any) -> None:
        """Refuse a task that its backend would not take, or that is not stored in the workflow's database."""
        backend = task.get_backend()
        if not getattr(backend, "stores_tasks_in_database", False):
            raise UnsupportedCapability("workflows", type(backend).__name__)
        backend.validate_task(task)
        if getattr(task, "unique", None) or getattr(task, "idempotency_key", None) is not None:
            raise InvalidWorkflow(
                f"{definitions.stored_name(task)} is unique or has an idempotency key, and a member or callback of a "
                "workflow can be neither: the others would wait for a task that is not theirs; use "
                "using(unique=False), or enqueue it from a task of the workflow"
            )
        database = databases.database_for(backend.taskq_options)
        if database != self.alias:
            raise InvalidWorkflow(
                f"{definitions.stored_name(task)} is stored in the database {database!r}, by its backend "
                f"{task.backend!r}, and workflows in {self.alias!r}, that of the main backend; only tasks of that "
                f"database can be members and callbacks: use using(backend={conf.main_alias()!r}), or enqueue it from "
                "a task of the workflow"
            )

    def _callback(self, call: Any, row: Workflow) -> dict[str, Any]:
        """Return what is kept of a callback until it is called; ``previous`` stands for the workflow's results."""
        options = self._options_of(call.task)
        task, own_args, own_kwargs = enqueueing.arranged(call.task, call.args, call.kwargs or {}, options)
        args, kwargs, found = references.take_out(own_args, own_kwargs)
        extra: dict[str, Any] = {}
        names = row.node_names
        if found:
            extra["refs"] = [[path, _target(name, str(row.pk), names)] for path, name in found]
        if call.delay is not None:
            extra["later"] = {"delay": call.delay.total_seconds()}
        self._options_of(task)
        name = definitions.stored_name(task)
        columns = enqueueing.columns_of(task, name, options, state=State.WAITING, now=self.now, extra=extra)
        own = enqueueing.extras_of(task, name, own_args, own_kwargs) if enqueueing.has_extras(task) else {}
        return {
            "name": name,
            "queue": columns[0],
            "rank": columns[1],
            "max_attempts": columns[3],
            "ack": columns[4],
            "run_after": None if columns[5] is None else columns[5].isoformat(),
            "expires_at": None if columns[8] is None else columns[8].isoformat(),
            "options": columns[10],
            "metadata": columns[11],
            "args": payload.encode_arguments(args, kwargs, limit=options.max_payload_bytes),
            **({"extras": own} if own else {}),
        }


def _gate_call() -> Any:
    gate = definitions.find(_GATE)
    assert gate is not None
    return gate.s(None)


def _target(name: str | None, last: str | None, ids: Mapping[str, str]) -> str:
    """Return the id that a placeholder stands for."""
    if name is not None:
        if name not in ids:
            raise InvalidWorkflow(
                f"result_of({name!r}) is used by a node that does not come after {name!r}; name it in after="
            )
        return ids[name]
    if last is None:
        raise InvalidWorkflow(
            "previous is used where not exactly one node comes before; use result_of(name) or pass the value itself"
        )
    return last


def _json(value: Any) -> str:
    return payload.encode_value(value, limit=None) or ""


def _alias() -> str:
    return databases.main_database()


def enqueue(made: Composition) -> Workflow:
    """Store a composition in the caller's transaction, and return its row."""
    options = conf.options(conf.main_alias())
    alias = _alias()
    layout = _Layout(options, clock.now())
    root = layout.lay(made)
    told = advancing.Advanced(alias)
    if enqueueing.recorders:
        enqueueing.workflow_recorders[-1](layout.workflows, alias)
        for number, task, row in zip(
            (call[0] for call in layout.calls), (call[1] for call in layout.calls), layout.tasks, strict=True
        ):
            stored = enqueueing.Stored(ids=[number], created_at=layout.now, state=State(row.state), alias=alias)
            enqueueing.recorders[-1](task, stored, [row], on_commit=False)
        return root
    # As a whole: once it is stored, its members are accepted work, and nothing refuses them.
    from django_taskq.lifecycle import admission

    admission.check_pauses(alias, {(row.name, row.queue) for row in layout.tasks}, options)

    def insert() -> None:
        vendor = vendor_for(alias)
        with vendor.atomic():
            store.insert(alias, layout.workflows, layout.tasks, layout.dependencies)
            told.tell(events.WorkflowStarted, root, total=root.total)
            _begin(alias, root, layout, told)
        _announce(layout, alias)
        told.queues.update(row.queue for row in layout.tasks if row.state == State.READY)
        advancing.publish(told)
        for queue in {row.queue for row in layout.tasks} - told.queues:
            wake.after_commit(alias, queue, ready=False, notify=options.notify)

    if options.enqueue_on_commit:
        transaction.on_commit(insert, using=alias)
    else:
        insert()
    return root


def _begin(alias: str, root: Workflow, layout: _Layout, told: advancing.Advanced) -> None:
    """Start what is inside the root and waits for nobody, and end what has nothing in it."""
    now = layout.now
    inner = [row.pk for row in layout.workflows if row.parent_id == root.pk and row.waits_for <= 0]
    ended = advancing.start_workflows(alias, inner, told, now) if inner else []
    if ended or not root.total:
        [locked] = store.lock(alias, [root.pk])
        advancing.absorb(locked, ended, told, now)
        advancing.conclude(locked, ended, told, now)
        store.write(alias, [locked])
        root.state, root.finished_at, root.open = locked.state, locked.finished_at, locked.open


def _announce(layout: _Layout, alias: str) -> None:
    """Tell what was stored, as an enqueue does."""
    if events.wanted(events.TasksStored):
        counts: dict[tuple[str, str], int] = {}
        for row in layout.tasks:
            counts[row.name, row.queue] = counts.get((row.name, row.queue), 0) + 1
        told = [
            events.TasksStored(task=name, queue=queue, count=count, alias=alias)
            for (name, queue), count in counts.items()
        ]
        events.emit_on_commit(events.TasksStored, told, using=alias)
    if events.wanted(events.TaskEnqueued):
        events.emit_on_commit(
            events.TaskEnqueued,
            (
                events.TaskEnqueued(
                    task_id=enqueueing.public_id(row.id),
                    task=row.name,
                    queue=row.queue,
                    alias=alias,
                    run_after=row.run_after,
                    result=_result(call, row, layout.now),
                )
                for call, row in zip(layout.calls, layout.tasks, strict=True)
            ),
            using=alias,
        )


def _result(call: tuple[int, Any, Sequence[Any], Mapping[str, Any]], row: NewTask, now: datetime) -> Any:
    from django_taskq.lifecycle.results import new_result

    number, task, args, kwargs = call
    return new_result(
        task,
        enqueueing.public_id(number),
        list(args),
        dict(kwargs),
        backend=task.backend,
        enqueued_at=now,
        state=State(row.state),
    )


def find(workflow_id: Any) -> Workflow | None:
    """Return a workflow by its id, None for an id that none has or that is no id."""
    key = task_store.to_uuid(workflow_id)
    return None if key is None else store.find(_alias(), key)


def wait(is_over: Callable[[], bool], timeout: float | timedelta | None, what: str) -> None:
    """Ask until something is over. Raise WaitTimeout when ``timeout`` is."""
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    until = None if seconds is None else time.monotonic() + seconds
    pause = 0.005
    while not is_over():
        if until is not None and time.monotonic() >= until:
            raise WaitTimeout(f"{what} had not ended after {seconds:g} seconds")
        time.sleep(pause if until is None else max(min(pause, until - time.monotonic()), 0))
        pause = min(pause * 1.5, 0.25)


# Ending members


def end_members(
    alias: str, flows: set[uuid.UUID], work: Callable[[], list[FinishedTask]], *, now: datetime
) -> list[FinishedTask]:
    """
    End waiting tasks by ``work``, and advance their workflows, ``flows``, in the same transaction.

    Return what was ended. The workflows are locked first, as everybody does who touches their waiting tasks.
    """
    vendor = vendor_for(alias)

    def once() -> tuple[list[FinishedTask], advancing.Advanced]:
        with vendor.atomic():
            store.lock(alias, flows)
            ended = work()
            nodes = [
                advancing.EndedNode(row.pk, row.workflow_id, row.role or Role.MEMBER, State(row.state), row.name)
                for row in ended
                if row.workflow_id is not None
            ]
            return ended, advancing.advance(alias, nodes, now=now)

    if not flows:
        return work()
    ended, told = vendor.retrying(once)
    advancing.publish(told)
    return ended


def cancel(key: uuid.UUID, *, actor: str, reason: str, alias: str | None = None) -> bool:
    """Cancel a workflow with all inside it; return False if it had ended."""
    alias, now = alias or _alias(), clock.now()
    vendor = vendor_for(alias)

    def ask() -> list[uuid.UUID]:
        with vendor.atomic():
            # From here on nothing more is let go on, and nothing added.
            locked: dict[uuid.UUID, Workflow] = {}
            # Again, since a batch may have been added to before its lock was had.
            while new := set(store.open_below(alias, key)) - locked.keys():
                locked.update({row.pk: row for row in store.lock(alias, new)})
                if key not in locked:
                    return []
            rows = [row for row in locked.values() if not row.has_ended]
            if not any(row.pk == key for row in rows):
                return []
            for row in rows:
                row.cancel = True
            store.write(alias, rows)
            task_store.audit(
                alias, actor=actor, action="cancel", now=now, reason=reason, target=f"workflow {key}", key=key
            )
            # Outside first, so that members are cancelled for themselves, and not for what ended inside.
            return sorted(row.pk for row in rows)

    flows = vendor.retrying(ask)
    if not flows:
        return False
    for flow in flows:
        _cancel_members(alias, flow, now)
    _end_empty(alias, flows, now)
    return True


def _cancel_members(alias: str, flow: uuid.UUID, now: datetime) -> None:
    live = Task.objects.using(alias).filter(workflow_id=flow, role=Role.MEMBER)
    for _ in range(_TURNS):
        while keys := list(live.exclude(state=State.RUNNING).order_by("pk").values_list("pk", flat=True)[:_CHUNK]):
            work = partial(end_waiting, alias, keys, state=State.CANCELLED, now=now)
            ended = end_members(alias, {flow}, work, now=now)
            events.emit_on_commit(
                events.TaskCancelled,
                (
                    events.TaskCancelled(
                        task_id=str(row.pk), task=row.name, queue=row.queue, attempt=row.attempt, alias=alias
                    )
                    for row in ended
                ),
                using=alias,
            )
            if not ended:
                break
        # Those that were asked before, too: it may have been to stop and come back.
        running = list(live.filter(state=State.RUNNING).values_list("pk", flat=True))
        for at in range(0, len(running), _CHUNK):
            task_store.request_cancel(alias, running[at : at + _CHUNK])
        # What was put back while it was asked is waiting again, and ends with the next turn.
        if not live.exclude(state=State.RUNNING).exists():
            return


def _end_empty(alias: str, flows: Sequence[uuid.UUID], now: datetime) -> None:
    """End what has no member of its own whose end would end it."""
    vendor = vendor_for(alias)

    def once() -> advancing.Advanced:
        told = advancing.Advanced(alias)
        with vendor.atomic():
            for row in store.lock(alias, flows):
                if not row.has_ended and not row.open:
                    advancing.conclude(row, [], told, now)
                    store.write(alias, [row])
                    if row.parent_id is not None:
                        more = advancing.advance(alias, [advancing.as_node(row)], now=now)
                        told.events += more.events
                        told.queues |= more.queues
        return told

    advancing.publish(vendor.retrying(once))


# Bringing back


def replay(
    key: uuid.UUID, *, from_start: bool, attempts: int | None, actor: str, reason: str, alias: str | None = None
) -> int:
    """Send back what did not succeed, or everything; return how many tasks."""
    alias, now = alias or _alias(), clock.now()
    vendor = vendor_for(alias)

    def once() -> tuple[int, advancing.Advanced]:
        told = advancing.Advanced(alias)
        with vendor.atomic():
            rows = store.lock(alias, [key])
            if not rows:
                return 0, told
            row = rows[0]
            if not row.has_ended or (row.state == WorkflowState.COMPLETED and not from_start):
                state = WorkflowState(row.state).name.lower()
                raise InvalidTransition(
                    f"a {state} workflow cannot be replayed; only failed and cancelled ones can"
                    + (", or a completed one with from_start=True" if row.has_ended else ": wait for its end")
                )
            count = _Return(alias, now, attempts, from_start).bring_back(row, None, told)
            told.tell(events.WorkflowReplayed, row, actor=actor, count=count)
            task_store.audit(
                alias,
                actor=actor,
                action="replay",
                now=now,
                reason=reason,
                target=f"workflow {key}",
                key=key,
                detail={"from_start": from_start, "tasks": count},
            )
        return count, told

    count, told = vendor.retrying(once)
    advancing.publish(told)
    return count


def replay_members(
    alias: str,
    rows: Sequence[FinishedTask],
    *,
    now: datetime,
    attempts: int | None,
    actor: str,
    from_start: bool = False,
) -> list[Task]:
    """
    Send single members back, and reopen their workflows in the same transaction.

    What waited for them, and was cancelled for it, waits again.
    """
    vendor = vendor_for(alias)
    by_flow: dict[uuid.UUID, set[uuid.UUID]] = {}
    for row in rows:
        assert row.workflow_id is not None
        by_flow.setdefault(row.workflow_id, set()).add(row.pk)
    done: set[uuid.UUID] = set()

    def once() -> advancing.Advanced:
        told = advancing.Advanced(alias)
        done.clear()
        with vendor.atomic():
            found = {flow.pk for flow in store.lock(alias, list(by_flow))}
            # Outside first: what is inside may wait for what comes back there. Each is read anew, since
            # the one before may have changed it.
            for key in sorted(found):
                [flow] = store.lock(alias, [key])
                if flow.cancel and not flow.has_ended:
                    continue
                has_ended = flow.has_ended
                back = _Return(alias, now, attempts, False, forgets_steps=from_start)
                try:
                    count = back.bring_back(flow, by_flow[key], told)
                except InvalidTransition:
                    continue
                done.update(back.keys)
                if has_ended and count:
                    told.tell(events.WorkflowReplayed, flow, actor=actor, count=count)
            # A dead letter outlives its workflow; nobody counts it any more.
            alone = [task for key in by_flow.keys() - found for task in by_flow[key]]
            done.update(
                task.pk for task in task_store.replay(alias, alone, now=now, attempts=attempts, from_start=from_start)
            )
        return told

    told = vendor.retrying(once)
    advancing.publish(told)
    # Those that an earlier replay had sent back are not among them: they were not there to be locked.
    return list(Task.objects.using(alias).filter(pk__in=done & {row.pk for row in rows}))


class _Return:
    """Brings members of workflows back to life."""

    def __init__(
        self, alias: str, now: datetime, attempts: int | None, from_start: bool, *, forgets_steps: bool = False
    ) -> None:
        self.alias = alias
        self.now = now
        self.attempts = attempts
        self.from_start = from_start
        self.forgets_steps = from_start or forgets_steps
        self.keys: set[uuid.UUID] = set()

    def bring_back(self, row: Workflow, keys: set[uuid.UUID] | None, told: advancing.Advanced) -> int:
        """
        Let members of a locked workflow live again, and it and those around it run again; return how many tasks.

        ``keys``: these, and what was cancelled because of them; None: all that did not succeed.
        Whatever waits for others in one of those around waits for its turn. Raise
        InvalidTransition if one of them is being cancelled; nothing was changed then.
        """
        if keys is not None:
            # Some may have been sent back since they were read; what waits for them waits already.
            keys = keys & set(self._ended(row).values_list("pk", flat=True))
            if not keys:
                return 0
        path = self._path(row)
        was = WorkflowState(row.state)
        started_at = path[-1].started_at
        count = self._lay(row, keys)
        for inner, outer in pairwise(path):
            outer_was = WorkflowState(outer.state)
            name = _COUNTED_AS[was]
            setattr(outer, name, max(getattr(outer, name) - 1, 0))
            outer.open += 1
            store.set_waits(self.alias, inner.pk, self._waits(outer, inner.pk))
            around = _Return(self.alias, self.now, None, False)
            around.keys = self.keys
            count += around._lay(outer, {inner.pk})
            was = outer_was
        top = path[-1]
        if was in ENDED:
            top.state, top.started_at = int(WorkflowState.RUNNING), started_at
        if top.state == WorkflowState.RUNNING and advancing.set_off(top, told, self.now) and top.parent_id is not None:
            # Nothing to run again in it, such as an empty batch.
            more = advancing.advance(self.alias, [advancing.as_node(top)], now=self.now)
            told.events += more.events
            told.queues |= more.queues
        return count

    def _path(self, row: Workflow) -> list[Workflow]:
        """Lock and return the workflow and those around it up to the first that has not ended."""
        path = [row]
        while path[-1].has_ended and path[-1].parent_id is not None:
            outer = store.lock(self.alias, [path[-1].parent_id])
            if not outer:
                break
            path += outer
        if path[-1].cancel and not path[-1].has_ended:
            raise InvalidTransition(f"workflow {path[-1].pk} is being cancelled; wait for its end")
        return path

    def _waits(self, outer: Workflow, key: uuid.UUID) -> int:
        """Return how many nodes that have not ended one in a locked workflow waits for."""
        if outer.kind == Kind.BATCH:
            return 0
        still_open = self._open(outer)
        return sum(node == key and before in still_open for node, before in store.dependencies_of(self.alias, outer.pk))

    def _ended(self, row: Workflow) -> QuerySet[FinishedTask]:
        """Return the members of a locked workflow that may be sent back."""
        ended = FinishedTask.objects.using(self.alias).filter(workflow_id=row.pk, role=Role.MEMBER)
        return ended if self.from_start else ended.exclude(state=State.SUCCEEDED)

    def _lay(self, row: Workflow, keys: set[uuid.UUID] | None) -> int:
        """Make members of a locked workflow live again, waiting; return how many tasks. One that had ended waits."""
        alias = self.alias
        ended = self._ended(row)
        inner = [child for child in store.children_of(alias, row.pk) if child.has_ended]
        if not self.from_start:
            inner = [child for child in inner if child.state != WorkflowState.COMPLETED]
        edges: dict[uuid.UUID, list[uuid.UUID]] = {}
        if row.kind != Kind.BATCH:
            for node, before in store.dependencies_of(alias, row.pk):
                edges.setdefault(node, []).append(before)
        facts = {key: (state, reason) for key, state, reason in ended.values_list("pk", "state", "reason")}
        facts.update({child.pk: (int(advancing.as_state(child)), None) for child in inner})
        chosen = set(facts) if keys is None else self._with_cut(row, facts, edges, keys, inner) & set(facts)
        open_nodes = self._open(row)
        waits = {key: sum(before in chosen or before in open_nodes for before in edges.get(key, ())) for key in chosen}
        # What still waits had these taken off what it waits for when they ended.
        back = chosen | (keys or set())
        store.block(
            alias,
            Counter(node for node, others in edges.items() if node not in back for before in others if before in back),
        )
        count = self._tasks(ended, chosen, waits)
        for child in inner:
            if child.pk in chosen:
                [locked] = store.lock(alias, [child.pk])
                count += self._lay(locked, None)
                store.set_waits(alias, child.pk, waits[child.pk])
        for key in chosen:
            name = _TASK_COUNTED_AS.get(State(facts[key][0]), "cancelled")
            setattr(row, name, max(getattr(row, name) - 1, 0))
        row.open += len(chosen)
        if row.has_ended:
            row.state, row.started_at, row.finished_at = int(WorkflowState.WAITING), None, None
        row.cancel = False
        row.caught = row.failed > row.allowed
        row.replays += 1
        store.write(alias, [row])
        return count

    def _with_cut(
        self,
        row: Workflow,
        facts: Mapping[uuid.UUID, tuple[int, Any]],
        edges: Mapping[uuid.UUID, Sequence[uuid.UUID]],
        keys: set[uuid.UUID],
        inner: Sequence[Workflow],
    ) -> set[uuid.UUID]:
        """Return the nodes and all that was cut off because of them and waits for nothing else that stops it."""
        cut = {key for key, (_, reason) in facts.items() if reason == DeadReason.UPSTREAM}
        cut |= {child.pk for child in inner if child.started_at is None and not child.cancel}
        # What failed and stays is as good as a success where so many are allowed to.
        failed = facts.keys() - cut - keys
        stops = set(cut) if len(failed) <= row.allowed else cut | failed
        chosen = set(keys)
        grown = True
        while grown:
            grown = False
            for key in cut - chosen:
                before = edges.get(key, ())
                if any(node in chosen for node in before) and not any(
                    node in stops and node not in chosen for node in before
                ):
                    chosen.add(key)
                    grown = True
        return chosen

    def _open(self, row: Workflow) -> set[uuid.UUID]:
        live = Task.objects.using(self.alias).filter(workflow_id=row.pk, role=Role.MEMBER)
        found = set(live.values_list("pk", flat=True)) if row.kind != Kind.BATCH else set()
        found |= {child.pk for child in store.children_of(self.alias, row.pk) if not child.has_ended}
        return found

    def _tasks(self, ended: Any, chosen: set[uuid.UUID], waits: Mapping[uuid.UUID, int]) -> int:
        count = 0
        keys = sorted(chosen)
        for at in range(0, len(keys), _CHUNK):
            rows = list(ended.filter(pk__in=keys[at : at + _CHUNK]))
            # A gate that no signal came to waits for that as well.
            own = {row.pk: waits[row.pk] + bool(row.option_values.get("gate")) for row in rows}
            back = task_store.bring_back(
                self.alias, rows, now=self.now, attempts=self.attempts, waits=own, from_start=self.forgets_steps
            )
            self.keys.update(row.pk for row in back)
            count += len(back)
        return count


_COUNTED_AS = {
    WorkflowState.COMPLETED: "succeeded",
    WorkflowState.FAILED: "failed",
    WorkflowState.CANCELLED: "cancelled",
}
_TASK_COUNTED_AS = {State.SUCCEEDED: "succeeded", State.DEAD: "failed"}


# Adding and signalling


def items_of(members: Sequence[Any]) -> list[Any]:
    """
    Return members, given one by one or as one iterable, as signatures and compositions.

    Raise InvalidWorkflow for anything else.
    """
    if len(members) == 1 and not _is_item(members[0]):
        [given] = members
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
            raise InvalidWorkflow(_no_item(given))
        members = list(given)
    return [item_of(member) for member in members]


def item_of(value: Any) -> Any:
    """Return a signature or composition; a task without arguments becomes its signature."""
    if not _is_item(value):
        raise InvalidWorkflow(_no_item(value))
    return value if hasattr(value, "nodes") or hasattr(value, "args") else value.s()


def _is_item(value: Any) -> bool:
    return not isinstance(value, type) and (
        hasattr(value, "nodes") or (hasattr(value, "task") and hasattr(value, "args")) or hasattr(value, "module_path")
    )


def _no_item(value: Any) -> str:
    return f"a member must be a signature, made with task.s(…), or a chain, batch or workflow, got {value!r}"


def add(key: uuid.UUID, members: Sequence[Any]) -> int:
    """Add members to a batch that has not ended; return how many."""
    alias, options = _alias(), conf.options(conf.main_alias())
    vendor = vendor_for(alias)
    nodes = [Node(str(at), item) for at, item in enumerate(items_of(members))]
    for node in nodes:
        if hasattr(node.item, "nodes"):
            node.item.check()
    layout = _Layout(options, clock.now())

    def once() -> advancing.Advanced:
        # A conflict with another transaction lays it out anew.
        nonlocal layout
        layout = _Layout(options, clock.now())
        told = advancing.Advanced(alias)
        with vendor.atomic():
            rows = store.lock(alias, [key])
            if not rows or rows[0].kind != Kind.BATCH:
                raise InvalidWorkflow(f"{key} is no batch; only a batch can be added to")
            [row] = rows
            if row.has_ended or row.cancel:
                raise WorkflowEnded(f"batch {key} has ended or is being cancelled; nothing can be added to it")
            layout.inherit(store.deadline_of(alias, key))
            layout.add_nodes(row, nodes)
            row.total += len(nodes)
            row.open += len(nodes)
            store.insert(alias, layout.workflows, layout.tasks, layout.dependencies)
            inner = [child.pk for child in layout.workflows if child.parent_id == key]
            if row.state == WorkflowState.RUNNING and inner:
                ended = advancing.start_workflows(alias, inner, told, layout.now)
                advancing.absorb(row, ended, told, layout.now)
            store.write(alias, [row])
        return told

    told = vendor.retrying(once)
    _announce(layout, alias)
    told.queues.update(row.queue for row in layout.tasks if row.state == State.READY)
    advancing.publish(told)
    return len(nodes)


def signal(key: uuid.UUID, name: str, value: Any) -> bool:
    """Give a gate its payload; return False if it had it."""
    alias, now = _alias(), clock.now()
    vendor = vendor_for(alias)
    text = payload.encode_arguments((value,), {}, limit=conf.options(conf.main_alias()).max_payload_bytes)

    def once() -> advancing.Advanced | None:
        with vendor.atomic():
            rows = store.lock(alias, [key])
            node = rows[0].node_names.get(name) if rows else None
            row = None if node is None else Task.objects.using(alias).filter(pk=node).first()
            ended = FinishedTask.objects.using(alias).filter(pk=node).first() if row is None and node else None
            gate = row or ended
            if node is None or (gate is not None and gate.name != _GATE) or store.find(alias, uuid.UUID(node)):
                raise InvalidWorkflow(f"workflow {key} waits for no signal {name!r}")
            if row is None:
                if ended is not None and ended.state == State.SUCCEEDED:
                    return None
                raise WorkflowEnded(f"signal {name!r} came too late: its node was cancelled or is gone")
            if not store.open_gate(alias, row, text):
                return None
            told = advancing.Advanced(alias)
            if not (row.waits_for or 0) > 1 and rows[0].state == WorkflowState.RUNNING:
                told.queues |= store.release(alias, [row.pk], now=now, later=advancing.later)
            return told

    told = vendor.retrying(once)
    if told is None:
        return False
    advancing.publish(told)
    return True
