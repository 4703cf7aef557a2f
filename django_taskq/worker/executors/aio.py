"""
asyncio: one event loop in one thread, many coroutines.

A coroutine can be stopped at any ``await``: at its timeout, when it is
cancelled, and when the worker has to go.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from queue import SimpleQueue
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections

from django_taskq import clock, events
from django_taskq.domain.outcomes import Interrupted, Outcome
from django_taskq.domain.states import Ack
from django_taskq.lifecycle import definitions, execute
from django_taskq.lifecycle.context import Run
from django_taskq.lifecycle.settle import Ended
from django_taskq.store.rows import Claim
from django_taskq.worker.executors.base import Executor, Host, run_guarded, run_one
from django_taskq.worker.hygiene import close_idle, tidy

__all__ = ["AsyncExecutor"]

_NO_OFFSET = timedelta(0)

logger = logging.getLogger("django_taskq")

_TIDY_SECONDS = 1.0
# How long the end of the loop waits for the thread of the ORM's async methods.
_LEAVE_SECONDS = 1.0
# As many as asyncio.to_thread has.
_MOST_THREADS = min(32, (os.cpu_count() or 1) + 4)


class _Threads:
    """
    Threads for plain functions, made as they are needed. Used by the event loop's thread.

    Daemons, unlike those of ``asyncio.to_thread``: a function that never returns must not keep a stopped worker's
    process alive.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._made = 0
        # Without those whose functions were given up.
        self._count = 0
        self._busy = 0
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    async def run(self, work: Callable[[], None]) -> None:
        """Run ``work``, which raises nothing, in a thread; wait for one, and for its end. Cancelled, give it up."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def job() -> None:
            work()
            # Closed: the worker has gone.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        self._busy += 1
        if self._count < min(self._busy, self._most):
            self._count += 1
            self._made += 1
            threading.Thread(target=self._work, name=f"taskq-plain-{self._made}", daemon=True).start()
        self._jobs.put(job)
        try:
            await done.wait()
        except asyncio.CancelledError:
            self._count -= 1
            raise
        finally:
            self._busy -= 1

    def _work(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job()
        finally:
            connections.close_all()

    def close(self) -> None:
        """Let the threads end, each after what it runs."""
        for _ in range(self._made):
            self._jobs.put(None)


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
        self._has_run = False
        self._threads = _Threads(min(slots, _MOST_THREADS))

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
            loop.run_until_complete(self._leave())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            self._threads.close()
            connections.close_all()
            loop.close()

    async def _leave(self) -> None:
        """
        Close what coroutines opened in the one thread that the ORM's async methods use: that thread stays.

        Where something of a task still keeps that thread busy it is left.
        """
        if self._has_run:
            await asyncio.wait([asyncio.ensure_future(sync_to_async(close_idle)())], timeout=_LEAVE_SECONDS)

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
            # Once more: a claim may have come between the last look at the line and the word that it is empty.
            self._idle.clear()
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
            await self._threads.run(partial(run_guarded, partial(run_one, host), host, claim))
            return
        if not host.may_start(claim):
            host.ended(Ended(claim, Interrupted(started=False), None, clock.timestamp()))
            return
        found = execute.prepare(claim, host.options, host.alias, offset=getattr(host, "offset", _NO_OFFSET))
        if not isinstance(found, Run):
            host.ended(Ended(claim, found, None, clock.timestamp()))
            return
        self._has_run = True
        current = asyncio.current_task()
        if current is not None:
            self._tasks[id(claim)] = (current, found)
        may_run, stopped = await self._tell_start(found)
        if not may_run:
            host.ended(Ended(claim, Interrupted(started=False), None, clock.timestamp()))
            return
        outcome, error = await self._call(found, stopped)
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

    async def _call(self, run: Run, stopped: BaseException | None) -> tuple[Outcome, BaseException | None]:
        """Call the coroutine, unless it was cancelled before, and return an outcome whatever happens."""
        try:
            if stopped is None:
                return await execute.acall(run)
            return execute.outcome_of(run, stopped), stopped
        except BaseException as error:
            # Nothing a task does gets past ``acall``; should something, the task must not run in the books for ever.
            logger.exception("Running task %s failed outside of its function", run.claim.name)
            return execute.outcome_of(run, error), error

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

    async def _tell_start(self, run: Run) -> tuple[bool, BaseException | None]:
        """
        Tell the host, away from the event loop if receivers listen.

        Return whether the task may run, and the cancellation that came meanwhile.
        """
        if not events.wanted(events.TaskStarted):
            return self.host.started(run), None
        # A receiver may ask the database, which Django refuses in the thread of an event loop.
        telling = asyncio.ensure_future(asyncio.to_thread(self._started, run))
        stopped: BaseException | None = None
        while not telling.done():
            try:
                await asyncio.wait([telling])
            except asyncio.CancelledError as error:
                stopped = error
        return telling.result(), stopped

    def _started(self, run: Run) -> bool:
        try:
            return self.host.started(run)
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
                task, begun = self._tasks.get(id(run.claim), (None, None))
                # Not a function in a thread: that would run on, and its slot be given away.
                if task is not None and begun is not None:
                    task.cancel()

        if self._loop is not None:
            # Closed by who stops the executor just now.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(stop)

    def abandon(self, run: Run) -> bool:
        """Give up on a plain function, which runs on in its thread. A coroutine was cancelled, and is waited for."""
        task, begun = self._tasks.get(id(run.claim), (None, None))
        if self._loop is None or task is None or begun is not None:
            return False
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(task.cancel)
        return True

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
