"""Tasks whose ends the tests of events and metrics look at."""

from __future__ import annotations

from django_taskq import Exponential, Fixed, Snooze, task
from django_taskq.exceptions import Cancel

SECRET = "correct horse battery staple"


@task
def add(a: int, b: int) -> int:
    """Return the sum."""
    return a + b


@task(max_attempts=3, backoff=Fixed(0), takes_context=True)
def fail_until(context, attempt: int) -> str:
    """Fail before the given attempt."""
    if context.attempt < attempt:
        raise ValueError(f"attempt {context.attempt} fails")
    return "at last"


@task(max_attempts=2, backoff=Exponential(base=0))
def always_fail(note: str = "") -> None:
    """Fail."""
    raise ZeroDivisionError(note)


@task(takes_context=True)
def snooze_once(context) -> str:
    """Put itself off the first time; the row remembers by its run_after."""
    if context.run.claim.run_after is None:
        raise Snooze(0)
    return "awake"


@task
def cancel_itself() -> None:
    """End as cancelled."""
    raise Cancel("not needed any more")


@task
async def echo(text: str) -> str:
    """Return the argument."""
    return text
