"""
The operator's verbs: cancel, replay, discard, move to the dead letters, pause, resume. Each is audited.

All take public ids and work in chunks of their own transactions, so that a
selection of 10,000 tasks neither locks them all nor is lost half-way.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from django_taskq import clock, conf, events
from django_taskq.domain.states import DeadReason, State
from django_taskq.domain.transitions import after_cancel, after_replay, check_requeue
from django_taskq.domain.workflows import Role
from django_taskq.exceptions import InvalidTransition, TaskNotFound
from django_taskq.lifecycle import definitions, wake, workflows
from django_taskq.lifecycle.databases import main_database
from django_taskq.lifecycle.forgo import end_waiting
from django_taskq.lifecycle.pausing import pause, resume
from django_taskq.models import FinishedTask, Task
from django_taskq.models.tasks import TaskRow
from django_taskq.store import tasks as store
from django_taskq.store import workflows as workflow_store
from django_taskq.store.vendors import vendor_for

__all__ = [
    "Changed",
    "cancel",
    "cancel_workflows",
    "discard",
    "forget_keys",
    "kill",
    "pause",
    "replay",
    "replay_workflows",
    "resume",
]

CHUNK = 500
# How often a task may change between waiting and running while somebody cancels it.
_CANCEL_TURNS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What an operator's verb did. ``asked``: running tasks that were asked to stop; ``skipped``: id and why."""

    ids: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def count(self) -> int:
        """How many tasks were changed or asked."""
        return len(self.ids) + len(self.asked)


def _alias(alias: str | None) -> str:
    return alias or main_database()


def _chunks(ids: str | uuid.UUID | Iterable[Any]) -> Iterator[list[Any]]:
    found = [ids] if isinstance(ids, str | uuid.UUID) else list(ids)
    for start in range(0, len(found), CHUNK):
        yield found[start : start + CHUNK]


def _rows(alias: str, part: Sequence[Any], skipped: list[tuple[str, str]]) -> list[TaskRow]:
    found = store.find_many(alias, part)
    skipped += [(str(public_id), "not found") for public_id in part if public_id not in found]
    return list({row.pk: row for row in found.values()}.values())


def _one_or_many(ids: Any, changed: Changed) -> Changed:
    """Raise for a single id that could not be changed; a selection reports what it skipped."""
    if isinstance(ids, str | uuid.UUID) and changed.skipped and not changed.count:
        public_id, why = changed.skipped[0]
        if why == "not found":
            raise TaskNotFound(f"no task has the id {public_id!r}")
    return changed


def cancel(
    ids: str | uuid.UUID | Iterable[Any],
    *,
    actor: str = "",
    reason: str = "",
    requeue: bool = False,
    alias: str | None = None,
) -> Changed:
    """
    Cancel tasks: waiting ones at once, running ones by asking.

    A running task hears of it within a heartbeat; it ends as cancelled when it
    listens (``raise_if_cancelled``, a coroutine's ``await``), and ends as it
    likes when it does not. Cancelled tasks never come back by themselves.
    ``requeue``: only running ones, and they come back, ready and with the attempt given back.
    Raise TaskNotFound for a single id that does not exist, and with ``requeue`` InvalidTransition
    for a single one that cannot be stopped and sent back.
    """
    alias = _alias(alias)
    now = clock.now()
    done: list[str] = []
    asked: list[str] = []
    skipped: list[tuple[str, str]] = []
    for part in _chunks(ids):
        missed: Sequence[Any] = part
        ended: Sequence[TaskRow]
        for _ in range(_CANCEL_TURNS):
            if not missed:
                break
            if requeue:
                ended, (running, missed) = [], _requeue_once(alias, missed, skipped)
            else:
                ended, running, missed = _cancel_once(alias, missed, skipped, now=now)
            done += [str(row.pk) for row in ended]
            asked += [str(row.pk) for row in running]
            if ended or running:
                store.audit(
                    alias,
                    actor=actor,
                    action="cancel",
                    now=now,
                    reason=reason,
                    rows=[*ended, *running],
                    detail={"requeue": True} if requeue else None,
                )
            events.emit_on_commit(
                events.TaskCancelled,
                (
                    events.TaskCancelled(
                        task_id=str(row.pk), task=row.name, queue=row.queue, attempt=row.attempt, alias=alias
                    )
                    for row in ended
                ),
                using=alias,
            )
        skipped += [(str(key), "it moved on faster than it could be cancelled") for key in missed]
    changed = _one_or_many(ids, Changed(ids=tuple(done), asked=tuple(asked), skipped=tuple(skipped)))
    if requeue and isinstance(ids, str | uuid.UUID) and changed.skipped:
        raise InvalidTransition(changed.skipped[0][1])
    return changed


