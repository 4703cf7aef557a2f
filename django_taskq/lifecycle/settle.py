"""
Write how attempts ended, together with everything that follows from it.

One transaction for all that gathered: rows moved or put back, attempts kept,
statistics added. Each write is fenced by its lease, so the same batch may be
written again when the answer of a commit was lost: it then matches no row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import transaction

from django_taskq import clock, conf, events
from django_taskq.domain import lease as leases
from django_taskq.domain import payload
from django_taskq.domain.outcomes import Interrupted, Lost, NotYet, Outcome, Skipped, Snoozed, Succeeded, Unknown
from django_taskq.domain.states import FINAL, State
from django_taskq.domain.transitions import Facts, Transition, decide, succeeded
from django_taskq.lifecycle import wake
from django_taskq.lifecycle.close_steps import close_steps
from django_taskq.models.stats import BUCKETS_MS
from django_taskq.store.rows import Again, AttemptRow, Claim, Ending
from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import STAT_COUNTERS, Vendor

if TYPE_CHECKING:
    from django_taskq.lifecycle.advance import Advanced

__all__ = ["LATE_SECONDS", "Ended", "Settled", "facts_of", "settle", "tell_refused"]

_LEAST_KEPT = 0.001
_AT = {name: at for at, name in enumerate(STAT_COUNTERS)}
_RUN, _WAIT = _AT["run_0"], _AT["wait_0"]
# How far the end time of a row may lie before its writing. Clients that read what has finished,
# in order of that time, rely on it: a row that comes an hour late must not lie where they have been.
LATE_SECONDS = 1.0

_SUCCEEDED, _RUN_MS, _WAIT_MS = _AT["succeeded"], _AT["run_ms"], _AT["wait_ms"]


class Ended(NamedTuple):
    """
    An attempt that ended. ``started`` and ``ended`` are seconds since 1970; ``started`` None: not begun.

    ``left_step``: one of its steps may be stored as running although it does not run any more.
    """

    claim: Claim
    outcome: Outcome
    started: float | None
    ended: float
    keep: float | None = None
    exception: BaseException | None = None
    cancelled: bool = False
    left_step: bool = False


class Settled(NamedTuple):
    """What a settlement wrote: how many rows, which were refused, and how many went back to ready at once."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    refused: Sequence[Ended]
    ready_again: int


def settle(batch: Sequence[Ended], *, alias: str, worker_id: int, now: datetime) -> Settled:
    """
    Write how each attempt of the batch ended, in one transaction, then emit the events.

    What lost its lease is left alone and returned as refused. Database errors
    are the caller's: nothing was written, or all of it. ``now`` is the database's
    clock: no row's end time lies more than ``LATE_SECONDS`` before it.
    """
    vendor = vendor_for(alias)
    if len({ended.claim.key for ended in batch}) < len(batch):
        return vendor.retrying(lambda: _settle_in_rounds(batch, alias=alias, worker_id=worker_id, now=now))
    decided: Sequence[tuple[Ended, Transition]] = [
        (
            ended,
            succeeded(ended.outcome.result)
            if type(ended.outcome) is Succeeded
            else decide(facts_of(ended), ended.outcome, now=now),
        )
        for ended in batch
    ]
    ahead = now.timestamp() - clock.elapsed()
    held, decided, told, opened = vendor.retrying(lambda: _write(vendor, decided, worker_id, now, ahead))
    refused = [ended for ended in batch if ended.claim.key not in held]
    again = sum(transition.state == State.READY and ended.claim.key in held for ended, transition in decided)
    if vendor.connection.in_atomic_block:
        transaction.on_commit(lambda: _emit(decided, held, refused, alias, vendor), using=alias, robust=True)
    else:
        _emit(decided, held, refused, alias, vendor)
    if told is not None:
        from django_taskq.lifecycle.advance import publish

        publish(told)
        again += len(told.queues)
    for queue in opened:
        wake.after_commit(alias, queue, ready=True, notify=conf.options().notify)
        again += 1
    return Settled(len(batch) - len(refused), refused, again)


