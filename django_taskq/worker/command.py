"""
The worker's command line, behind ``manage.py runworker`` and ``manage.py taskq worker``.

Each option is also a setting: ``--max-tasks`` is ``TASKQ["WORKER"]["MAX_TASKS"]``.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import DatabaseError, InterfaceError

from django_taskq import conf
from django_taskq.domain.states import State
from django_taskq.domain.values import lean
from django_taskq.lifecycle.claim import parse_queues
from django_taskq.lifecycle.databases import database_for
from django_taskq.store.vendors import vendor_for
from django_taskq.worker import console, health, memory, single
from django_taskq.worker.loop import Plan, Worker, in_own_thread

if TYPE_CHECKING:
    from django_taskq.worker.supervisor import Supervisor

__all__ = ["DESCRIPTION", "EPILOG", "OPTIONS", "Option", "add_arguments", "plan_of", "run"]

logger = logging.getLogger("django_taskq")

DESCRIPTION = "Run tasks from the database until told to stop."

EPILOG = """\
What runs where
  One process has these threads, each with a database connection of its own:
    claimer    takes tasks from the queues and puts them in front of the slots; listens for new ones
    flusher    writes how tasks ended, many in one transaction
    heartbeat  keeps this worker's leases alive, hears of cancels, watches memory, age and timeouts
    duties     upkeep, done by one worker at a time: promote, rescue, snapshot, prune, reconcile
    slots      --threads of them run the tasks
  Plain functions run in the slots' threads; coroutines on one event loop beside them, up to --async at once.
  --executor processes: each slot drives a child process, in which the task function runs, with a connection of
  its own; a task that overruns its timeout is killed there. --executor asyncio: coroutines on one event loop,
  plain functions in its threads. --executor inline: one task after the other, in the claimer's thread.
  --processes N: N such workers in child processes, and a supervisor that replaces one that ends.

Signals
  first SIGTERM or SIGINT   claim no more, hand back what has not begun, let what runs finish within --grace
  second                    hand back what runs at once, its attempt not counted
  third                     nothing more

Exit codes
  0  stopped as asked, burst done, or --max-tasks, --max-memory or --max-age reached (start it again)
  1  failed: a thread of the worker died, a burst could not reach the database, or the settings are wrong
  2  the command line is wrong
  3  tasks were still running when the grace time was over; they were handed back
"""


@lean
@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of the command line; ``name`` is its setting in lower case, ``kind`` None for a flag."""

    flag: str
    name: str
    help: str
    kind: Callable[[str], Any] | None = str
    metavar: str | None = None


OPTIONS = (
    Option(
        flag="--queues",
        name="queues",
        metavar="NAMES",
        help="queues to work for, in this order; with weights (email:3,default) each gives its share; "
        "all queues if empty",
    ),
    Option(flag="--processes", name="processes", kind=int, metavar="N", help="worker processes"),
    Option(flag="--threads", name="threads", kind=int, metavar="N", help="slots of each worker process"),
    Option(
        flag="--async", name="async_slots", kind=int, metavar="N", help="coroutines at once beside the threads; 0: none"
    ),
    Option(
        flag="--executor",
        name="executor",
        metavar="NAME",
        help="where tasks run: threads, processes, asyncio, inline or a dotted path",
    ),
    Option(flag="--burst", name="burst", kind=None, help="stop when nothing is ready or due; later tasks are left"),
    Option(
        flag="--max-tasks",
        name="max_tasks",
        kind=int,
        metavar="N",
        help="stop after this many tasks; never starts more",
    ),
    Option(flag="--max-memory", name="max_memory", kind=int, metavar="MB", help="stop when more memory is resident"),
    Option(flag="--max-age", name="max_age", kind=float, metavar="SECONDS", help="stop after this time"),
    Option(
        flag="--grace", name="grace", kind=float, metavar="SECONDS", help="how long running tasks may finish on a stop"
    ),
    Option(
        flag="--kill-grace",
        name="kill_grace",
        kind=float,
        metavar="SECONDS",
        help="how long a child process of --executor processes may take to end before it is killed",
    ),
    Option(flag="--name", name="name", metavar="NAME", help="a name for operators; host and process are added"),
    Option(
        flag="--health-port",
        name="health_port",
        kind=int,
        metavar="PORT",
        help="answer /live and /ready here; 0: any port",
    ),
    Option(flag="--health-host", name="health_host", metavar="HOST", help="the address to answer on"),
    Option(flag="--reload", name="reload", kind=None, help="for development: begin anew when the code changes"),
    Option(flag="--duties", name="duties", kind=None, help="take part in the upkeep"),
    Option(
        flag="--poll", name="poll", kind=float, metavar="SECONDS", help="how seldom an idle worker looks, at the most"
    ),
    Option(flag="--batch", name="batch", kind=int, metavar="N", help="tasks claimed at once, at the most"),
)


