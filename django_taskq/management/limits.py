"""What ``taskq limits`` tells of limits: records for programs."""

from __future__ import annotations

from typing import Any

from django_taskq.ops import limits

__all__ = ["SHOWN", "holder_record", "limit_record"]

SHOWN = ("limit", "kind", "bound", "code", "is_set", "held", "tokens", "parked", "next_start_at", "set_by", "set_until")


def _bound(bound: limits.Bound | None) -> str | None:
    return None if bound is None else str(bound)


def limit_record(view: limits.LimitView) -> dict[str, Any]:
    """Return a limit as a record."""
    row, bound = view.row, view.bound
    return {
        "limit": view.name,
        "kind": view.kind,
        "bound": _bound(bound),
        "code": _bound(view.code),
        "is_set": view.is_set,
        "amount": None if bound is None else bound.amount,
        "per_seconds": None if bound is None else bound.per_seconds,
        "burst": None if bound is None else bound.burst,
        "held": view.held,
        "is_full": view.is_full,
        "tokens": None if view.tokens is None else round(view.tokens, 3),
        "parked": view.parked,
        "parked_is_capped": view.parked_is_capped,
        "next_start_at": view.next_start_at,
        "set_by": row.set_by,
        "set_until": row.set_until,
        "set_reason": row.set_reason,
    }


def holder_record(holder: limits.Holder) -> dict[str, Any]:
    """Return a task that holds a slot as a record."""
    return {"id": holder.id, "task": holder.name, "since": holder.since}
