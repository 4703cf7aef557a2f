"""
Ask the limits: which claimed tasks may start, which are put aside, who comes next when one has ended.

Protocol. A task's row names the keys of its limits. Claiming, the worker locks the limits' rows in key
order, counts those it starts, and parks the others; all in the claim's transaction. Settling,
it locks the same rows in the same order, gives the slots back, and sends as many parked tasks
back to their queue; all in the settling transaction. So a slot is held exactly as long as a
lease, however the task ends: a rescue settles, too. The lock orders park against release: a task
is never parked behind the back of the last one that could release it. A task that is sent back carries the
key of the limit that has room for it; whoever starts it, parks it elsewhere or ends it gives that promise back.
What is missed all the same (a promise nobody claims, a bound that is raised) is looked at when ``next_at`` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django_taskq import clock, conf
from django_taskq.domain.limits import Limitation, Room, is_rate, is_shared, key_of, matched, queue_of
from django_taskq.domain.parking import counted, is_paused_type, paused_type_key, promised_key
from django_taskq.lifecycle import definitions, wake
from django_taskq.store import limits as store
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import Vendor

__all__ = ["Gate", "declared", "forgo", "reconcile", "release", "release_due"]

# How many limits one transaction looks at.
CHUNK = 200
_CACHED_MOST = 20_000
# How many tasks of a resumed type one look sends back.
_RESUMED_MOST = 1000
# When the next look follows one that left some of them.
_RESUMED_SECONDS = 0.05
# How long after its end what an operator set is kept in mind: our clock may be ahead of the database's.
_SET_SECONDS = 300


def declared(options: conf.Options) -> dict[str, Limitation]:
    """Return the limits of queues and of everything that the settings have, by their keys."""
    found: dict[str, Limitation] = {}
    for name, shared in (("all", options), *((f"queue:{name}", own) for name, own in options.queues.items())):
        for kind in ("concurrency", "rate"):
            limit = getattr(shared, kind)
            if limit is not None:
                found[key_of(kind, name)] = limit
    return found


class Gate:
    """What one claimer knows of limits: those of queues, the code's, and which task types are paused."""

    def __init__(self, alias: str, options: conf.Options) -> None:
        self.alias = alias
        self._vendor = vendor_for(alias)
        self._options = options
        self._declared = declared(options)
        self._set_until: dict[str, datetime | None] = {}
        self._shared: dict[str | None, list[str]] = {}
        self._matched: dict[tuple[str, str], list[tuple[str, Limitation | None]]] = {}
        self._moment = clock.now
        self.paused_types: Collection[str] = ()
        self.opens_at: datetime | None = None
        self._opened: set[str] = set()

    def refresh(self, paused_types: Collection[str]) -> None:
        """Look again at the limits of queues and of everything, which operators may have set."""
        self.paused_types = paused_types
        over = clock.now() - timedelta(seconds=_SET_SECONDS)
        # Not all that have a row: what the settings gave up, and nobody set, holds nobody.
        self._set_until = {room.key: room.set_until for room in store.shared(self.alias) if room.is_set(over)}
        self._shared = {}
        for key in sorted({*self._declared, *self._set_until}):
            self._shared.setdefault(queue_of(key), []).append(key)

    def _keys_of(self, queue: str, now: datetime) -> list[str]:
        """Return the limits that hold for all tasks of a queue now, in the order of their locks."""
        keys = (*self._shared.get(None, ()), *self._shared.get(queue, ()))
        return [key for key in keys if key in self._declared or (until := self._set_until[key]) is None or until > now]

    def guards(self, queue: str) -> bool:
        """Return whether all claims of a queue have to pass here, whatever its tasks say."""
        return bool(self._shared.get(None) or self._shared.get(queue) or self.paused_types)

    def claim(
        self, take: Callable[..., list[Claim]], queue: str, limit: int, *, look: int = 0, now: datetime, read_at: float
    ) -> tuple[list[Claim], list[Claim]]:
        """
        Claim by ``take(count, slots=…)`` and return all that were claimed, and up to ``limit`` that may start.

        The others are parked. ``look``: how many to look at where many have to be parked; what could start and is too
        much stays ready. One transaction; it is begun anew where the database reports a conflict. ``read_at``: when
        ``now`` was read, by ``clock.elapsed``.
        """
        self._moment = partial(_moment, now, read_at)
        found = self._vendor.retrying(lambda: self._claim(take, queue, limit, look))
        for opened in sorted(self._opened):
            wake.after_commit(self.alias, opened, ready=True, notify=self._options.notify)
        return found

    def _claim(
        self, take: Callable[..., list[Claim]], queue: str, limit: int, look: int
    ) -> tuple[list[Claim], list[Claim]]:
        keys = self._keys_of(queue, self._moment())
        self._opened = set()
        with self._vendor.atomic():
            rooms = store.locked(self._vendor, keys, make=True)
            # Somebody may have had the rows for long. A bucket from which a start was taken as of before that would
            # bring it again: what it could not hold any more meanwhile.
            now = self._moment()
            for key, room in rooms.items():
                room.declare(self._declared.get(key), now)
            # What was reset since we looked is bounded by nobody, and not counted.
            keys = [key for key in keys if key in self._declared or rooms[key].is_set(now)]
            limit = min([limit, *(rooms[key].free(now) for key in keys)])
            if limit <= 0:
                self._wait_for([rooms[key] for key in keys], now)
                store.write_back(self._vendor, rooms.values())
                return [], []
            claims = take(max(look, limit), slots="\n".join(keys) or None)
            marked = [(claim.key, promised_key(claim.slots)) for claim in claims if claim.slots is not None]
            promised = {number: key for number, key in marked if key is not None}
            if promised:
                claims = [_without_promise(claim) if claim.key in promised else claim for claim in claims]
            started = self._admit(claims, promised, rooms, len(keys), limit)
            for key in keys:
                rooms[key].take(len(started))
            store.write_back(self._vendor, rooms.values())
        return claims, started

    def _wait_for(self, rooms: Iterable[Room], now: datetime) -> None:
        """Take note of what keeps a whole queue from being served, and of when that may change."""
        for room in rooms:
            if room.free(now) > 0:
                continue
            # Told by whoever gives a slot back, or when what an operator set is over.
            room.waits = not room.is_rate
            if room.waits and room.is_set(now):
                room.plan(now)
            opens_at = room.opens_at(now)
            if opens_at is not None:
                self.opens_at = opens_at if self.opens_at is None else min(self.opens_at, opens_at)

    def _admit(
        self, claims: Sequence[Claim], promised: Mapping[Any, str], rooms: dict[str, Room], skip: int, limit: int
    ) -> list[Claim]:
        """Return up to ``limit`` claims that may start, and park the others."""
        wanted: list[tuple[Claim, list[tuple[str, Limitation | None]]]] = []
        own: set[str] = set()
        for claim in claims:
            needs = self._needs(claim, skip)
            wanted.append((claim, needs))
            own.update([key for key, _ in needs])
        if own:
            rooms.update(store.locked(self._vendor, own, make=True))
        now = self._moment()
        started: list[Claim] = []
        parked: list[tuple[Claim, str | None]] = []
        for claim, needs in wanted:
            full = self._full(claim, needs, rooms, now)
            if full is not None or len(started) >= limit:
                parked.append((claim, full))
                continue
            for key, _ in needs:
                rooms[key].take()
            started.append(claim)
            if claim.key in promised:
                rooms[promised[claim.key]].forgo()
        if parked:
            self._park(parked, promised, rooms, now)
        self._vendor.free_keys(started)
        return started

    def _needs(self, claim: Claim, skip: int) -> list[tuple[str, Limitation | None]]:
        if claim.slots is None:
            return []
        found = self._matched.get((claim.name, claim.slots))
        if found is None:
            keys = claim.slots.split("\n")[skip:]
            found = matched(_limits_of(claim.name), keys) if keys else []
            if len(self._matched) >= _CACHED_MOST:
                self._matched.clear()
            self._matched[claim.name, claim.slots] = found
        return found

    def _full(
        self, claim: Claim, needs: Sequence[tuple[str, Limitation | None]], rooms: Mapping[str, Room], now: datetime
    ) -> str | None:
        """Return the key that a claim has to wait for, None if it may start."""
        for key, limit in needs:
            rooms[key].declare(limit, now)
        # Not run but ended at once: it must not wait for its turn to be cancelled.
        if claim.cancel:
            return None
        if claim.name in self.paused_types:
            return paused_type_key(claim.name)
        for key, limit in needs:
            room = rooms[key]
            # Neither the code nor an operator knows this limit any more.
            if limit is None and not room.is_set(now):
                continue
            if room.free(now, limit) <= 0:
                return key
        return None

    def _park(
        self,
        parked: Sequence[tuple[Claim, str | None]],
        promised: Mapping[Any, str],
        rooms: dict[str, Room],
        now: datetime,
    ) -> None:
        keys = {key for _, key in parked if key is not None}
        missing = keys - rooms.keys()
        if missing:
            # Of paused types; they sort behind all others, so the order of locks is kept.
            rooms.update(store.locked(self._vendor, missing, make=True))
        for key in keys:
            rooms[key].waits = True
        forgone = [(promised[claim.key], key) for claim, key in parked if key is not None and claim.key in promised]
        for key, _ in forgone:
            rooms[key].forgo()
        for key in keys | {key for key, _ in forgone}:
            rooms[key].plan(now)
        self._vendor.park(
            [(claim, key, None if key is not None else promised.get(claim.key)) for claim, key in parked],
            lease=parked[0][0].lease,
        )
        self._offer([(key, full) for key, full in forgone if key != full], rooms, now)

    def _offer(self, forgone: Sequence[tuple[str, str]], rooms: Mapping[str, Room], now: datetime) -> None:
        """
        Release others in place of tasks that had to wait for another limit.

        Only such as do not need that other limit, or they would follow one by one, and come back the same way.
        """
        for key, full in forgone:
            room = rooms[key]
            if not room.releasable(now):
                continue
            queue = store.release_without(self._vendor, key, full)
            if queue is not None:
                room.promise(1, now)
                room.plan(now)
                self._opened.add(queue)


