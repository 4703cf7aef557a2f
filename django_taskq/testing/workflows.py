"""Assertions about chains, batches and workflows that were recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django_taskq.domain import payload
from django_taskq.domain.workflows import KIND_NAMES
from django_taskq.lifecycle import definitions, references
from django_taskq.testing.assertions import StoredTask

__all__ = ["RecordedWorkflow", "WorkflowAssertions"]

_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedWorkflow:
    """
    A chain, batch or workflow that would have been stored.

    ``members``: tasks and workflows, in their order. ``callbacks``: the names of the tasks that "then",
    "catch", "finally" and "progress" would call.
    """

    workflow_id: str
    kind: str
    name: str
    members: tuple[StoredTask | RecordedWorkflow, ...]
    callbacks: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        inner = ", ".join(str(member) for member in self.members[:_SHOWN])
        more = f" and {len(self.members) - _SHOWN} more" if len(self.members) > _SHOWN else ""
        return f"{self.kind} {self.name}".rstrip() + f" of {inner or 'nothing'}{more}"

    def walk(self) -> Iterator[RecordedWorkflow]:
        """Yield this and all workflows inside it."""
        yield self
        for member in self.members:
            if isinstance(member, RecordedWorkflow):
                yield from member.walk()


class WorkflowAssertions:
    """What can be asserted of a number of workflows. ``workflows`` holds those that are inside no other."""

    @property
    def workflows(self) -> Sequence[RecordedWorkflow]:
        """The workflows that are inside no other, in the order they were enqueued."""
        raise NotImplementedError

    def assert_chained(self, members: Sequence[Any], *, times: int | None = None) -> list[RecordedWorkflow]:
        """
        Assert that a chain of exactly these members was enqueued, by itself or inside another; return those there are.

        A member is a definition or the name it is stored under, or with arguments a signature (``previous`` fits any
        placeholder), or a chain, batch or workflow.
        """
        return self._expect("chain", lambda found: _fit(found.members, members), times)

    def assert_batched(
        self, wanted: Callable[[RecordedWorkflow], bool] | Sequence[Any], *, times: int | None = None
    ) -> list[RecordedWorkflow]:
        """Assert that a batch was enqueued that a function says yes to, or of exactly these members, in this order."""
        test = wanted if callable(wanted) else lambda found: _fit(found.members, wanted)
        return self._expect("batch", test, times)

    def assert_workflow_count(self, count: int) -> None:
        """Assert how many chains, batches and workflows were enqueued, those inside others left out."""
        if len(self.workflows) != count:
            raise AssertionError(f"{len(self.workflows)} workflows were enqueued, expected {count}.\n{self._told()}")

    def _expect(self, kind: str, test: Callable[[RecordedWorkflow], bool], times: int | None) -> list[RecordedWorkflow]:
        every = [one for outer in self.workflows for one in outer.walk()]
        found = [one for one in every if one.kind == kind and test(one)]
        if (times is None and not found) or (times is not None and len(found) != times):
            expected = "at least one" if times is None else str(times)
            raise AssertionError(f"{len(found)} such {kind} was enqueued, expected {expected}.\n{self._told()}")
        return found

    def _told(self) -> str:
        if not self.workflows:
            return "No workflow was enqueued."
        lines = [f"  {found}" for found in self.workflows[:_SHOWN]]
        if len(self.workflows) > _SHOWN:
            lines.append(f"  … and {len(self.workflows) - _SHOWN} more")
        return "\n".join([f"Enqueued, {len(self.workflows)} workflows in all:", *lines])


def _fit(members: Sequence[StoredTask | RecordedWorkflow], wanted: Sequence[Any]) -> bool:
    return len(members) == len(wanted) and all(map(_fits, members, wanted))


def _fits(member: StoredTask | RecordedWorkflow, wanted: Any) -> bool:
    if hasattr(wanted, "nodes"):
        return (
            isinstance(member, RecordedWorkflow)
            and member.kind == KIND_NAMES[wanted.kind]
            and _fit(member.members, [node.item for node in wanted.nodes])
        )
    if isinstance(member, RecordedWorkflow):
        return False
    if hasattr(wanted, "task") and hasattr(wanted, "args"):
        args, kwargs, _ = references.take_out(wanted.args, wanted.kwargs or {})
        plain = payload.decode_arguments(payload.encode_arguments(args, kwargs, limit=None))
        return member.name == definitions.stored_name(wanted.task) and (member.args, member.kwargs) == tuple(plain)
    return member.name == (wanted if isinstance(wanted, str) else definitions.stored_name(wanted))
