"""
asyncio: one event loop in one thread, many coroutines.

A coroutine can be stopped at any ``await``: at its timeout, when it is
cancelled, and when the worker has to go.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections

from django_taskq import clock, events
from django_taskq.domain.outcomes import Interrupted
from django_taskq.domain.states import Ack
from django_taskq.lifecycle import definitions, execute
from django_taskq.lifecycle.context import Run
from django_taskq.lifecycle.settle import Ended
from django_taskq.store.rows import Claim
from django_taskq.worker.executors.base import Executor, Host, run_one
from django_taskq.worker.hygiene import tidy

__all__ = ["AsyncExecutor"]

_NO_OFFSET = timedelta(0)

logger = logging.getLogger("django_taskq")

_TIDY_SECONDS = 1.0


class AsyncExecutor(Executor):
    """Runs coroutine tasks on one event loop; plain functions, where it is the only executor, in the loop's threads."""

    can_stop_tasks = True

    def __init__(self, host: Host, slots: int) -> None:
        super().__init__(host, slots)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._line: deque[Claim] = deque()
        self._tasks: dict[Any, tuple[asyncio.Task[None], Run | None]] = {}
        self._running = 0
        self._idle = threading.Event()
        self._idle.set()
        self._tidied_at = time.monotonic()

    def start(self) -> None:
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._serve, name="taskq-asyncio", daemon=True)
        self._thread.start()
        self._ready.wait()

    def _serve(self) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        self._loop = loop
        loop.call_soon(self._ready.set)
        try:
            loop.run_forever()
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            connections.close_all()
            loop.close()

    def submit(self, claims: Sequence[Claim]) -> None:
        self._line.extend(claims)
        self._idle.clear()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._fill)

    def _fill(self) -> None:
        while self._line and self._running < self.slots:
            try:
                claim = self._line.popleft()
            except IndexError:
                break
            self._running += 1
            self.host.taken()
            task = asyncio.get_running_loop().create_task(self._run(claim))
            self._tasks[id(claim)] = (task, None)
            task.add_done_callback(lambda _, claim=claim: self._done(claim))  # type: ignore[misc]
        if not self._running and not self._line:
            self._idle.set()

    def _done(self, claim: Claim) -> None:
        self._tasks.pop(id(claim), None)
        self._running -= 1
        self._fill()

    async def _run(self, claim: Claim) -> None:
        host = self.host
        try:
            task = definitions.find(claim.name)
        except BaseException:
            # Its module cannot be imported, which the attempt itself has to tell.
            task = None
        if task is None or claim.ack == Ack.ATOMIC or not definitions.is_coroutine(task):
            await asyncio.to_thread(run_one, host, claim)
            return
        if not host.may_start(claim):
            host.ended(Ended(claim, Interrupted(started=False), None, clock.timestamp()))
            return
        found = execute.prepare(claim, host.options, host.alias, offset=getattr(host, "offset", _NO_OFFSET))
        if not isinstance(found, Run):
            host.ended(Ended(claim, found, None, clock.timestamp()))
            return
        current = asyncio.current_task()
        if current is not None:
            self._tasks[id(claim)] = (current, found)
        stopped = await self._tell_start(found)
        if stopped is None:
            outcome, error = await execute.acall(found)
        else:
            outcome, error = execute.outcome_of(found, stopped), stopped
        keep = found.behaviour.keep_result
        at = clock.timestamp()
        ended = Ended(claim, outcome, found.started, at, keep, error, found.cancelled, found.left_step)
        if claim.ack == Ack.NOW:
            settled = threading.Event()
            host.ended(ended, settled=settled)
            await asyncio.to_thread(settled.wait)
        else:
            host.ended(ended)
        await self._tidy(is_due=error is not None)

    async def _tidy(self, *, is_due: bool) -> None:
        """
        Close what coroutines left of broken or old connections, in the one thread that the ORM's async methods use.

        After a failure, and else once a second: the hop to that thread costs more than a small task. Last,
        since a cancellation may end it here without harm.
        """
        tick = time.monotonic()
        if is_due or tick - self._tidied_at > _TIDY_SECONDS:
            self._tidied_at = tick
            await sync_to_async(tidy)(drop_transactions=False)

    async def _tell_start(self, run: Run) -> BaseException | None:
        """Tell the host, away from the event loop if receivers listen; return the cancellation that came meanwhile."""
        if not events.wanted(events.TaskStarted):
            self.host.started(run)
            return None
        # A receiver may ask the database, which Django refuses in the thread of an event loop.
        telling = asyncio.ensure_future(asyncio.to_thread(self._started, run))
        stopped: BaseException | None = None
        while not telling.done():
            try:
                await asyncio.wait([telling])
            except asyncio.CancelledError as error:
                stopped = error
        telling.result()
        return stopped

    def _started(self, run: Run) -> None:
        try:
            self.host.started(run)
        finally:
            tidy(drop_transactions=True)

    def in_hand(self) -> int:
        return len(self._line) + self._running

    def take_back(self) -> list[Claim]:
        taken: list[Claim] = []
        while True:
            try:
                taken.append(self._line.popleft())
            except IndexError:
                return taken

    def cancel(self, run: Run) -> None:
        self._interrupt([run])

    def _interrupt(self, runs: Sequence[Run]) -> None:
        def stop() -> None:
            for run in runs:
                task, _ = self._tasks.get(id(run.claim), (None, None))
                if task is not None:
                    task.cancel()

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(stop)

    def stop(self, timeout: float) -> list[Run]:
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            return []
        until = time.monotonic() + timeout
        self._idle.wait(timeout)
        left = [run for _, run in list(self._tasks.values()) if run is not None]
        for run in left:
            run.interrupted = True
        self._interrupt(left)
        # A coroutine that swallows its cancellation gets one more second.
        self._idle.wait(max(until - time.monotonic(), 0) + 1.0)
        still = [run for _, run in list(self._tasks.values()) if run is not None]
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2.0)
        return still