def _without_promise(claim: Claim) -> Claim:
    return claim._replace(slots="\n".join(counted(claim.slots or "")) or None)


def _moment(now: datetime, read_at: float) -> datetime:
    """Return the present moment by a clock that showed ``now`` when ``clock.elapsed`` was ``read_at``."""
    return now + timedelta(seconds=clock.elapsed() - read_at)


def _limits_of(name: str) -> Sequence[Limitation]:
    try:
        task = definitions.find(name)
    except BaseException:  # noqa: BLE001 - a module may do anything when it is imported, exit included
        # Told by the attempt itself, in a slot.
        return ()
    return tuple(getattr(task, "limits", None) or ())


def release(vendor: Vendor, ended: Iterable[tuple[str, bool]], *, now: datetime) -> list[str]:
    """
    Give back the slots of tasks that were settled: (slots, whether it had begun); return the queues to wake.

    In the settling transaction. Of a rate only the starts of tasks that never began are given back.
    """
    counts: Counter[str] = Counter()
    for slots, has_begun in ended:
        counts.update([key for key in counted(slots) if not has_begun or not is_rate(key)])
    if not counts:
        return []
    rooms = store.locked(vendor, counts)
    wanted: list[tuple[str, int]] = []
    queues: set[str] = set()
    for key, room in rooms.items():
        room.give_back(counts[key])
        if not room.waits:
            continue
        if is_shared(key):
            room.waits = False
            queues.add(queue_of(key) or wake.ALL)
        elif count := room.releasable(now):
            wanted.append((key, count))
    queues.update(_send_back(vendor, wanted, rooms, now))
    store.write_back(vendor, rooms.values())
    return sorted(queues)


