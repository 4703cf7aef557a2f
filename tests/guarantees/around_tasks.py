"""Tasks with something around them, and what stands there."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django_taskq import Fixed, Snooze, task
from django_taskq.middleware import (
    EnqueueCall,
    fail_on,
    rate_limited,
    retry_policy,
    skip_when,
    within,
    without_overlapping,
)
from django_taskq.models import Lock
from tests.guarantees.tasks import gates, ran, write_line

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
#: What limiters and predicates of the tests answer, by name.
answers: dict[str, Any] = {}


def noting(name: str) -> Any:
    """Return a middleware that notes when it is entered and left."""

    def middleware(context: Any, call_next: Any) -> Any:
        ran.append(f"{name} in")
        try:
            return call_next()
        finally:
            ran.append(f"{name} out")

    return middleware


def outer(context: Any, call_next: Any) -> Any:
    """Stand in the settings."""
    ran.append("outer in")
    try:
        return call_next()
    finally:
        ran.append("outer out")


class Both:
    """Stand around functions of both kinds."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    def __call__(self, context: Any, call_next: Any) -> Any:
        ran.append("both in")
        return call_next()

    async def acall(self, context: Any, call_next: Any) -> Any:
        await asyncio.sleep(0)
        ran.append("both in, awaited")
        return await call_next()


async def only_async(context: Any, call_next: Any) -> Any:
    """Cannot stand around a plain function."""
    return await call_next()


def seen(context: Any, call_next: Any) -> Any:
    """Note what a middleware sees of the task."""
    ran.append((context.name, context.queue, context.attempt, context.args, context.kwargs, context.metadata))
    return call_next()


def doubled(context: Any, call_next: Any) -> Any:
    """Replace the argument, and change the result."""
    return {"got": call_next(context.args[0] * 2), "args": list(context.args)}


def replacing(context: Any, call_next: Any) -> Any:
    """Answer for the task."""
    return "instead"


def swallowing(context: Any, call_next: Any) -> Any:
    """Make a failure a success."""
    try:
        return call_next()
    except ValueError as error:
        return f"swallowed {error}"


def broken_before(context: Any, call_next: Any) -> Any:
    """Fail before the task."""
    raise LookupError("no such tenant")


def broken_after(context: Any, call_next: Any) -> Any:
    """Fail after the task."""
    call_next()
    raise LookupError("no such tenant")


def snoozing(context: Any, call_next: Any) -> Any:
    """Put the task off."""
    raise Snooze(60)


@within
@contextmanager
def as_tenant(context: Any) -> Iterator[None]:
    """Run the task as the tenant it was enqueued by."""
    token = tenant.set(context.metadata.get("tenant", "nobody"))
    try:
        yield
    finally:
        tenant.reset(token)


