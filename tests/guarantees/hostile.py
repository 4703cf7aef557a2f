"""Tasks that a worker should never meet, and does."""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from django.db import connection, transaction
from django.utils import timezone, translation

from django_taskq import task
from tests.app.models import Effect
from tests.guarantees.tasks import ran


class Mute(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class Deadly(Exception):
    """An exception whose text ends the process."""

    def __str__(self) -> str:
        raise SystemExit(1)


class Strange(Exception):
    """An exception that names no module."""


Strange.__module__ = None  # type: ignore[assignment]


@task
def raise_this(kind: str) -> None:
    """Raise a built-in exception by name."""
    import builtins

    raise getattr(builtins, kind)("on purpose")


@task(max_attempts=1)
def raise_text(text: str, times: int = 1) -> None:
    """Raise an error with a text."""
    raise ValueError(text * times)


@task(max_attempts=1)
def raise_surrogate() -> None:
    """Raise an error whose text is no text, and with NUL."""
    raise ValueError("nul \x00 surrogate \ud800 end")


@task(max_attempts=1)
def raise_hostile(kind: str) -> None:
    """Raise one of the exceptions above."""
    raise {"mute": Mute, "deadly": Deadly, "strange": Strange}[kind]("x")


@task(max_attempts=1)
def raise_chain(depth: int) -> None:
    """Raise an error with a long chain of causes."""
    error: Exception = ValueError("the first")
    for at in range(depth):
        try:
            raise KeyError(at) from error
        except KeyError as next_error:
            error = next_error
    raise error


@task(max_attempts=1)
def raise_group() -> None:
    """Raise several errors at once."""
    raise ExceptionGroup("several", [ValueError("one"), TypeError("two")])


@task(max_attempts=1)
def recurse() -> None:
    """Recurse without end."""

    def again() -> None:
        again()

    again()


@task(max_attempts=1)
def return_object() -> Any:
    """Return what JSON does not have."""
    return object()


@task(max_attempts=1)
def return_much(characters: int) -> str:
    """Return a long text."""
    return "x" * characters


@task(max_attempts=1)
def return_nan() -> float:
    """Return what JSON does not have, in a float's clothes."""
    return float("nan")


@task(max_attempts=1)
def generate() -> Iterator[int]:
    """Be a generator: calling it runs nothing."""
    yield 1


@task
def close_connection() -> None:
    """Close the connection under everybody's feet."""
    Effect.objects.exists()
    connection.close()


@task
def leave_transaction(key: str) -> None:
    """Begin a transaction, write, and go."""
    transaction.atomic().__enter__()
    Effect.objects.create(key=key)


@task
def leave_autocommit_off(key: str) -> None:
    """Turn autocommit off, write, and go."""
    transaction.set_autocommit(False)
    Effect.objects.create(key=key)


@task
def leave_effect(key: str) -> None:
    """Do an honest piece of work."""
    Effect.objects.create(key=key)


@task
def change_surroundings() -> None:
    """Change the language and the time zone."""
    translation.activate("de")
    timezone.activate("Asia/Tokyo")


@task
def note_surroundings() -> list[str | None]:
    """Note the language and the time zone."""
    found = [translation.get_language(), timezone.get_current_timezone_name()]
    ran.append(found)
    return found


@task
def change_folder(path: str) -> None:
    """Change the folder of the process: a thread cannot have its own."""
    os.chdir(path)


@task
def leave_thread() -> None:
    """Start a thread that outlives the task."""
    threading.Thread(target=lambda: threading.Event().wait(0.2), daemon=True).start()


@task
def swallow_everything() -> str:
    """Swallow an error and go on."""
    with contextlib.suppress(BaseException):
        raise SystemExit(1)
    return "still here"
