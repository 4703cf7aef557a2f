"""
Middleware for tasks: what is ready to use, and what makes one of a context manager.

Each of them stands around plain and coroutine functions alike. One that puts a task off
uses no attempt; one that judges an exception lets it pass, so that what stands
further outside sees the error itself.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async

from django_taskq.domain.retry import Curve, curve_from_data
from django_taskq.domain.states import Ack
from django_taskq.exceptions import InvalidOptions, Skip, Snooze, Steering

if TYPE_CHECKING:
    from django_taskq.lifecycle.arrange import EnqueueCall

__all__ = [
    "EnqueueCall",
    "fail_on",
    "rate_limited",
    "retry_policy",
    "skip_when",
    "within",
    "without_overlapping",
]


def __getattr__(name: str) -> Any:
    # Needs the models, which are not there while tasks are being imported.
    if name == "EnqueueCall":
        from django_taskq.lifecycle.arrange import EnqueueCall

        return EnqueueCall
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _check_callable(value: Any, field: str, rule: str) -> None:
    if not callable(value):
        raise InvalidOptions(f"{field} must be {rule}, got {value!r}", field=field, code="type")


def _is_exception(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


async def _ask(function: Callable[..., Any], *args: Any) -> Any:
    """Call something of the project's for a coroutine: plain functions where the ORM may be used."""
    if inspect.iscoroutinefunction(function):
        return await function(*args)
    return await sync_to_async(function)(*args)


class within:  # noqa: N801 - used like a function, and as a decorator
    """
    Make a middleware of a context manager: ``factory(context)`` is entered before the function and left after it.

    Around a coroutine function it is entered on the event loop, so it must not wait there; an async
    context manager is entered as one. Can be used as a decorator above ``@contextmanager``.
    """

    def __init__(self, factory: Callable[[Any], Any]) -> None:
        _check_callable(factory, "factory", "a callable that takes the context and returns a context manager")
        self.factory = factory
        functools.update_wrapper(self, factory)

    def __call__(self, context: Any, call_next: Callable[..., Any]) -> Any:
        with self.factory(context):
            return call_next()

    async def acall(self, context: Any, call_next: Callable[..., Any]) -> Any:
        manager = self.factory(context)
        if hasattr(manager, "__aenter__"):
            async with manager:
                return await call_next()
        with manager:
            return await call_next()


class skip_when:  # noqa: N801
    """
    Skip the task when ``predicate(context)`` is true: it succeeds without a result, and ``TaskSkipped`` tells why.

    A string that the predicate returns is the reason.
    """

    def __init__(self, predicate: Callable[[Any], Any], *, reason: str = "") -> None:
        _check_callable(predicate, "predicate", "a callable that takes the context")
        self.predicate = predicate
        self.reason = reason or f"{getattr(predicate, '__qualname__', predicate)} said so"

    def _judge(self, answer: Any) -> None:
        if answer:
            raise Skip(answer if isinstance(answer, str) else self.reason)

    def __call__(self, context: Any, call_next: Callable[..., Any]) -> Any:
        self._judge(self.predicate(context))
        return call_next()

    async def acall(self, context: Any, call_next: Callable[..., Any]) -> Any:
        self._judge(await _ask(self.predicate, context))
        return await call_next()


class fail_on:  # noqa: N801
    """
    Make a task dead at once on these exceptions, whatever attempts are left; the error stays the one that was raised.

    ``when(error)`` says which of them, or without classes which of all.
    """

    def __init__(self, *exceptions: type[BaseException], when: Callable[[BaseException], object] | None = None) -> None:
        for kind in exceptions:
            if not _is_exception(kind):
                raise InvalidOptions(f"fail_on takes exception classes, got {kind!r}", field="exceptions", code="type")
        if not exceptions and when is None:
            raise InvalidOptions(
                "fail_on needs exception classes, or when=, which says of an error whether it is final",
                field="exceptions",
                code="missing",
            )
        self.exceptions = exceptions or (Exception,)
        self.when = when

    def _judge(self, context: Any, error: BaseException) -> None:
        if isinstance(error, Steering | asyncio.CancelledError):
            return
        if self.when is None or self.when(error):
            _decide(context, error, "give_up")

    def __call__(self, context: Any, call_next: Callable[..., Any]) -> Any:
        try:
            return call_next()
        except self.exceptions as error:
            self._judge(context, error)
            raise

    async def acall(self, context: Any, call_next: Callable[..., Any]) -> Any:
        try:
            return await call_next()
        except self.exceptions as error:
            self._judge(context, error)
            raise


def _decide(context: Any, error: BaseException, what: str, wait: float | None = None) -> None:
    """Decide of an exception, unless somebody further inside did."""
    found = getattr(context.run, "verdict", None)
    if found is None or found[0] is not error:
        context.run.verdict = (error, what, wait)


class rate_limited:  # noqa: N801
    """
    Ask ``limiter(context)`` before each run: True lets it run, seconds or a timedelta put it off, at no attempt's cost.

    The limiter is yours, and so is how exact it is; ``limits=[Rate(…)]`` is the one that all workers share.
    """

    def __init__(self, limiter: Callable[[Any], Any]) -> None:
        _check_callable(limiter, "limiter", "a callable that takes the context")
        self.limiter = limiter

    def _judge(self, answer: Any) -> None:
        if answer is True:
            return
        if isinstance(answer, bool) or not isinstance(answer, int | float | timedelta):
            raise InvalidOptions(
                f"a limiter must return True, or the seconds to wait, got {answer!r}", field="limiter", code="answer"
            )
        raise Snooze(answer)

    def __call__(self, context: Any, call_next: Callable[..., Any]) -> Any:
        self._judge(self.limiter(context))
        return call_next()

    async def acall(self, context: Any, call_next: Callable[..., Any]) -> Any:
        self._judge(await _ask(self.limiter, context))
        return await call_next()


