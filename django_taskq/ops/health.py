"""Is everything in order? A few cheap questions, each with its answer and a level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from django.db import Error, connections
from django.db.migrations.executor import MigrationExecutor

from django_taskq import clock
from django_taskq.domain.states import State
from django_taskq.lifecycle.databases import options_for
from django_taskq.models import Duty, FinishedTask
from django_taskq.ops import snapshot, stats
from django_taskq.ops.explain import duration
from django_taskq.store.vendors.literal import Literal

__all__ = ["Finding", "Level", "Limits", "check"]

# How much over a limit is bad, not only worth a look.
FAR = 10
# Each duty says at least every ten seconds that it ran, prune every minute.
_DUTY_LATE = {"promote": 60, "rescue": 60, "snapshot": 120, "prune": 600, "reconcile": 600}


class Level(IntEnum):
    """How bad a finding is; also the exit code of ``taskq health``."""

    OK = 0
    DEGRADED = 1
    BAD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The answer to one question."""

    check: str
    level: Level
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """From where on something is worth a look; ten times as much is bad."""

    oldest: timedelta = timedelta(minutes=5)
    dead: int = 100
    queues: Sequence[str] | None = None


def check(alias: str, limits: Limits, *, now: datetime | None = None) -> list[Finding]:
    """Return one finding per question. A database that does not answer is one bad finding, and the last."""
    now = now or clock.now()
    found: list[Finding] = []
    questions: tuple[Callable[[str, Limits, datetime], Iterator[Finding]], ...] = (
        _migrations,
        _workers,
        _oldest,
        _dead,
        _duties,
    )
    try:
        for question in questions:
            found += question(alias, limits, now)
    except Error as error:
        found.append(
            Finding(check="database", level=Level.BAD, message=f"{alias} did not answer: {type(error).__name__}")
        )
    else:
        found.insert(0, Finding(check="database", level=Level.OK, message=f"{alias} answers"))
    return found


def _finding(name: str, level: Level, message: str) -> Iterator[Finding]:
    yield Finding(check=name, level=level, message=message)


def _migrations(alias: str, limits: Limits, now: datetime) -> Iterator[Finding]:
    executor = MigrationExecutor(connections[alias])
    targets = [node for node in executor.loader.graph.leaf_nodes() if node[0] == "django_taskq"]
    missing = [migration.name for migration, _backwards in executor.migration_plan(targets)]
    if missing:
        return _finding("migrations", Level.BAD, f"not applied: {', '.join(missing)}")
    return _finding("migrations", Level.OK, "all are applied")


def _workers(alias: str, limits: Limits, now: datetime) -> Iterator[Finding]:
    known = snapshot.workers(alias)
    alive = [worker for worker in known if not snapshot.is_stale(worker, now)]
    silent = len(known) - len(alive)
    if not alive:
        waits = any(_is_waiting(found) for found in _figures(alias, limits, now))
        text = "none is alive, and tasks are ready" if waits else "none is alive"
        return _finding("workers", Level.BAD if waits else Level.DEGRADED, text)
    if silent:
        return _finding("workers", Level.DEGRADED, f"{len(alive)} alive, {silent} silent for longer than the lease")
    return _finding("workers", Level.OK, f"{len(alive)} alive")


def _figures(alias: str, limits: Limits, now: datetime) -> list[stats.QueueFigures]:
    return stats.figures(alias, window=timedelta(0), now=now, names=limits.queues)


def _is_waiting(found: stats.QueueFigures) -> bool:
    return found.ready > 0 and not found.paused


def _oldest(alias: str, limits: Limits, now: datetime) -> Iterator[Finding]:
    waiting = [
        (found.oldest_ready, found.queue)
        for found in _figures(alias, limits, now)
        if _is_waiting(found) and found.oldest_ready is not None
    ]
    late = sorted((pair for pair in waiting if pair[0] > limits.oldest), reverse=True)
    if not late:
        return _finding("oldest", Level.OK, f"no ready task waits longer than {duration(limits.oldest)}")
    age, queue = late[0]
    level = Level.BAD if age > limits.oldest * FAR else Level.DEGRADED
    return _finding(
        "oldest", level, f"{queue}: the oldest ready task waits {duration(age)} (limit {duration(limits.oldest)})"
    )


def _dead(alias: str, limits: Limits, now: datetime) -> Iterator[Finding]:
    letters = FinishedTask.objects.using(alias).filter(state=Literal(State.DEAD), resolved_at__isnull=True)
    if limits.queues is not None:
        letters = letters.filter(queue__in=list(limits.queues))
    cap = limits.dead * FAR + 1
    count = len(letters.order_by().values_list("pk")[:cap])
    shown = f"more than {count - 1}" if count == cap else str(count)
    level = Level.OK if count <= limits.dead else Level.BAD if count == cap else Level.DEGRADED
    return _finding("dead", level, f"{shown} dead letters (limit {limits.dead})")


def _duties(alias: str, limits: Limits, now: datetime) -> Iterator[Finding]:
    rows = {row.name: row for row in Duty.objects.using(alias).all()}
    wrong: list[str] = []
    # The rescue runs twice a heartbeat, however long that is.
    patience = {**_DUTY_LATE, "rescue": max(_DUTY_LATE["rescue"], options_for(alias).heartbeat_seconds * 2)}
    for name, seconds in patience.items():
        row = rows.get(name)
        if row is None or row.ran_at is None:
            wrong.append(f"{name} has never run")
        elif now - row.ran_at > timedelta(seconds=seconds):
            wrong.append(f"{name} ran {duration(now - row.ran_at)} ago")
        elif row.error:
            wrong.append(f"{name} failed: {row.error}")
    if wrong:
        return _finding("duties", Level.DEGRADED, "; ".join(wrong))
    return _finding("duties", Level.OK, "all were done lately")
