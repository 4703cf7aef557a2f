"""
What happens to a call before it is stored: enqueue middleware, then the checks of its arguments.

Loaded where there is any of it. All ways to enqueue come by here once for each call: one, many,
members and callbacks of workflows. Its surprise: when ``enqueue_next`` returns, nothing is stored yet; many calls
are stored by one statement, after the last of them was arranged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from django_taskq import conf
from django_taskq.domain import middleware as rules
from django_taskq.domain import payload
from django_taskq.domain.arguments import signature_of
from django_taskq.exceptions import InvalidOptions, QueueFull
from django_taskq.lifecycle import databases, definitions
from django_taskq.lifecycle import enqueue as enqueueing
from django_taskq.lifecycle.around import loaded
from django_taskq.lifecycle.enqueue import ArrangedCall, Stored
from django_taskq.store.vendors import vendor_for

__all__ = ["EnqueueCall", "arrange", "links_of", "store_each"]


class EnqueueCall:
    """A call on its way to be stored. What is changed here holds for what stands further inside, and for the row."""

    __slots__ = ("args", "kwargs", "task")

    def __init__(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.task = task
        self.args = args
        self.kwargs = kwargs

    @property
    def name(self) -> str:
        """The name under which the task will be stored."""
        return definitions.stored_name(self.task)

    @property
    def queue(self) -> str:
        """The queue it will be on."""
        queue: str = self.task.queue_name
        return queue

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of what the task will carry along; ``using(metadata=…)`` replaces it."""
        return dict(getattr(self.task, "metadata", None) or {})

    def using(self, **options: Any) -> None:
        """Change options of the call, those of ``task.using``. Raise InvalidOptions for another backend."""
        changed = self.task.using(**options)
        if changed.backend != self.task.backend:
            raise InvalidOptions(
                f"a middleware cannot move a call from the backend {self.task.backend!r} to {changed.backend!r}; "
                "choose the backend where the task is enqueued",
                field="backend",
                code="middleware",
            )
        self.task = changed


def arrange(
    task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: conf.Options
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """
    Return a call as it is to be stored. Raise what a middleware raises to refuse it.

    Raise InvalidArguments for arguments that do not fit, InvalidOptions for a middleware that does not go on.
    """
    call = EnqueueCall(task, tuple(args), dict(kwargs))
    links = links_of(task, options)
    if links:
        _pass_on(links, call, 0)
    checks = definitions.checks_of(task, options)
    if not checks:
        return call.task, tuple(call.args), dict(call.kwargs)
    signature = signature_of(task.func, takes_context=task.takes_context)
    return call.task, *signature.encode(call.args, call.kwargs, types=checks is True)


def links_of(task: Any, options: conf.Options) -> list[tuple[str, rules.Form]]:
    """Return what stands around enqueues of a task, each with its name. Raise InvalidOptions for what cannot."""
    items = [loaded(path, setting="ENQUEUE_MIDDLEWARE") for path in options.enqueue_middleware]
    for item in getattr(task, "enqueue_middleware", ()):
        items.append(loaded(item, setting="enqueue_middleware") if isinstance(item, str) else rules.made(item))
    name = definitions.stored_name(task)
    return [
        (rules.name_of(item), rules.check(item, is_coroutine=False, task=name, field="enqueue_middleware"))
        for item in items
    ]


def _pass_on(links: Sequence[tuple[str, rules.Form]], call: EnqueueCall, at: int) -> None:
    if at == len(links):
        return
    gone_on: list[bool] = []

    def enqueue_next() -> None:
        gone_on.append(True)
        _pass_on(links, call, at + 1)

    name, form = links[at]
    form(call, enqueue_next)
    if not gone_on:
        raise InvalidOptions(
            f"the enqueue middleware {name} returned without calling enqueue_next(); "
            "call it to let the task through, or raise an exception to refuse it",
            field="enqueue_middleware",
            code="silent",
        )


def store_each(
    calls: Sequence[ArrangedCall], task: Any, name: str, options: conf.Options, store: Callable[..., Stored]
) -> Stored:
    """
    Store calls that need not have the same options any more, all or none, in one go for each set of options.

    ``store`` stores calls of one definition, given by it, its name, their JSON texts and the calls themselves.
    """
    groups: dict[Any, list[int]] = {}
    for at, (changed, _, _) in enumerate(calls):
        groups.setdefault(changed, []).append(at)
    if not groups:
        return store(task, name, [], [], options, calls=[])
    limit, encode = options.max_payload_bytes, payload.encode_arguments
    ids = [0] * len(calls)
    found: dict[int, Any] = {}
    parts: list[Stored] = []
    is_one_transaction = len(groups) > 1 and not enqueueing.recorders
    try:
        with vendor_for(databases.database_for(options)).atomic() if is_one_transaction else nullcontext():
            for changed, places in groups.items():
                mine = [calls[at] for at in places]
                texts = [encode(args, kwargs, limit=limit) for _, args, kwargs in mine]
                pairs = [(args, kwargs) for _, args, kwargs in mine]
                part = store(changed, name, texts, pairs, options, calls=mine)
                parts.append(part)
                if part.dropped is not None and len(parts) > 1:
                    # All or none: what was stored before goes, too.
                    raise part.dropped
                for place, (at, number) in enumerate(zip(places, part.ids, strict=True)):
                    ids[at] = number
                    if place in part.found:
                        found[at] = part.found[place]
                if part.dropped is not None:
                    break
    except QueueFull as full:
        if not parts or parts[-1].dropped is not full:
            raise
    first, last = parts[0], parts[-1]
    return Stored(
        ids=ids,
        created_at=first.created_at,
        state=first.state,
        alias=first.alias,
        calls=calls,
        found=found,
        dropped=last.dropped,
    )