def _settle_in_rounds(batch: Sequence[Ended], *, alias: str, worker_id: int, now: datetime) -> Settled:
    """
    Settle a batch that holds a task more than once: under an old and a new lease, or told twice.

    What the database answers names tasks, not leases; so each write may name a task only once.
    """
    parts: list[Settled] = []
    rest = list(batch)
    with vendor_for(alias).atomic():
        while rest:
            chosen: dict[Any, Ended] = {}
            later: list[Ended] = []
            for ended in rest:
                if chosen.setdefault(ended.claim.key, ended) is not ended:
                    later.append(ended)
            parts.append(settle(list(chosen.values()), alias=alias, worker_id=worker_id, now=now))
            rest = later
    refused = [ended for part in parts for ended in part.refused]
    return Settled(len(batch) - len(refused), refused, sum(part.ready_again for part in parts))


def facts_of(ended: Ended) -> Facts:
    """Return what the decision about an attempt needs to know."""
    claim = ended.claim
    return Facts(
        attempt=claim.attempt,
        max_attempts=claim.max_attempts,
        ack=claim.ack,
        deadline_at=claim.deadline_at,
        cancel_requested=claim.cancel or ended.cancelled,
    )


def may_be_asked(ended: Ended) -> bool:
    """Return whether a request to stop was heard, or would be overwritten with the options that are written back."""
    return ended.cancelled or ended.claim.cancel or isinstance(ended.outcome, Unknown) or _was_unknown(ended)


def _was_unknown(ended: Ended) -> bool:
    return ended.claim.options is not None and '"unknown_since"' in ended.claim.options


def _write(
    vendor: Vendor, decided: Sequence[tuple[Ended, Transition]], worker_id: int, now: datetime, ahead: float
) -> tuple[set[Any], Sequence[tuple[Ended, Transition]], Advanced | None, Sequence[str]]:
    """
    Write all of it, in one transaction.

    Return the keys whose lease held; what was written, with the step named in which an attempt was
    ended; what the workflows of the tasks made of it; and the queues in which limits have room again.
    ``ahead``: how far the database's clock is ahead of ``clock.elapsed``.
    """
    told: Advanced | None = None
    opened: Sequence[str] = ()
    with vendor.atomic():
        if any(may_be_asked(ended) for ended, _ in decided):
            # Loaded where something was asked to stop.
            from django_taskq.lifecycle import requeue

            decided = requeue.honour(vendor, decided, now=now)
        decided = close_steps(vendor, decided, now=now)
        endings: list[Ending] = []
        returns: list[Again] = []
        for ended, transition in decided:
            if transition.state in FINAL:
                endings.append(_ending(ended, transition))
            else:
                returns.append(_again(ended, transition))
        # Judged in here: SQLite may have waited for its turn just now.
        earliest = clock.elapsed() + ahead - LATE_SECONDS
        if endings and min([ending.finished for ending in endings]) < earliest:
            endings = [ending._replace(finished=max(ending.finished, earliest)) for ending in endings]
        held = vendor.finish(endings) if endings else set()
        if returns:
            held = held | vendor.put_back(returns)
        mine = [pair for pair in decided if pair[0].claim.key in held] if len(held) < len(decided) else decided
        recorded = [_attempt_row(ended, transition) for ended, transition in mine if transition.record is not None]
        if recorded:
            vendor.record_attempts(recorded)
        unkept = [ending.key for ending in endings if ending.keep == 0 and ending.key in held]
        if unkept:
            vendor.forget(unkept)
        sums = _sums(mine, worker_id)
        if sums:
            vendor.add_stats(sums)
        slots = [(ended.claim.slots, ended.started is not None) for ended, _ in mine if ended.claim.slots is not None]
        if slots:
            # Loaded by those who have limits.
            from django_taskq.lifecycle.limits import release

            opened = release(vendor, slots, now=now)
        # Last, since it locks rows that all workers share.
        nodes = _nodes(mine)
        if nodes:
            # Loaded by those who have workflows.
            from django_taskq.lifecycle.advance import advance, nodes_of

            told = advance(vendor.alias, nodes_of(nodes, vendor.alias), now=now)
    return held, decided, told, opened


