"""
Any workflow, any fate of its members, any operator in between: the engine and a model in memory go in step.

The model below knows nothing of rows, locks or counters: it asks the graph itself
after every event. Compared are the states of all tasks and workflows after each
step, and how often each callback was stored.
"""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from django.db import transaction
from hypothesis import given, settings
from hypothesis import strategies as st

from django_taskq import batch, cancel, chain, find_workflow, replay, workflow
from django_taskq.domain.states import DeadReason, State
from django_taskq.domain.workflows import Role, WorkflowState
from django_taskq.exceptions import InvalidTransition
from django_taskq.models import FinishedTask, Task, Workflow
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from tests.engine import ALIAS, announce, claim, write
from tests.guarantees.flows import assert_all_ended, ended, say, tag

pytestmark = pytest.mark.django_db

BAD = ("dead", "cancelled")
OVER = ("succeeded", *BAD)
MOST_TASKS = 12


# The model


@dataclass(eq=False)
class Node:
    """A task, or, with ``kind``, a workflow."""

    key: str
    outer: Node | None = None
    kind: str = ""
    inner: list[Node] = field(default_factory=list)
    after: dict[str, set[str]] = field(default_factory=dict)
    allowance: bool | int | float = False
    state: str = "waiting"
    is_cut: bool = False
    has_started: bool = False
    is_cancelling: bool = False
    is_caught: bool = False

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    @property
    def allowed(self) -> int:
        if isinstance(self.allowance, float):
            return int(self.allowance * len(self.inner) + 1e-9)
        return len(self.inner) if self.allowance is True else int(self.allowance)

    def count(self, *states: str) -> int:
        return sum(node.state in states for node in self.inner)

    def named(self, key: str) -> Node:
        return next(node for node in self.inner if node.key == key)

    def following(self, node: Node) -> list[Node]:
        return [other for other in self.inner if node.key in self.after[other.key]]

    def walk(self) -> list[Node]:
        return [self, *(found for node in self.inner for found in node.walk())]


@dataclass
class Call:
    """A callback that was stored."""

    key: str
    state: str
    waits: list[Call] = field(default_factory=list)


