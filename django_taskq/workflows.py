"""
Chains, batches and graphs: how they are written down, and what a program does with one that is stored.

A builder is a value: each method returns a changed copy, and nothing is stored
before ``enqueue``. The words follow Laravel's Bus (then, catch, finally) and
Celery's signatures. Rooms below are imported inside functions, since this file
is loaded before the models are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django_taskq.domain.workflows import Kind, Placeholder, check_allowance, in_order
from django_taskq.exceptions import InvalidOptions, InvalidWorkflow
from django_taskq.task import Signature

if TYPE_CHECKING:
    from typing import Self

    from django_taskq.lifecycle.handles import WorkflowHandle

__all__ = [
    "Composition",
    "Node",
    "batch",
    "chain",
    "find_batch",
    "find_chain",
    "find_workflow",
    "previous",
    "prune_workflows",
    "result_of",
    "workflow",
]


# Any, so that it fits where a signature asks for what the result will be.
previous: Any = Placeholder()


def result_of(name: str) -> Any:
    """Return what stands for the result of the node ``name`` of the same workflow."""
    return Placeholder(name)


@dataclass(frozen=True, slots=True)
class Gate:
    """A node that ends when a signal from outside comes, with the signal's payload as its result."""


@dataclass(frozen=True, slots=True)
class Node:
    """A member of a composition: its name, what it is, and the names of those it waits for."""

    name: str
    item: Signature[Any] | Composition | Gate
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """
    A chain, batch or workflow that is not stored yet.

    Made by ``chain``, ``batch`` and ``workflow``; each method returns a changed copy.
    """

    kind: Kind
    nodes: tuple[Node, ...] = ()
    label: str = ""
    allowance: bool | int | float = False
    callbacks: Mapping[str, tuple[Signature[Any], ...]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    start_options: Mapping[str, Any] = field(default_factory=dict)
    until: timedelta | datetime | None = None

    def __len__(self) -> int:
        return len(self.nodes)

    def then(self, *callbacks: Any) -> Self:
        """Enqueue these when the workflow completes: no more members ended without success than it allows."""
        return self._calling("then", callbacks)

    def catch(self, *callbacks: Any) -> Self:
        """Enqueue these once, as soon as more members are dead than the workflow allows; the others go on."""
        return self._calling("catch", callbacks)

    def finally_(self, *callbacks: Any) -> Self:
        """Enqueue these when the workflow has ended, however it did, after its then and catch tasks have ended."""
        return self._calling("finally", callbacks)

    def progress(self, *callbacks: Any) -> Self:
        """Enqueue these while members end, at most once a second, and once when the workflow ends."""
        return self._calling("progress", callbacks)

    def allow_failures(self, allowance: bool | float = True) -> Self:
        """
        Let members end without success: all (True), a number of them (an int), or a share (a float up to 1.0).

        A failure that is allowed lets those that wait for the member go on; its result is None.
        """
        return replace(self, allowance=check_allowance(allowance))

    def name(self, label: Any) -> Self:
        """Say what operators see: up to 200 characters."""
        if not isinstance(label, str) or len(label) > 200:
            raise InvalidWorkflow(f"the name of a workflow must be text of up to 200 characters, got {label!r}")
        return replace(self, label=label)

    def deadline(self, until: timedelta | float | datetime) -> Self:
        """
        Give all members, at any depth, one time by which they must have ended: an aware datetime, or a span from now.

        A member that runs is told (``context.deadline``); one that has not started by then is dead,
        with the reason "budget_expired". Callbacks have time of their own.
        """
        if isinstance(until, int | float) and not isinstance(until, bool):
            until = timedelta(seconds=until)
        moment: Any = until
        is_moment = isinstance(moment, datetime) and moment.utcoffset() is not None
        if not is_moment and not (isinstance(until, timedelta) and until > timedelta(0)):
            raise InvalidOptions(
                f"deadline must be an aware datetime or a span of more than 0 seconds, got {until!r}",
                field="deadline",
                code="type",
            )
        return replace(self, until=moment)

    def on_queue(self, queue_name: str) -> Self:
        """Put all members on this queue, whatever their definitions say. Callbacks stay where theirs say."""
        return self.using(queue_name=queue_name)

    def using(self, **options: Any) -> Self:
        """
        Give all members these options, as ``using`` of a task does. Callbacks keep theirs.

        ``delay`` and ``run_after`` put off the start: they hold for the members that wait for nobody.
        """
        start: dict[str, Any] = {name: options.pop(name) for name in ("delay", "run_after") if name in options}
        for name in ("cancel", "enqueue_timeout", "enqueue_on_commit", "backend"):
            if name in options:
                raise InvalidOptions(
                    f"{name} cannot be given to a workflow; give it to its signatures or to single tasks",
                    field=name,
                    code="unknown",
                )
        return replace(self, options={**self.options, **options}, start_options={**self.start_options, **start})

    def add(self, name: Any, item: Any, *, after: str | Iterable[str] = ()) -> Self:
        """Add a node to a graph; it waits for those named in ``after``, which may be added later."""
        self._only_graphs("add")
        if not isinstance(name, str) or not 0 < len(name) <= 100:
            raise InvalidWorkflow(f"a node must have a name of 1 to 100 characters, got {name!r}")
        if any(node.name == name for node in self.nodes):
            raise InvalidWorkflow(f"the workflow has a node {name!r} already")
        waits = (after,) if isinstance(after, str) else tuple(after)
        node = Node(name, item if isinstance(item, Gate) else _items((item,))[0], waits)
        return replace(self, nodes=(*self.nodes, node))

    def wait_for(self, name: str, *, after: str | Iterable[str] = ()) -> Self:
        """Add a node that ends when ``signal(name, payload)`` is sent to the workflow; the payload is its result."""
        return self.add(name, Gate(), after=after)

    def enqueue(self) -> WorkflowHandle:
        """
        Store the workflow with all its tasks, in the caller's transaction, all or nothing.

        Raise InvalidWorkflow for one that cannot be, InvalidPayload and InvalidOptions as a task does.
        """
        from django_taskq.lifecycle import workflows as lifecycle
        from django_taskq.lifecycle.handles import WorkflowHandle

        self.check()
        return WorkflowHandle(lifecycle.enqueue(self))

    async def aenqueue(self) -> WorkflowHandle:
        """Do what ``enqueue`` does, without blocking the event loop."""
        from asgiref.sync import sync_to_async

        return await sync_to_async(self.enqueue)()

    def check(self) -> None:
        """Raise InvalidWorkflow if this cannot be stored: nothing in it, a circle, a name that leads nowhere."""
        if not self.nodes and self.kind is not Kind.BATCH:
            raise InvalidWorkflow("an empty chain or workflow has nothing to do; only a batch may be empty")
        if self.kind is Kind.GRAPH:
            in_order([node.name for node in self.nodes], {node.name: node.after for node in self.nodes})
        for node in self.nodes:
            if isinstance(node.item, Composition):
                node.item.check()

    def _calling(self, kind: str, callbacks: tuple[Any, ...]) -> Self:
        given = tuple(_signature(callback, f"a callback of {kind}") for callback in callbacks)
        return replace(self, callbacks={**self.callbacks, kind: (*self.callbacks.get(kind, ()), *given)})

    def _only_graphs(self, what: str) -> None:
        if self.kind is not Kind.GRAPH:
            raise InvalidWorkflow(f"{what}() is for workflow(); give the members of a chain or batch when you make it")


def chain(*members: Any) -> Composition:
    """
    Return a chain: each member starts when the one before it has succeeded.

    A member is a signature (``task.s(…)``), a task without arguments, or another chain, batch or
    workflow. ``previous`` among a member's arguments stands for the result of the one before it.
    """
    items = _items(members)
    nodes = tuple(Node(str(at), item, (str(at - 1),) if at else ()) for at, item in enumerate(items))
    return Composition(kind=Kind.CHAIN, nodes=nodes)


def batch(*members: Any) -> Composition:
    """
    Return a batch: its members are independent of each other.

    Takes members one by one or as one iterable. An empty batch completes as soon as it is stored.
    """
    return Composition(kind=Kind.BATCH, nodes=tuple(Node(str(at), item) for at, item in enumerate(_items(members))))


def workflow(name: str = "") -> Composition:
    """Return an empty graph; ``add`` gives it nodes, in any order, each with the names of those it waits for."""
    return Composition(kind=Kind.GRAPH).name(name)


def _items(members: tuple[Any, ...]) -> list[Any]:
    from django_taskq.lifecycle import workflows as lifecycle

    return lifecycle.items_of(members)


def _signature(value: Any, what: str) -> Signature[Any]:
    if isinstance(value, Signature):
        return value
    if hasattr(value, "module_path") and hasattr(value, "s"):
        found: Signature[Any] = value.s()
        return found
    raise InvalidWorkflow(f"{what} must be a signature, made with task.s(…), got {value!r}")


def find_workflow(workflow_id: Any) -> WorkflowHandle:
    """Return a stored chain, batch or workflow. Raise WorkflowNotFound for an id that none has."""
    return _find(workflow_id, None)


def find_chain(workflow_id: Any) -> WorkflowHandle:
    """Return a stored chain. Raise WorkflowNotFound for an id that no chain has."""
    return _find(workflow_id, Kind.CHAIN)


def find_batch(workflow_id: Any) -> WorkflowHandle:
    """Return a stored batch. Raise WorkflowNotFound for an id that no batch has."""
    return _find(workflow_id, Kind.BATCH)


def prune_workflows(*, before: datetime) -> int:
    """
    Delete all chains, batches and workflows that ended before a moment, with their tasks, dead letters included.

    Those inside others go with them; what has not ended is never touched, nor what has a live
    callback. Return how many rows of tasks and workflows that were. Retention does the same by itself, state by state.
    """
    from django_taskq.domain.workflows import ENDED
    from django_taskq.lifecycle.databases import main_database
    from django_taskq.lifecycle.prune_workflows import prune_workflows

    if before.utcoffset() is None:
        raise InvalidOptions(f"before must be an aware datetime, got {before!r}", field="before", code="naive")
    count = 0
    for state in sorted(ENDED):
        while deleted := prune_workflows(main_database(), state, before=before, dead_before=before, most=10_000):
            count += deleted
    return count


def _find(workflow_id: Any, kind: Kind | None) -> WorkflowHandle:
    from django_taskq.lifecycle import handles

    return handles.find(workflow_id, kind)
