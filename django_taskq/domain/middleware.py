"""
What may stand around a task function, or around an enqueue, and in which forms it can be called.

Around a function: ``middleware(context, call_next)``, awaited where the function is a coroutine
function. One that can do both has ``__call__`` and ``acall``. There is no third form: a
plain middleware around a coroutine would hold a thread as long as that runs, and could
not be cancelled with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from django_taskq.exceptions import InvalidOptions

__all__ = ["Form", "check", "is_async", "listed", "made", "name_of", "plain_form"]

# As it is called.
Form = Callable[[Any, Any], Any]


def name_of(item: Any) -> str:
    """Return what a middleware is called in messages: its dotted path."""
    if isinstance(item, str):
        return item
    kind = item if hasattr(item, "__qualname__") else type(item)
    return f"{kind.__module__}.{kind.__qualname__}"


_instances: dict[type, Any] = {}


def made(item: Any) -> Any:
    """Return the middleware itself: of a class its one instance in this process, anything else as it is."""
    if not isinstance(item, type):
        return item
    if item not in _instances:
        # Two threads may make one at once; all get the same.
        _instances.setdefault(item, item())
    return _instances[item]


def is_async(item: Any) -> bool:
    """Return whether calling a middleware returns a coroutine; of a class, whether calling its instances does."""
    if isinstance(item, type):
        return inspect.iscoroutinefunction(getattr(item, "__call__", None))  # noqa: B004
    return inspect.iscoroutinefunction(item) or inspect.iscoroutinefunction(getattr(item, "__call__", None))  # noqa: B004


def _is_generator(item: Any) -> bool:
    """Return whether calling a middleware, in one of its forms, returns a generator."""
    forms = (item, getattr(item, "__call__", None), getattr(item, "acall", None))  # noqa: B004
    return any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in forms)


def plain_form(item: Any) -> Form | None:
    """Return what is called around a plain function; None if the middleware has no such form."""
    return item if callable(item) and not is_async(item) else None


def _async_form(item: Any) -> Form | None:
    """Return what is awaited around a coroutine function; None if the middleware has no such form."""
    own: Form | None = getattr(item, "acall", None)
    if own is not None:
        return own
    return item if callable(item) and is_async(item) else None


def check(item: Any, *, is_coroutine: bool, task: str, field: str = "middleware") -> Form:
    """Return the form of a middleware that fits a task's function. Raise InvalidOptions if it has none."""
    if not callable(item):
        raise InvalidOptions(
            f"{field} must be callables, classes of them, or their dotted paths, got {item!r}", field=field, code="type"
        )
    if _is_generator(item):
        raise InvalidOptions(
            f"{field} must not be a generator function, which runs nothing when it is called: {name_of(item)} around "
            f"{task}; put @contextmanager above it and make it a middleware with django_taskq.middleware.within",
            field=field,
            code="generator",
        )
    found = _async_form(item) if is_coroutine else plain_form(item)
    if found is not None:
        return found
    if is_coroutine:
        way_out = "make it an async function, give its class a method `async def acall(self, context, call_next)`, "
        kinds = "a plain middleware cannot stand around a coroutine function"
    else:
        way_out = "make it a plain function, give its class a plain __call__ and an `async def acall` beside it, "
        kinds = "an async middleware cannot stand around a plain function"
    raise InvalidOptions(
        f"{kinds}: {name_of(item)} around {task}; {way_out}or make it of a context manager with "
        "django_taskq.middleware.within",
        field=field,
        code="async",
    )


def listed(items: Any, *, field: str) -> tuple[Any, ...]:
    """Return middlewares as a tuple. Raise InvalidOptions for what is no list of callables and dotted paths."""
    if isinstance(items, str) or not isinstance(items, Iterable):
        raise InvalidOptions(
            f"{field} must be a list of callables or their dotted paths, got {items!r}", field=field, code="type"
        )
    found = tuple(items)
    for item in found:
        if not callable(item) and not (isinstance(item, str) and "." in item):
            raise InvalidOptions(
                f"{field} must be callables, classes of them, or their dotted paths, got {item!r}",
                field=field,
                code="type",
            )
    return found