class Model:
    """What the workflow should do."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.calls: list[Call] = []
        self.just_ended: list[Node] = []
        self.start(root)
        self.work()

    def nodes(self) -> dict[str, Node]:
        return {node.key: node for node in self.root.walk()}

    def start(self, flow: Node) -> None:
        flow.state, flow.has_started = "running", True
        self.go_on(flow)

    def go_on(self, flow: Node) -> None:
        """Let begin what can, and end if nothing is left."""
        for node in flow.inner:
            is_free = all(flow.named(key).is_over for key in flow.after[node.key])
            if node.state == "waiting" and is_free and flow.state == "running":
                if node.kind:
                    self.start(node)
                else:
                    node.state = "ready"
        self.conclude(flow)

    def finish(self, ends: list[tuple[Node, str]]) -> None:
        """Let tasks end together."""
        for node, how in ends:
            node.state = how
        self.just_ended += [node for node, _ in ends]
        self.work()

    def work(self) -> None:
        """Let follow what follows from what has just ended, inside first."""
        while self.just_ended:
            deepest = max(self.just_ended, key=lambda node: len(self.around(node))).outer
            nodes = [node for node in self.just_ended if node.outer is deepest]
            self.just_ended = [node for node in self.just_ended if node.outer is not deepest]
            if deepest is not None:
                # The one before first: the next inherits what that waited for.
                for node in sorted(nodes, key=deepest.inner.index):
                    self.stop(node)
                self.go_on(deepest)

    def stop(self, node: Node) -> None:
        """Cut off what a node that has just ended stops, or let it wait for what that had waited for."""
        flow = node.outer
        assert flow is not None
        is_stuck = node.state in BAD and flow.count(*BAD) > flow.allowed
        if is_stuck or flow.is_cancelling:
            self.cut(flow, node)
        elif node.state in BAD:
            open_ones = {key for key in flow.after[node.key] if not flow.named(key).is_over}
            for other in flow.following(node):
                flow.after[other.key] |= open_ones

    def cut(self, flow: Node, node: Node) -> None:
        for other in flow.following(node):
            if other.state == "waiting":
                self.cut_off(other)
                self.cut(flow, other)

    def cut_off(self, node: Node) -> None:
        node.is_cut = True
        for other in node.inner:
            if other.state == "waiting":
                self.cut_off(other)
        node.state = "cancelled"
        if node.kind:
            self.call(node, "finally")

    def conclude(self, flow: Node) -> None:
        if flow.is_over:
            return
        if flow.count("dead") > flow.allowed and not flow.is_caught and not flow.is_cancelling:
            flow.is_caught = True
            self.call(flow, "catch")
        if not all(node.is_over for node in flow.inner):
            return
        if flow.state == "waiting" and not flow.inner and not flow.is_cancelling:
            return
        if flow.is_cancelling:
            flow.state = "cancelled"
        elif flow.count("dead") > flow.allowed:
            flow.state = "dead"
        elif flow.count(*BAD) > flow.allowed:
            flow.state = "cancelled"
        else:
            flow.state = "succeeded"
            self.call(flow, "then")
        self.call(flow, "finally")
        self.just_ended.append(flow)

    def call(self, flow: Node, kind: str) -> None:
        before = [f"{flow.key} then", f"{flow.key} catch"] if kind == "finally" else []
        waits = [call for call in self.calls if call.key in before and not call.state]
        self.calls.append(Call(f"{flow.key} {kind}", "", waits))

    def shown(self) -> Counter[tuple[str, str]]:
        """Return the callbacks with what they look like: waiting, ready, or how they ended."""
        return Counter(
            (call.key, call.state or ("waiting" if any(not other.state for other in call.waits) else "ready"))
            for call in self.calls
        )

    def cancel(self, flow: Node) -> None:
        below = [node for node in flow.walk() if node.kind and not node.is_over]
        for node in below:
            node.is_cancelling = True
        for node in sorted(below, key=lambda node: len(self.around(node))):
            self.finish([(task, "cancelled") for task in node.inner if not task.kind and task.state == "waiting"])
        for node in reversed(below):
            self.conclude(node)
            self.work()

    def around(self, node: Node) -> list[Node]:
        found = []
        while node.outer is not None:
            node = node.outer
            found.append(node)
        return found

    def replay(self, flow: Node, keys: set[str] | None, *, everything: bool = False) -> bool:
        """Bring back what did not succeed, or these; return whether that may be."""
        path = [flow]
        while path[-1].is_over and path[-1].outer is not None:
            path.append(path[-1].outer)
        top = path[-1]
        if top.is_cancelling and not top.is_over:
            return False
        self.lay(flow, keys, everything=everything)
        for inner, outer in pairwise(path):
            self.lay(outer, {inner.key})
        if top.outer is None and top.state == "waiting":
            top.state = "running"
            top.has_started = True
        self.go_on(top)
        self.work()
        return True

    def lay(self, flow: Node, keys: set[str] | None, *, everything: bool = False) -> None:
        over = {node.key: node for node in flow.inner if node.is_over and (everything or node.state in BAD)}
        chosen = set(over) if keys is None else self.with_cut(flow, over, keys)
        for key in chosen & set(over):
            node = over[key]
            if node.kind:
                self.lay(node, None, everything=everything)
            node.state, node.is_cut, node.is_cancelling = "waiting", False, False
        if flow.is_over:
            flow.state, flow.has_started = "waiting", False
        flow.is_cancelling = False
        flow.is_caught = flow.count("dead") > flow.allowed

    def with_cut(self, flow: Node, over: dict[str, Node], keys: set[str]) -> set[str]:
        def was_cut(node: Node) -> bool:
            return (not node.has_started and not node.is_cancelling) if node.kind else node.is_cut

        cut = {key for key, node in over.items() if was_cut(node)} - keys
        failed = over.keys() - cut - keys
        stops = cut | (failed if len(failed) > flow.allowed else set())
        chosen = set(keys)
        for _ in flow.inner:
            for key in cut:
                before = flow.after[key]
                if before & chosen and not before & (stops - chosen):
                    chosen.add(key)
        return chosen


# Any workflow


@st.composite
def flows(draw: st.DrawFn, *, allowances: st.SearchStrategy[Any]) -> Node:
    numbers = iter(range(1000))
    budget = [MOST_TASKS]

    def flow(depth: int, outer: Node | None) -> Node:
        kind = draw(st.sampled_from(["chain", "batch", "graph"]))
        made = Node(f"f{next(numbers)}", outer, kind, allowance=draw(allowances))
        count = draw(st.integers(0 if kind == "batch" else 1, 4))
        for at in range(count):
            if depth < 3 and draw(st.integers(0, 3)) == 0:
                node = flow(depth + 1, made)
            elif budget[0] or at == 0:
                budget[0] -= budget[0] > 0
                node = Node(f"t{next(numbers)}", made)
            else:
                break
            known = [other.key for other in made.inner]
            match kind:
                case "chain":
                    after = known[-1:]
                case "graph":
                    after = draw(st.lists(st.sampled_from(known), unique=True, max_size=2)) if known else []
                case _:
                    after = []
            made.after[node.key] = set(after)
            made.inner.append(node)
        return made

    return flow(1, None)


def built(node: Node) -> Any:
    """Write a node down as a program would."""
    if not node.kind:
        return say.s(node.key)
    if node.kind == "graph":
        made = workflow()
        # In any order: those named in after= may come later.
        for other in reversed(node.inner):
            made = made.add(other.key, built(other), after=sorted(node.after[other.key]))
    else:
        made = (chain if node.kind == "chain" else batch)([built(other) for other in node.inner])
    calls = {kind: say.s(f"{node.key} {kind}") for kind in ("then", "catch", "finally")}
    made = made.then(calls["then"]).catch(calls["catch"]).finally_(calls["finally"])
    return made.name(node.key).allow_failures(node.allowance)


# The two in step

STATES = {State.READY: "ready", State.RUNNING: "ready"}
FLOW_STATES = {WorkflowState.COMPLETED: "succeeded", WorkflowState.FAILED: "dead"}


class Pair:
    """A stored workflow and its model."""

    def __init__(self, root: Node, data: st.DataObject) -> None:
        self.data = data
        self.model = Model(root)
        self.handle = built(root).enqueue()
        self.worker_id = announce()
        self.held: list[Claim] = []
        self.check()

    def check(self) -> None:
        """Compare all states, after everything that is ready was claimed."""
        self.held += claim(self.worker_id, limit=1000)
        rows: list[Any] = [*Task.objects.all(), *FinishedTask.objects.all()]
        names = {row: STATES.get(State(row.state), State(row.state).name.lower()) for row in rows}
        found = {tag(row): names[row] for row in rows if row.role == Role.MEMBER}
        for flow in Workflow.objects.all():
            state = WorkflowState(flow.state)
            found[flow.name] = FLOW_STATES.get(state, state.name.lower())
        assert found == {key: node.state for key, node in self.model.nodes().items()}
        calls = Counter((tag(row), names[row]) for row in rows if row.role != Role.MEMBER)
        assert calls == self.model.shown()

    def end(self, most: int) -> None:
        """Let some of what runs end, written in one go."""
        chosen = self.data.draw(
            st.lists(st.integers(0, len(self.held) - 1), min_size=1, max_size=most, unique=True), label="end"
        )
        claims = [self.held[at] for at in chosen]
        how = st.sampled_from([State.SUCCEEDED, State.SUCCEEDED, State.DEAD])
        ends = [(one, self.data.draw(how, label=tag(one))) for one in claims]
        self.held = [one for one in self.held if one not in claims]
        write([ended(one, state) for one, state in ends])
        nodes = self.model.nodes()
        members: list[tuple[Node, str]] = []
        for one, state in ends:
            name = state.name.lower()
            if one.role == Role.MEMBER:
                members.append((nodes[tag(one)], name))
            else:
                self.call_of(one).state = name
        self.model.finish(members)

    def call_of(self, one: Claim) -> Call:
        """Return the model of a callback: of several of one name, stored at several ends, that of the same turn."""
        rows = [*Task.objects.exclude(role=Role.MEMBER), *FinishedTask.objects.exclude(role=Role.MEMBER)]
        key = uuid.UUID(vendor_for(ALIAS).public_id(one.key))
        turn = sum(tag(row) == tag(one) and row.pk < key for row in rows)
        return [call for call in self.model.calls if call.key == tag(one)][turn]

    def operate(self, most: int) -> None:
        """Let an operator do something."""
        match self.data.draw(st.sampled_from(["cancel", "cancel flow", "replay"]), label="operator"):
            case "cancel":
                rows = list(Task.objects.filter(state=State.WAITING, role=Role.MEMBER).order_by("pk"))
                if rows:
                    chosen = self.data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=most, unique=True))
                    cancel([row.pk for row in chosen])
                    nodes = self.model.nodes()
                    self.model.finish([(nodes[tag(row)], "cancelled") for row in chosen])
            case "cancel flow":
                node = self.pick_flow()
                assert self.flow(node).cancel() is not node.is_over
                if not node.is_over:
                    self.model.cancel(node)
            case _:
                self.replay_tasks(most)

    def pick_flow(self) -> Node:
        return self.data.draw(st.sampled_from([node for node in self.model.root.walk() if node.kind]), label="flow")

    def flow(self, node: Node) -> Any:
        return find_workflow(Workflow.objects.get(name=node.key).pk)

    def replay_tasks(self, most: int) -> None:
        """Send single members back, outermost first as an operator's selection is taken."""
        rows = FinishedTask.objects.filter(role=Role.MEMBER).exclude(state=State.SUCCEEDED)
        found = [row for row in rows.order_by("pk") if row.reason != DeadReason.UPSTREAM]
        if not found:
            return
        chosen = self.data.draw(st.lists(st.sampled_from(found), min_size=1, max_size=most, unique=True))
        nodes = self.model.nodes()
        by_flow: dict[str, set[str]] = {}
        for row in chosen:
            outer = nodes[tag(row)].outer
            assert outer is not None
            by_flow.setdefault(outer.key, set()).add(tag(row))
        count = 0
        for node in sorted((nodes[key] for key in by_flow), key=self.flow_key):
            if self.model.replay(node, by_flow[node.key]):
                count += len(by_flow[node.key])
        assert replay([row.pk for row in chosen]).count == count

    def flow_key(self, node: Node) -> Any:
        return Workflow.objects.get(name=node.key).pk

    def replay_flow(self) -> None:
        node = self.pick_flow()
        everything = self.data.draw(st.booleans(), label="from the start")
        may = node.is_over and (everything or node.state in BAD)
        try:
            self.flow(node).replay(from_start=everything)
        except InvalidTransition:
            assert not may
            return
        assert may
        assert self.model.replay(node, None, everything=everything)

    def run(self, most: int, *, operations: int) -> None:
        """Go on until nothing runs."""
        while self.held:
            if operations and self.data.draw(st.integers(0, 3)) == 0:
                operations -= 1
                self.operate(most)
            else:
                self.end(most)
            self.check()
        assert_all_ended()


