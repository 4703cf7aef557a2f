"""
Streams of outcomes in this process: each subscriber gets all of them, in a bounded buffer of its own.

They listen to the events that say how a task ended, so nothing is paid while
nobody subscribes. Its surprise is ``drop="block"``: the thread that waits for a
subscriber is the one that settles, with tasks behind it that nobody else may
start. So it waits with a patience that is used up, and comes back with time:
at most ``timeout`` seconds at once, and no more than half of the time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django_taskq import events
from django_taskq.domain import payload
from django_taskq.exceptions import InvalidOptions, ResultNotReady

if TYPE_CHECKING:
    from typing import Self

__all__ = ["MOST_SECONDS", "POLICIES", "ResultStream", "TaskOutcome"]

POLICIES = ("newest", "oldest", "block")
# As long as a worker that leaves waits for what it has to write.
MOST_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutcome:
    """
    How a task ended. ``state`` is "succeeded", "dead" or "cancelled".

    ``reason`` says why a dead task died, ``error_class`` and ``error`` (one line) what it raised last.
    """

    task_id: str
    task: str
    queue: str
    state: str
    attempt: int
    alias: str
    reason: str = ""
    error_class: str = ""
    error: str = ""
    result: str | None = field(default=None, repr=False)

    @property
    def value(self) -> Any:
        """What the function returned. Raise ResultNotReady unless the task succeeded."""
        if self.state != "succeeded":
            raise ResultNotReady(
                f"task {self.task_id} is {self.state}: {self.error_class or self.reason or 'no error'}"
            )
        return payload.decode_value(self.result)


def _outcome(event: events.TaskEvent, state: str, **more: Any) -> TaskOutcome:
    return TaskOutcome(
        task_id=event.task_id,
        task=event.task,
        queue=event.queue,
        attempt=event.attempt,
        alias=event.alias,
        state=state,
        **more,
    )


class ResultStream:
    """
    The outcomes of the tasks that this process settles, from now on until it is closed.

    Iterate over it, also with ``async for``; or ``get`` one at a time. Each outcome goes to one
    of those who read the same stream. What is in the buffer can be read after ``close``.
    """

    def __init__(self, *, buffer: int = 1000, drop: str = "newest", timeout: float | timedelta = 1.0) -> None:
        self.buffer = buffer
        self.drop = drop
        self.timeout = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        self._check()
        self.dropped = 0
        """How many outcomes did not fit."""
        self._outcomes: deque[TaskOutcome] = deque()
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], object]] = []
        self._closed = False
        self._patience = self.timeout
        self._patience_at = time.monotonic()
        self._listeners: dict[type[events.Event], Callable[[Any], None]] = {
            events.TaskSucceeded: self._succeeded,
            events.TaskDead: self._dead,
            events.TaskCancelled: self._cancelled,
        }
        for kind, listener in self._listeners.items():
            events.subscribe(kind, listener)

    def _check(self) -> None:
        if type(self.buffer) is not int or self.buffer < 1:
            raise InvalidOptions(
                f"buffer must be a whole number above 0, got {self.buffer!r}", field="buffer", code="range"
            )
        if self.drop not in POLICIES:
            raise InvalidOptions(
                f"drop must be one of {', '.join(POLICIES)}, got {self.drop!r}", field="drop", code="choice"
            )
        if not 0 <= self.timeout <= MOST_SECONDS:
            raise InvalidOptions(
                f"timeout must be between 0 and {MOST_SECONDS:g} seconds, got {self.timeout!r}",
                field="timeout",
                code="range",
            )

    # Read

    def get(self, timeout: float | timedelta | None = None) -> TaskOutcome | None:
        """Return the next outcome; None if there was none for ``timeout`` seconds, or the stream ended."""
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        with self._changed:
            self._changed.wait_for(lambda: self._outcomes or self._closed, seconds)
            return self._take()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TaskOutcome:
        found = self.get()
        if found is None:
            raise StopIteration
        return found

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TaskOutcome:
        loop = asyncio.get_running_loop()
        while True:
            came = asyncio.Event()

            def wake(came: asyncio.Event = came) -> None:
                # A loop that was closed meanwhile waits for nothing.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(came.set)

            with self._changed:
                found = self._take()
                if found is not None:
                    return found
                if self._closed:
                    raise StopAsyncIteration
                self._wakers.append(wake)
            try:
                await came.wait()
            finally:
                with self._changed, suppress(ValueError):
                    self._wakers.remove(wake)

    def __len__(self) -> int:
        return len(self._outcomes)

    def __bool__(self) -> bool:
        # An empty stream is a stream.
        return True

    def close(self) -> None:
        """Take no more; wake everybody who waits. A second call changes nothing."""
        for kind, listener in self._listeners.items():
            events.unsubscribe(kind, listener)
        with self._changed:
            self._closed = True
            self._tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _take(self) -> TaskOutcome | None:
        if not self._outcomes:
            return None
        found = self._outcomes.popleft()
        self._changed.notify_all()
        return found

    # Write, in the threads that settle

    def _succeeded(self, event: events.TaskSucceeded) -> None:
        self._offer(_outcome(event, "succeeded", result=event.result))

    def _dead(self, event: events.TaskDead) -> None:
        error = event.error
        found = {} if error is None else {"error_class": error.class_path, "error": error.line}
        self._offer(_outcome(event, "dead", reason=event.reason, **found))

    def _cancelled(self, event: events.TaskCancelled) -> None:
        self._offer(_outcome(event, "cancelled"))

    def _offer(self, outcome: TaskOutcome) -> None:
        with self._changed:
            if self.drop == "block" and self._is_full():
                self._wait_for_room()
            if self._closed:
                return
            is_full = self._is_full()
            if is_full:
                self.dropped += 1
            if is_full and self.drop == "oldest":
                self._outcomes.popleft()
            if not is_full or self.drop == "oldest":
                self._outcomes.append(outcome)
                self._tell()
        if is_full and events.wanted(events.ResultsDropped):
            events.emit(events.ResultsDropped(count=1))

    def _is_full(self) -> bool:
        return not self._closed and len(self._outcomes) >= self.buffer

    def _wait_for_room(self) -> None:
        began = time.monotonic()
        self._patience = min(self.timeout, self._patience + began - self._patience_at)
        self._changed.wait_for(lambda: not self._is_full(), self._patience)
        self._patience_at = time.monotonic()
        self._patience = max(0.0, self._patience - (self._patience_at - began))

    def _tell(self) -> None:
        self._changed.notify_all()
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()
