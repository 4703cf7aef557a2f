"""
The lease: one number that says who holds a task and fences everybody else off.

``lease = worker id << 32 | claim number``. A worker's id is never used twice,
and its claim numbers only grow, so no two claims ever share a lease: whoever
writes with an older one matches no row. All leases of a worker live and die
with its heartbeat row.
"""

from __future__ import annotations

__all__ = ["MAX_CLAIM_NO", "make_lease", "span_of", "worker_of"]

MAX_CLAIM_NO = (1 << 32) - 1
_MAX_WORKER = (1 << 31) - 1


def make_lease(worker_id: int, claim_no: int) -> int:
    """Return the lease number of one claim."""
    if not 0 < worker_id <= _MAX_WORKER:
        raise ValueError(f"worker id must be between 1 and {_MAX_WORKER}, got {worker_id}")
    if not 0 <= claim_no <= MAX_CLAIM_NO:
        raise ValueError(f"claim number must be between 0 and {MAX_CLAIM_NO}, got {claim_no}")
    return worker_id << 32 | claim_no


def worker_of(lease: int) -> int:
    """Return the id of the worker that holds, or held, this lease."""
    return lease >> 32


def span_of(worker_id: int) -> tuple[int, int]:
    """Return the lowest and the highest lease number of a worker."""
    return worker_id << 32, worker_id << 32 | MAX_CLAIM_NO
