"""
``@task``: turns a function at module level into a definition that can be enqueued.

The definition is a ``Task`` of ``django.tasks`` with options of ours. Its
surprise: it is made while modules are imported, before any model is there, so
the rooms below are imported inside functions.
"""

from __future__ import annotations

import difflib
import math
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from django.utils.module_loading import import_string

from django_taskq import clock, conf
from django_taskq.compat import Contract, TaskBase, contract_named, contract_of, invalid_backend, primary
from django_taskq.domain.retry import Curve
from django_taskq.domain.states import Ack
from django_taskq.exceptions import InvalidOptions

if TYPE_CHECKING:
    from typing import Self

    from django_taskq.api import EnqueuedTasks
    from django_taskq.domain.keys import Key
    from django_taskq.domain.limits import Concurrency, Rate
    from django_taskq.domain.unique import Unique
    from django_taskq.lifecycle.results import TaskContext, TaskResult

__all__ = ["Signature", "Task", "task", "task_class_of"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Backoff = Curve | Callable[[BaseException, Any], float | None]
Span = timedelta | float
Middleware = Callable[..., Any] | str
Call = tuple[Any, ...] | list[Any] | Mapping[str, Any]

_CONTRACT = ("priority", "queue_name", "backend", "takes_context")
# The columns that hold them.
NAME_LENGTH, QUEUE_LENGTH = 200, 64
MOST_ATTEMPTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Signature(Generic[R_co]):
    """A task with its arguments, to be enqueued later. The word is Celery's."""

    task: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    delay: timedelta | None = None

    def enqueue(self) -> TaskResult[R_co]:
        """Enqueue the task with these arguments."""
        result: TaskResult[R_co] = self._delayed().enqueue(*self.args, **(self.kwargs or {}))
        return result

    async def aenqueue(self) -> TaskResult[R_co]:
        """Enqueue the task with these arguments, without blocking the event loop."""
        result: TaskResult[R_co] = await self._delayed().aenqueue(*self.args, **(self.kwargs or {}))
        return result

    def using(self, **options: Any) -> Signature[R_co]:
        """
        Return the same call with other options.

        ``delay``, or a timedelta as ``run_after``, counts from when the task is enqueued; in a chain,
        batch or workflow from when its turn comes.
        """
        delay = self.delay
        if isinstance(options.get("run_after"), timedelta):
            options["delay"] = options.pop("run_after")
        if options.get("delay") is not None and options.get("run_after") is None:
            span = options.pop("delay")
            _check_span("delay", span, zero=True)
            delay = timedelta(seconds=_seconds(span))
        elif options.get("run_after") is not None:
            delay = None
        return replace(self, task=self.task.using(**options), delay=delay)

    def _delayed(self) -> Any:
        return self.task if self.delay is None else self.task.using(delay=self.delay)


def _seconds(span: Span) -> float:
    return span.total_seconds() if isinstance(span, timedelta) else float(span)


def _check_span(field: str, value: object, *, zero: bool = False) -> None:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e10:
        raise InvalidOptions(
            f"{field} must be a timedelta or a number of seconds, not negative, got {value!r}",
            field=field,
            code="range",
        )
    if seconds == 0 and not zero:
        raise InvalidOptions(f"{field} must be more than 0 seconds", field=field, code="range")


def _check_moment(field: str, value: object) -> None:
    if not isinstance(value, datetime):
        raise InvalidOptions(f"{field} must be an aware datetime, got {value!r}", field=field, code="type")
    if value.utcoffset() is None:
        if field == "run_after":
            # Left to the backend, whose error is the contract's.
            return
        raise InvalidOptions(f"{field} must be an aware datetime, got {value!r}", field=field, code="naive")
    try:
        is_sane = value.astimezone(UTC).year >= 1000
    except OverflowError:
        is_sane = False
    if not is_sane:
        raise InvalidOptions(f"{field} must be a moment of the years 1000 to 9999", field=field, code="range")


def _is_control(character: str) -> bool:
    """Return whether a character is a control character or half of a surrogate pair."""
    # Not by unicodedata, whose tables would be loaded for this alone.
    number = ord(character)
    return number < 32 or 127 <= number < 160 or 0xD800 <= number <= 0xDFFF


def _check_name(field: str, value: object, most: int) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise InvalidOptions(f"{field} must have 1 to {most} characters, got {value!r}", field=field, code="length")
    if value != value.strip() or any(map(_is_control, value)):
        raise InvalidOptions(
            f"{field} must neither begin nor end with a space, nor hold control characters, got {value!r}",
            field=field,
            code="characters",
        )


def _check_options(task: Any) -> None:
    """Raise InvalidOptions for the first option whose value is outside its rule."""
    _check_name("queue_name", task.queue_name, QUEUE_LENGTH)
    _check_names(task)
    if not isinstance(task.backend, str):
        raise InvalidOptions(f"backend must be an alias of TASKS, got {task.backend!r}", field="backend", code="type")
    if not isinstance(task.priority, int | float) or not math.isfinite(task.priority):
        raise InvalidOptions(
            f"priority must be a whole number between -100 and 100, got {task.priority!r}",
            field="priority",
            code="type",
        )
    attempts = task.max_attempts
    if attempts is not None and (
        isinstance(attempts, bool) or not isinstance(attempts, int) or not 1 <= attempts <= MOST_ATTEMPTS
    ):
        raise InvalidOptions(
            f"max_attempts must be a whole number from 1 to {MOST_ATTEMPTS}, got {attempts!r}; 1 means no retry",
            field="max_attempts",
            code="range",
        )
    if task.backoff is not None and not isinstance(task.backoff, Curve) and not callable(task.backoff):
        raise InvalidOptions(
            f"backoff must be Fixed, Steps, Exponential or a callable, got {task.backoff!r}",
            field="backoff",
            code="type",
        )
    if task.ack is not None and str(task.ack).upper() not in Ack.__members__:
        raise InvalidOptions(
            f"ack must be 'late', 'now', 'first' or 'atomic', got {task.ack!r}", field="ack", code="unknown"
        )
    if task.enqueue_on_commit is not None and not isinstance(task.enqueue_on_commit, bool):
        raise InvalidOptions(
            f"enqueue_on_commit must be True or False, got {task.enqueue_on_commit!r}",
            field="enqueue_on_commit",
            code="type",
        )
    if task.metadata is not None and not isinstance(task.metadata, Mapping):
        raise InvalidOptions(f"metadata must be a dict, got {task.metadata!r}", field="metadata", code="type")
    if not isinstance(task.schedulable, bool):
        raise InvalidOptions(
            f"schedulable must be True or False, got {task.schedulable!r}", field="schedulable", code="type"
        )
    if task.cancel is not None and not callable(getattr(task.cancel, "is_set", None)):
        raise InvalidOptions(f"cancel must be a threading.Event, got {task.cancel!r}", field="cancel", code="type")
    _check_times(task)
    _check_around(task)
    _check_limits(task)
    if task.fair_key is not None:
        from django_taskq.domain.keys import check_key

        check_key(task.func, task.takes_context, task.fair_key, field="fair_key")
    if task.unique is not None or task.idempotency_key is not None or task.idempotency_for is not None:
        _check_uniqueness(task)


def _check_uniqueness(task: Any) -> None:
    # Loaded by those who have unique tasks.
    from django_taskq.domain.unique import Unique, request_key

    if task.unique is True:
        object.__setattr__(task, "unique", Unique())
    if task.unique and not isinstance(task.unique, Unique):
        raise InvalidOptions(
            f"unique must be True, False, Unique(...), debounce(...) or throttle(...), got {task.unique!r}",
            field="unique",
            code="type",
        )
    if task.unique:
        task.unique.check(task.func, task.takes_context)
    if task.idempotency_key is not None:
        request_key(task.idempotency_key)
    if task.idempotency_for is not None:
        _check_span("idempotency_for", task.idempotency_for)
        if task.idempotency_key is None:
            raise InvalidOptions(
                "idempotency_for says how long an idempotency_key is kept; give that, too",
                field="idempotency_for",
                code="conflict",
            )
    if task.enqueue_on_commit and (task.unique or task.idempotency_key is not None):
        raise InvalidOptions(
            "enqueue_on_commit does not go with unique or idempotency_key: whether a task is there already is asked "
            "in the transaction itself, which stores it if and only if it commits",
            field="enqueue_on_commit",
            code="conflict",
        )


def _check_around(task: Any) -> None:
    if task.validate not in (None, True, False, "signature"):
        raise InvalidOptions(
            f"validate must be True, False or 'signature', got {task.validate!r}", field="validate", code="unknown"
        )
    if not task.middleware and not task.enqueue_middleware:
        return
    from django_taskq.domain import middleware as rules

    for option in _OF_THE_DEFINITION:
        object.__setattr__(task, option, rules.listed(getattr(task, option), field=option))
    is_coroutine = iscoroutinefunction(task.func)
    name = task.task_name or task.module_path
    for item in task.middleware:
        if not isinstance(item, str):
            rules.check(item, is_coroutine=is_coroutine, task=name)
    for item in task.enqueue_middleware:
        if not isinstance(item, str):
            rules.check(item, is_coroutine=False, task=name, field="enqueue_middleware")


def _check_limits(task: Any) -> None:
    if not task.limits:
        object.__setattr__(task, "limits", ())
        return
    from django_taskq.domain.keys import check_key
    from django_taskq.domain.limits import Concurrency, Rate

    given = [task.limits] if isinstance(task.limits, Concurrency | Rate) else task.limits
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidOptions(
            f"limits must be a list of Concurrency(…) and Rate(…), got {given!r}", field="limits", code="type"
        )
    object.__setattr__(task, "limits", tuple(given))
    for limit in task.limits:
        if not isinstance(limit, Concurrency | Rate):
            raise InvalidOptions(
                f"limits must hold Concurrency(…) and Rate(…), got {limit!r}", field="limits", code="type"
            )
        if limit.key is not None:
            check_key(task.func, task.takes_context, limit.key)
    if len({(type(limit), limit.key) for limit in task.limits}) < len(task.limits):
        raise InvalidOptions(
            f"limits holds two limits of one kind with the same key; leave one of them out: {list(task.limits)!r}",
            field="limits",
            code="twice",
        )


def _literal_key(task: Any, text: str) -> str:
    """Return the template that stands for a text taken as it is. Raise InvalidOptions for one that was meant as one."""
    template = text.replace("{", "{{").replace("}", "}}")
    if template != text and any(f"{{{name}}}" in text for name in _argument_names(task)):
        raise InvalidOptions(
            f"fair_key in using() is the key itself, and {text!r} names an argument; "
            "give the value, or the template to @task(fair_key=…)",
            field="fair_key",
            code="template",
        )
    return template


def _argument_names(task: Any) -> Iterable[str]:
    import inspect

    return inspect.signature(task.func).parameters


def _check_names(task: Any) -> None:
    if isinstance(task.aliases, str) or not isinstance(task.aliases, Iterable):
        raise InvalidOptions(f"aliases must be a list of names, got {task.aliases!r}", field="aliases", code="type")
    object.__setattr__(task, "aliases", tuple(task.aliases))
    for alias in task.aliases:
        _check_name("aliases", alias, NAME_LENGTH)
    if task.task_name is not None:
        _check_name("name", task.task_name, NAME_LENGTH)
    elif hasattr(task.func, "__qualname__") and len(task.module_path) > NAME_LENGTH:
        raise InvalidOptions(
            f"the path {task.module_path} is longer than {NAME_LENGTH} characters; give the task a name=",
            field="name",
            code="length",
        )


def _check_times(task: Any) -> None:
    for name in ("timeout", "max_time", "enqueue_timeout"):
        if getattr(task, name) is not None:
            _check_span(name, getattr(task, name))
    if task.keep_result is not None:
        _check_span("keep_result", task.keep_result, zero=True)
    if isinstance(task.run_after, timedelta):
        _check_span("run_after", task.run_after, zero=True)
        object.__setattr__(task, "run_after", clock.now() + task.run_after)
    elif task.run_after is not None:
        _check_moment("run_after", task.run_after)
    if isinstance(task.expires, datetime):
        _check_moment("expires", task.expires)
        if task.run_after is not None and task.run_after.utcoffset() is not None and task.expires <= task.run_after:
            raise InvalidOptions(
                f"expires ({task.expires}) is not after run_after ({task.run_after}): the task could never start",
                field="expires",
                code="conflict",
            )
    elif task.expires is not None:
        _check_span("expires", task.expires)
    if task.timeout is not None and task.max_time is not None and _seconds(task.timeout) > _seconds(task.max_time):
        raise InvalidOptions(
            f"timeout ({task.timeout}) of one attempt is longer than max_time ({task.max_time}) of the whole task",
            field="timeout",
            code="conflict",
        )


if TYPE_CHECKING:

    class _Face(TaskBase[P, R]):
        """What a definition inherits, whichever contract it is of."""

else:

    class _Face(Generic[P, R]):
        __slots__ = ()


class _Methods(_Face[P, R]):
    """What our definitions can do, whichever contract's kind of task they are."""

    __slots__ = ()

    def __post_init__(self) -> None:
        _check_options(self)
        self.get_backend().validate_task(self)
        # True and 3.0 pass for whole numbers; what is stored is one.
        object.__setattr__(self, "priority", int(self.priority))
        _register(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # The function travels as its path, as in Django 6.1. An event does not travel.
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in _OF_THE_DEFINITION:
            del values[name]
        return _restore, (contract_of(self).name, {**values, "func": self.module_path, "cancel": None})

    def get_backend(self) -> Any:
        """
        Return the backend of this task's alias.

        Where the project has no TASKS setting, it is the database backend of this app.
        """
        if conf.names_backends():
            contract = contract_of(self)
            try:
                return contract.handler[self.backend]
            except contract.error("InvalidTaskBackend") as error:
                raise invalid_backend(str(error)) from error
        from django_taskq.backend import implicit_backend

        return implicit_backend(self.backend)

    def using(  # wider: a timedelta for run_after, and options of ours
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
        enqueue_timeout: Span | None = None,
        cancel: threading.Event | None = None,
        metadata: Mapping[str, Any] | None = None,
        fair_key: Key | None = None,
        unique: Unique | bool | None = None,
        idempotency_key: str | None = None,
        idempotency_for: Span | None = None,
    ) -> Self:
        """
        Return a copy with other options; None leaves an option as it is.

        ``run_after`` is an aware datetime, or a timedelta from now; ``delay`` is seconds or a
        timedelta from now. Spans are seconds or timedeltas. ``fair_key`` is the key itself, taken
        literally, or a callable of the arguments. Raise InvalidOptions for a value
        outside its rule, InvalidTask for what the backend cannot do.
        """
        if isinstance(fair_key, str):
            fair_key = _literal_key(self, fair_key)
        if delay is not None:
            if run_after is not None:
                raise InvalidOptions(
                    "give either delay or run_after, not both: they say the same", field="delay", code="conflict"
                )
            _check_span("delay", delay, zero=True)
            run_after = clock.now() + (delay if isinstance(delay, timedelta) else timedelta(seconds=delay))
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
            "enqueue_timeout": enqueue_timeout,
            "cancel": cancel,
            "metadata": metadata,
            "fair_key": fair_key,
            "unique": unique,
            "idempotency_key": idempotency_key,
            "idempotency_for": idempotency_for,
        }
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    if TYPE_CHECKING:
        # Ours leave the parameters of the call out of the result's type; they say nothing about it.

        def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R]:  # type: ignore[override]
            """Store the task, in the caller's transaction, and return its result object."""

        async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R]:  # type: ignore[override]
            """Store the task without blocking the event loop. Cancelled before it is accepted, it leaves no row."""

        def get_result(self, result_id: str) -> TaskResult[R]:  # type: ignore[override]
            """Return the result of one of this function's tasks, live or finished."""

        async def aget_result(self, result_id: str) -> TaskResult[R]:  # type: ignore[override]
            """Do what ``get_result`` does, without blocking the event loop."""

    def enqueue_many(self, calls: Iterable[Call | Signature[R]]) -> EnqueuedTasks[R]:
        """
        Store a task for each call, all or none, much faster than one by one; return their results, made when asked for.

        A call is a tuple of positional arguments, a dict of keyword arguments, or a signature of this task.
        """
        from django_taskq.api import enqueue_many

        return enqueue_many(self, calls)

    async def aenqueue_many(self, calls: Iterable[Call | Signature[R]]) -> EnqueuedTasks[R]:
        """Do what ``enqueue_many`` does, without blocking the event loop."""
        from asgiref.sync import sync_to_async

        return await sync_to_async(self.enqueue_many)(calls)

    def s(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """Return a signature: this task with these arguments, to be enqueued later."""
        return Signature(self, args, kwargs or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(_Methods[P, R], TaskBase[P, R]):
    """
    A task definition. Made by ``@task``; ``using`` returns changed copies.

    None means: what the queue's or the project's settings say.
    """

    task_name: str | None = None
    aliases: tuple[str, ...] = ()
    max_attempts: int | None = None
    backoff: Any = field(default=None, hash=False)
    timeout: Span | None = None
    max_time: Span | None = None
    expires: Span | datetime | None = None
    ack: str | None = None
    keep_result: Span | None = None
    enqueue_on_commit: bool | None = None
    enqueue_timeout: Span | None = None
    cancel: Any = field(default=None, compare=False)
    metadata: Any = field(default=None, hash=False)
    middleware: tuple[Any, ...] = field(default=(), hash=False)
    enqueue_middleware: tuple[Any, ...] = field(default=(), hash=False)
    validate: Any = None
    limits: Any = field(default=(), hash=False)
    fair_key: Any = field(default=None, hash=False)
    unique: Any = None
    idempotency_key: str | None = None
    idempotency_for: Span | None = None
    schedulable: bool = False


# Not in ``@task``: they are of one call.
_OF_A_CALL = ("task_name", "cancel", "idempotency_key", "idempotency_for")
# Callables, which cannot travel and need not: where the function is, they are.
_OF_THE_DEFINITION = ("middleware", "enqueue_middleware")
_OWN = tuple(item.name for item in fields(Task) if item.name not in {base.name for base in fields(primary.base.Task)})


@lru_cache(maxsize=4)
def task_class_of(contract: Contract) -> type[Any]:
    """Return our task class as a kind of the contract's own."""
    if contract is primary:
        return Task
    own = [
        (item.name, item.type, field(default=item.default, hash=item.hash, compare=item.compare))
        for item in fields(Task)
        if item.name in _OWN
    ]
    return make_dataclass(
        "Task",
        own,
        bases=(_Methods, contract.base.Task),
        namespace={"__doc__": Task.__doc__, "__module__": __name__},
        frozen=True,
        slots=True,
        kw_only=True,
    )


def _restore(contract: str, values: dict[str, Any]) -> Any:
    path = values["func"]
    try:
        found = import_string(path)
        function = found.func
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Expected {path!r} to point to a Task instance.") from error
    own = {name: getattr(found, name) for name in _OF_THE_DEFINITION if hasattr(found, name)}
    return task_class_of(contract_named(contract))(**{**values, **own, "func": function})


class _Decorator(Protocol):
    """``@task(...)`` with options."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class _ContextDecorator(Protocol):
    """``@task(takes_context=True, ...)``: the context is not among the arguments of an enqueue."""

    @overload
    def __call__(self, function: Callable[Concatenate[TaskContext, P], Coroutine[Any, Any, R]], /) -> Task[P, R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[TaskContext, P], R], /) -> Task[P, R]: ...


@overload
def task(function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(
    function: None = None,
    /,
    *,
    takes_context: Literal[True],
    priority: int = 0,
    queue_name: str = "default",
    backend: str = "default",
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
    enqueue_timeout: Span | None = None,
    metadata: Mapping[str, Any] | None = None,
    middleware: Iterable[Middleware] = (),
    enqueue_middleware: Iterable[Middleware] = (),
    validate: Literal["signature"] | bool | None = None,
    limits: Concurrency | Rate | Iterable[Concurrency | Rate] = (),
    fair_key: Key | None = None,
    unique: Unique | bool | None = None,
    schedulable: bool = False,
) -> _ContextDecorator: ...


@overload
def task(
    function: None = None,
    /,
    *,
    takes_context: Literal[False] = False,
    priority: int = 0,
    queue_name: str = "default",
    backend: str = "default",
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
    enqueue_timeout: Span | None = None,
    metadata: Mapping[str, Any] | None = None,
    middleware: Iterable[Middleware] = (),
    enqueue_middleware: Iterable[Middleware] = (),
    validate: Literal["signature"] | bool | None = None,
    limits: Concurrency | Rate | Iterable[Concurrency | Rate] = (),
    fair_key: Key | None = None,
    unique: Unique | bool | None = None,
    schedulable: bool = False,
) -> _Decorator: ...


def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """
    Turn a function at module level, sync or async, into a task definition.

    Works with and without parentheses. ``name`` is what rows call the task
    (default: the function's dotted path); ``aliases`` are names it had before, so that tasks
    stored under them still run. ``fair_key`` is a template of the arguments' names, or a callable of the
    arguments. ``schedulable`` lets operators make schedules of it in the admin.
    Spans are seconds or timedeltas. Raise InvalidTask
    for a function the backend cannot take, InvalidOptions for a value outside its rule.
    """
    if "run_after" in options:
        raise TypeError("run_after cannot be defined statically with @task; use .using(run_after=...)")
    options["task_name"] = options.pop("name", None)
    known = ["name", *_CONTRACT, *(name for name in _OWN if name not in _OF_A_CALL)]
    unknown = sorted(options.keys() - {*known, "task_name"})
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise TypeError(f"@task has no option {unknown[0]!r}; {hint}")

    # Django 6.0 gives these fields no defaults.
    fixed = {"priority": 0, "queue_name": "default", "backend": "default", "run_after": None, "takes_context": False}

    def wrap(func: Callable[..., Any]) -> Task[..., Any]:
        return Task(**{**fixed, **options}, func=func)

    return wrap if function is None else wrap(function)


def _register(made: Any) -> None:
    """Let stored names lead to a definition, however it was made; copies of it change nothing."""
    from django_taskq.lifecycle import definitions

    for name in (made.task_name or made.module_path, *made.aliases):
        found = definitions.known_as(name)
        if found is None or (found.func is not made.func and found.module_path == made.module_path):
            definitions.register(name, made)
        elif found.func is not made.func:
            raise InvalidOptions(
                f"two tasks are called {name!r}: {found.module_path} and {made.module_path}", field="name", code="taken"
            )
