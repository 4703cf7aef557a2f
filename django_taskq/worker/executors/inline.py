"""Inline: runs each claim in the thread that submits it. For drains and tests, where nothing may happen elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from django_taskq.lifecycle.context import Run
from django_taskq.store.rows import Claim
from django_taskq.worker.executors.base import Executor, run_one

__all__ = ["InlineExecutor"]


class InlineExecutor(Executor):
    """Runs tasks one after the other in the calling thread."""

    def start(self) -> None:
        """Nothing to make ready."""

    def submit(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self.host.taken()
            run_one(self.host, claim, own_thread=False)

    def in_hand(self) -> int:
        return 0

    def take_back(self) -> list[Claim]:
        return []

    def cancel(self, run: Run) -> None:
        """Nothing more than the request, which the task sees in its context."""

    def stop(self, timeout: float) -> list[Run]:
        return []
