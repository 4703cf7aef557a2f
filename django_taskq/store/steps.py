"""
The steps of a task: the only room that writes their rows.

What a running attempt writes is fenced: in one transaction its live row is locked, its lease
compared, and the step written. So a worker that was declared dead writes nothing,
also when it wakes up between two of its statements.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from django_taskq.domain.states import StepState
from django_taskq.exceptions import LeaseLost
from django_taskq.models import Step, Task
from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import Vendor

__all__ = [
    "Holder",
    "Written",
    "cancel",
    "close",
    "finish",
    "of_task",
    "open_steps",
    "plan",
    "reset",
    "results",
    "start",
]

_UNFINISHED = [int(state) for state in StepState if state != StepState.SUCCEEDED]


class Holder(NamedTuple):
    """An attempt that runs, and the lease it believes to hold."""

    alias: str
    task_id: uuid.UUID
    lease: int
    attempt: int
    worker_id: int


class Written(NamedTuple):
    """What ``finish`` found: whether the step was stored as running, and whether its task was asked to stop."""

    was_running: bool
    is_cancelled: bool


def of_task(alias: str, task_id: uuid.UUID) -> list[Step]:
    """Return the steps of a task in their order."""
    return list(Step.objects.using(alias).filter(task_id=task_id).order_by("position", "id"))


def results(alias: str, task_id: uuid.UUID) -> dict[str, str | None]:
    """Return the JSON text of each result that is kept, by the step's name."""
    found = Step.objects.using(alias).filter(task_id=task_id, state=StepState.SUCCEEDED)
    return dict(found.values_list("name", "result"))


@contextmanager
def _held(holder: Holder) -> Iterator[bool]:
    """
    Open a transaction in which nobody can take this task away; yield whether somebody asked it to stop.

    Raise LeaseLost if somebody has taken it already.
    """
    vendor = vendor_for(holder.alias)
    with vendor.atomic():
        # By its id alone: a condition on the lease could make the planner take, and lock, the lease index.
        row = Task.objects.using(holder.alias).filter(pk=holder.task_id)
        if vendor.connection.features.has_select_for_update:
            row = row.select_for_update()
        found = list(row.values_list("lease", "cancel"))
        if not found or found[0][0] != holder.lease:
            raise LeaseLost(
                f"worker {holder.worker_id} no longer holds task {holder.task_id}: another attempt may run, "
                "so this one writes nothing more"
            )
        yield found[0][1]


def plan(holder: Holder, names: Sequence[str]) -> None:
    """Store those of the steps that are not known yet as pending, behind the known ones. Raise LeaseLost."""

    def work() -> None:
        with _held(holder):
            known = dict(
                Step.objects.using(holder.alias).filter(task_id=holder.task_id).values_list("name", "position")
            )
            first = max(known.values(), default=-1) + 1
            new = [name for name in names if name not in known]
            Step.objects.using(holder.alias).bulk_create(
                Step(task_id=holder.task_id, name=name, position=first + at) for at, name in enumerate(new)
            )

    vendor_for(holder.alias).retrying(work)


def start(holder: Holder, name: str, *, now: datetime) -> bool:
    """
    Store that a step runs; return False, and store nothing, if somebody asked the task to stop.

    Raise LeaseLost if the attempt has no right to go on.
    """

    def work() -> bool:
        with _held(holder) as is_cancelled:
            if is_cancelled:
                return False
            steps = Step.objects.using(holder.alias).filter(task_id=holder.task_id)
            values: dict[str, Any] = {
                "state": StepState.RUNNING,
                "result": None,
                "error_class": "",
                "error_line": "",
                "attempt": holder.attempt,
                "worker_id": holder.worker_id,
                "started_at": now,
                "finished_at": None,
            }
            if not steps.filter(name=name).update(**values):
                last = steps.order_by("-position").values_list("position", flat=True).first()
                position = 0 if last is None else last + 1
                Step.objects.using(holder.alias).create(task_id=holder.task_id, name=name, position=position, **values)
            return True

    return vendor_for(holder.alias).retrying(work)


def finish(
    holder: Holder,
    name: str,
    state: StepState,
    *,
    now: datetime,
    result: str | None = None,
    error_class: str = "",
    error_line: str = "",
) -> Written:
    """
    Store how a running step ended, in the caller's transaction if there is one.

    May be repeated: what is stored already stays. Raise LeaseLost if the attempt has no right to write.
    """

    def work() -> Written:
        with _held(holder) as is_cancelled:
            steps = Step.objects.using(holder.alias).filter(task_id=holder.task_id, name=name, state=StepState.RUNNING)
            changed = steps.update(
                state=state,
                result=result,
                error_class=error_class[:200],
                error_line=error_line[:300],
                finished_at=None if state == StepState.PENDING else now,
            )
            return Written(bool(changed), is_cancelled)

    return vendor_for(holder.alias).retrying(work)


def open_steps(vendor: Vendor, leases: dict[uuid.UUID, int]) -> dict[uuid.UUID, dict[str, StepState]]:
    """
    Return what is unfinished of the tasks whose leases still hold, by task, then by step.

    The tasks are locked until the caller's transaction ends, so that nobody begins a step behind our back.
    """
    rows = Task.objects.using(vendor.alias).filter(pk__in=leases).order_by("pk")
    if vendor.connection.features.has_select_for_update:
        rows = rows.select_for_update()
    held = [key for key, lease in rows.values_list("pk", "lease") if leases[key] == lease]
    found: dict[uuid.UUID, dict[str, StepState]] = {}
    steps = Step.objects.using(vendor.alias).filter(task_id__in=held, state__in=_UNFINISHED).order_by("position")
    for task_id, name, state in steps.values_list("task_id", "name", "state"):
        found.setdefault(task_id, {})[name] = StepState(state)
    return found


def close(
    alias: str,
    task_ids: Iterable[uuid.UUID],
    state: StepState,
    *,
    now: datetime,
    error_class: str = "",
    error_line: str = "",
) -> None:
    """Store what became of the steps that were running when their attempts ended. The caller locked the tasks."""
    Step.objects.using(alias).filter(task_id__in=list(task_ids), state=StepState.RUNNING).update(
        state=state,
        error_class=error_class[:200],
        error_line=error_line[:300],
        finished_at=None if state == StepState.PENDING else now,
    )


def cancel(alias: str, task_ids: Iterable[uuid.UUID], *, now: datetime) -> None:
    """Mark all that is unfinished of cancelled tasks as cancelled, in the transaction that cancels them."""
    open_ = [state for state in _UNFINISHED if state != StepState.CANCELLED]
    Step.objects.using(alias).filter(task_id__in=list(task_ids), state__in=open_).update(
        state=StepState.CANCELLED, finished_at=now
    )


def reset(alias: str, task_ids: Iterable[uuid.UUID], *, from_start: bool) -> None:
    """
    Make the steps of replayed tasks fit for another run, in the transaction that replays them.

    What succeeded stays, what was cancelled is ahead again. ``from_start``: forget all of them.
    """
    steps = Step.objects.using(alias).filter(task_id__in=list(task_ids))
    if from_start:
        steps.delete()
    else:
        steps.filter(state=StepState.CANCELLED).update(state=StepState.PENDING, finished_at=None)
