"""``manage.py runworker``: the worker."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from django_taskq.worker import command

__all__ = ["Command"]


class Command(BaseCommand):
    """Run tasks until told to stop."""

    help = command.DESCRIPTION

    def add_arguments(self, parser: CommandParser) -> None:
        command.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        sys.exit(command.run(options))
