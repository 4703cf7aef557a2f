"""Tasks for the worker's tests: some run until let go, some die, some listen, some do not."""

import os
import signal
import sys
import threading
from typing import Any

from django_taskq import Fixed, task
from tests.app.models import Effect

#: Within one process: set to let ``held`` go on; ``entered`` counts those that began.
gate = threading.Event()
entered = threading.Semaphore(0)


@task
def leave(key: str) -> str:
    Effect.objects.create(key=key)
    return key


@task
def nothing() -> None:
    pass


@task
def held() -> None:
    entered.release()
    gate.wait(60)


@task(max_attempts=2)
def linger(key: str, seconds: float) -> None:
    """Prove the start, then do not listen to anybody for a while."""
    Effect.objects.create(key=f"{key} began {os.getpid()}")
    threading.Event().wait(seconds)
    Effect.objects.create(key=f"{key} ended")


@task(takes_context=True)
def listen(context: Any, key: str) -> None:
    """Run until a cancel is heard."""
    Effect.objects.create(key=f"{key} began")
    while True:
        context.raise_if_cancelled()
        threading.Event().wait(0.02)


@task(max_attempts=2, backoff=Fixed(3600))
def die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


@task(max_attempts=2, backoff=Fixed(3600))
def leave_process(code: int) -> None:
    os._exit(code)


@task(timeout=0.5, max_attempts=1)
def overrun(key: str) -> None:
    try:
        threading.Event().wait(60)
    finally:
        Effect.objects.create(key=key)


@task(ack="atomic")
def leave_atomic(key: str, die: bool = False) -> int:
    Effect.objects.create(key=key)
    if die:
        os._exit(7)
    return os.getpid()


@task(takes_context=True)
def tell(context: Any) -> dict[str, Any]:
    context.progress(1, 2, "half")
    return {"attempt": context.attempt, "id": context.task_id, "pid": os.getpid()}


@task
def enqueue_on(queue: str) -> None:
    nothing.using(queue_name=queue).enqueue()


@task
async def await_nothing() -> int:
    return os.getpid()


@task(max_attempts=5, backoff=Fixed(0))
async def aleave(key: str) -> str:
    await Effect.objects.acreate(key=key)
    return key


class Failure(Exception):
    """Unlike an exception of Python's own, one that can be referred to weakly."""


@task(max_attempts=1)
def fail(text: str) -> None:
    raise Failure(text)


@task
def loaded_modules() -> list[str]:
    return sorted(sys.modules)