def _requeue_once(
    alias: str, ids: Sequence[Any], skipped: list[tuple[str, str]]
) -> tuple[Sequence[TaskRow], Sequence[uuid.UUID]]:
    """Return the running tasks that were asked to stop and come back, and the ids of those that moved on meanwhile."""
    fit: list[TaskRow] = []
    for row in _rows(alias, ids, skipped):
        try:
            check_requeue(row.state, row.ack, is_cancelled=isinstance(row, Task) and _stops_for_good(row))
        except InvalidTransition as error:
            skipped.append((str(row.pk), str(error)))
        else:
            fit.append(row)
    asked = store.request_requeue(alias, [row.pk for row in fit]) if fit else set()
    return [row for row in fit if row.pk in asked], [row.pk for row in fit if row.pk not in asked]


def _stops_for_good(row: Task) -> bool:
    return row.cancel and not store.wants_requeue(row)


def _cancel_once(
    alias: str, ids: Sequence[Any], skipped: list[tuple[str, str]], *, now: datetime
) -> tuple[Sequence[TaskRow], Sequence[TaskRow], Sequence[uuid.UUID]]:
    """Return the tasks that were ended, those that were asked, and the ids of those that moved on meanwhile."""
    waiting: list[uuid.UUID] = []
    running: list[TaskRow] = []
    flows: set[uuid.UUID] = set()
    for row in _rows(alias, ids, skipped):
        try:
            target = after_cancel(row.state)
        except InvalidTransition as error:
            skipped.append((str(row.pk), str(error)))
            continue
        if target is None:
            running.append(row)
        else:
            waiting.append(row.pk)
            flows.update({row.workflow_id} - {None})
    work = partial(end_waiting, alias, waiting, state=State.CANCELLED, now=now)
    ended = workflows.end_members(alias, flows, work, now=now)
    asked = store.request_cancel(alias, [row.pk for row in running]) if running else set()
    # Claimed in between, or sent back to wait: a request that found no row would be lost without a word.
    gone = {row.pk for row in ended} | asked
    missed = [key for key in (*waiting, *(row.pk for row in running)) if key not in gone]
    return ended, [row for row in running if row.pk in asked], missed


