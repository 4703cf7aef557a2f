"""
Store tasks that have keys: unique ones, and those with an idempotency key. Loaded by those who have such tasks.

Exact by the database alone: a unique index on the live tasks, a primary key on the keys that have
an expiry. An insert that meets a key stores nothing and breaks nothing, so the caller's
transaction stays usable. Times: insert; where that met a key, look who holds it; where nobody does
any more (it ended in between), insert again. Failure cases: whoever is killed in between has committed
either the row with its key or neither. Its surprise: on PostgreSQL and MariaDB an insert waits for
another one of the same key that is not committed yet, since only its end says who is first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from django_taskq import conf, events
from django_taskq.domain import payload
from django_taskq.domain.keys import arguments_digest, short_digest
from django_taskq.domain.states import State
from django_taskq.domain.transitions import initial_state
from django_taskq.domain.unique import Unique, is_freed_by_start, request_key
from django_taskq.domain.values import lean
from django_taskq.exceptions import DuplicateTask, IdempotencyConflict, InvalidOptions, StoreUnavailable
from django_taskq.lifecycle import definitions, forgo, wake
from django_taskq.lifecycle.enqueue import Stored, public_id
from django_taskq.models import IdempotencyKey
from django_taskq.store import keys as store
from django_taskq.store import tasks as task_store
from django_taskq.store.rows import NewTask
from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import Holder, Vendor

__all__ = ["Found", "Keyed", "adds_nothing", "check_call", "delayed", "insert", "keyed", "result_of"]

# How often a key may change hands between an insert and the look at who holds it.
_TURNS = 50
_DONE = {"replace": "replaced", "reschedule": "rescheduled"}


class Found(NamedTuple):
    """A task that was there already: its id as integer, the key, what was done, and when it was stored."""

    id: int
    key: str
    how: str
    created_at: datetime


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Keyed:
    """Tasks to store, with their keys. ``records`` are the keys with an expiry, by place: each key with its seconds."""

    task: Any
    name: str
    rows: list[NewTask]
    records: list[list[tuple[str, float]]]
    request: str | None
    fingerprint: str

    @property
    def unique(self) -> Unique | None:
        """The rule of the task."""
        return self.task.unique or None

    def key_at(self, at: int) -> str | None:
        """Return what makes two calls of one ``enqueue_many`` the same."""
        windows = [key for key, _ in self.records[at] if key != self.request]
        return self.rows[at].unique_key or (windows[0] if windows else None)


def delayed(task: Any, now: datetime) -> Any:
    """Return the definition with the delay that its rule gives a call that has none."""
    wait = task.unique.wait if task.unique else None
    if wait is None or task.run_after is not None:
        return task
    return task.using(run_after=now + (wait if isinstance(wait, timedelta) else timedelta(seconds=wait)))


def check_call(task: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise what an enqueue of this call would raise for its keys, whoever holds them."""
    if getattr(task, "unique", None):
        task.unique.stored_key(name, task.func, task.takes_context, args, kwargs)
    if getattr(task, "idempotency_key", None) is not None:
        arguments_digest(task.func, task.takes_context, args, kwargs)


def keyed(
    task: Any,
    name: str,
    rows: Sequence[NewTask],
    calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]],
    options: conf.Options,
) -> Keyed:
    """Return the rows with their keys. Raise InvalidOptions or InvalidPayload for a call that makes none."""
    unique: Unique | None = task.unique or None
    found = list(rows)
    records: list[list[tuple[str, float]]] = [[] for _ in rows]
    request, fingerprint = None, ""
    if task.idempotency_key is not None:
        if len(rows) != 1:
            raise InvalidOptions(
                f"an idempotency_key belongs to one call, and enqueue_many got {len(rows)}; enqueue them one by one, "
                "each with its own key",
                field="idempotency_key",
                code="conflict",
            )
        request = request_key(task.idempotency_key)
        args, kwargs = calls[0]
        digest = arguments_digest(task.func, task.takes_context, args, kwargs)
        fingerprint = short_digest(f"{name}\n{digest}", 32)
        kept = task.idempotency_for if task.idempotency_for is not None else options.idempotency_for
        records[0].append((request, kept.total_seconds() if isinstance(kept, timedelta) else float(kept)))
    if unique is not None:
        for at, (args, kwargs) in enumerate(calls):
            key = unique.stored_key(name, task.func, task.takes_context, args, kwargs)
            if key is not None and unique.seconds is not None:
                records[at].append((key, unique.seconds))
            elif key is not None:
                found[at] = _with_key(found[at], key)
    return Keyed(task=task, name=name, rows=found, records=records, request=request, fingerprint=fingerprint)


def _with_key(row: NewTask, key: str) -> NewTask:
    options = row.options
    if is_freed_by_start(key):
        options = payload.encode_value({**(payload.decode_value(options) or {}), "frees_key": True}, limit=None)
    return row._replace(unique_key=key, options=options)