def _parsed(option: Option) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        assert option.kind is not None
        value = option.kind(text)
        try:
            if option.name == "queues":
                parse_queues(value)
            return conf.worker_option(option.name, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    # argparse names it where the text is no number at all.
    parse.__name__ = getattr(option.kind, "__name__", "value")
    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the worker's options on a parser. What is not given is None: the setting decides."""
    parser.description = parser.description or DESCRIPTION
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--backend",
        default="default",
        metavar="ALIAS",
        help="the alias in TASKS whose tasks are run, and whose OPTIONS hold [default]",
    )
    defaults = conf.WorkerOptions()
    for option in OPTIONS:
        shown = _shown(getattr(defaults, option.name))
        text = f"{option.help} [{shown}]" if shown else option.help
        given: dict[str, Any] = {"dest": option.name, "default": None, "help": text}
        if option.kind is None:
            parser.add_argument(option.flag, action=argparse.BooleanOptionalAction, **given)
        else:
            parser.add_argument(option.flag, type=_parsed(option), metavar=option.metavar, **given)


def _shown(value: Any) -> str:
    """Return a default as the help and the reference write it."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    seconds = getattr(value, "total_seconds", None)
    return f"{seconds():g}" if seconds is not None else str(value)


def plan_of(options: Mapping[str, Any]) -> Plan:
    """Return what a worker started with these options is to do. Raise CommandError for what cannot be combined."""
    alias = options.get("backend") or "default"
    if alias not in conf.aliases():
        known = ", ".join(conf.aliases()) or "none"
        raise CommandError(
            f"--backend must be an alias in TASKS that uses the database backend ({known}), got {alias!r}"
        )
    try:
        configured = conf.options(alias).worker
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error
    given = {option.name: options[option.name] for option in OPTIONS if options.get(option.name) is not None}
    worker = replace(configured, **given)
    if worker.reload and (worker.processes > 1 or worker.burst):
        raise CommandError("--reload is for one process that goes on: leave --processes and --burst away")
    try:
        parse_queues(worker.queues)
    except ValueError as error:
        raise CommandError(str(error)) from error
    return Plan(alias=alias, worker=worker, name=worker.name, burst=worker.burst)


def run(options: Mapping[str, Any]) -> int:
    """Be the worker until it has stopped; return the exit code that EPILOG documents."""
    plan = plan_of(options)
    verbosity = int(options.get("verbosity", 1))
    seen = _Seen()
    memory.keep_few_arenas()
    memory.pack_models()
    # What setting Django up left is used again by what the threads need, instead of growing the process.
    memory.give_back()
    with ExitStack() as stack:
        bar = None
        if plan.burst and verbosity:
            bar = stack.enter_context(console.burst_bar(_ready_count(plan)))
        # Lines for each task would tear the bar apart.
        console.install(0 if bar is not None else verbosity)
        if plan.worker.health_port is not None and not _is_reloader(plan):
            try:
                stack.enter_context(_health(plan, seen))
            except OSError as error:
                raise CommandError(f"--health-port {plan.worker.health_port} cannot be used: {error}") from error
        try:
            if plan.worker.reload:
                from django_taskq.worker import supervisor

                return supervisor.run_reloading(plan, watch=seen.look_at_worker)
            if plan.worker.processes > 1:
                from django_taskq.worker import supervisor

                return supervisor.run_many(plan, verbosity=verbosity, bar=bar, watch=seen.look_at_supervisor)
            return single.run_here(plan, bar=bar, watch=seen.look_at_worker)
        except (DatabaseError, InterfaceError) as error:
            # Of the start: a running worker survives them. Most often the tables are not there yet.
            raise CommandError(f"{error}\nIs the database migrated? Run: manage.py migrate django_taskq") from error


def _is_reloader(plan: Plan) -> bool:
    """Return whether this process only watches over the one that works, which shall have the port."""
    if not plan.worker.reload:
        return False
    from django_taskq.worker import supervisor

    return not supervisor.is_reloaded()


class _Seen:
    """What the health server is told about: one worker, or a supervisor's."""

    def __init__(self) -> None:
        self.report: health.Report = list

    def look_at_worker(self, worker: Worker) -> None:
        self.report = lambda: [single.status_of(worker)]

    def look_at_supervisor(self, found: Supervisor) -> None:
        self.report = found.status


def _health(plan: Plan, seen: _Seen) -> Any:
    options = conf.options(plan.alias)
    alias = database_for(options)

    def database() -> str:
        try:
            in_own_thread(lambda: vendor_for(alias).now(), timeout=3.0)
        except (DatabaseError, InterfaceError, TimeoutError, OSError) as error:
            return str(error) or type(error).__name__
        return ""

    port = plan.worker.health_port
    assert port is not None
    return health.serving(
        plan.worker.health_host,
        port,
        lambda: seen.report(),  # noqa: PLW0108 - which function that is comes later, with the worker
        lease_seconds=options.lease_seconds,
        database=database,
    )


def _ready_count(plan: Plan) -> int:
    """Return how many tasks are ready, for the bar; at most a million of each queue are counted."""
    counts: list[int] = []

    def count() -> None:
        vendor = vendor_for(database_for(conf.options(plan.alias)))
        wanted = {name for name, _ in parse_queues(plan.worker.queues)}
        queues = [name for name in vendor.ready_queues() if not wanted or name in wanted]
        counts.append(sum(vendor.depth(name, State.READY, cap=1_000_000) for name in queues))

    try:
        in_own_thread(count)
    except (DatabaseError, InterfaceError):
        # Only the bar's length; the worker itself will say what is wrong.
        return 0
    return counts[0]
