"""
Close the steps of attempts that could not do it themselves, in the transaction that settles them.

A worker that died, a thread that was given up, a process that was ended: their steps are still
stored as running. Its surprise: it costs nothing where no attempt of a batch ended like that.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from django_taskq.domain import lease as leases
from django_taskq.domain.outcomes import MAX_LINE, ErrorInfo, Interrupted
from django_taskq.domain.states import State, StepState
from django_taskq.domain.transitions import Transition, may_leave_step, step_after
from django_taskq.store.vendors.base import Vendor

if TYPE_CHECKING:
    from django_taskq.lifecycle.settle import Ended

__all__ = ["close_steps"]


def close_steps(
    vendor: Vendor, decided: Sequence[tuple[Ended, Transition]], *, now: datetime
) -> Sequence[tuple[Ended, Transition]]:
    """
    Store what becomes of unfinished steps, and return the pairs with the step named in which an attempt was ended.

    Only where the lease still holds. The caller has opened the transaction that settles.
    """
    looked = {
        uuid.UUID(vendor.public_id(ended.claim.key)): ended.claim.lease
        for ended, transition in decided
        if ended.left_step or (transition.state != State.SUCCEEDED and may_leave_step(ended.outcome, transition.state))
    }
    if not looked:
        return decided
    from django_taskq.store import steps as store

    unfinished = store.open_steps(vendor, looked)
    if not unfinished:
        return decided
    named: list[tuple[Ended, Transition]] = []
    groups: dict[StepState, list[uuid.UUID]] = {}
    for ended, transition in decided:
        key = uuid.UUID(vendor.public_id(ended.claim.key))
        running = [name for name, state in unfinished.get(key, {}).items() if state == StepState.RUNNING]
        if key in unfinished and transition.state == State.CANCELLED:
            groups.setdefault(StepState.CANCELLED, []).append(key)
        elif running:
            after = step_after(ended.outcome, transition.state)
            if after == StepState.FAILED and transition.error is not None:
                error = transition.error
                store.close(vendor.alias, [key], after, now=now, error_class=error.class_path, error_line=error.line)
            else:
                groups.setdefault(after, []).append(key)
        named.append((ended, _named(ended, transition, running[-1]) if running else transition))
    for state, keys in groups.items():
        if state == StepState.CANCELLED:
            store.cancel(vendor.alias, keys, now=now)
        else:
            store.close(vendor.alias, keys, state, now=now)
    return named


def _named(ended: Ended, transition: Transition, step: str) -> Transition:
    """Return the transition with the step in its error, or in its note where the end is no error."""
    error = transition.error
    if error is not None:
        return replace(transition, error=_in_step(error, step))
    if isinstance(ended.outcome, Interrupted):
        worker_id = leases.worker_of(ended.claim.lease)
        return replace(transition, note=f"worker {worker_id} handed the task back, in step {step!r}"[:MAX_LINE])
    return transition


def _in_step(error: ErrorInfo, step: str) -> ErrorInfo:
    # At the end of its first line, which is what lists show. The fingerprint stays: errors of one cause are one group.
    first, *rest = error.message.split("\n", 1)
    return replace(error, message="\n".join([f"{first}, in step {step!r}", *rest]))