def adds_nothing(keyed: Keyed, alias: str, *, now: datetime) -> bool:
    """
    Return whether each call would only get a task that is there, or an error that names it.

    A look without locks: a key that is freed right after it still makes a task.
    """
    changes = keyed.unique is not None and keyed.unique.on_conflict in _DONE
    live = [] if changes else [row.unique_key for row in keyed.rows if row.unique_key is not None]
    held = {
        key
        for key, holder in (vendor_for(alias).holders(live) if live else {}).items()
        if holder.state != State.RUNNING or not is_freed_by_start(key)
    }
    timed = [key for records in keyed.records for key, _ in records]
    if timed:
        held |= store.held(alias, timed, now=now)
    return all(
        row.unique_key in held or any(key in held for key, _ in records)
        for row, records in zip(keyed.rows, keyed.records, strict=True)
    )


def insert(keyed: Keyed, stored: Stored, *, notify: bool) -> Stored:
    """
    Store what is not there yet, in the caller's transaction; return the ids of all, and which were found.

    Raise DuplicateTask or IdempotencyConflict; then nothing was stored, and the caller's transaction goes on.
    """
    vendor = vendor_for(stored.alias)
    found = vendor.retrying(lambda: _Insertion(vendor, keyed, stored.created_at).run())
    ids = [found[at].id if at in found else number for at, number in enumerate(stored.ids)]
    result = replace(stored, ids=ids, found=found)
    _tell(keyed, result, notify=notify)
    return result


def _tell(keyed: Keyed, stored: Stored, *, notify: bool) -> None:
    queue = keyed.task.queue_name
    if stored.state == State.READY and any(hit.how in ("replaced", "rescheduled") for hit in stored.found.values()):
        wake.after_commit(stored.alias, queue, ready=True, notify=notify)
    events.emit_on_commit(
        events.EnqueueDeduplicated,
        (
            events.EnqueueDeduplicated(
                task_id=public_id(hit.id), task=keyed.name, queue=queue, alias=stored.alias, key=hit.key, how=hit.how
            )
            for hit in stored.found.values()
        ),
        using=stored.alias,
    )


