"""
``@task``: turns a function at module level into a definition that can be enqueued.

The definition is a ``Task`` of ``django.tasks`` with options of ours. Its
surprise: it is made while modules are imported, before any model is there, so
the rooms below are imported inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from django_taskq import clock, conf
from django_taskq.compat import TaskBase, primary
from django_taskq.domain.retry import Curve
from django_taskq.domain.states import Ack
from django_taskq.exceptions import InvalidOptions

if TYPE_CHECKING:
    from typing import Self

    from django_taskq.api import EnqueuedTasks

__all__ = ["Signature", "Task", "task"]

P = ParamSpec("P")
R = TypeVar("R")

Backoff = Curve | Callable[[BaseException, Any], float | None]
Span = timedelta | float

_OWN = (
    "aliases",
    "max_attempts",
    "backoff",
    "timeout",
    "max_time",
    "expires",
    "ack",
    "keep_result",
    "enqueue_on_commit",
    "metadata",
)
_CONTRACT = ("priority", "queue_name", "run_after", "backend")


@dataclass(frozen=True, slots=True)
class Signature:
    """A task with its arguments, to be enqueued later. The word is Celery's."""

    task: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    def enqueue(self) -> Any:
        """Enqueue the task with these arguments."""
        return self.task.enqueue(*self.args, **(self.kwargs or {}))

    async def aenqueue(self) -> Any:
        """Enqueue the task with these arguments, without blocking the event loop."""
        return await self.task.aenqueue(*self.args, **(self.kwargs or {}))

    def using(self, **options: Any) -> Signature:
        """Return the same call with other options."""
        return replace(self, task=self.task.using(**options))


