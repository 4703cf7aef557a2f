"""
Whether what stands around tasks fits them, for ``manage.py check``: middleware, and annotations that are validated.

Looks at the definitions that this process knows, and imports every middleware. A worker asks
this when it starts, so what runs middleware and checks arguments is loaded only where there are any.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django_taskq import conf
from django_taskq.exceptions import InvalidOptions
from django_taskq.lifecycle import definitions

__all__ = ["unfit_annotations", "unfit_middleware"]


def unfit_middleware() -> list[str]:
    """Return a sentence for each middleware that cannot be imported, or cannot stand where it is to stand."""
    found = (str(error) for alias in conf.aliases() for error in _unfit(conf.options(alias)))
    # Aliases share what the settings say for all.
    return list(dict.fromkeys(found))


def _unfit(options: conf.Options) -> Iterator[InvalidOptions]:
    for setting in ("MIDDLEWARE", "ENQUEUE_MIDDLEWARE"):
        for path in getattr(options, setting.lower()):
            from django_taskq.lifecycle.around import loaded

            try:
                loaded(path, setting=setting)
            except InvalidOptions as error:
                yield error
                # What is around each task would tell the same again.
                return
    is_given = options.middleware or options.enqueue_middleware
    for task in {id(task): task for task in definitions.known().values()}.values():
        if not is_given and not getattr(task, "middleware", ()) and not getattr(task, "enqueue_middleware", ()):
            continue
        from django_taskq.lifecycle.around import chain_of
        from django_taskq.lifecycle.arrange import links_of

        for look in (chain_of, links_of):
            try:
                look(task, options)
            except InvalidOptions as error:
                if error.field != "validate":
                    yield error


def unfit_annotations() -> list[str]:
    """Return a sentence for each task whose arguments cannot be validated, although it asks for it."""
    found = []
    for name, task in definitions.known().items():
        if definitions.checks_of(task, _options_of(task)) is not True:
            continue
        from django_taskq.domain.arguments import signature_of

        try:
            signature_of(task.func, takes_context=task.takes_context).check_annotations()
        except InvalidOptions as error:
            found.append(f"The arguments of {name} cannot be validated: {error}")
    return found


def _options_of(task: Any) -> conf.Options:
    return conf.options(task.backend if task.backend in conf.aliases() else conf.main_alias())