def sleepy(context: Any, call_next: Any) -> Any:
    """Take longer than the task may."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        context.raise_if_cancelled()
        time.sleep(0.01)
    return call_next()


async def asleepy(context: Any, call_next: Any) -> Any:
    """Take longer than the task may."""
    await asyncio.sleep(30)
    return await call_next()


@task(middleware=[noting("first"), noting("second")])
def ordered(value: Any = None) -> Any:
    """Note that it runs."""
    ran.append("task")
    return value


@task(middleware=[Both])
def plain_both(value: int) -> int:
    """Run inside of a class."""
    return value


@task(middleware=[Both])
async def async_both(value: int) -> int:
    """Run inside of the same class."""
    await asyncio.sleep(0)
    return value


@task(middleware=[seen, doubled])
def seen_and_doubled(value: int, *, extra: int = 0) -> int:
    """Return its argument."""
    return value + extra


@task(middleware=[seen], takes_context=True)
def seen_with_context(context: Any, value: int) -> list[int]:
    """Return what it got, too."""
    return [context.attempt, value]


@task(middleware=[replacing])
def never_run() -> None:
    """Leave proof."""
    ran.append("never_run")


@task(middleware=[swallowing])
def swallowed() -> None:
    """Fail."""
    raise ValueError("a mistake")


@task(middleware=[noting("fine"), broken_before], backoff=Fixed(0), max_attempts=2)
def breaks_before() -> None:
    """Leave proof."""
    ran.append("task")


@task(middleware=[broken_after], max_attempts=1)
def breaks_after() -> None:
    """Leave proof."""
    ran.append("task")


@task(middleware=[noting("fine")], max_attempts=1)
def breaks_itself() -> None:
    """Fail by its own fault."""
    raise KeyError("mine")


@task(middleware=[snoozing], max_attempts=1)
def put_off() -> None:
    """Leave proof."""
    ran.append("task")


@task(middleware=[as_tenant])
def who() -> str:
    """Return the tenant."""
    return tenant.get()


@task(middleware=[as_tenant])
async def awho() -> str:
    """Return the tenant."""
    await asyncio.sleep(0)
    return tenant.get()


@task(middleware=[sleepy], timeout=0.2, max_attempts=1)
def slow_around() -> None:
    """Leave proof."""
    ran.append("task")


@task(middleware=[asleepy], timeout=0.2, max_attempts=1)
async def aslow_around() -> None:
    """Leave proof."""
    ran.append("task")


@task(middleware=["tests.guarantees.around_tasks.outer"])
def by_path() -> None:
    """Leave proof."""
    ran.append("task")


@task(middleware=["tests.guarantees.nowhere.at_all"], max_attempts=1)
def by_wrong_path() -> None:
    """Leave proof."""
    ran.append("task")


@task
def bare(value: Any = None) -> Any:
    """Have nothing of its own."""
    ran.append("task")
    return value


@task(max_attempts=1)
async def abare() -> None:
    """Have nothing of its own."""
    ran.append("task")


# What is ready to use


@task(middleware=[skip_when(lambda context: answers.get("skip"))])
def skipped(value: Any = None) -> Any:
    """Leave proof."""
    ran.append("task")
    return value


async def _askip(context: Any) -> bool:
    await asyncio.sleep(0)
    return bool(answers.get("skip"))


@task(middleware=[skip_when(_askip, reason="not today")])
async def askipped() -> str:
    """Leave proof."""
    ran.append("task")
    return "done"


@task(middleware=[fail_on(KeyError, PermissionError)], backoff=Fixed(0))
def fails_for_good(kind: str) -> None:
    """Raise what it is told."""
    ran.append("task")
    raise {"KeyError": KeyError, "PermissionError": PermissionError, "ValueError": ValueError}[kind]("as told")


@task(middleware=[fail_on(when=lambda error: "card" in str(error))], backoff=Fixed(0))
async def afails_for_good(text: str) -> None:
    """Raise what it is told."""
    ran.append("task")
    raise ValueError(text)


@task(middleware=[rate_limited(lambda context: answers.get("wait", True))], max_attempts=1)
def limited() -> None:
    """Leave proof."""
    ran.append("task")


@task(middleware=[rate_limited(lambda context: answers.get("wait", True))], max_attempts=1)
async def alimited() -> None:
    """Leave proof."""
    ran.append("task")


@task(
    middleware=[
        retry_policy({ConnectionError: Fixed(100), KeyError: None, OSError: (Fixed(0), 2)}, otherwise=Fixed(200)),
        noting("policy"),
    ],
    max_attempts=5,
    backoff=Fixed(1),
)
def by_policy(kind: str) -> None:
    """Raise what it is told."""
    kinds: dict[str, type[Exception]] = {
        "ConnectionResetError": ConnectionResetError,
        "KeyError": KeyError,
        "FileNotFoundError": FileNotFoundError,
        "ValueError": ValueError,
    }
    raise kinds[kind]("as told")


@task(middleware=[without_overlapping(retry_in=60)])
def alone(value: Any = None) -> Any:
    """Leave proof."""
    ran.append("task")
    return value


@task(middleware=[without_overlapping("account:{account_id}", retry_in=0.05)], takes_context=True)
def alone_per_account(context: Any, account_id: int, path: str, seconds: float = 0.0) -> None:
    """Write down when it runs."""
    write_line(path, f"start {account_id} {context.task_id} {context.attempt} {time.time()}")
    time.sleep(seconds)
    write_line(path, f"end {account_id} {context.task_id} {context.attempt} {time.time()}")


@task(middleware=[without_overlapping("account:{account_id}", retry_in=60)])
async def aalone_per_account(account_id: int) -> int:
    """Leave proof."""
    await asyncio.sleep(0)
    ran.append("task")
    return account_id


@task(middleware=[without_overlapping("short", ttl=0.2, retry_in=60)])
def alone_for_a_while() -> None:
    """Leave proof."""
    ran.append("task")


@task(middleware=[without_overlapping()], ack="atomic")
def alone_atomic() -> None:
    """Leave proof."""
    ran.append("task")


@task(middleware=[without_overlapping("{nobody}")], max_attempts=1)
def alone_by_a_wrong_key() -> None:
    """Leave proof."""
    ran.append("task")


@task(middleware=[without_overlapping("text:{text}")])
def alone_by_text(text: str) -> None:
    """Note the key of its lock."""
    ran.append(Lock.objects.get().key)


@task(middleware=[without_overlapping("gate")])
def alone_at_a_gate(key: str) -> None:
    """Tell that it runs, then wait for its gate."""
    ran.append(key)
    gates[f"{key} runs"].set()
    gates[key].wait(30)


# Around the enqueue


def stamping(call: EnqueueCall, enqueue_next: Any) -> None:
    """Note the tenant in what the task carries along."""
    call.using(metadata={**call.metadata, "tenant": tenant.get()})
    enqueue_next()


def doubling(call: EnqueueCall, enqueue_next: Any) -> None:
    """Change the argument."""
    call.args = (call.args[0] * 2, *call.args[1:])
    enqueue_next()


def refusing(call: EnqueueCall, enqueue_next: Any) -> None:
    """Refuse a negative argument."""
    if call.args[0] < 0:
        raise PermissionError(f"no {call.args[0]} for {call.name} on {call.queue}")
    enqueue_next()


def sorting(call: EnqueueCall, enqueue_next: Any) -> None:
    """Send even numbers to a queue of their own, later."""
    if call.args[0] % 2 == 0:
        call.using(queue_name="even", priority=5)
    enqueue_next()


def forgetting(call: EnqueueCall, enqueue_next: Any) -> None:
    """Neither go on nor refuse."""


def moving(call: EnqueueCall, enqueue_next: Any) -> None:
    """Try to choose another backend."""
    call.using(backend="other")
    enqueue_next()


@task(enqueue_middleware=[doubling, refusing, sorting])
def arranged(number: int) -> int:
    """Return its argument."""
    ran.append(number)
    return number


@task(enqueue_middleware=[stamping], middleware=[as_tenant])
def stamped(number: int = 0) -> str:
    """Return the tenant that enqueued it."""
    return tenant.get()


@task(enqueue_middleware=[forgetting])
def forgotten(number: int) -> None:
    """Never stored."""