_UNSAID: Any = object()


class retry_policy:  # noqa: N801
    """
    Choose the wait, and how often to try, by the exception: ``{ConnectionError: Fixed(5), KeyError: None}``.

    A value is a curve, a number of seconds, None for "not again", or a pair of one of them and the
    most attempts. The nearest class of an exception holds, then ``otherwise``, then the task's own backoff.
    The task's ``max_attempts`` bounds all of them.
    """

    def __init__(self, policies: Mapping[type[BaseException], Any], *, otherwise: Any = _UNSAID) -> None:
        for kind in policies:
            if not _is_exception(kind):
                raise InvalidOptions(
                    f"retry_policy takes a dict of exception classes, got the key {kind!r}",
                    field="policies",
                    code="type",
                )
        self.policies = {kind: _policy(value) for kind, value in policies.items()}
        self.otherwise = None if otherwise is _UNSAID else _policy(otherwise)

    def _judge(self, context: Any, error: Exception) -> None:
        if isinstance(error, Steering):
            return
        kinds = (self.policies[kind] for kind in type(error).__mro__ if kind in self.policies)
        found = next(kinds, self.otherwise)
        if found is None:
            return
        curve, most = found
        if curve is None or (most is not None and context.attempt >= most):
            _decide(context, error, "retry", None)
        else:
            _decide(context, error, "retry", curve.delay(context.attempt, random.random()))

    def __call__(self, context: Any, call_next: Callable[..., Any]) -> Any:
        try:
            return call_next()
        except Exception as error:
            self._judge(context, error)
            raise

    async def acall(self, context: Any, call_next: Callable[..., Any]) -> Any:
        try:
            return await call_next()
        except Exception as error:
            self._judge(context, error)
            raise


def _policy(value: Any) -> tuple[Curve | None, int | None]:
    most: int | None = None
    if isinstance(value, tuple):
        try:
            value, most = value
        except ValueError:
            most = 0
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise InvalidOptions(
                f"a policy with a number of attempts must be a pair such as (Fixed(5), 3), got {value!r}, {most!r}",
                field="policies",
                code="attempts",
            )
    if value is None or isinstance(value, Curve):
        return value, most
    try:
        return curve_from_data(value), most
    except (InvalidOptions, TypeError) as error:
        raise InvalidOptions(
            f"a policy must be Fixed, Steps, Exponential, a number of seconds or None, got {value!r}",
            field="policies",
            code="type",
        ) from error


class without_overlapping:  # noqa: N801
    """
    Let one task of a key run at a time; the others are put off for ``retry_in``, at no attempt's cost.

    ``key``: None for the task's name, a text such as "import:{account_id}" that is filled with the task's arguments,
    or a callable of the context. Tasks that share a key exclude each other. The lock lasts as long as the
    attempt holds its lease, so a killed worker's lock is free when its task is rescued; ``ttl`` ends it earlier.
    """

    def __init__(
        self,
        key: str | Callable[[Any], str] | None = None,
        *,
        ttl: float | timedelta | None = None,
        retry_in: float | timedelta = 5.0,
    ) -> None:
        if key is not None and not isinstance(key, str):
            _check_callable(key, "key", "a text, or a callable that takes the context")
        self.key = key
        self.ttl = None if ttl is None else _span(ttl, "ttl")
        self.retry_in = _span(retry_in, "retry_in")

    def _take(self, context: Any) -> str | None:
        """Return the key that is locked now, None where no lock is needed. Raise Snooze if somebody else has it."""
        from django_taskq.lifecycle import locks

        if not context.run.is_stored:
            # Runs in line: nobody could run beside it who would look at a lock.
            return None
        key = locks.key_of(context, self.key)
        if context.run.behaviour.ack == Ack.ATOMIC:
            error = InvalidOptions(
                "without_overlapping cannot stand around a task with ack='atomic': its lock would be invisible to "
                "others until the task's transaction commits; use another ack, or a concurrency limit of 1",
                field="ack",
                code="conflict",
            )
            _decide(context, error, "give_up")
            raise error
        if not locks.take(context.run, key, ttl=self.ttl):
            raise Snooze(self.retry_in)
        return key

    def _release(self, context: Any, key: str | None) -> None:
        from django_taskq.lifecycle import locks

        if key is not None:
            locks.release(context.run, key)

    def __call__(self, context: Any, call_next: Callable[..., Any]) -> Any:
        key = self._take(context)
        try:
            return call_next()
        finally:
            self._release(context, key)

    async def acall(self, context: Any, call_next: Callable[..., Any]) -> Any:
        from django_taskq.lifecycle.execute import on_a_good_connection

        key = await asyncio.to_thread(on_a_good_connection, self._take, context)
        try:
            return await call_next()
        finally:
            await asyncio.to_thread(on_a_good_connection, self._release, context, key)


def _span(value: float | timedelta, field: str) -> timedelta:
    seconds: object = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e10:
        raise InvalidOptions(
            f"{field} must be a timedelta or a number of seconds, more than 0, got {value!r}", field=field, code="range"
        )
    return timedelta(seconds=seconds)
