"""``manage.py runworker``: the worker."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from django.core import checks
from django.core.checks.registry import registry
from django.core.management.base import BaseCommand, CommandParser

from django_taskq.worker import command

__all__ = ["Command"]

# What only a web process or a developer needs. Left to ``manage.py check``: asking about the URLs
# imports every view of the project, which would stay in the worker's memory for all its life, and
# asking about the models, as ``migrate`` has done, leaves what was computed of each of them there.
_NOT_OF_WORKERS = {
    checks.Tags.admin,
    checks.Tags.commands,
    checks.Tags.models,
    checks.Tags.security,
    checks.Tags.staticfiles,
    checks.Tags.templates,
    checks.Tags.urls,
    # Never run unasked: connects to every database.
    checks.Tags.database,
}


class Command(BaseCommand):
    """Run tasks until told to stop."""

    help = command.DESCRIPTION

    def add_arguments(self, parser: CommandParser) -> None:
        command.add_arguments(parser)

    def get_check_kwargs(self, options: Mapping[str, Any]) -> dict[str | None, Any]:
        return {"tags": sorted(registry.tags_available() - _NOT_OF_WORKERS)}

    def handle(self, *args: Any, **options: Any) -> None:
        sys.exit(command.run(options))
