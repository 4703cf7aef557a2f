"""The tasks of the tests of uniqueness: what they are the same by is in their definitions."""

from __future__ import annotations

import time
from typing import Any

from django_taskq import Concurrency, Fixed, Unique, debounce, task, throttle
from tests.app.models import Effect
from tests.guarantees.tasks import ran, write_line


@task(unique=Unique(key="order:{order_id}"))
def charge(order_id: int, note: str = "") -> str:
    """Hold its key as long as it is live."""
    ran.append((order_id, note))
    return note


@task(unique=True)
def by_arguments(*args: Any, **kwargs: Any) -> None:
    """Be the same with the same arguments."""


@task(unique=Unique(key="{key}"), backoff=Fixed(0), max_attempts=2)
def fail_with_key(key: str) -> None:
    """Fail each time."""
    raise ValueError(key)


@task(unique=Unique(key="{key}"), takes_context=True)
def work(context: Any, path: str, key: str, seconds: float = 0.0) -> None:
    """Leave a line in a file, then work."""
    write_line(path, f"start {context.task_id} {context.attempt}")
    time.sleep(seconds)


@task(unique=Unique(until="started", key="{index}"))
def reindex(index: str, version: int = 0) -> None:
    """Hold its key until it starts."""
    ran.append((index, version))


@task(unique=Unique(until="started", key="{index}"), limits=Concurrency(1))
def reindex_one_by_one(index: str) -> None:
    """Hold its key until it starts, for which it may have to wait."""
    ran.append(index)


@task(unique=debounce(10, key="{index}", max_wait=25))
def reindex_later(index: str, version: int = 0) -> None:
    """Run 10 seconds after the last call, and 25 after the first at the latest."""
    ran.append((index, version))


@task(unique=Unique(key="{index}", on_conflict="replace"))
def reindex_latest(index: str, version: int = 0) -> None:
    """Run with the arguments of the last call."""
    ran.append((index, version))


@task(
    unique=Unique(key="{index}", on_conflict="replace"),
    fair_key="{version}",
    limits=Concurrency(1, key="v:{version}"),
)
def reindex_by_version(index: str, version: int = 0) -> None:
    """Have a limit and a share by what is no part of the unique key."""
    ran.append((index, version))


@task(unique=throttle(60, key="{customer}"))
def remind(customer: str, text: str = "") -> None:
    """Be stored once a minute."""
    ran.append((customer, text))


@task
def pay(order_id: int, amount: int = 0) -> str:
    """Have keys only where a call gives one."""
    ran.append((order_id, amount))
    return f"paid {order_id}"


@task(takes_context=True, backoff=Fixed(0))
def pay_once(context: Any, order_id: int) -> bool:
    """Store a payment under the task's id: once, however often the task is delivered."""
    _, made = Effect.objects.get_or_create(key=f"payment-{context.task_id}")
    ran.append((order_id, context.attempt))
    return made


@task(takes_context=True, backoff=Fixed(0))
def double_in_steps(context: Any, key: str, number: int) -> None:
    """Double a number in one step, and fail behind it the first time."""
    ran.append(context.step("double", lambda: 2 * number))
    if context.attempt == 1:
        raise ValueError(key)
