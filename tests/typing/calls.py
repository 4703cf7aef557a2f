"""
Read by mypy, never run. Each line that must be refused says with which code.

A line without such a comment must pass; ``assert_type`` holds the types.
"""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from django.tasks import TaskResult as CoreResult

from django_taskq import Exponential, Signature, Task, TaskContext, TaskResult, task


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
    send.enqueue_many([("a",), {"address": "b"}, send.s("c")])
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


async def async_calls() -> None:
    assert_type(await send.aenqueue("x"), TaskResult[bool])
    assert_type(await (await asend.aenqueue("x")).aget(), int)
    assert_type(await send.s("x").aenqueue(), TaskResult[bool])
    await asend.aenqueue(3)  # E: arg-type


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
