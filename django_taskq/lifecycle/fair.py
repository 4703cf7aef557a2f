"""
Claim from one queue in turns over the fair keys of its tasks, as one worker sees them.

The keys with ready tasks stand in a ring; the next claim begins behind the one served last, and
each key gives its part of the batch. The ring is listed anew every 250 ms, or when all in it had
less than their part. Its surprise: the tasks without a key are one more in the ring, but no index
has them apart from the others (a second one would cost every plain task in every queue). So they
are looked for, a few thousand tasks at a time, and claimed between where they were seen.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django_taskq.lifecycle.passed_over import PassedOver
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import Vendor

__all__ = ["Turns"]

# None stands for the tasks without a key.
Key = str | None

_LIST_SECONDS = 0.25
# So many keys are listed at least, so that small claims need no listing each.
_LISTED_LEAST = 32
# So many tasks are looked through at a time for one without a key: 10 ms of work.
_LOOKED_THROUGH = 10_000
# Over so many such parts one claim goes, where others have taken what was in them.
_PARTS_MOST = 3
# Looking from the beginning again, for what came in between, takes at most a fiftieth of the time.
_LOOK_SHARE = 50


class Turns:
    """The turns of one queue. Used by one thread."""

    def __init__(self, vendor: Vendor, queue: str) -> None:
        self.queue = queue
        self._vendor = vendor
        self._ring: list[Key] = []
        self._served = ""
        # Behind which task each key goes on: the scan is resumed, as that of a whole queue is.
        self._behind: dict[str, tuple[int, Any]] = {}
        self._is_whole = False
        self._is_new = True
        self._listed_until = 0.0
        self._unkeyed = _Unkeyed(vendor, queue)
        self._passed_over = PassedOver(vendor, queue)

    @property
    def passes_over(self) -> bool:
        """Whether tasks with limits wait in the queue, which a claim that is not ``limited`` passes over."""
        return self._passed_over.found

    def claim(
        self, limit: int, *, lease: int, now: datetime, limited: bool = False, slots: str | None = None
    ) -> list[Claim]:
        """
        Take up to ``limit`` ready tasks, as many of each key as of any other, one of each at a time.

        What a key has too few of is shared by the others. Two callers never get the same task;
        ``limited`` and ``slots`` are those of ``Vendor.claim``.
        """
        given: dict[str, Any] = {"lease": lease, "now": now, "limited": limited, "slots": slots}
        taken: list[Claim] = []
        # How much was taken when the ring was listed in here.
        listed_at: int | None = None
        if time.monotonic() >= self._listed_until:
            self._ring = []
        while len(taken) < limit:
            if not self._ring:
                # All keys had less than their part, or those listed had nothing: the rest is in others' hands.
                if listed_at is not None and (self._is_whole or listed_at == len(taken)):
                    break
                self._list(limit - len(taken))
                listed_at = len(taken)
                if not self._ring:
                    break
            taken += self._round(limit - len(taken), given)
        if len(taken) < limit:
            # Nobody has more than the others could want: whatever is left, whosever it is, may go.
            taken += self._vendor.claim(self.queue, limit - len(taken), **given)
        return taken

    def _round(self, limit: int, given: dict[str, Any]) -> list[Claim]:
        """Claim once from the next keys of the ring, and turn it behind the one served last."""
        ring = self._ring
        # With more keys than are listed, each is served once, and then come those behind them.
        each, more = divmod(limit if self._is_whole else min(limit, len(ring)), len(ring))
        shares = [(key, each + (at < more)) for at, key in enumerate(ring) if each or at < more]
        keyed = [(key, count) for key, count in shares if key is not None]
        found: dict[Key, list[Claim]] = {}
        if keyed:
            found.update(self._vendor.claim_fair(self.queue, keyed, after=self._behind, **given))
        for key, count in shares:
            if key is None:
                found[key] = self._unkeyed.claim(count, given)
        turned = more if self._is_whole else len(shares)
        if turned:
            self._served = ring[turned - 1] or ""
        # Who had too few is left out until the next listing.
        short = {key for key, count in shares if len(found.get(key, ())) < count}
        if short and not given["limited"]:
            self._passed_over.ask()
        for key, _ in keyed:
            if key not in short:
                last = found[key][-1]
                self._behind[key] = last.rank, last.key
        ahead, behind = ring[turned:], ring[:turned] if self._is_whole else []
        self._ring = [key for key in (*ahead, *behind) if key not in short]
        return list(_one_of_each(found.get(key, []) for key, _ in shares))

    def _list(self, limit: int) -> None:
        most = max(limit, _LISTED_LEAST)
        # The place of the tasks without a key is at the beginning, before all keys.
        keys = self._vendor.fair_keys(self.queue, after=self._served, limit=most)
        ring: list[Key] = list(keys)
        self._is_whole = len(keys) < most
        if self._is_whole:
            if self._unkeyed.look():
                ring.append(None)
            if self._served:
                seen = set(keys)
                first = self._vendor.fair_keys(self.queue, after="", limit=most)
                ring += [key for key in first if key not in seen]
                self._is_whole = len(first) < most
        if self._is_new and ring:
            # Else all workers that start would begin with the same key.
            at = random.randrange(len(ring))
            ring = ring[at:] + ring[:at]
            self._is_new = False
        self._ring = ring
        self._behind.clear()
        self._listed_until = time.monotonic() + _LIST_SECONDS


class _Unkeyed:
    """Where in the queue its tasks without a fair key are."""

    def __init__(self, vendor: Vendor, queue: str) -> None:
        self._vendor = vendor
        self._queue = queue
        self._first: tuple[int, Any] | None = None
        self._last: tuple[int, Any] | None = None
        self._again_at = 0.0
        self._took = 0.0

    def look(self) -> bool:
        """Look at the next part of the queue where none is known of; return whether one is."""
        if self._first is None:
            began = time.monotonic()
            if began >= self._again_at:
                # Retries, delayed and more urgent tasks come in before the place where the look is.
                self._last = None
                self._again_at, self._took = began + _LIST_SECONDS, 0.0
            first, last = self._vendor.unkeyed(self._queue, after=self._last, size=_LOOKED_THROUGH)
            self._first = first
            self._last = last or self._last
            self._took += time.monotonic() - began
            self._again_at = max(self._again_at, began + self._took * _LOOK_SHARE)
        return self._first is not None

    def claim(self, limit: int, given: dict[str, Any]) -> list[Claim]:
        """Take up to ``limit`` of them, on into the next part if this one has too few."""
        taken: list[Claim] = []
        for _ in range(_PARTS_MOST):
            if not self.look():
                break
            assert self._first is not None
            assert self._last is not None
            rows = self._vendor.claim_between(
                self._queue, limit - len(taken), first=self._first, last=self._last, **given
            )
            taken += rows
            if len(taken) == limit:
                self._first = rows[-1].rank, rows[-1].key
                break
            self._first = None
        return taken


def _one_of_each(lists: Iterable[list[Claim]]) -> Iterable[Claim]:
    """Return the first of each list, then the second of each, and so on: the order in which the worker starts them."""
    for row in itertools.zip_longest(*lists):
        yield from filter(None, row)