def _send_back(
    vendor: Vendor, wanted: Sequence[tuple[str, int]], rooms: Mapping[str, Room], now: datetime
) -> list[str]:
    """Make parked tasks ready, and take note of it in their limits; return the queue of each."""
    if not wanted:
        return []
    told = vendor.unpark(wanted)
    counts = Counter(key for key, _ in told)
    for key, count in wanted:
        room = rooms[key]
        if not is_paused_type(key):
            room.promise(counts[key], now)
        # Fewer than asked for: nobody is left, or somebody has them under lock, who may let them go as they are.
        room.waits = counts[key] >= count or store.has_parked(vendor.alias, key)
        room.plan(now)
        if is_paused_type(key) and counts[key] >= count:
            room.next_at = now + timedelta(seconds=_RESUMED_SECONDS)
    return [queue for _, queue in told]


def forgo(alias: str, promised: Mapping[str, int], *, now: datetime) -> list[str]:
    """
    Give back the promises of released tasks that nobody will claim; return the queues to wake.

    Others are released in their place. In a transaction of its own, since limits are locked for short times only.
    """
    vendor = vendor_for(alias)

    def work() -> list[str]:
        with vendor.atomic():
            rooms = store.locked(vendor, promised)
            wanted: list[tuple[str, int]] = []
            for key, room in rooms.items():
                room.forgo(promised[key])
                if count := room.releasable(now):
                    wanted.append((key, count))
                else:
                    room.plan(now)
            told = _send_back(vendor, wanted, rooms, now)
            store.write_back(vendor, rooms.values())
        return sorted(set(told))

    return vendor.retrying(work)