def _nodes(mine: Sequence[tuple[Ended, Transition]]) -> list[tuple[Any, Any, int | None, int, str]]:
    """Return (key, workflow, role, state, name) of the members and callbacks of workflows among what ended."""
    return [
        (ended.claim.key, ended.claim.workflow_id, ended.claim.role, transition.state, ended.claim.name)
        for ended, transition in mine
        if ended.claim.workflow_id is not None and transition.state in FINAL
    ]


def _ending(ended: Ended, transition: Transition) -> Ending:
    error = transition.error
    return Ending(
        ended.claim.key,
        ended.claim.lease,
        int(transition.state),
        int(transition.attempt_back),
        ended.started,
        ended.ended,
        transition.result,
        None if transition.reason is None else transition.reason.value,
        None if error is None else error.class_path[:200],
        (transition.note or None) if error is None else error.line,
        None if error is None else error.fingerprint,
        _kept(ended) if transition.state == State.SUCCEEDED else None,
    )


def _kept(ended: Ended) -> float | None:
    if ended.keep == 0 and ended.claim.workflow_id is not None:
        # Others may wait for its result; retention deletes it once its workflow has ended.
        return _LEAST_KEPT
    return ended.keep


def _again(ended: Ended, transition: Transition) -> Again:
    options = None
    if isinstance(ended.outcome, Unknown):
        stored = payload.decode_value(ended.claim.options) or {}
        options = payload.encode_value({**stored, "unknown_since": ended.outcome.since}, limit=None)
    elif _was_unknown(ended) and ended.started is not None:
        # Somebody knows it after all: should it become unknown again, its grace time starts anew.
        stored = payload.decode_value(ended.claim.options) or {}
        options = payload.encode_value({name: stored[name] for name in stored if name != "unknown_since"}, limit=None)
    return Again(
        ended.claim.key,
        ended.claim.lease,
        int(transition.state),
        int(transition.attempt_back),
        None if transition.run_after is None else transition.run_after.timestamp(),
        options,
    )


def _attempt_row(ended: Ended, transition: Transition) -> AttemptRow:
    error = transition.error
    return AttemptRow(
        ended.claim.key,
        ended.claim.attempt,
        leases.worker_of(ended.claim.lease),
        transition.record or "",
        ended.started,
        ended.ended,
        "" if error is None else error.class_path,
        transition.note if error is None else error.message,
        "" if error is None else error.traceback,
    )


