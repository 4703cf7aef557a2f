"""
What stands around a task function: middleware, and the arguments and result made of their annotations.

Loaded by tasks that have something of it. A chain is made once for each definition
and kept. From outside to inside: arguments are rebuilt, the settings' middleware, the task's
own in their order, the function; on the way back the result is encoded last. Its surprise: an
exception that a middleware lets pass is the function's, one it raises is told to be its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

from django.utils.module_loading import import_string

from django_taskq import conf
from django_taskq.domain import middleware as rules
from django_taskq.exceptions import InvalidArguments, InvalidOptions, Steering
from django_taskq.lifecycle import definitions, results
from django_taskq.lifecycle.context import Run, Verdict
from django_taskq.lifecycle.execute import on_a_good_connection

__all__ = ["Chain", "acall", "call", "chain_of", "loaded"]

_loaded: dict[str, Any] = {}
_chains: dict[str, tuple[Any, conf.Options, Chain]] = {}


class Chain:
    """The middlewares around one function, each in the form that fits it, and its signature where it is checked."""

    __slots__ = ("links", "names", "signature")

    def __init__(self, links: list[rules.Form], names: list[str], signature: Any) -> None:
        self.links = links
        self.names = names
        self.signature = signature


def loaded(path: str, *, setting: str) -> Any:
    """Return the middleware at a dotted path, the same object each time. Raise InvalidOptions that names the path."""
    if path not in _loaded:
        try:
            _loaded[path] = rules.made(import_string(path))
        except ImportError as error:
            raise InvalidOptions(
                f"{setting} names {path!r}, which cannot be imported: {error}", field=setting.lower(), code="import"
            ) from error
    return _loaded[path]


def chain_of(task: Any, options: conf.Options) -> Chain:
    """Return the chain of a definition. Raise InvalidOptions for a middleware that cannot stand around it."""
    name = definitions.stored_name(task)
    kept = _chains.get(name)
    if kept is not None and kept[0] is task and kept[1] is options:
        return kept[2]
    items = [loaded(path, setting="MIDDLEWARE") for path in options.middleware]
    for item in getattr(task, "middleware", ()):
        items.append(loaded(item, setting="middleware") if isinstance(item, str) else rules.made(item))
    is_coroutine = definitions.is_coroutine(task)
    links = [rules.check(item, is_coroutine=is_coroutine, task=name) for item in items]
    signature = None
    if definitions.checks_of(task, options):
        from django_taskq.domain.arguments import signature_of

        signature = signature_of(task.func, takes_context=task.takes_context)
    chain = Chain(links, [rules.name_of(item) for item in items], signature)
    _chains[name] = (task, options, chain)
    return chain


def _begin(run: Run, chain: Chain, args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Put the arguments into the run, rebuilt where they are checked; return the context where it is one of them."""
    given = tuple(args[:1]) if run.task.takes_context else ()
    plain = args[len(given) :]
    if chain.signature is not None:
        try:
            wants_types = definitions.checks_of(run.task, run.options) is True
            plain, kwargs = chain.signature.decode(plain, kwargs, types=wants_types)
        except InvalidArguments as error:
            # Another attempt would find the same.
            run.verdict = (error, Verdict.UNDECODABLE, None)
            raise
    run.arguments = (tuple(plain), kwargs)
    return given


def _end(run: Run, chain: Chain, value: Any) -> Any:
    if value is None or chain.signature is None or definitions.checks_of(run.task, run.options) is not True:
        return value
    from django_taskq.domain.arguments import plain

    return plain(value)


class _Next:
    """What a middleware calls to go on: the rest of the chain. Remembers what came through it."""

    __slots__ = ("at", "chain", "context", "given", "raised", "run", "was_called")

    def __init__(self, at: int, run: Run, chain: Chain, context: Any, given: tuple[Any, ...]) -> None:
        self.at = at
        self.run = run
        self.chain = chain
        self.context = context
        self.given = given
        self.raised: BaseException | None = None
        self.was_called = False

    def _replace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.was_called = True
        if args or kwargs:
            self.run.arguments = (args, kwargs)

    def _inner(self) -> _Next:
        return _Next(self.at + 1, self.run, self.chain, self.context, self.given)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._replace(args, kwargs)
        try:
            if self.at == len(self.chain.links):
                own_args, own_kwargs = self.run.arguments
                return self.run.task.func(*self.given, *own_args, **own_kwargs)
            inner = self._inner()
            try:
                return self.chain.links[self.at](self.context, inner)
            except BaseException as error:
                inner.blame(error)
                raise
        except BaseException as error:
            self.raised = error
            raise

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        self._replace(args, kwargs)
        try:
            if self.at == len(self.chain.links):
                own_args, own_kwargs = self.run.arguments
                return await self.run.task.func(*self.given, *own_args, **own_kwargs)
            inner = self._inner()
            try:
                return await self.chain.links[self.at](self.context, inner.acall)
            except BaseException as error:
                inner.blame(error)
                raise
        except BaseException as error:
            self.raised = error
            raise

    def blame(self, error: BaseException) -> None:
        """Say in an exception which middleware raised it, unless it came from inside of it."""
        if error is self.raised or isinstance(error, Steering | asyncio.CancelledError):
            return
        when = "after it had gone on to" if self.was_called else "before it went on to"
        error.add_note(f"Raised by the middleware {self.chain.names[self.at - 1]}, {when} the task function.")


def call(run: Run, *args: Any, **kwargs: Any) -> Any:
    """Call the run's function with all that stands around it; ``args`` begin with the context if the task takes one."""
    chain = chain_of(run.task, run.options)
    given = _begin(run, chain, list(args), kwargs)
    context = given[0] if given else results.context_of(run) if chain.links else None
    return _end(run, chain, _Next(0, run, chain, context, given)())


async def acall(run: Run, *args: Any, **kwargs: Any) -> Any:
    """Do what ``call`` does with a coroutine function, on the event loop that runs it."""
    chain = chain_of(run.task, run.options)
    given = _begin(run, chain, list(args), kwargs)
    context = given[0] if given else await _context(run) if chain.links else None
    return _end(run, chain, await _Next(0, run, chain, context, given).acall())


async def _context(run: Run) -> Any:
    if run.attempt == 1:
        return results.context_of(run)
    # Earlier attempts are in the database.
    return await asyncio.to_thread(on_a_good_connection, results.context_of, run)
