"""The tasks of the guarantee tests. They leave proof in memory, in the database, or in a file."""

import asyncio
import os
import threading
import time
from collections import Counter
from typing import Any

from django.db import IntegrityError, transaction

from django_taskq import Cancel, Concurrency, Fixed, GiveUp, Rate, Retry, Snooze, task
from django_taskq.middleware import rate_limited
from tests.app.models import Effect

#: What ran in this process, in order.
ran: list[Any] = []


class Gates(dict[str, threading.Event]):
    """Events by name, made by whichever thread asks first; all get the same one."""

    def __missing__(self, name: str) -> threading.Event:
        return self.setdefault(name, threading.Event())


#: Events that tasks of this process wait for, or set.
gates = Gates()


def forget() -> None:
    """Begin a test with nothing run and all gates shut."""
    ran.clear()
    gates.clear()
    running.clear()
    most.clear()


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
def nap(seconds: float) -> None:
    """Take its time, and hear nothing."""
    time.sleep(seconds)


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


def _span(path: str, key: Any, seconds: float) -> None:
    """
    Write a line when this begins and one when it ends, each in one write.

    By the one clock of the machine that all its processes share and that never jumps.
    """
    place = f"{key} {os.getpid()} {threading.get_native_id()}"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"begin {place} {time.monotonic():.6f}\n".encode())
        time.sleep(seconds)
        os.write(file, f"end {place} {time.monotonic():.6f}\n".encode())
    finally:
        os.close(file)


@task(limits=[Concurrency(3, key="span:{key}")], max_attempts=50)
def span(path: str, key: Any, seconds: float = 0.02) -> None:
    """Write when it ran, three of a key at once."""
    _span(path, key, seconds)


@task(max_attempts=50)
def free_span(path: str, key: Any, seconds: float = 0.02) -> None:
    """Write when it ran, within no limit of its own."""
    _span(path, key, seconds)


#: How many tasks of a key run just now in this process, and the most there ever were.
running: Counter[str] = Counter()
most: Counter[str] = Counter()
_counting = threading.Lock()


@task(limits=[Concurrency(2, key="pair:{key}")])
def two_at_once(key: str = "a", at: int = 0, seconds: float = 0.005) -> int:
    """Count how many of a key run at once."""
    with _counting:
        running[key] += 1
        most[key] = max(most[key], running[key])
    time.sleep(seconds)
    with _counting:
        running[key] -= 1
        ran.append(at)
    return at


@task(limits=Concurrency(1))
def one_at_once(key: Any = None) -> Any:
    """Leave proof; one of all of these runs at a time."""
    ran.append(key)
    return key


@task(limits=[Concurrency(1, key="deaf:{key}")])
def one_deaf(key: str) -> bool:
    """Do what pause_deaf does, one of a key at a time."""
    return bool(pause_deaf.func(key))


@task(limits=[Rate("10/m", burst=3)])
def ten_a_minute(key: Any = None) -> Any:
    """Leave proof, three at once and then one each six seconds."""
    ran.append(key)
    return key


@task(limits=[Concurrency(1, key="desk:{desk}"), Concurrency(1, key="room:{room}")])
def at_desk_in_room(desk: str, room: str) -> str:
    """Leave proof; one at a desk and one in a room at a time."""
    ran.append((desk, room))
    return f"{desk} {room}"


@task(limits=[Rate("60/m", burst=2, key="{account}"), Concurrency(1, key="{account}")], backoff=Fixed(0))
def paced(account: str, key: Any = None) -> Any:
    """Leave proof; two limits at once."""
    ran.append(key)
    if key == "fail":
        raise ValueError("no luck")
    return key


@task(limits=[Rate("1/m")], max_attempts=1)
def lowly(key: Any) -> Any:
    """Leave proof; the lowest of everything."""
    ran.append(key)
    if key == "fail":
        raise ValueError("no luck")
    return key


def _first_only(context: Any) -> bool | float:
    return 60.0 if ran else True


@task(limits=[Rate("60/m", burst=5, key="twice")], middleware=[rate_limited(_first_only)])
def twice_limited(key: Any) -> Any:
    """Leave proof, within a limit and within what a middleware lets through."""
    ran.append(key)
    return key


# Fair shares


@task(fair_key="{customer_id}")
def bill(customer_id: int, amount: int = 0) -> None:
    ran.append((customer_id, amount))


def _customer(customer_id: int, amount: int = 0) -> str | None:
    return f"customer {customer_id}" if customer_id else None


@task(fair_key=_customer)
def bill_some(customer_id: int, amount: int = 0) -> None:
    ran.append((customer_id, amount))