class _Insertion:
    """One try to store all of it. Values that change meanwhile live here, so that a repeated try starts afresh."""

    def __init__(self, vendor: Vendor, keyed: Keyed, now: datetime) -> None:
        self.vendor = vendor
        self.keyed = keyed
        self.rows = list(keyed.rows)
        self.now = now
        self.found: dict[int, Found] = {}

    def run(self) -> dict[int, Found]:
        followers = self._put_together()
        leaders = [at for at in range(len(self.rows)) if at not in followers]
        # By key, so that two that store the same keys never wait for each other crosswise.
        leaders.sort(key=lambda at: self.keyed.key_at(at) or "")
        is_whole = len(leaders) > 1 or any(self.keyed.records)
        with self.vendor.atomic() if is_whole else nullcontext():
            if self.keyed.request is not None:
                self._take_records(leaders, requests=True)
            self._take_records([at for at in leaders if at not in self.found], requests=False)
            missing = [at for at in leaders if at not in self.found]
            plain = [self.rows[at] for at in missing if self.rows[at].unique_key is None]
            if plain:
                self.vendor.insert(plain)
            self._insert_unique([at for at in missing if self.rows[at].unique_key is not None])
            self._point_records(leaders)
        for at, leader in followers.items():
            first = self.found.get(leader)
            key = self.keyed.key_at(at) or ""
            number = self.rows[leader].id if first is None else first.id
            created_at = self.now if first is None else first.created_at
            self.found[at] = Found(number, key, self._how, created_at)
        return dict(sorted(self.found.items()))

    @property
    def _how(self) -> str:
        unique = self.keyed.unique
        return _DONE.get(unique.on_conflict if unique else "", "returned")

    def _put_together(self) -> dict[int, int]:
        """Return the calls that have the key of an earlier one, each with the place of that one."""
        first: dict[str, int] = {}
        followers: dict[int, int] = {}
        unique = self.keyed.unique
        for at in range(len(self.rows)):
            key = self.keyed.key_at(at)
            if key is None or first.setdefault(key, at) == at:
                continue
            if unique is not None and unique.on_conflict == "raise":
                raise DuplicateTask(f"two calls of one enqueue_many have the unique key {key!r}", key=key)
            followers[at] = first[key]
            if unique is not None and unique.on_conflict == "replace":
                # The last word counts, as it would one by one.
                last = self.rows[at]
                self.rows[first[key]] = self.rows[first[key]]._replace(
                    args=last.args, limits=last.limits, fair_key=last.fair_key
                )
        return followers

    # Keys with an expiry

    def _take_records(self, leaders: Sequence[int], *, requests: bool) -> None:
        wanted = [
            store.Record(key, self.rows[at].id, self.keyed.fingerprint if requests else "", seconds)
            for at in leaders
            for key, seconds in self.keyed.records[at]
            if (key == self.keyed.request) == requests
        ]
        if not wanted:
            return
        taken = store.take(self.vendor.alias, wanted, now=self.now)
        for at in leaders:
            for key, _ in self.keyed.records[at]:
                if key in taken:
                    self._meet_record(at, taken[key])

    def _meet_record(self, at: int, record: IdempotencyKey) -> None:
        task_id, key = str(record.task_id), record.key
        if key == self.keyed.request:
            if record.fingerprint != self.keyed.fingerprint:
                raise IdempotencyConflict(
                    f"the idempotency key {key!r} was used for task {task_id}, with another task or other arguments; "
                    f"it is kept until {record.expires_at}",
                    key=key,
                    task_id=task_id,
                )
        elif self.keyed.unique is not None and self.keyed.unique.on_conflict == "raise":
            raise DuplicateTask(
                f"task {task_id} has the unique key {key!r} until {record.expires_at}", key=key, task_id=task_id
            )
        self.found[at] = Found(record.task_id.int, key, "returned", record.created_at)

    def _point_records(self, leaders: Sequence[int]) -> None:
        """Let keys that were taken for a task which is not stored lead to the one that is there."""
        for at in leaders:
            hit = self.found.get(at)
            for key, _ in self.keyed.records[at]:
                if hit is not None and hit.key != key:
                    store.point(self.vendor.alias, key, owner=self.rows[at].id, to=hit.id)

    # Keys of live tasks

    def _insert_unique(self, missing: Sequence[int]) -> None:
        for turn in range(_TURNS):
            if not missing:
                return
            made = self.vendor.insert_unique([self.rows[at] for at in missing])
            missing = [at for at in missing if self.rows[at].id not in made]
            if missing:
                # What is done to a holder is done while it is locked.
                with self.vendor.atomic():
                    missing = self._meet_holders(missing, turn)
        raise StoreUnavailable(
            f"the unique key {self.rows[missing[0]].unique_key!r} changed hands {_TURNS} times in a row"
        )

    def _meet_holders(self, missing: Sequence[int], turn: int) -> list[int]:
        """Do what the rule says with those who hold the keys; return the calls whose holder is gone."""
        unique = self.keyed.unique
        assert unique is not None
        changes = unique.on_conflict in ("replace", "reschedule")
        # A worker must not start a task that waits before our transaction, which counts on it, commits. A look
        # without a lock may be at a snapshot in which an old holder still lives, so the second look has one.
        lock: Literal["share", "update"] | None
        lock = "update" if changes else "share" if unique.until == "started" or turn else None
        holders = self.vendor.holders([self.rows[at].unique_key or "" for at in missing], lock=lock)
        rest: list[int] = []
        for at in missing:
            row = self.rows[at]
            holder = holders.get(row.unique_key or "")
            if holder is None:
                rest.append(at)
            elif holder.state == State.RUNNING and unique.until == "started":
                # Claimed by a worker of a release that does not free keys.
                store.free(self.vendor.alias, holder.id)
                rest.append(at)
            else:
                self._meet_holder(at, holder, unique)
        return rest

    def _meet_holder(self, at: int, holder: Holder, unique: Unique) -> None:
        row = self.rows[at]
        task_id, key = public_id(holder.id), row.unique_key or ""
        is_running = holder.state == State.RUNNING
        if unique.on_conflict == "raise" or (is_running and unique.on_conflict != "return"):
            what = f", and runs, so it cannot be {self._how}" if is_running and unique.on_conflict != "raise" else ""
            raise DuplicateTask(f"task {task_id} has the unique key {key!r}{what}", key=key, task_id=task_id)
        if row.limits is not None and unique.on_conflict in ("replace", "reschedule"):
            promised = store.promised_to(self.vendor.alias, holder)
            forgo.after_commit(self.vendor.alias, {} if promised is None else {promised: 1})
        if unique.on_conflict == "replace":
            store.replace(self.vendor.alias, holder, row)
        elif unique.on_conflict == "reschedule":
            store.reschedule(self.vendor.alias, holder, self._in_time(row, holder, unique))
        self.found[at] = Found(holder.id, key, self._how, holder.created_at)

    def _in_time(self, row: NewTask, holder: Holder, unique: Unique) -> NewTask:
        """Return the row with a time that is not later than the rule's longest wait allows."""
        if unique.max_wait is None or row.run_after is None:
            return row
        most = unique.max_wait if isinstance(unique.max_wait, timedelta) else timedelta(seconds=unique.max_wait)
        run_after = min(row.run_after, holder.created_at + most)
        return row._replace(run_after=run_after, state=int(initial_state(run_after, now=self.now)))


def result_of(
    task: Any, args: Sequence[Any], kwargs: dict[str, Any], found: Found, *, stored: Stored, backend: str
) -> Any:
    """
    Return the result of a task that was there already, as it is now.

    Of a task that is gone, because its result was kept for a shorter time than its key, only what is known is shown.
    """
    from django_taskq.lifecycle.results import new_result, result_of_row

    row = task_store.find(stored.alias, public_id(found.id))
    if row is None:
        result = new_result(task, public_id(found.id), args, kwargs, backend=backend, enqueued_at=found.created_at)
    else:
        if row.name != definitions.stored_name(task):
            # Another task's, which shares the key.
            task = definitions.find(row.name) or task
        attempts = task_store.attempts_of(stored.alias, row.pk) if row.attempt else []
        result = result_of_row(row, task, attempts, backend=backend)
    object.__setattr__(result, "is_duplicate", True)
    return result
