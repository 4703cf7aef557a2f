"""
The rules of workflows: what is allowed to fail, when one has ended and how, and which graphs are possible.

A workflow is a graph of nodes, tasks or workflows, in which each may wait for
others. A chain is the graph of a line, a batch the one without any edge. Its
row counts its nodes; all who change a count hold the row's lock, so each rule
here sees one moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from django_taskq.domain.states import State
from django_taskq.domain.values import lean
from django_taskq.exceptions import InvalidWorkflow

__all__ = [
    "ENDED",
    "KIND_NAMES",
    "Counts",
    "Kind",
    "Placeholder",
    "Role",
    "WorkflowState",
    "allowed_failures",
    "check_allowance",
    "end_of",
    "in_order",
    "node_state",
]


class Kind(IntEnum):
    """What a workflow is to its users. Stored."""

    CHAIN = 1
    BATCH = 2
    GRAPH = 3


KIND_NAMES = {Kind.CHAIN: "chain", Kind.BATCH: "batch", Kind.GRAPH: "workflow"}


class WorkflowState(IntEnum):
    """Where a workflow stands. Stored; the numbers never change."""

    WAITING = 0  # inside another one, whose turn has not come
    RUNNING = 1
    COMPLETED = 2
    FAILED = 3
    CANCELLED = 4


ENDED = frozenset({WorkflowState.COMPLETED, WorkflowState.FAILED, WorkflowState.CANCELLED})


class Role(IntEnum):
    """What a task is to its workflow. Stored. Only members are counted."""

    MEMBER = 1
    THEN = 2
    CATCH = 3
    FINALLY = 4
    PROGRESS = 5


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The nodes of a workflow by how they stand; ``open`` are those that have not ended."""

    total: int
    open: int
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclass(frozen=True, slots=True)
class Placeholder:
    """
    Stands for a result that is not there yet, as an argument in a chain, batch or workflow.

    It is replaced while the workflow is stored: where it stood is kept apart from the
    arguments, so nothing that a user can put into arguments is ever taken for one.
    """

    name: str | None = None

    def __repr__(self) -> str:
        return "previous" if self.name is None else f"result_of({self.name!r})"

    def __format__(self, spec: str) -> str:
        # Keys of limits and the like are made when a workflow is stored.
        raise TypeError(f"{self!r} is known only when the task runs, so it cannot be part of a key")


def check_allowance(value: object) -> bool | int | float:
    """Return ``allow_failures`` as given. Raise InvalidWorkflow unless it is a bool, a count, or a share up to 1.0."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value >= 0:
        return value
    if isinstance(value, float) and 0.0 <= value <= 1.0:
        return value
    raise InvalidWorkflow(
        "allow_failures must be True, False, a number of members (an int from 0) or a share of them "
        f"(a float from 0.0 to 1.0), got {value!r}"
    )


def allowed_failures(allowance: bool | float | None, total: int) -> int:
    """Return how many of ``total`` members may fail; a share is rounded down."""
    if allowance is True:
        return total
    if not allowance:
        return 0
    if type(allowance) is float:
        # The least more, so that 0.1 of 30 is 3 although 0.1 is not quite a tenth.
        return math.floor(allowance * total + 1e-9)
    return int(allowance)


def end_of(counts: Counts, *, allowed: int, cancel_requested: bool) -> WorkflowState | None:
    """
    Return how a workflow ends, None while a node is open.

    Dead members beyond the allowance make it failed; cancelled ones use the allowance up, too,
    and beyond it make it cancelled where no dead one did.
    """
    if counts.open > 0:
        return None
    if cancel_requested:
        return WorkflowState.CANCELLED
    if counts.failed > allowed:
        return WorkflowState.FAILED
    if counts.failed + counts.cancelled > allowed:
        return WorkflowState.CANCELLED if counts.cancelled else WorkflowState.FAILED
    return WorkflowState.COMPLETED


def node_state(state: WorkflowState) -> State:
    """Return as what the end of a workflow counts in the workflow around it."""
    match state:
        case WorkflowState.COMPLETED:
            return State.SUCCEEDED
        case WorkflowState.FAILED:
            return State.DEAD
        case _:
            return State.CANCELLED


def in_order(names: Sequence[str], after: Mapping[str, Iterable[str]]) -> list[str]:
    """
    Return the names so that each comes behind those it waits for, else in the order given.

    Raise InvalidWorkflow for a name nobody has, and for a circle, which it spells out.
    """
    known = set(names)
    waits: dict[str, list[str]] = {name: list(dict.fromkeys(after.get(name, ()))) for name in names}
    for name, others in waits.items():
        for other in others:
            if other not in known:
                raise InvalidWorkflow(f"{name!r} waits for {other!r}, which is not in the workflow; add it")
    missing = {name: len(others) for name, others in waits.items()}
    followers: dict[str, list[str]] = {name: [] for name in names}
    for name, others in waits.items():
        for other in others:
            followers[other].append(name)
    ready = [name for name in names if not missing[name]]
    ordered: list[str] = []
    for name in ready:
        ordered.append(name)
        for follower in followers[name]:
            missing[follower] -= 1
            if not missing[follower]:
                ready.append(follower)
    if len(ordered) < len(names):
        raise InvalidWorkflow(f"the workflow has a circle: {' → '.join(_circle(waits, set(ordered)))}")
    return ordered


def _circle(waits: Mapping[str, Sequence[str]], done: set[str]) -> list[str]:
    """Return one circle among the names that are not done, from a name back to itself."""
    path: list[str] = []
    name = next(name for name in waits if name not in done)
    while name not in path:
        path.append(name)
        name = next(other for other in waits[name] if other not in done)
    return [*path[path.index(name) :], name]