def _check_span(field: str, value: Any, *, zero: bool = False) -> None:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e10:
        raise InvalidOptions(
            f"{field} must be a timedelta or a number of seconds, not negative, got {value!r}", field=field, code="range"
        )
    if seconds == 0 and not zero:
        raise InvalidOptions(f"{field} must be more than 0 seconds", field=field, code="range")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(TaskBase, Generic[P, R]):  # type: ignore[misc]  # the base is chosen at run time
    """
    A task definition. Made by ``@task``; ``using`` returns changed copies.

    None means: what the queue's or the project's settings say.
    """

    task_name: str | None = None
    aliases: tuple[str, ...] = ()
    max_attempts: int | None = None
    backoff: Any = None
    timeout: Span | None = None
    max_time: Span | None = None
    expires: Span | datetime | None = None
    ack: str | None = None
    keep_result: Span | None = None
    enqueue_on_commit: bool | None = None
    metadata: Any = None

    def __post_init__(self) -> None:
        self._check()
        self.get_backend().validate_task(self)

    def _check(self) -> None:  # noqa: PLR0912 - one test per option
        if isinstance(self.run_after, timedelta):
            object.__setattr__(self, "run_after", clock.now() + self.run_after)
        if isinstance(self.aliases, str) or not all(isinstance(name, str) for name in self.aliases):
            raise InvalidOptions(f"aliases must be a list of names, got {self.aliases!r}", field="aliases", code="type")
        object.__setattr__(self, "aliases", tuple(self.aliases))
        for name in (self.task_name, *self.aliases):
            if name is not None and not 0 < len(name) <= 200:
                raise InvalidOptions(f"name must have 1 to 200 characters, got {name!r}", field="name", code="length")
        if not isinstance(self.queue_name, str) or not 0 < len(self.queue_name) <= 64:
            raise InvalidOptions(
                f"queue_name must have 1 to 64 characters, got {self.queue_name!r}", field="queue_name", code="length"
            )
        if self.max_attempts is not None and (
            isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int) or self.max_attempts < 1
        ):
            raise InvalidOptions(
                f"max_attempts must be a whole number of 1 or more, got {self.max_attempts!r}; 1 means no retry",
                field="max_attempts",
                code="range",
            )
        if self.backoff is not None and not isinstance(self.backoff, Curve) and not callable(self.backoff):
            raise InvalidOptions(
                f"backoff must be Fixed, Steps, Exponential or a callable, got {self.backoff!r}",
                field="backoff",
                code="type",
            )
        for field in ("timeout", "max_time"):
            if getattr(self, field) is not None:
                _check_span(field, getattr(self, field))
        if self.keep_result is not None:
            _check_span("keep_result", self.keep_result, zero=True)
        if isinstance(self.expires, datetime):
            if self.expires.tzinfo is None:
                raise InvalidOptions("expires must be an aware datetime", field="expires", code="naive")
        elif self.expires is not None:
            _check_span("expires", self.expires)
        if self.ack is not None and str(self.ack).upper() not in Ack.__members__:
            raise InvalidOptions(
                f"ack must be 'late', 'now', 'first' or 'atomic', got {self.ack!r}", field="ack", code="unknown"
            )
        if self.metadata is not None and not isinstance(self.metadata, Mapping):
            raise InvalidOptions(f"metadata must be a dict, got {self.metadata!r}", field="metadata", code="type")
        if self.timeout is not None and self.max_time is not None and _seconds(self.timeout) > _seconds(self.max_time):
            raise InvalidOptions(
                f"timeout ({self.timeout}) of one attempt is longer than max_time ({self.max_time}) of the whole task",
                field="timeout",
                code="conflict",
            )

    def __hash__(self) -> int:
        return hash((self.func, self.queue_name, self.priority, self.run_after, self.backend))

    def get_backend(self) -> Any:
        """
        Return the backend of this task's alias.

        Where the project's TASKS setting says nothing, it is the database backend of this app.
        """
        if conf.has_backend(self.backend):
            return primary_backends()[self.backend]
        from django_taskq.backend import implicit_backend

        return implicit_backend(self.backend)

    def using(  # noqa: D417
        self,
        *,
        priority: int | None = None,
        queue_name: str | None = None,
        run_after: datetime | timedelta | None = None,
        backend: str | None = None,
        delay: Span | None = None,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        timeout: Span | None = None,
        max_time: Span | None = None,
        expires: Span | datetime | None = None,
        ack: str | None = None,
        keep_result: Span | None = None,
        enqueue_on_commit: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Self:
        """
        Return a copy with other options; None leaves an option as it is.

        ``run_after`` is an aware datetime, or a timedelta from now; ``delay`` is seconds or a
        timedelta from now. Spans are seconds or timedeltas. Raise InvalidOptions for a value
        outside its rule, InvalidTask for what the backend cannot do.
        """
        if delay is not None:
            if run_after is not None:
                raise InvalidOptions(
                    "give either delay or run_after, not both: they say the same", field="delay", code="conflict"
                )
            _check_span("delay", delay, zero=True)
            run_after = clock.now() + (delay if isinstance(delay, timedelta) else timedelta(seconds=delay))
        if isinstance(run_after, timedelta):
            _check_span("run_after", run_after, zero=True)
            run_after = clock.now() + run_after
        given: dict[str, Any] = {
            "priority": priority,
            "queue_name": queue_name,
            "run_after": run_after,
            "backend": backend,
            "max_attempts": max_attempts,
            "backoff": backoff,
            "timeout": timeout,
            "max_time": max_time,
            "expires": expires,
            "ack": ack,
            "keep_result": keep_result,
            "enqueue_on_commit": enqueue_on_commit,
            "metadata": metadata,
        }
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    if TYPE_CHECKING:

        def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Any:
            """Store the task, in the caller's transaction, and return its result object."""

        async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Any:
            """Store the task without blocking the event loop. Cancelled before it is accepted, it leaves no row."""

    def enqueue_many(self, calls: Iterable[tuple[Any, ...] | list[Any] | Mapping[str, Any] | Signature]) -> EnqueuedTasks:
        """
        Store a task for each call, all or none, much faster than one by one; return their results, made when asked for.

        A call is a tuple of positional arguments, a dict of keyword arguments, or a signature of this task.
        """
        from django_taskq.api import enqueue_many

        return enqueue_many(self, calls)

    async def aenqueue_many(
        self, calls: Iterable[tuple[Any, ...] | list[Any] | Mapping[str, Any] | Signature]
    ) -> EnqueuedTasks:
        """Do what ``enqueue_many`` does, without blocking the event loop."""
        from asgiref.sync import sync_to_async

        return await sync_to_async(self.enqueue_many)(calls)

    def s(self, *args: P.args, **kwargs: P.kwargs) -> Signature:
        """Return a signature: this task with these arguments, to be enqueued later."""
        return Signature(self, args, kwargs or None)


def _seconds(span: Span) -> float:
    return span.total_seconds() if isinstance(span, timedelta) else float(span)


def primary_backends() -> Any:
    """Return the connection handler of the contract that tasks are of."""
    from importlib import import_module

    return import_module(primary.name).task_backends


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(
    function: None = None,
    /,
    *,
    priority: int = 0,
    queue_name: str = "default",
    backend: str = "default",
    takes_context: bool = False,
    name: str | None = None,
    aliases: Iterable[str] = (),
    max_attempts: int | None = None,
    backoff: Backoff | None = None,
    timeout: Span | None = None,
    max_time: Span | None = None,
    expires: Span | None = None,
    ack: str | None = None,
    keep_result: Span | None = None,
    enqueue_on_commit: bool | None = None,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """
    Turn a function at module level, sync or async, into a task definition.

    Works with and without parentheses. ``name`` is what rows call the task
    (default: the function's dotted path); ``aliases`` are names it had before, so that tasks
    stored under them still run. Spans are seconds or timedeltas. Raise InvalidTask
    for a function the backend cannot take, InvalidOptions for a value outside its rule.
    """
    if "run_after" in options:
        raise TypeError("run_after cannot be defined statically with @task; use .using(run_after=...)")
    options["task_name"] = options.pop("name", None)
    unknown = options.keys() - {field.name for field in fields(Task)}
    if unknown:
        known = ", ".join(["name", *_CONTRACT[:2], "backend", "takes_context", *_OWN])
        raise TypeError(f"@task has no option {sorted(unknown)[0]!r}; known are {known}")

    def wrap(func: Callable[..., Any]) -> Task[..., Any]:
        # Django 6.0 gives these fields no defaults.
        made: Task[..., Any] = Task(
            **{
                "priority": 0,
                "queue_name": "default",
                "backend": "default",
                "run_after": None,
                "takes_context": False,
                **options,
            },
            func=func,
        )
        _register(made)
        return made

    return wrap if function is None else wrap(function)


def _register(made: Task[..., Any]) -> None:
    from django_taskq.lifecycle import definitions

    for name in (made.task_name or made.module_path, *made.aliases):
        definitions.register(name, made)