def release_due(alias: str, now: datetime, *, paused_types: Collection[str] = ()) -> list[str]:
    """
    Send back what may start now of the limits that have to be looked at; return the queues of those tasks.

    Done by one worker, as the net below ``release`` and the clock of the rates.
    """
    vendor = vendor_for(alias)
    queues: list[str] = []
    while keys := store.due(alias, now, CHUNK):
        told = vendor.retrying(lambda keys=keys: _release_keys(vendor, keys, now, paused_types))  # type: ignore[misc]
        queues += told
        if len(keys) < CHUNK:
            break
    return queues


def _release_keys(vendor: Vendor, keys: Sequence[str], now: datetime, paused_types: Collection[str]) -> list[str]:
    with vendor.atomic():
        rooms = store.locked(vendor, keys)
        wanted: list[tuple[str, int]] = []
        opened: list[str] = []
        for key, room in rooms.items():
            if is_paused_type(key):
                count = 0 if key in {paused_type_key(name) for name in paused_types} else _RESUMED_MOST
            elif is_shared(key):
                # Nothing is parked on it: its tasks stay ready, and their workers have to look again.
                count = 0
                if room.waits and room.free(now) > 0:
                    room.waits = False
                    opened.append(queue_of(key) or wake.ALL)
            else:
                count = room.releasable(now)
            if count:
                wanted.append((key, count))
            else:
                room.plan(now)
        told = [*opened, *_send_back(vendor, wanted, rooms, now)]
        store.write_back(vendor, rooms.values())
    return told


def reconcile(alias: str, *, now: datetime) -> int:
    """
    Compare the counters of limits with the tasks themselves, and mend what differs; return how many did.

    Nothing of ours lets them differ; a row that somebody deleted by hand does.
    """
    vendor = vendor_for(alias)
    parked = set(store.parked_keys(alias))
    keys = sorted({*store.suspicious(alias), *parked})
    count = 0
    for start in range(0, len(keys), CHUNK):
        part = keys[start : start + CHUNK]
        count += vendor.retrying(lambda part=part: _reconcile_keys(vendor, part, parked, now))  # type: ignore[misc]
    return count


def _reconcile_keys(vendor: Vendor, keys: Sequence[str], parked: Collection[str], now: datetime) -> int:
    count = 0
    with vendor.atomic():
        rooms = store.locked(vendor, keys, make=True)
        held = store.held_by_key(vendor.alias, [key for key in keys if not is_rate(key)])
        for key, room in rooms.items():
            differs = False
            if key in held and room.held != held[key]:
                room.held, differs = held[key], True
            if not is_shared(key) and room.waits != (key in parked):
                # Asked again under the lock: whoever parks or releases a task of this key waits for us.
                has_parked = store.has_parked(vendor.alias, key)
                differs = differs or (has_parked and not room.waits)
                room.waits = has_parked
            room.plan(now)
            count += differs
        store.write_back(vendor, rooms.values())
    return count
