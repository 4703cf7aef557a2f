"""
Read by mypy, never run. Each line that must be refused says with which code.

A line without such a comment must pass; ``assert_type`` holds the types.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, assert_type

from django.tasks import TaskResult as CoreResult

from django_taskq import (
    Exponential,
    Fixed,
    Signature,
    Task,
    TaskContext,
    TaskResult,
    batch,
    chain,
    enqueue_many,
    previous,
    schedule,
    task,
)
from django_taskq.api import EnqueuedTasks
from django_taskq.middleware import (
    EnqueueCall,
    fail_on,
    rate_limited,
    retry_policy,
    skip_when,
    within,
    without_overlapping,
)


@task
def send(address: str, copies: int = 1) -> bool:
    return bool(address) and copies > 0


@task(queue_name="email", max_attempts=5, backoff=Exponential(base=5), timeout=timedelta(seconds=30))
async def asend(address: str) -> int:
    return len(address)


@task(takes_context=True)
def told(context: TaskContext, number: int) -> str:
    return f"{context.attempt} {number}"


@task(takes_context=True)
async def atold(context: TaskContext, number: int) -> str:
    return f"{context.attempt} {number}"


@schedule(cron="0 3 * * *", timezone="Europe/Rome", kwargs={"address": "x"})
@task
def nightly(address: str) -> int:
    return len(address)


@schedule(cron=5)  # E: arg-type
@task
def never() -> None: ...


def scheduled_calls() -> None:
    assert_type(nightly.enqueue("x"), TaskResult[int])


def sync_calls() -> None:
    assert_type(send, Task[[str, int], bool])  # E: assert-type
    result = send.enqueue("x", 3)
    assert_type(result, TaskResult[bool])
    assert_type(result.get(timeout=1), bool)
    assert_type(result.return_value, bool)
    assert_type(result.wait(), TaskResult[bool])
    assert_type(result.state, str)
    assert_type(result.cancel(), bool)
    assert_type(send.get_result("id"), TaskResult[bool])
    assert_type(send.using(priority=3, delay=5).enqueue("x"), TaskResult[bool])
    assert_type(asend.enqueue("x").get(), int)
    assert_type(told.enqueue(3).get(), str)
    assert_type(atold.enqueue(3).get(), str)
    assert_type(send.s("x"), Signature[bool])
    assert_type(send.s("x").enqueue().get(), bool)
    many = send.enqueue_many([("a",), {"address": "b"}, send.s("c")])
    assert_type(many, EnqueuedTasks[bool])
    assert_type(many[0], TaskResult[bool])
    assert_type(many[1:], list[TaskResult[bool]])
    assert_type([result.get() for result in many], list[bool])
    assert_type(many.ids, list[str])
    assert_type(enqueue_many(asend, [("a",)])[0].get(), int)
    assert_type(send.call("x"), bool)
    assert_type(asend.call("x"), int)
    core: CoreResult[..., bool] = result
    print(core)

    task(max_attempts="5")  # E: call-overload
    send.enqueue("x", "3")  # E: arg-type
    send.enqueue()  # E: call-arg
    send.enqueue("x", colour="red")  # E: call-arg
    send.s(3)  # E: arg-type
    told.enqueue("3")  # E: arg-type
    told.enqueue()  # E: call-arg
    asend.enqueue(3)  # E: arg-type
    send.using(priority="high")  # E: arg-type
    send.using(prioritty=3)  # E: call-arg
    send.enqueue_many([asend.s("c")])  # E: list-item
    send.enqueue_many([3])  # E: list-item
    send.using(run_after="tomorrow")  # E: arg-type
    send.using(delay=timedelta(1), run_after=datetime(2030, 1, 1, tzinfo=UTC), metadata={"user": 3})
    send.using(middleware=[])  # E: call-arg
    send.s("x").using(priority=3).enqueue()
    number: int = send.enqueue("x").return_value
    text: str = send.enqueue("x").return_value  # E: assignment
    print(number, text)


async def async_calls() -> None:
    assert_type(await send.aenqueue("x"), TaskResult[bool])
    assert_type(await (await asend.aenqueue("x")).aget(), int)
    assert_type(await send.s("x").aenqueue(), TaskResult[bool])
    assert_type((await send.aenqueue_many([("x",)]))[0], TaskResult[bool])
    assert_type(await asend.acall("x"), int)
    await asend.aenqueue(3)  # E: arg-type
    await asend.aenqueue()  # E: call-arg
    await atold.aenqueue("3")  # E: arg-type
    await send.s(3).aenqueue()  # E: arg-type


@task(takes_context=True)  # E: arg-type
def no_context(number: int) -> int:
    return number


async def fetch(url: str) -> bytes:
    return url.encode()


@task(takes_context=True)
def with_steps(context: TaskContext, path: str) -> int:
    return assert_type(context.step("count", len, path, atomic=True), int)


@task(takes_context=True)
async def with_async_steps(context: TaskContext, url: str) -> None:
    assert_type(await context.astep("fetch", fetch, url), bytes)
    assert_type(await context.astep("count", len, url), int)
    context.step(3, len, url)  # E: arg-type


@dataclass
class Order:
    number: int


@task(validate=True)
def ship(order: Order, *tags: str, mode: Literal["air", "sea"] = "sea", **days: int) -> Order:
    return order


@task(validate="signature", takes_context=True)
async def track(context: TaskContext, order: Order | None = None) -> list[Order]:
    assert_type(context.args, tuple[Any, ...])
    assert_type(context.name, str)
    return [] if order is None else [order]


def typed_calls(order: Order) -> None:
    assert_type(ship.enqueue(order, "a", "b", mode="air", due=3), TaskResult[Order])
    assert_type(track.enqueue(), TaskResult[list[Order]])
    assert_type(track.s(order), Signature[list[Order]])
    ship.enqueue({"number": 3})  # E: arg-type
    ship.enqueue(order, 3)  # E: arg-type
    ship.enqueue(order, mode="road")  # E: arg-type
    ship.enqueue(order, due="x")  # E: arg-type
    track.enqueue(order, order)  # E: call-arg
    task(validate="types")  # E: call-overload
    chain(ship.s(order), track.s(previous)).enqueue()
    batch([ship.s(order)]).then(track.s()).enqueue()
    chain(track.s(5))  # E: arg-type


def stamping(call: EnqueueCall, enqueue_next: Any) -> None:
    assert_type(call.metadata, dict[str, Any])
    call.using(metadata={**call.metadata, "tenant": "acme"})
    enqueue_next()


@within
@contextmanager
def as_tenant(context: TaskContext) -> Iterator[None]:
    yield


@task(
    middleware=[
        as_tenant,
        "shop.middleware.Timed",
        without_overlapping("import:{path}", ttl=timedelta(minutes=5), retry_in=10),
        skip_when(lambda context: context.attempt > 3),
        fail_on(KeyError, when=lambda error: bool(error.args)),
        rate_limited(lambda context: 5.0),
        retry_policy({ConnectionError: Fixed(5), KeyError: None, OSError: (3, 2)}, otherwise=Exponential()),
    ],
    enqueue_middleware=[stamping],
)
def import_file(path: str) -> int:
    return len(path)


def wrapped_calls() -> None:
    assert_type(import_file.enqueue("x").get(), int)
    import_file.enqueue(3)  # E: arg-type
    task(middleware=[3])  # E: list-item
    without_overlapping(3)  # E: arg-type
    fail_on("KeyError")  # E: arg-type
    retry_policy({"KeyError": 3})  # E: dict-item
