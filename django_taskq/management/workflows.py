"""What ``taskq workflows`` tells of chains, batches and workflows: records for programs, lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django_taskq.domain.states import State
from django_taskq.domain.workflows import Role
from django_taskq.models import Workflow
from django_taskq.models.tasks import TaskRow
from django_taskq.ops import workflows

__all__ = [
    "branch_line",
    "branch_record",
    "callback_lines",
    "callback_record",
    "member_lines",
    "member_record",
    "turn",
    "workflow_record",
]


def workflow_record(row: Workflow) -> dict[str, Any]:
    """Return a workflow as a record."""
    return {
        "id": str(row.pk),
        "kind": workflows.kind_name(row),
        "name": row.name,
        "state": workflows.state_name(row),
        "total": row.total,
        "open": row.open,
        "succeeded": row.succeeded,
        "failed": row.failed,
        "cancelled": row.cancelled,
        "may_fail": row.allowed,
        "cancel_requested": row.cancel,
        "part_of": row.parent_id,
        "replays": row.replays,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
    }


def turn(task: TaskRow) -> str:
    """Return what a task is to its workflow, as a word."""
    return Role(task.role or Role.MEMBER).name.lower()


def callback_record(task: TaskRow) -> dict[str, Any]:
    """Return a callback that was called as a record."""
    return {"callback": turn(task), "id": str(task.pk), "task": task.name, "state": State(task.state).name.lower()}


def member_record(member: workflows.Member) -> dict[str, Any]:
    """Return a member as a record."""
    row = member.row
    is_flow = isinstance(row, Workflow)
    return {
        "id": str(row.pk),
        "kind": workflows.kind_name(row) if isinstance(row, Workflow) else "task",
        "node": member.name,
        "name": row.name,
        "state": workflows.state_name(row),
        "attempt": None if is_flow else getattr(row, "attempt", None),
        "error": getattr(row, "error_line", None),
    }


def branch_record(branch: workflows.Branch) -> dict[str, Any]:
    """Return a line of a tree as a record."""
    if branch.member is None:
        return {"depth": branch.depth, "more": branch.more}
    return {"depth": branch.depth, **member_record(branch.member)}


def callback_lines(called: Sequence[Mapping[str, Any]], planned: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each callback, called or not."""
    return [
        *(f"{call['callback']:<8}  {call['state']:<10}  {call['id']}  {call['task']}" for call in called),
        *(f"{call['callback']:<8}  not called  {call['task']}" for call in planned),
    ]


def member_lines(found: Sequence[Mapping[str, Any]], total: int) -> list[str]:
    """Return a line for each member, and one for those that are left out."""
    lines = [
        f"{record['state']:<10}  {record['id']}  {_named(record)}" + (f"  {record['error']}" if record["error"] else "")
        for record in found
    ]
    return lines if total <= len(found) else [*lines, f"... {total - len(found)} more"]


def _named(record: Mapping[str, Any]) -> str:
    node = f"{record['node']}: " if record["node"] else ""
    kind = "" if record["kind"] == "task" else f"{record['kind']} "
    return f"{node}{kind}{record['name']}".rstrip()


def branch_line(branch: workflows.Branch) -> str:
    """Return a node of a tree as a line."""
    indent = "  " * branch.depth
    if branch.member is None:
        return f"{indent}... {branch.more} more"
    row = branch.member.row
    ended = f" {row.total - row.open}/{row.total}" if isinstance(row, Workflow) else ""
    return f"{indent}{_named(member_record(branch.member))}  {workflows.state_name(row)}{ended}"