def _sums(
    decided: Iterable[tuple[Ended, Transition]], worker_id: int
) -> dict[tuple[datetime, str, str, int], list[int]]:
    sums: dict[tuple[datetime, str, str, int], list[int]] = {}
    minutes: dict[int, datetime] = {}
    for ended, transition in decided:
        claim = ended.claim
        if isinstance(ended.outcome, Interrupted | NotYet | Unknown | Snoozed) and transition.state not in FINAL:
            continue
        number = int(ended.ended // 60)
        minute = minutes.get(number)
        if minute is None:
            minute = minutes[number] = clock.from_timestamp(number * 60)
        key = (minute, claim.queue, claim.name, worker_id)
        row = sums.get(key)
        if row is None:
            row = sums[key] = [0] * len(STAT_COUNTERS)
        if ended.started is not None:
            # The wall clock may have been set back meanwhile.
            run_ms = max((ended.ended - ended.started) * 1000, 0.0)
            wait_ms = (ended.started - (claim.run_after or claim.created_at).timestamp()) * 1000
            row[_RUN_MS] += int(run_ms)
            row[_WAIT_MS] += max(int(wait_ms), 0)
            row[_RUN + bisect_left(BUCKETS_MS, run_ms)] += 1
            row[_WAIT + bisect_left(BUCKETS_MS, wait_ms)] += 1
        if transition.state == State.SUCCEEDED:
            row[_SUCCEEDED] += 1
            continue
        row[_AT["failed"]] += transition.error is not None
        row[_AT["rescued"]] += isinstance(ended.outcome, Lost)
        match transition.state:
            case State.DEAD:
                row[_AT["dead"]] += 1
            case State.CANCELLED:
                row[_AT["cancelled"]] += 1
            case _:
                row[_AT["retried"]] += 1
    return sums


def _emit(
    decided: Sequence[tuple[Ended, Transition]],
    held: set[Any],
    refused: Sequence[Ended],
    alias: str,
    vendor: Vendor,
) -> None:
    if events.wanted(events.AttemptsSettled):
        settled = [pair for pair in decided if pair[0].claim.key in held] if refused else decided
        events.emit(events.AttemptsSettled(settled=settled, refused=refused, alias=alias))
    wants_success = events.wanted(events.TaskSucceeded)
    for ended, transition in decided:
        if ended.claim.key not in held:
            continue
        if transition.state == State.SUCCEEDED:
            if wants_success:
                events.emit(_success(ended, transition, alias, vendor))
            if type(ended.outcome) is Skipped and events.wanted(events.TaskSkipped):
                events.emit(events.TaskSkipped(**_facts_of(ended, alias, vendor), reason=ended.outcome.reason))
            continue
        for kind, facts in _told(ended, transition):
            if events.wanted(kind):
                events.emit(kind(**_facts_of(ended, alias, vendor), **facts))
    tell_refused(refused, alias=alias)


def tell_refused(refused: Iterable[Ended], *, alias: str) -> None:
    """Emit what was not written because its lease was lost."""
    if not events.wanted(events.SettlementRefused):
        return
    vendor = vendor_for(alias)
    for ended in refused:
        events.emit(
            events.SettlementRefused(
                **_facts_of(ended, alias, vendor),
                worker_id=leases.worker_of(ended.claim.lease),
                outcome=type(ended.outcome).__name__,
            )
        )


def _facts_of(ended: Ended, alias: str, vendor: Vendor) -> dict[str, Any]:
    claim = ended.claim
    return {
        "task_id": vendor.public_id(claim.key),
        "task": claim.name,
        "queue": claim.queue,
        "attempt": claim.attempt,
        "alias": alias,
    }


def _success(ended: Ended, transition: Transition, alias: str, vendor: Vendor) -> events.TaskSucceeded:
    started = ended.started or ended.ended
    eligible = (ended.claim.run_after or ended.claim.created_at).timestamp()
    return events.TaskSucceeded(
        **_facts_of(ended, alias, vendor),
        worker_id=leases.worker_of(ended.claim.lease),
        run_seconds=max(ended.ended - started, 0.0),
        wait_seconds=max(started - eligible, 0.0),
        claim=ended,
        result=transition.result,
    )


def _told(ended: Ended, transition: Transition) -> Iterable[tuple[type[events.TaskEvent], dict[str, Any]]]:
    """Return the events of one transition that is not a success, in order: each kind with its own facts."""
    worker_id = leases.worker_of(ended.claim.lease)
    run_seconds = 0.0 if ended.started is None else max(ended.ended - ended.started, 0.0)
    if isinstance(ended.outcome, Lost):
        yield events.TaskRescued, {"worker_id": worker_id}
    if transition.error is not None:
        yield (
            events.TaskFailed,
            {
                "worker_id": worker_id,
                "outcome": transition.record or "",
                "run_seconds": run_seconds,
                "error": transition.error,
            },
        )
    match transition.state:
        case State.DEAD:
            yield (
                events.TaskDead,
                {
                    "reason": transition.reason.value if transition.reason else "",
                    "run_seconds": run_seconds,
                    "error": transition.error,
                    "exception": ended.exception,
                    "claim": ended,
                },
            )
        case State.CANCELLED:
            yield events.TaskCancelled, {"claim": ended, "exception": ended.exception}
        case _ if transition.error is not None:
            yield events.TaskRetried, {"run_after": transition.run_after}
        case _ if isinstance(ended.outcome, Snoozed):
            yield events.TaskSnoozed, {"run_after": transition.run_after}
        case _ if isinstance(ended.outcome, Interrupted) and ended.outcome.started:
            yield events.TaskInterrupted, {"worker_id": worker_id}
