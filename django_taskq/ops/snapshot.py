"""How deep each queue is and who works on it, read from small tables only: registry, snapshots, heartbeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django_taskq import clock
from django_taskq.domain.pauses import PauseScope
from django_taskq.lifecycle.claim import parse_queues
from django_taskq.models import Pause, Queue, Snapshot, Worker
from django_taskq.store import pauses as pause_store

__all__ = ["QueueDepth", "is_stale", "listens_to", "queues", "workers"]

# The duty writes every ten seconds into the row of the minute.
FRESH = timedelta(minutes=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDepth:
    """
    One queue: its registry row, its newest depth (None before the first look), and how many workers serve it.

    ``pause`` is the one that stops it: that of everything where there is one, else its own.
    """

    queue: Queue
    depth: Snapshot | None
    workers: int
    now: datetime
    pause: Pause | None = None

    @property
    def oldest_ready(self) -> timedelta | None:
        """How long the first ready task could have run already."""
        if self.depth is None or self.depth.oldest_ready_at is None:
            return None
        return max(timedelta(0), self.now - self.depth.oldest_ready_at)

    @property
    def is_outdated(self) -> bool:
        """Whether no worker has looked lately, so that the numbers speak of the past."""
        return self.depth is None or self.now - self.depth.at > FRESH


def queues(
    alias: str, *, now: datetime | None = None, names: Sequence[str] | None = None, rows: Sequence[Queue] | None = None
) -> list[QueueDepth]:
    """
    Return the registered queues, or those named, in their order, in five queries at most.

    ``rows``: of these, which the caller has read.
    """
    now = now or clock.now()
    if rows is None:
        known = Queue.objects.using(alias).order_by("position", "name")
        rows = list(known if names is None else known.filter(name__in=list(names)))
    alive = [worker for worker in workers(alias) if not is_stale(worker, now)]
    depths = _newest(alias)
    paused = {
        pause.name: pause for pause in reversed(pause_store.in_force(alias, now)) if pause.scope != PauseScope.TASK
    }
    return [
        QueueDepth(
            queue=row,
            depth=depths.get(row.name),
            workers=sum(listens_to(worker, row.name) for worker in alive),
            now=now,
            # The pause of everything has no name.
            pause=paused.get("") or paused.get(row.name),
        )
        for row in rows
    ]


def _newest(alias: str) -> dict[str, Snapshot]:
    last = Snapshot.objects.using(alias).order_by("-at").values_list("at", flat=True).first()
    if last is None:
        return {}
    # One look writes all queues within seconds; a queue that is missing from it was gone.
    found = Snapshot.objects.using(alias).filter(at__gte=last - timedelta(minutes=1)).order_by("at")
    return {row.queue: row for row in found}


def workers(alias: str) -> list[Worker]:
    """Return the workers that were not declared dead, longest silent first."""
    return list(Worker.objects.using(alias).exclude(state=Worker.State.DEAD).order_by("beat_at"))


def is_stale(worker: Worker, now: datetime) -> bool:
    """Return whether a worker is dead, or has not beaten for longer than its lease."""
    return worker.state == Worker.State.DEAD or worker.beat_at < now - timedelta(seconds=worker.lease_seconds)


def listens_to(worker: Worker, queue: str) -> bool:
    """Return whether a worker claims from a queue. One that names no queues serves all."""
    if worker.state != Worker.State.ALIVE:
        return False
    try:
        named = [name for name, _ in parse_queues(worker.queues)]
    except ValueError:
        # The column holds 500 characters; a longer list is cut in the middle of a name.
        named = [part.rpartition(":")[0] or part for part in worker.queues.split(",")]
    return not named or queue in named