def replay(
    ids: str | uuid.UUID | Iterable[Any],
    *,
    attempts: int | None = None,
    from_start: bool = False,
    actor: str = "",
    reason: str = "",
    alias: str | None = None,
    force: bool = False,
) -> Changed:
    """
    Send dead and cancelled tasks back as ready, under the same id, with ``attempts`` more (default: as at first).

    Steps that succeeded keep their results and are not run again; ``from_start`` forgets them.
    A task whose name leads to no definition here is skipped unless ``force``: it would only die
    again. So is one whose unique key a live task holds. Two replays of one task at once send it
    back once. Raise TaskNotFound for a single unknown id.
    """
    alias = _alias(alias)
    now = clock.now()
    done: list[str] = []
    skipped: list[tuple[str, str]] = []
    for part in _chunks(ids):
        fit: list[uuid.UUID] = []
        keys: dict[str, str] = {}
        members: list[FinishedTask] = []
        for row in _rows(alias, part, skipped):
            try:
                after_replay(row.state)
            except InvalidTransition as error:
                skipped.append((str(row.pk), str(error)))
                continue
            if not force and not _is_known(row.name):
                skipped.append((str(row.pk), f"no task is called {row.name!r} here"))
                continue
            if isinstance(row, FinishedTask) and row.reason == DeadReason.UPSTREAM:
                skipped.append((str(row.pk), "what it waited for did not succeed; replay that, or the whole workflow"))
                continue
            if isinstance(row, FinishedTask) and row.workflow_id is not None and row.role == Role.MEMBER:
                members.append(row)
            fit.append(row.pk)
            if row.unique_key is not None:
                keys[str(row.pk)] = row.unique_key
        inside = {row.pk for row in members}
        rows = store.replay(
            alias, [key for key in fit if key not in inside], now=now, attempts=attempts, from_start=from_start
        )
        if members:
            rows += workflows.replay_members(
                alias, members, now=now, attempts=attempts, actor=actor, from_start=from_start
            )
        if rows:
            store.audit(
                alias,
                actor=actor,
                action="replay",
                now=now,
                reason=reason,
                rows=rows,
                detail={**({"attempts": attempts} if attempts else {}), **({"from_start": True} if from_start else {})},
            )
        for queue in {row.queue for row in rows}:
            wake.after_commit(alias, queue, ready=True, notify=conf.options().notify)
        events.emit_on_commit(
            events.TaskReplayed,
            (
                events.TaskReplayed(
                    task_id=str(row.pk), task=row.name, queue=row.queue, attempt=row.attempt, alias=alias, actor=actor
                )
                for row in rows
            ),
            using=alias,
        )
        done += [str(row.pk) for row in rows]
        gone = {str(key) for key in fit} - set(done)
        holders = _holders(alias, [key for public_id, key in keys.items() if public_id in gone])
        skipped += [(key, holders.get(keys.get(key, ""), "somebody else was faster")) for key in sorted(gone)]
    return _one_or_many(ids, Changed(ids=tuple(done), skipped=tuple(skipped)))


def _holders(alias: str, keys: Sequence[str]) -> dict[str, str]:
    """Return for each unique key that a live task holds a sentence that says so."""
    if not keys:
        return {}
    return {
        key: f"task {uuid.UUID(int=holder.id)} has its unique key {key!r}; replay it when that one has ended"
        for key, holder in vendor_for(alias).holders(keys).items()
    }


def _is_known(name: str) -> bool:
    try:
        return definitions.find(name) is not None
    except Exception:
        # A module that cannot be imported here is no reason to refuse: a worker may be able to.
        return True


def discard(
    ids: str | uuid.UUID | Iterable[Any], *, actor: str = "", reason: str = "", alias: str | None = None
) -> Changed:
    """
    Give dead tasks up for good: they stay dead and readable, but leave the list of dead letters.

    A discarded task can still be replayed by its id. Raise TaskNotFound for a single unknown id.
    """
    alias = _alias(alias)
    now = clock.now()
    done: list[str] = []
    skipped: list[tuple[str, str]] = []
    for part in _chunks(ids):
        rows = _rows(alias, part, skipped)
        dead = [row for row in rows if row.state == State.DEAD and getattr(row, "resolved_at", None) is None]
        changed = set(store.discard(alias, [row.pk for row in dead], now=now))
        for row in rows:
            if row.pk not in changed:
                skipped.append((str(row.pk), "only dead tasks that were not discarded before can be discarded"))
        ended = [row for row in dead if row.pk in changed]
        if ended:
            store.audit(alias, actor=actor, action="discard", now=now, reason=reason, rows=ended)
        events.emit_on_commit(
            events.TaskDiscarded,
            (
                events.TaskDiscarded(
                    task_id=str(row.pk), task=row.name, queue=row.queue, attempt=row.attempt, alias=alias, actor=actor
                )
                for row in ended
            ),
            using=alias,
        )
        done += [str(row.pk) for row in ended]
    return _one_or_many(ids, Changed(ids=tuple(done), skipped=tuple(skipped)))


