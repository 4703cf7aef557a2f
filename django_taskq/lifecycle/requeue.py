"""
Send back what was stopped by request to run again later, instead of ending it as cancelled.

Such a request is a cancel request with a mark in the task's options. It is read
here, with the row locked, by the transaction that settles: a cancel that came after it wins.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from django_taskq.domain.outcomes import Cancelled, Interrupted
from django_taskq.domain.transitions import Transition, decide
from django_taskq.lifecycle.settle import Ended, facts_of, may_be_asked
from django_taskq.store import tasks as store

if TYPE_CHECKING:
    from django_taskq.store.vendors.base import Vendor

__all__ = ["honour"]


def honour(
    vendor: Vendor, decided: Sequence[tuple[Ended, Transition]], *, now: datetime
) -> Sequence[tuple[Ended, Transition]]:
    """
    Decide anew about attempts that were asked to stop and whose tasks are to come back, and forget the requests.

    The attempt is given back, as after a hand-over. One that failed meanwhile failed; one that succeeded stays so.
    The caller has opened the transaction that settles.
    """
    asked = {
        uuid.UUID(vendor.public_id(ended.claim.key)): ended.claim.lease for ended, _ in decided if may_be_asked(ended)
    }
    wanted = store.take_requeues(vendor.alias, asked)
    if not wanted:
        return decided
    found: list[tuple[Ended, Transition]] = []
    for ended, transition in decided:
        key = uuid.UUID(vendor.public_id(ended.claim.key))
        if key not in wanted:
            found.append((ended, transition))
            continue
        outcome = ended.outcome
        if isinstance(outcome, Cancelled) and outcome.was_asked:
            outcome = Interrupted(started=ended.started is not None)
        claim = ended.claim._replace(cancel=False, options=wanted[key])
        again = ended._replace(claim=claim, outcome=outcome, cancelled=False)
        found.append((again, decide(facts_of(again), outcome, now=now)))
    return found
