"""Which database the tasks of a backend are in."""

from __future__ import annotations

from django.db import router

from django_taskq import conf
from django_taskq.models import Task

__all__ = ["database_for", "main_database", "options_for"]


def database_for(options: conf.Options) -> str:
    """Return the database that tasks go to: the DATABASE option, else what the routers say."""
    return options.database or router.db_for_write(Task)


def main_database() -> str:
    """Return the database of the project's main backend: where everybody looks who names no other."""
    return database_for(conf.options(conf.main_alias()))


def options_for(database: str) -> conf.Options:
    """Return the options of the backend that stores its tasks in a database; those of ``TASKQ`` where none does."""
    main = conf.main_alias()
    for alias in sorted(conf.aliases(), key=lambda alias: alias != main):
        options = conf.options(alias)
        if database_for(options) == database:
            return options
    return conf.options()
