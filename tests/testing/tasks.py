"""Tasks that the tests of the testing helpers drain and record."""

import asyncio
from typing import Any

from django.utils import timezone

from django_taskq import Cancel, Exponential, Fixed, GiveUp, Retry, Snooze, task
from tests.app.models import Effect

ran: list[tuple[str, object]] = []


@task
def note(value: object = None) -> object:
    """Take note of the value and return it."""
    ran.append(("note", value))
    return value


@task(queue_name="mail", priority=5)
def note_mail(value: object = None, *, to: str = "") -> None:
    ran.append(("mail", value))


@task(max_attempts=3, backoff=Fixed(60))
def fail_twice(key: str) -> str:
    """Succeed in the third attempt."""
    ran.append(("fail_twice", timezone.now()))
    if sum(kind == "fail_twice" for kind, _ in ran) < 3:
        raise ValueError(f"not yet, {key}")
    return key


@task(max_attempts=4, backoff=Exponential(base=10, factor=2, jitter=0))
def always_fail() -> None:
    ran.append(("always_fail", None))
    raise LookupError("never")


@task(max_attempts=1)
def break_transaction(key: str) -> None:
    """Write a row, then fail with the database's own error."""
    Effect.objects.create(key=key)
    Effect.objects.create(key=key)


@task
def swallow_broken_statement(key: str) -> str:
    """Carry on after a statement that failed, as code in autocommit may."""
    Effect.objects.create(key=key)
    try:
        Effect.objects.create(key=key)
    except Exception:
        return "went on"
    return "no error"


@task
def enqueue_more(count: int) -> None:
    ran.append(("more", count))
    if count:
        enqueue_more.enqueue(count - 1)


@task(takes_context=True)
def snooze_once(context: object) -> str:
    ran.append(("snooze", None))
    if sum(kind == "snooze" for kind, _ in ran) < 2:
        raise Snooze(3600)
    return "awake"


def leave_effect(key: str) -> str:
    ran.append(("step", key))
    Effect.objects.create(key=key)
    return key


def fail_once(attempt: int) -> int:
    ran.append(("step", attempt))
    if attempt == 1:
        raise ValueError("no room")
    return attempt


@task(takes_context=True, backoff=Fixed(60))
def take_steps(context: Any) -> list[Any]:
    """Run three steps, of which the second fails in the first attempt."""
    context.plan("store", "try", "tell")
    stored = context.step("store", leave_effect, "stored", atomic=True)
    tried = context.step("try", fail_once, context.attempt)
    return [stored, tried, context.step("tell", lambda: (1, 2))]


@task(takes_context=True, backoff=Fixed(60))
async def take_steps_async(context: Any) -> list[Any]:
    stored = await context.astep("store", leave_effect, "stored")
    tried = await context.astep("try", fail_once, context.attempt)
    return [stored, tried, await context.astep("wait", asyncio.sleep, 0, (1, 2))]


@task
def come_back_for_ever() -> None:
    raise Snooze(1)


@task
def steer(how: str) -> None:
    raise {"cancel": Cancel, "give_up": GiveUp, "retry": Retry}[how]("as told")


@task
async def note_async(value: object) -> object:
    await asyncio.sleep(0)
    await Effect.objects.acreate(key=f"async-{value}")
    return value


@task(ack="atomic")
def atomic_effect(key: str) -> str:
    Effect.objects.create(key=key)
    return key


@task(ack="now", keep_result=0)
def leave_nothing() -> int:
    return 1


@task
def interrupt() -> None:
    raise KeyboardInterrupt


@task(enqueue_on_commit=True)
def after_commit(value: object) -> None:
    ran.append(("after_commit", value))
