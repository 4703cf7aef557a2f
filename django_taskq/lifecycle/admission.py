"""
May new tasks be stored just now? Asked before anything is.

Two rules can say no: a pause that refuses new tasks, and the depth bound of a
queue. A process keeps a copy of what it saw and looks again after a while, so
that an enqueue costs nothing for them as a rule. That is the surprise: the
first refusal may come a second late, and a bound may be overshot a little.
Work that was accepted once is never asked: retries, members of workflows, the ticks of schedules, replays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from django.core.signals import setting_changed
from django.db import connections
from django.dispatch import receiver

from django_taskq import conf
from django_taskq.domain.pauses import PauseScope
from django_taskq.domain.states import State
from django_taskq.exceptions import EnqueuePaused, QueueFull
from django_taskq.models import Pause
from django_taskq.store import depths
from django_taskq.store import pauses as store
from django_taskq.store.vendors import vendor_for

if TYPE_CHECKING:
    from django_taskq.lifecycle.enqueue import Withdrawal

__all__ = ["Bounds", "check_pauses", "find_room", "forget"]

RECHECK_SECONDS = 1.0
# How long what was counted is believed, and how long it is where the queue was full.
LOOK_SECONDS = 0.1
FULL_SECONDS = 0.02
# Which part of the room that was seen one process may fill before it looks again.
SHARE = 32
# How long FULL_POLICY "block" waits where the task has no enqueue_timeout.
BLOCK_SECONDS = 10.0
_WAIT_FIRST, _WAIT_MOST = 0.02, 0.25


# Pauses


class _Copy(NamedTuple):
    """The pauses of a database that may refuse something, and when they were looked at."""

    at: float
    pauses: tuple[Pause, ...]


_copies: dict[str, _Copy] = {}


def forget(alias: str) -> None:
    """Look at the pauses again with the next enqueue of this process, and once more after the commit."""
    connection = connections[alias]
    _copies.pop(alias, None)
    if connection.in_atomic_block:
        connection.on_commit(lambda: _copies.pop(alias, None), robust=True)


def check_pauses(alias: str, wanted: Collection[tuple[str, str]], options: conf.Options) -> None:
    """
    Raise EnqueuePaused if a pause refuses one of these (task name, queue).

    A pause of another process is known a second later; a resume at once, since nothing is refused by a copy.
    """
    tick = time.monotonic()
    copy = _copies.get(alias)
    is_fresh = copy is None or tick - copy.at >= RECHECK_SECONDS
    if copy is None or is_fresh:
        copy = _look(alias, tick)
    refusal = _refusal(copy.pauses, wanted, options)
    if refusal is not None and not is_fresh:
        refusal = _refusal(_look(alias, tick).pauses, wanted, options)
    if refusal is not None:
        scope = PauseScope(refusal.scope).name.lower()
        raise EnqueuePaused(scope, refusal.name, refusal.reason, refusal.paused_by, refusal.until)


def _look(alias: str, tick: float) -> _Copy:
    found = store.refusing(alias)
    if any(pause.until is not None for pause in found):
        # The database's clock is asked only where there is something to judge by it.
        now = vendor_for(alias).now()
        found = [pause for pause in found if not pause.is_over(now)]
    copy = _copies[alias] = _Copy(tick, tuple(found))
    return copy


def _refusal(pauses: Iterable[Pause], wanted: Iterable[tuple[str, str]], options: conf.Options) -> Pause | None:
    for pause in pauses:
        if any(_refuses(pause, name, queue, options) for name, queue in wanted):
            return pause
    return None


def _refuses(pause: Pause, name: str, queue: str, options: conf.Options) -> bool:
    if pause.scope == PauseScope.QUEUE and pause.name != queue:
        return False
    if pause.scope == PauseScope.TASK and pause.name != name:
        return False
    if pause.rejects is None:
        rule = options.queues.get(queue)
        return rule is not None and rule.reject_when_paused
    return pause.rejects


# Depth bounds


class _Seen:
    """What a process saw of a queue: the room, when, and how many it may still add without another look."""

    __slots__ = ("at", "depth", "left", "room")

    def __init__(self, depth: int, room: int, at: float, left: int) -> None:
        self.depth = depth
        self.room = room
        self.at = at
        self.left = left


class Bounds:
    """
    What one process knows of how full the queues are. May be used by many threads.

    After a look with so much room, this process adds at most a part of it (``SHARE``), and for no longer than
    ``LOOK_SECONDS``, before it looks again; near the bound it looks each time. So each process that adds at
    the same time overshoots a bound by at most that part of it, or by one task or batch.
    """

    def __init__(self, count: Callable[[str, str, int], int] | None = None) -> None:
        self._count = count or count_ready
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._lock = threading.Lock()

    def take(self, alias: str, queue: str, count: int, bound: int, *, remembers_full: bool = True) -> int | None:
        """
        Return None if ``count`` more tasks fit, else how deep the queue is.

        ``remembers_full``: without another look, if it was full a moment ago.
        """
        key = (alias, queue)
        tick = time.monotonic()
        with self._lock:
            seen = self._seen.get(key)
            if seen is not None and seen.left >= count and tick - seen.at < LOOK_SECONDS:
                seen.left -= count
                return None
            if remembers_full and seen is not None and seen.room < count and tick - seen.at < FULL_SECONDS:
                return seen.depth
        depth = self._count(alias, queue, bound + 1)
        room = max(bound - depth, 0)
        fits = count <= room
        left = max(room // SHARE, 1) - count if fits else 0
        with self._lock:
            self._seen[key] = _Seen(depth, room, tick, max(left, 0))
        return None if fits else depth

    def forget(self) -> None:
        """Look again with the next enqueue."""
        with self._lock:
            self._seen.clear()


def count_ready(alias: str, queue: str, cap: int) -> int:
    """
    Count the tasks of a queue that could run now, at most ``cap``: ready, and scheduled ones that are due.

    Reads at most so many entries of an index, twice.
    """
    vendor = vendor_for(alias)
    ready = vendor.depth(queue, State.READY, cap=cap)
    # Parked tasks do not count: no index leads to those of one queue.
    return ready if ready >= cap else ready + depths.due(alias, queue, now=vendor.now(), cap=cap - ready)


bounds = Bounds()


@receiver(setting_changed)
def _reset(*, setting: str, **kwargs: Any) -> None:
    if setting in ("TASKQ", "TASKS"):
        bounds.forget()


def find_room(
    task: Any, alias: str, queue: str, count: int, rule: conf.QueueOptions, withdrawal: Withdrawal | None
) -> QueueFull | None:
    """
    Return None once ``count`` tasks fit into a queue with a bound, the refusal where they are to be dropped.

    Raise QueueFull as FULL_POLICY says: at once, or after waiting. In a transaction it never waits:
    what it holds locked may be what the workers need, and it may not see what they do.
    """
    bound = rule.max_ready
    if bound is None:
        return None
    in_transaction = connections[alias].in_atomic_block
    # Each transaction sees a queue of its own; that of a test is gone with it.
    depth = bounds.take(alias, queue, count, bound, remembers_full=not in_transaction)
    if depth is None:
        return None
    if rule.full_policy == "block" and count <= bound and not in_transaction:
        depth = _wait_for_room(task, alias, queue, count, bound, withdrawal)
        if depth is None:
            return None
    refusal = QueueFull(queue, depth, bound, count)
    if rule.full_policy == "drop":
        return refusal
    raise refusal


def _wait_for_room(
    task: Any, alias: str, queue: str, count: int, bound: int, withdrawal: Withdrawal | None
) -> int | None:
    limit = getattr(task, "enqueue_timeout", None)
    seconds = BLOCK_SECONDS if limit is None else limit.total_seconds() if isinstance(limit, timedelta) else limit
    until = time.monotonic() + seconds
    pause = _WAIT_FIRST
    while True:
        left = until - time.monotonic()
        time.sleep(max(min(pause, left), 0))
        if withdrawal is not None:
            withdrawal.check()
        depth = bounds.take(alias, queue, count, bound)
        if depth is None or left <= pause:
            return depth
        pause = min(pause * 1.5, _WAIT_MOST)
