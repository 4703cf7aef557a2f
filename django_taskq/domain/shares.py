"""
Divide what is to be had by weight: how many tasks of each queue the next batch takes.

Stride scheduling (Waldspurger and Weihl, 1995): whoever has the lowest pass is next, and each
task moves its queue's pass on by 1 / weight. Its surprise: an empty queue saves nothing up. Its
pass goes along with those that are served, so its return costs nobody more than its share.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping

__all__ = ["Shares"]


class Shares:
    """The passes of some queues with weights. Used by one thread."""

    def __init__(self, weights: Mapping[str, int], draw: Callable[[], float]) -> None:
        self._weights = dict(weights)
        # Each starts somewhere within its first stride: else the heaviest would be first in every
        # worker that starts, and a light queue last in all of them.
        self._passes = {name: draw() / weight for name, weight in self._weights.items()}

    def divide(self, count: int, among: Iterable[str]) -> dict[str, int]:
        """Return how many of ``count`` tasks each queue is to give, the first in turn first; none gives none."""
        line = [(self._passes[name], name) for name in among]
        if len(line) < 2:
            return {name: count for _, name in line if count > 0}
        heapq.heapify(line)
        found: dict[str, int] = {}
        for _ in range(count):
            at, name = line[0]
            found[name] = found.get(name, 0) + 1
            heapq.heapreplace(line, (at + 1.0 / self._weights[name], name))
        return found

    def took(self, name: str, count: int) -> None:
        """Count what a queue gave."""
        self._passes[name] += count / self._weights[name]

    def keep_up(self, waiting: Iterable[str]) -> None:
        """Take the passes of all queues but these, which may have more to give, along with theirs."""
        level = min(map(self._passes.__getitem__, waiting), default=None)
        if level is None:
            level = max(self._passes.values())
        self._passes = {name: max(at, level) for name, at in self._passes.items()}
