"""The tasks of the guarantee tests. They leave proof in memory, in the database, or in a file."""

import asyncio
import os
import threading
import time
from collections import defaultdict
from typing import Any

from django.db import IntegrityError, transaction

from django_taskq import Cancel, Fixed, GiveUp, Retry, Snooze, task
from tests.app.models import Effect

#: What ran in this process, in order.
ran: list[Any] = []
#: Events that tasks of this process wait for, or set, by name.
gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)


def forget() -> None:
    """Begin a test with nothing run and all gates shut."""
    ran.clear()
    gates.clear()


@task
def note(key: Any = None) -> Any:
    """Leave proof in this process."""
    ran.append(key)
    return key


@task(takes_context=True)
def note_attempt(context: Any, key: Any = None) -> int:
    """Leave the number of the attempt."""
    ran.append((key, context.attempt))
    return context.attempt


@task(backoff=Fixed(0))
def fail(key: Any = None) -> None:
    """Fail each time."""
    ran.append(key)
    raise ValueError(f"no luck with {key}")


@task(backoff=Fixed(0), takes_context=True)
def fail_until(context: Any, attempt: int, key: Any = None) -> int:
    """Fail until the attempt of this number."""
    ran.append((key, context.attempt))
    if context.attempt < attempt:
        raise ValueError(f"attempt {context.attempt} of {key}")
    return context.attempt


@task
def fail_slowly(key: Any = None) -> None:
    """Fail, with the backoff of the settings."""
    ran.append(key)
    raise ValueError("again later")


@task(takes_context=True)
def pause(context: Any, key: str, seconds: float = 30.0) -> bool:
    """Tell that it runs, then wait for its gate; ends early when it is cancelled."""
    ran.append(key)
    gates[f"{key} runs"].set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if gates[key].wait(0.01):
            return True
        context.raise_if_cancelled()
    return False


@task
def pause_deaf(key: str, seconds: float = 30.0) -> bool:
    """Tell that it runs, then wait for its gate; hears nothing else."""
    ran.append(key)
    gates[f"{key} runs"].set()
    return gates[key].wait(seconds)


@task
async def pause_async(key: str, seconds: float = 30.0) -> str:
    """Tell that it runs, then wait in the event loop."""
    ran.append(key)
    gates[f"{key} runs"].set()
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        gates[f"{key} stopped"].set()
        raise
    return key


@task(takes_context=True)
def effect_once(context: Any, key: str) -> bool:
    """Do something once, however often it is delivered: the key is unique. Return whether this attempt did it."""
    ran.append(key)
    try:
        with transaction.atomic():
            Effect.objects.create(key=key, task_id=context.task_id)
    except IntegrityError:
        return False
    return True


@task(ack="atomic", takes_context=True, backoff=Fixed(0))
def atomic_effect(context: Any, key: str, fail_first: int = 0) -> None:
    """Leave an effect in the transaction that settles; fail in the first attempts, after the effect."""
    ran.append(key)
    Effect.objects.create(key=f"{key} {context.attempt}", task_id=context.task_id)
    gates[f"{key} wrote"].set()
    if context.attempt <= fail_first:
        raise ValueError("after the effect")


@task(takes_context=True)
def append(context: Any, path: str, key: Any = None, seconds: float = 0.0) -> None:
    """Append a line to a file, whole or not at all; then work for a while."""
    write_line(path, f"start {context.task_id} {context.attempt} {os.getpid()} {time.time()}")
    if seconds:
        time.sleep(seconds)
        write_line(path, f"end {context.task_id} {context.attempt} {os.getpid()} {time.time()}")


def write_line(path: str, line: str) -> None:
    """Append one line with one system call, so that lines of several processes do not mix."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


@task
def snooze(seconds: float) -> None:
    """Put itself off, each time."""
    ran.append("snooze")
    raise Snooze(seconds)


@task(takes_context=True)
def retry_in(context: Any, seconds: float | None = None) -> int:
    """Ask for one retry."""
    ran.append(context.attempt)
    if context.attempt == 1:
        raise Retry("asked for", delay=seconds)
    return context.attempt


@task
def give_up() -> None:
    """Give up."""
    raise GiveUp("there is no such customer")


@task
def cancel_itself() -> None:
    """End as cancelled."""
    raise Cancel("not needed any more")


@task(max_attempts=1)
def return_this(value: Any) -> Any:
    """Return the argument."""
    return value