def kill(
    ids: str | uuid.UUID | Iterable[Any], *, actor: str = "", reason: str = "", alias: str | None = None
) -> Changed:
    """
    Move waiting tasks to the dead letters, where they can be looked at and replayed.

    Running tasks are skipped: cancel them. Raise TaskNotFound for a single unknown id.
    """
    alias = _alias(alias)
    now = clock.now()
    done: list[str] = []
    skipped: list[tuple[str, str]] = []
    for part in _chunks(ids):
        rows = _rows(alias, part, skipped)
        fit = [row for row in rows if not isinstance(row, FinishedTask) and row.state != State.RUNNING]
        work = partial(
            end_waiting,
            alias,
            [row.pk for row in fit],
            state=State.DEAD,
            now=now,
            reason=DeadReason.MOVED,
            error_line=reason[:300] or None,
        )
        ended = workflows.end_members(
            alias, {row.workflow_id for row in fit if row.workflow_id is not None}, work, now=now
        )
        done += [str(row.pk) for row in ended]
        skipped += [(str(row.pk), "running or ended") for row in rows if str(row.pk) not in set(done)]
        if ended:
            store.audit(alias, actor=actor, action="kill", now=now, reason=reason, rows=ended)
        events.emit_on_commit(
            events.TaskDead,
            (
                events.TaskDead(
                    task_id=str(row.pk),
                    task=row.name,
                    queue=row.queue,
                    attempt=row.attempt,
                    alias=alias,
                    reason=DeadReason.MOVED.value,
                )
                for row in ended
            ),
            using=alias,
        )
    return _one_or_many(ids, Changed(ids=tuple(done), skipped=tuple(skipped)))


def forget_keys(keys: Sequence[str], *, actor: str = "", reason: str = "", alias: str | None = None) -> int:
    """
    Forget idempotency keys, as they are stored, before their time; return how many there were.

    The next enqueue with such a key stores a new task.
    """
    # Loaded by those who have keys.
    from django_taskq.store import keys as key_store

    alias = _alias(alias)
    now = clock.now()
    count = 0
    for key in keys:
        if key_store.delete(alias, [key]):
            count += 1
            store.audit(alias, actor=actor, action="forget", now=now, reason=reason, target=key)
    return count


def cancel_workflows(ids: Iterable[Any], *, actor: str = "", reason: str = "", alias: str | None = None) -> Changed:
    """
    Cancel chains, batches and workflows with all inside them.

    Those in which something still runs are among the ``asked``: they end when nothing in them runs.
    """
    alias = _alias(alias)
    done: list[str] = []
    asked: list[str] = []
    skipped: list[tuple[str, str]] = []
    for key in _workflows(alias, ids, skipped):
        if not workflows.cancel(key, actor=actor, reason=reason, alias=alias):
            skipped.append((str(key), "it has ended"))
            continue
        row = workflow_store.find(alias, key)
        (done if row is None or row.has_ended else asked).append(str(key))
    return Changed(ids=tuple(done), asked=tuple(asked), skipped=tuple(skipped))


def replay_workflows(
    ids: Iterable[Any],
    *,
    from_start: bool = False,
    attempts: int | None = None,
    actor: str = "",
    reason: str = "",
    alias: str | None = None,
) -> Changed:
    """
    Run again what did not succeed in chains, batches and workflows, and what waited for it.

    ``from_start``: run everything again. One that has not ended is skipped, and one that completed, but from the start.
    """
    alias = _alias(alias)
    done: list[str] = []
    skipped: list[tuple[str, str]] = []
    for key in _workflows(alias, ids, skipped):
        try:
            workflows.replay(key, from_start=from_start, attempts=attempts, actor=actor, reason=reason, alias=alias)
        except InvalidTransition as error:
            skipped.append((str(key), str(error)))
        else:
            done.append(str(key))
    return Changed(ids=tuple(done), skipped=tuple(skipped))


def _workflows(alias: str, ids: Iterable[Any], skipped: list[tuple[str, str]]) -> Iterator[uuid.UUID]:
    for public_id in ids:
        key = store.to_uuid(public_id)
        row = None if key is None else workflow_store.find(alias, key)
        if row is None:
            skipped.append((str(public_id), "not found"))
        else:
            yield row.pk