def play(root: Node, data: st.DataObject, most: int) -> None:
    """Run a workflow to its end, and a few times more; leave nothing behind."""
    with transaction.atomic():
        pair = Pair(root, data)
        pair.run(most, operations=2)
        for _ in range(data.draw(st.integers(0, 2), label="replays")):
            if data.draw(st.booleans()):
                pair.replay_flow()
            else:
                pair.replay_tasks(most)
            pair.check()
            pair.run(most, operations=1)
        transaction.set_rollback(True)


# A workflow with its replays is some thirty transactions.
FEWER = settings(max_examples=settings().max_examples // 2)
ANY = st.one_of(st.booleans(), st.integers(0, 3), st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@pytest.mark.slow
@FEWER
@given(flows(allowances=ANY), st.data())
def test_any_workflow_takes_the_course_of_the_model(root: Node, data: st.DataObject) -> None:
    """S0-11, S0-85 to S0-88: one event at a time, with any allowance."""
    play(root, data, 1)


@pytest.mark.slow
@FEWER
@given(flows(allowances=st.booleans()), st.data())
def test_any_workflow_takes_the_same_course_when_many_members_end_in_one_settlement(
    root: Node, data: st.DataObject
) -> None:
    """S0-88, S0-95: in groups across workflows, where the order in the group must not matter."""
    play(root, data, 5)
