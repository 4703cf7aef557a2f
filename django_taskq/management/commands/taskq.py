"""``manage.py taskq``: the operator's tool. Parses, calls, prints; ``docs/reference/commands.md`` lists it all."""

from __future__ import annotations

import argparse
import getpass
import re
import socket
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import partial
from typing import Any, TextIO, cast

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, connections
from django.utils.dateparse import parse_datetime

from django_taskq import clock, conf
from django_taskq.domain.limits import LimitKind
from django_taskq.domain.pauses import PauseScope
from django_taskq.domain.states import FINAL, LIVE, DeadReason, State, StepState
from django_taskq.domain.workflows import WorkflowState
from django_taskq.duties import prune
from django_taskq.exceptions import InvalidCursor, InvalidOptions, InvalidPayload, LimitNotFound, ScheduleNotFound
from django_taskq.lifecycle import control, definitions, set_limits
from django_taskq.lifecycle.arrange_queue import MOST as MOST_PLACE
from django_taskq.lifecycle.arrange_queue import arrange
from django_taskq.lifecycle.databases import main_database, options_for
from django_taskq.management import keys as key_views
from django_taskq.management import limits as limit_views
from django_taskq.management import schedules as schedule_views
from django_taskq.management import workflows as views
from django_taskq.management.output import FORMATS, Report, one_line, write
from django_taskq.models import FinishedTask, Queue, Step, TaskType, Workflow
from django_taskq.models.tasks import TaskRow
from django_taskq.ops import health, keys, limits, retention, search, snapshot, stats, workflows
from django_taskq.ops.explain import duration, explain, explain_workflow
from django_taskq.store import pauses as pause_store
from django_taskq.store import steps as step_store
from django_taskq.store import tasks as store
from django_taskq.store import workflows as workflow_store
from django_taskq.store.vendors import vendor_for
from django_taskq.worker import command as worker_command

__all__ = ["Command"]

DONE, FAILED, USAGE, NOT_FOUND, REFUSED, PARTLY = range(6)
MOST = 1000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_TASK_FIELDS = (
    "id",
    "task",
    "queue",
    "state",
    "priority",
    "attempt",
    "max_attempts",
    "created_at",
    "run_after",
    "started_at",
    "finished_at",
    "reason",
    "error",
)
_SHOWN_LIVE = ("id", "task", "queue", "state", "priority", "attempt", "created_at", "run_after")
_SHOWN_WORKFLOW = ("id", "kind", "name", "state", "total", "open", "failed", "cancelled", "created_at", "finished_at")
_SHOWN_ENDED = ("id", "task", "queue", "state", "attempt", "finished_at", "reason", "error")


# Options


def span(text: str) -> timedelta:
    """Parse "90s", "15m", "2h", "7d" or a number of seconds."""
    found = _SPAN.fullmatch(text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no span of time; give 90s, 15m, 2h or 7d")
    try:
        return timedelta(seconds=float(found[1]) * _UNITS[found[2] or "s"])
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than a date can hold") from None


def moment(text: str) -> datetime:
    """Parse a moment as ISO 8601, or a span that counts back from now."""
    if _SPAN.fullmatch(text.strip().lower()):
        try:
            return clock.now() - span(text)
        except OverflowError:
            raise argparse.ArgumentTypeError(f"{text!r} ago is before all dates") from None
    found = None
    with suppress(ValueError):
        found = parse_datetime(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no moment; give 2h, 7d or 2026-03-01T12:00:00Z")
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def ahead(text: str) -> datetime | timedelta:
    """Parse a moment as ISO 8601, or a span that counts from now."""
    return span(text) if _SPAN.fullmatch(text.strip().lower()) else moment(text)


def number(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers within bounds."""

    def parse(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return int(text)

    return parse


class Command(BaseCommand):
    """Look at queues, tasks and workers, and act on them."""

    help = "Look at queues, tasks and workers, and act on them."
    requires_system_checks = ()
    _verb: argparse.ArgumentParser

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", metavar="SUBCOMMAND", required=True)

        def add(name: str, text: str, *parents: Any) -> argparse.ArgumentParser:
            return verbs.add_parser(name, help=text, description=f"{text}.", parents=list(parents))

        shown, acts, filters = _shown(), _acts("--why", "--reason"), _filters()

        verb = add("stats", "Show how deep each queue is and what was settled lately", shown)
        verb.add_argument("--queue", action="append", metavar="NAME", help="only this queue; may be repeated")
        verb.add_argument(
            "--window",
            type=span,
            default=timedelta(hours=1),
            metavar="SPAN",
            help="count what was settled in the last SPAN [1h]",
        )

        verb = add("tasks", "List tasks, live ones unless a final state is asked for", shown, filters)
        states = [state.name.lower() for state in State]
        verb.add_argument(
            "--state", action="append", choices=states, metavar="STATE", help=f"only these states: {', '.join(states)}"
        )
        verb.add_argument("--ended", action="store_true", help="tasks that have ended, in any final state")
        verb.add_argument("--after", metavar="CURSOR", help="the next page; the last page printed its cursor")
        verb.add_argument("--limit", type=number(1, MOST), default=50, metavar="N", help="at most N tasks [50]")

        verb = add("inspect", "Show everything about one task, and why it is or is not running", shown)
        verb.add_argument("id", metavar="ID", nargs="?", help="the id of the task")
        verb.add_argument("--unique-key", metavar="KEY", help="the live task that holds this unique key, instead of ID")
        verb.add_argument("--payload", action="store_true", help="show arguments, result and metadata, too")
        verb.add_argument("--no-traceback", action="store_true", help="leave out tracebacks")

        verb = add("retry", "Send dead or cancelled tasks back under their ids (a replay)", shown, acts)
        _ids(verb)
        _attempts(verb)
        verb = add("cancel", "Cancel tasks: waiting ones at once, running ones by asking", shown, acts)
        _ids(verb)
        verb.add_argument(
            "--requeue", action="store_true", help="only stop running attempts; their tasks come back and run again"
        )
        _ids(add("discard", "Give dead tasks up: they leave the dead letters and stay readable", shown, acts))

        _add_dead(add("dead", "List, replay or discard dead letters by filter"), shown, filters)
        _add_limits(add("limits", "List, show, set or reset limits"), shown)
        key_views.add_arguments(
            add("keys", "List or forget idempotency keys, and keys that are held for a time"),
            shown,
            _acts("--why", "--reason", dry_run=False),
            number(1, MOST),
        )
        _add_workflows(add("workflows", "List, show, cancel or replay chains, batches and workflows"), shown)

        _add_pauses(add, shown)
        schedule_views.add_arguments(
            add("schedules", "List schedules, look ahead, pause, run or skip them"),
            shown,
            _acts("--why", "--reason", dry_run=False),
            ahead,
        )

        text = "Set position and weight of queues, for workers that name none"
        _places(add("arrange", text, shown, _acts("--why", "--reason", dry_run=False)))
        add("queues", "List the queues, their pauses and who serves them", shown)
        add("workers", "List the workers that were not declared dead", shown)

        verb = add("prune", "Delete finished tasks whose time to be kept is over, as the duty does", shown)
        verb.add_argument("--dry-run", action="store_true", help="only show what would be deleted")

        verb = add("health", "Say whether all is well: exit code 0 well, 1 degraded, 2 bad", shown)
        verb.add_argument("--queue", action="append", metavar="NAME", help="only this queue; may be repeated")
        bounds = health.Limits()
        verb.add_argument(
            "--max-oldest",
            type=span,
            default=bounds.oldest,
            metavar="SPAN",
            help="degraded if a ready task waits longer, bad from ten times that [5m]",
        )
        verb.add_argument(
            "--max-dead",
            type=number(0, 100_000),
            default=bounds.dead,
            metavar="N",
            help=f"degraded if there are more dead letters, bad from ten times that [{bounds.dead}]",
        )

        worker_command.add_arguments(verbs.add_parser("worker", help="Run tasks until told to stop, as runworker does"))

    def handle(self, *args: Any, **options: Any) -> None:
        if options["verb"] == "worker":
            sys.exit(worker_command.run(options))
        try:
            alias = options.get("database") or main_database()
        except ImproperlyConfigured as error:
            raise CommandError(str(error), returncode=FAILED) from error
        if alias not in connections:
            raise CommandError(f"DATABASES has no {alias!r}", returncode=USAGE)
        name = "_".join(filter(None, (options["verb"], options.get("inner_verb"))))
        if options["verb"] == "schedules":
            name = "schedules"
        try:
            getattr(self, f"_{name}")(alias, options)
        except InvalidCursor as error:
            raise CommandError(f"--after: {error}", returncode=USAGE) from error
        except ScheduleNotFound as error:
            raise CommandError(str(error), returncode=NOT_FOUND) from error
        except Error as error:
            raise CommandError(f"the database {alias!r} refused: {error}", returncode=FAILED) from error

    def _print(self, report: Report, options: Mapping[str, Any]) -> None:
        form = "json" if options["json"] else options["format"]
        write(report, cast("TextIO", self.stdout), form=form, color=not options.get("no_color"))

    # Reading

    def _stats(self, alias: str, options: Mapping[str, Any]) -> None:
        names = _known_queues(alias, options["queue"])
        found = stats.figures(alias, window=options["window"], names=names)
        records = [
            {
                "queue": row.queue,
                "state": "paused" if row.paused else "served" if row.workers else "unserved",
                "ready": row.ready,
                "scheduled": row.scheduled,
                "running": row.running,
                "waiting": row.waiting,
                "parked": row.parked,
                "dead": row.dead,
                "oldest_ready_seconds": None if row.oldest_ready is None else row.oldest_ready.total_seconds(),
                "workers": row.workers,
                "succeeded": row.settled["succeeded"],
                "failed": row.settled["failed"],
                "retried": row.settled["retried"],
                "died": row.settled["dead"],
                "cancelled": row.settled["cancelled"],
                "run_mean_seconds": row.run_mean_seconds,
                "wait_p95_seconds": row.wait_p95_seconds,
                "is_exact": row.is_exact,
                "looked_at": row.looked_at,
            }
            for row in found
        ]
        notes = [f"{len(found)} queues; settled in the last {duration(options['window'])}"]
        if any(row.looked_at is None for row in found):
            notes.append("No worker looked at the depths lately: ready tasks were counted now, the rest is not known.")
        looked = [row.looked_at for row in found if row.looked_at is not None]
        if looked and not any(row.workers for row in found):
            notes.append(f"No worker is alive: depths are what one saw last, in the minute of {min(looked):%H:%M} UTC.")
        shown = ("queue", "state", "ready", "scheduled", "running", "dead", "oldest_ready_seconds", "workers")
        settled = ("succeeded", "failed", "died", "run_mean_seconds", "wait_p95_seconds")
        meta = {"window_seconds": options["window"].total_seconds()}
        self._print(Report(name="stats", fields=(*shown, *settled), records=records, notes=notes, meta=meta), options)

    def _tasks(self, alias: str, options: Mapping[str, Any]) -> None:
        states = frozenset(State[name.upper()] for name in options["state"] or ())
        if options["ended"]:
            states |= FINAL
        if states & FINAL and states & LIVE:
            raise CommandError(
                "live and final states are kept apart; ask for them one after the other", returncode=USAGE
            )
        is_final = bool(states & FINAL)
        since = options["since"]
        wanted = search.TaskFilter(
            states=states,
            queues=frozenset(_known_queues(alias, options["queue"]) or ()),
            names=frozenset(options["task"] or ()),
            finished_since=since if is_final else None,
            created_since=None if is_final else since,
        )
        look = search.finished if is_final else search.live
        page = look(alias, wanted, limit=options["limit"], after=options["after"])
        self._print_page(page, "tasks", _SHOWN_ENDED if is_final else _SHOWN_LIVE, options)

    def _dead_list(self, alias: str, options: Mapping[str, Any]) -> None:
        page = search.finished(alias, _dead_filter(alias, options), limit=options["limit"], after=options["after"])
        self._print_page(page, "dead.list", _SHOWN_ENDED, options)

    def _print_page(
        self,
        page: search.Page,
        name: str,
        fields: Sequence[str],
        options: Mapping[str, Any],
        *,
        record: Callable[[Any], dict[str, Any]] | None = None,
        what: str = "tasks",
    ) -> None:
        notes = [f"{len(page.rows)} shown, {page.order.label}"]
        if page.examined is not None and page.older is not None:
            notes.append(f"No index serves this filter: {page.examined} {what} were looked through, there are more.")
        if page.older is not None:
            notes.append(f"Next page: --after {page.older}")
        meta = {"after": page.older, "count": page.count, "count_is_capped": page.more, "examined": page.examined}
        records = [(record or _task_record)(row) for row in page.rows]
        self._print(Report(name=name, fields=fields, records=records, notes=notes, meta=meta), options)

    def _inspect(self, alias: str, options: Mapping[str, Any]) -> None:
        (task_id,) = _checked_ids([_inspected(alias, options)])
        row = store.find(alias, task_id)
        if row is None:
            raise CommandError(f"no task has the id {task_id!r}; it may have been pruned", returncode=NOT_FOUND)
        attempts = store.attempts_of(alias, row.pk)
        steps = step_store.of_task(alias, row.pk)
        record = {
            **_task_record(row),
            "why": explain(alias, row),
            "parent_id": row.parent_id,
            "workflow_id": row.workflow_id,
            "workflow_role": None if row.workflow_id is None else views.turn(row),
            "schedule": None if row.schedule is None else row.schedule.name,
            "tick_at": None if row.schedule is None else row.schedule.at,
            "worker_id": row.worker_id,
            "deadline_at": row.deadline_at,
            "expires_at": row.expires_at,
            "replays": row.replays,
            "unique_key": row.unique_key,
            "discarded_at": getattr(row, "resolved_at", None),
            "steps": [_step_record(step, payload=options["payload"]) for step in steps],
            "attempts": [
                {
                    "number": attempt.number,
                    "outcome": attempt.outcome,
                    "worker_id": attempt.worker_id,
                    "started_at": attempt.started_at,
                    "ended_at": attempt.ended_at,
                    "error_class": attempt.error_class,
                    "message": attempt.message,
                    "traceback": "" if options["no_traceback"] else attempt.traceback,
                }
                for attempt in attempts
            ],
            **(_payload(row) if options["payload"] else {}),
        }
        if options["json"] or options["format"] != "table":
            self._print(Report(name="inspect", fields=tuple(record), records=[record]), options)
            return
        apart = ("attempts", "steps")
        facts = [{"": name.replace("_", " "), " ": value} for name, value in record.items() if name not in apart]
        blocks = [("Steps", "\n".join(map(_step_line, steps)))] if steps else []
        blocks += [
            (
                (
                    f"Attempt {attempt.number}: {attempt.outcome}, on worker {attempt.worker_id}, "
                    f"ended {one_line(attempt.ended_at)}"
                ),
                (attempt.message if options["no_traceback"] else attempt.traceback or attempt.message).rstrip(),
            )
            for attempt in reversed(attempts)
        ]
        self._print(Report(name="inspect", fields=("", " "), records=facts, blocks=blocks), options)

    def _queues(self, alias: str, options: Mapping[str, Any]) -> None:
        records = [
            {
                "queue": found.queue.name,
                "position": found.queue.position,
                "weight": found.queue.weight,
                "workers": found.workers,
                **_bound_of(found.queue.name),
                "paused": found.pause is not None,
                "paused_at": None if found.pause is None else found.pause.paused_at,
                "paused_by": "" if found.pause is None else found.pause.paused_by,
                "paused_until": None if found.pause is None else found.pause.until,
                "pause_reason": "" if found.pause is None else found.pause.reason,
            }
            for found in snapshot.queues(alias)
        ]
        paused = ("paused", "paused_at", "paused_by", "paused_until", "pause_reason")
        fields = ("queue", "position", "weight", "workers", "max_ready", "full_policy", *paused)
        notes = [] if records else ["No queue is known yet: none was enqueued to, and no worker has looked."]
        self._print(Report(name="queues", fields=fields, records=records, notes=notes), options)

    def _pauses(self, alias: str, options: Mapping[str, Any]) -> None:
        records = [
            {
                "scope": PauseScope(pause.scope).name.lower(),
                "name": pause.name,
                "paused_at": pause.paused_at,
                "paused_by": pause.paused_by,
                "until": pause.until,
                "rejects": pause.rejects,
                "reason": pause.reason,
            }
            for pause in pause_store.in_force(alias, vendor_for(alias).now())
        ]
        fields = ("scope", "name", "paused_at", "paused_by", "until", "rejects", "reason")
        notes = [] if records else ["Nothing is paused."]
        self._print(Report(name="pauses", fields=fields, records=records, notes=notes), options)

    def _workers(self, alias: str, options: Mapping[str, Any]) -> None:
        now = clock.now()
        records = [
            {
                "id": worker.pk,
                "name": worker.name,
                "host": worker.host,
                "pid": worker.pid,
                "state": "silent" if snapshot.is_stale(worker, now) else worker.State(worker.state).name.lower(),
                "queues": worker.queues,
                "executor": worker.executor,
                "slots": worker.slots,
                "running": worker.running,
                "started_at": worker.started_at,
                "beat_age_seconds": max((now - worker.beat_at).total_seconds(), 0.0),
                "lease_seconds": worker.lease_seconds,
            }
            for worker in snapshot.workers(alias)
        ]
        fields = ("id", "name", "state", "queues", "executor", "slots", "running", "started_at", "beat_age_seconds")
        notes = [] if records else ["No worker is alive."]
        self._print(Report(name="workers", fields=fields, records=records, notes=notes), options)

    def _health(self, alias: str, options: Mapping[str, Any]) -> None:
        # Names are not looked up first: a database that is down is a finding, not an error.
        bounds = health.Limits(oldest=options["max_oldest"], dead=options["max_dead"], queues=options["queue"])
        found = health.check(alias, bounds)
        worst = max(finding.level for finding in found)
        records = [
            {"check": finding.check, "level": finding.level.name.lower(), "message": finding.message}
            for finding in found
        ]
        report = Report(
            name="health",
            fields=("check", "level", "message"),
            records=records,
            notes=[
                f"{worst.name}: {sum(finding.level > 0 for finding in found)} of {len(found)} checks found something"
            ],
            meta={"level": worst.name.lower()},
        )
        self._print(report, options)
        if worst:
            sys.exit(int(worst))

    # Chains, batches and workflows

    def _workflows_list(self, alias: str, options: Mapping[str, Any]) -> None:
        wanted = workflows.WorkflowFilter(
            name=options["name"] or "",
            states=frozenset(WorkflowState[name.upper()] for name in options["state"] or ()),
            kinds=frozenset(workflows.KINDS[name] for name in options["kind"] or ()),
            outermost=options["outermost"],
            created_since=options["since"],
        )
        page = workflows.listed(alias, wanted, limit=options["limit"], after=options["after"])
        self._print_page(
            page, "workflows.list", _SHOWN_WORKFLOW, options, record=views.workflow_record, what="workflows"
        )

    def _workflows_show(self, alias: str, options: Mapping[str, Any]) -> None:
        (workflow_id,) = _checked_ids([options["id"]], "workflow")
        row = workflow_store.find(alias, uuid.UUID(workflow_id))
        if row is None:
            raise CommandError(f"no workflow has the id {workflow_id!r}; it may have been pruned", returncode=NOT_FOUND)
        called = workflows.callbacks(alias, row.pk)
        branches = workflows.tree(alias, row) if options["tree"] else []
        found = workflows.members(alias, row, limit=options["limit"])
        record = {
            **views.workflow_record(row),
            "why": explain_workflow(alias, row),
            "callbacks": [views.callback_record(task) for task in called],
            "not_called": [
                {"callback": turn, "task": name}
                for turn, name in workflows.planned(row)
                if turn not in {views.turn(task) for task in called}
            ],
            "members": [views.member_record(member) for member in found.rows],
            "members_are_capped": found.more is not None,
        }
        if options["tree"]:
            record["tree"] = [views.branch_record(branch) for branch in branches]
        if options["json"] or options["format"] != "table":
            self._print(Report(name="workflows.show", fields=tuple(record), records=[record]), options)
            return
        lists = ("callbacks", "not_called", "members", "members_are_capped", "tree")
        facts = [{"": name.replace("_", " "), " ": value} for name, value in record.items() if name not in lists]
        blocks = [
            ("callbacks", "\n".join(views.callback_lines(record["callbacks"], record["not_called"]))),
            ("tree", "\n".join(map(views.branch_line, branches)))
            if options["tree"]
            else ("members", "\n".join(views.member_lines(record["members"], row.total))),
        ]
        blocks = [(title, text) for title, text in blocks if text]
        self._print(Report(name="workflows.show", fields=("", " "), records=facts, blocks=blocks), options)

    def _workflows_cancel(self, alias: str, options: Mapping[str, Any]) -> None:
        self._on_workflows(alias, options, "cancel", control.cancel_workflows)

    def _workflows_replay(self, alias: str, options: Mapping[str, Any]) -> None:
        act = partial(control.replay_workflows, from_start=options["from_start"], attempts=options["attempts"])
        self._on_workflows(alias, options, "replay", act)

    def _on_workflows(
        self, alias: str, options: Mapping[str, Any], action: str, act: Callable[..., control.Changed]
    ) -> None:
        ids = _checked_ids(_given_ids(options["ids"]), "workflow")
        if not options["dry_run"]:
            self._finish(
                action, act(ids, actor=_actor(options), reason=options["why"], alias=alias), options, what="workflow"
            )
            return
        rows = Workflow.objects.using(alias).filter(pk__in=ids).order_by("-pk")
        records = [{**views.workflow_record(row), "outcome": "planned"} for row in rows]
        if not records:
            raise CommandError("none of these ids is known", returncode=NOT_FOUND)
        notes = [f"Would {action} {len(records)} workflows; nothing was changed."]
        meta = {"applied": False}
        self._print(
            Report(name=f"workflows.{action}", fields=_SHOWN_WORKFLOW, records=records, notes=notes, meta=meta), options
        )

    # Limits

    def _limits_list(self, alias: str, options: Mapping[str, Any]) -> None:
        page = limits.listed(alias, options["prefix"], limit=options["limit"], after=options["after"])
        self._print_page(
            page, "limits.list", limit_views.SHOWN, options, record=limit_views.limit_record, what="limits"
        )

    def _limits_show(self, alias: str, options: Mapping[str, Any]) -> None:
        found = self._found_limits(alias, options)
        records = [
            {
                **limit_views.limit_record(view),
                "holders": [
                    limit_views.holder_record(holder)
                    for holder in limits.holders(alias, view.row.key, limit=options["limit"])
                ],
            }
            for view in found
        ]
        if options["json"] or options["format"] != "table":
            self._print(Report(name="limits.show", fields=tuple(records[0]), records=records), options)
            return
        for record in records:
            facts = [{"": name.replace("_", " "), " ": value} for name, value in record.items() if name != "holders"]
            held = "\n".join(f"{holder['id']}  {holder['task']}" for holder in record["holders"])
            blocks = [("holders", held)] if held else []
            self._print(Report(name="limits.show", fields=("", " "), records=facts, blocks=blocks), options)

    def _found_limits(self, alias: str, options: Mapping[str, Any]) -> list[limits.LimitView]:
        kinds = (options["kind"],) if options["kind"] else (LimitKind.CONCURRENCY, LimitKind.RATE)
        found = [view for kind in kinds if (view := limits.find(alias, kind, options["name"])) is not None]
        if not found:
            raise CommandError(f"no limit is called {options['name']!r}", returncode=NOT_FOUND)
        return found

    def _limits_set(self, alias: str, options: Mapping[str, Any]) -> None:
        if options["name"].startswith("queue:"):
            _known_queues(alias, [options["name"].removeprefix("queue:")])
        bound = {name: options[name] for name in ("concurrency", "rate", "burst", "until")}
        try:
            set_limits.set_limit(options["name"], **bound, actor=_actor(options), reason=options["why"], alias=alias)
        except InvalidOptions as error:
            raise CommandError(str(error), returncode=USAGE) from error
        except LimitNotFound as error:
            raise CommandError(str(error), returncode=NOT_FOUND) from error
        kind = LimitKind.RATE if options["rate"] is not None else LimitKind.CONCURRENCY
        view = limits.find(alias, kind, options["name"])
        records = [] if view is None else [limit_views.limit_record(view)]
        self._print(Report(name="limits.set", fields=limit_views.SHOWN, records=records), options)

    def _limits_reset(self, alias: str, options: Mapping[str, Any]) -> None:
        try:
            done = set_limits.reset_limit(
                options["name"], kind=options["kind"], actor=_actor(options), reason=options["why"], alias=alias
            )
        except InvalidOptions as error:
            raise CommandError(str(error), returncode=USAGE) from error
        outcome = "reset" if done else "not changed, nothing was set"
        records = [{"limit": options["name"], "outcome": outcome}]
        self._print(Report(name="limits.reset", fields=("limit", "outcome"), records=records), options)

    # Keys with an expiry

    def _keys_list(self, alias: str, options: Mapping[str, Any]) -> None:
        page = keys.listed(alias, options["prefix"], limit=options["limit"], after=options["after"])
        self._print_page(page, "keys.list", key_views.SHOWN, options, record=key_views.key_record, what="keys")

    def _keys_forget(self, alias: str, options: Mapping[str, Any]) -> None:
        report, count = key_views.report_forget(alias, options["keys"], actor=_actor(options), reason=options["why"])
        self._print(report, options)
        missing = len(report.records) - count
        if missing:
            code = PARTLY if count else NOT_FOUND
            raise CommandError(f"{missing} of {len(report.records)} keys were not found", returncode=code)

    # Acting

    def _retry(self, alias: str, options: Mapping[str, Any]) -> None:
        self._on_ids(alias, options, "replay", _replay(options))

    def _cancel(self, alias: str, options: Mapping[str, Any]) -> None:
        self._on_ids(alias, options, "cancel", partial(control.cancel, requeue=options["requeue"]))

    def _discard(self, alias: str, options: Mapping[str, Any]) -> None:
        self._on_ids(alias, options, "discard", control.discard)

    def _on_ids(self, alias: str, options: Mapping[str, Any], action: str, act: Callable[..., control.Changed]) -> None:
        ids = _checked_ids(_given_ids(options["ids"]))
        if options["dry_run"]:
            rows = store.find_many(alias, ids)
            if not rows:
                raise CommandError("none of these ids is known", returncode=NOT_FOUND)
            self._print_plan(action, [row for task_id in ids if (row := rows.get(task_id)) is not None], options)
            return
        self._finish(action, act(ids, actor=_actor(options), reason=options["why"], alias=alias), options)

    def _dead_replay(self, alias: str, options: Mapping[str, Any]) -> None:
        self._on_dead(alias, options, "replay", _replay(options))

    def _dead_discard(self, alias: str, options: Mapping[str, Any]) -> None:
        self._on_dead(alias, options, "discard", control.discard)

    def _on_dead(
        self, alias: str, options: Mapping[str, Any], action: str, act: Callable[..., control.Changed]
    ) -> None:
        if options["apply"] and not options["why"]:
            raise CommandError(f"say why: dead {action} --apply needs --why", returncode=USAGE)
        rows = _collect(alias, _dead_filter(alias, options), options["limit"])
        if not rows:
            raise CommandError("no dead letter matches", returncode=NOT_FOUND)
        if not options["apply"]:
            self._print_plan(action, rows, options)
            return
        ids = [str(row.pk) for row in rows]
        self._finish(action, act(ids, actor=_actor(options), reason=options["why"], alias=alias), options)

    def _print_plan(self, action: str, rows: Sequence[TaskRow], options: Mapping[str, Any]) -> None:
        notes = [f"Would {action} {len(rows)} tasks; nothing was changed."]
        if "apply" in options:
            notes.append("To do it, add --apply and --why.")
        records = [{**_task_record(row), "outcome": "planned"} for row in rows]
        fields = ("id", "task", "queue", "state", "attempt", "reason", "error")
        self._print(Report(name=action, fields=fields, records=records, notes=notes, meta={"applied": False}), options)

    def _finish(self, action: str, changed: control.Changed, options: Mapping[str, Any], *, what: str = "task") -> None:
        records = [
            *({"id": task_id, "outcome": _DONE[action], "why": ""} for task_id in changed.ids),
            *({"id": task_id, "outcome": "asked", "why": _ASKED[what]} for task_id in changed.asked),
            *({"id": task_id, "outcome": "skipped", "why": why} for task_id, why in changed.skipped),
        ]
        meta = {
            "applied": True,
            "changed": len(changed.ids),
            "asked": len(changed.asked),
            "skipped": len(changed.skipped),
        }
        asked = f", {len(changed.asked)} asked to stop" if changed.asked else ""
        notes = [f"{len(changed.ids)} {_DONE[action]}{asked}, {len(changed.skipped)} skipped"]
        name = action if what == "task" else f"{what}s.{action}"
        self._print(
            Report(name=name, fields=("id", "outcome", "why"), records=records, notes=notes, meta=meta), options
        )
        if not changed.skipped:
            return
        if changed.count:
            raise CommandError(f"{len(changed.skipped)} {what}s were skipped", returncode=PARTLY)
        if all(why == "not found" for _task_id, why in changed.skipped):
            raise CommandError(f"no {what} has the id {changed.skipped[0][0]!r}", returncode=NOT_FOUND)
        raise CommandError(f"nothing was changed: {changed.skipped[0][1]}", returncode=REFUSED)

    def _schedules(self, alias: str, options: Mapping[str, Any]) -> None:
        verb = options["inner_verb"]
        if verb == "list":
            self._print(schedule_views.report_list(alias), options)
        elif verb == "next":
            self._print(schedule_views.report_next(alias, options["names"], options["count"]), options)
        else:
            report, refused = schedule_views.report_verb(alias, verb, options, _actor(options))
            self._print(report, options)
            if refused:
                everything = refused == len(report.records)
                code = REFUSED if everything else PARTLY
                raise CommandError(f"{refused} of {len(report.records)} schedules were refused", returncode=code)

    def _pause(self, alias: str, options: Mapping[str, Any]) -> None:
        how = {name: options[name] for name in ("until", "reject", "replace")}
        self._switch(alias, options, "paused", partial(control.pause, **how))

    def _resume(self, alias: str, options: Mapping[str, Any]) -> None:
        self._switch(alias, options, "resumed", control.resume)

    def _arrange(self, alias: str, options: Mapping[str, Any]) -> None:
        wanted = {name: options[name] for name in ("position", "weight")}
        if wanted == {"position": None, "weight": None}:
            raise CommandError("give --position, --weight or both", returncode=USAGE)

        def act(queue: str, **given: Any) -> bool:
            return arrange(queue, **wanted, **given)

        self._switch(alias, options, "arranged", act)

    def _switch(self, alias: str, options: Mapping[str, Any], done: str, act: Callable[..., bool]) -> None:
        given: list[tuple[str, str, dict[str, Any]]] = [
            *(("queue", name, {"queue": name}) for name in _known_queues(alias, options["queues"]) or ()),
            *(("task", name, {"task": name}) for name in _known_types(alias, options.get("task") or [])),
            *((("everything", "", {"everything": True}),) if options.get("all") else ()),
        ]
        if not given:
            raise CommandError(f"say what to {options['verb']}: queues, --task PATH, or --all", returncode=USAGE)
        records = []
        for scope, name, target in given:
            try:
                changed = act(**target, actor=_actor(options), reason=options["why"], alias=alias)
            except InvalidOptions as error:
                raise CommandError(str(error), returncode=USAGE) from error
            outcome = done if changed else f"not changed, was {done} already"
            records.append({"scope": scope, "name": name, "outcome": outcome})
        self._print(Report(name=options["verb"], fields=("scope", "name", "outcome"), records=records), options)

    def _prune(self, alias: str, options: Mapping[str, Any]) -> None:
        settings = options_for(alias)
        now = clock.now()
        records = [
            {
                "state": line.state,
                "kept_for_seconds": None if line.kept_for is None else line.kept_for.total_seconds(),
                "count": line.count,
                "count_is_capped": line.more,
            }
            for line in retention.due(alias, settings.retention, now=now)
        ]
        fields = ("state", "kept_for_seconds", "count", "count_is_capped")
        if options["dry_run"]:
            notes = ["Would delete these; nothing was changed."]
            self._print(Report(name="prune", fields=fields, records=records, notes=notes, meta={"deleted": 0}), options)
            return
        count = prune.run_once(alias, settings, now)
        meta = {"deleted": count}
        notes = [f"{count} finished tasks were deleted"]
        self._print(Report(name="prune", fields=fields, records=records, notes=notes, meta=meta), options)
        if count >= prune.MOST:
            raise CommandError("there may be more to delete; run it again", returncode=PARTLY)


_ASKED = {"task": "it runs, and ends when it listens", "workflow": "it ends when nothing in it runs"}
_DONE = {"replay": "replayed", "cancel": "cancelled", "discard": "discarded"}


def _bound_of(queue: str) -> dict[str, Any]:
    """Return the depth bound of a queue as the settings of this process have it."""
    rule = conf.options().queues.get(queue)
    if rule is None or rule.max_ready is None:
        return {"max_ready": None, "full_policy": None}
    return {"max_ready": rule.max_ready, "full_policy": rule.full_policy}


def _inspected(alias: str, options: Mapping[str, Any]) -> str:
    """Return the id that was given, or that of the task that holds the unique key."""
    given, key = options["id"], options["unique_key"]
    if (given is None) == (key is None):
        raise CommandError("give either the id of a task or --unique-key", returncode=USAGE)
    if given is not None:
        return str(given)
    holder = vendor_for(alias).holders([key]).get(key)
    if holder is None:
        raise CommandError(f"no live task has the unique key {key!r}", returncode=NOT_FOUND)
    return str(uuid.UUID(int=holder.id))


def _replay(options: Mapping[str, Any]) -> Callable[..., control.Changed]:
    def act(ids: Sequence[str], **given: Any) -> control.Changed:
        how = {name: options[name] for name in ("attempts", "force", "from_start")}
        return control.replay(ids, **how, **given)

    return act


# Parts of parsers


def _shown() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--format", choices=FORMATS, default="table", help="how to print [table]")
    parser.add_argument("--json", action="store_true", help="short for --format json")
    parser.add_argument("--database", metavar="ALIAS", help="where the tasks are [where the settings say]")
    return parser


def _acts(*why: str, dry_run: bool = True) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    # For dead letters --reason is a filter: what they died of.
    parser.add_argument(*why, dest="why", default="", metavar="TEXT", help="why, for the audit log")
    parser.add_argument("--actor", metavar="NAME", help="who, for the audit log [cli:USER@HOST]")
    if dry_run:
        parser.add_argument("--dry-run", action="store_true", help="only show which tasks it would change")
    return parser


def _filters() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--queue", action="append", metavar="NAME", help="only this queue; may be repeated")
    parser.add_argument("--task", action="append", metavar="PATH", help="only tasks of this name; may be repeated")
    parser.add_argument(
        "--since",
        type=moment,
        metavar="WHEN",
        help="only what was enqueued (live tasks) or ended (finished tasks) since: 2h, 7d, or ISO 8601",
    )
    return parser


def _places(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("queues", nargs="+", metavar="QUEUE", help="the name of a queue")
    verb.add_argument("--position", type=number(-MOST_PLACE, MOST_PLACE), metavar="N", help="lower is served first")
    verb.add_argument("--weight", type=number(1, MOST_PLACE), metavar="N", help="its share against the others'")


def _ids(parser: argparse.ArgumentParser, what: str = "tasks") -> None:
    parser.add_argument("ids", nargs="+", metavar="ID", help=f"ids of {what}; - reads them from stdin")


def _how_often(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--attempts", type=number(1, 1000), metavar="N", help="how many attempts more [as many as at first]"
    )


def _attempts(parser: argparse.ArgumentParser) -> None:
    _how_often(parser)
    parser.add_argument("--force", action="store_true", help="replay tasks whose name is not known here, too")
    parser.add_argument("--from-start", action="store_true", help="run all steps again, also those that succeeded")


def _add_dead(dead: argparse.ArgumentParser, shown: argparse.ArgumentParser, filters: argparse.ArgumentParser) -> None:
    inner = dead.add_subparsers(dest="inner_verb", metavar="SUBCOMMAND", required=True)
    for name, text in (
        ("list", "List dead letters, the last one to die first"),
        ("replay", "Send dead letters back; only shows what it would do unless --apply is given"),
        ("discard", "Give dead letters up; only shows what it would do unless --apply is given"),
    ):
        parents = [shown, filters] if name == "list" else [shown, filters, _acts("--why", dry_run=False)]
        verb = inner.add_parser(name, help=text, description=f"{text}.", parents=parents)
        reasons = [reason.value for reason in DeadReason]
        verb.add_argument(
            "--reason",
            dest="death",
            action="append",
            choices=reasons,
            metavar="WHY",
            help=f"only tasks that died of: {', '.join(reasons)}",
        )
        verb.add_argument(
            "--limit", type=number(1, MOST), default=100, metavar="N", help=f"at most N, up to {MOST} [100]"
        )
        if name == "list":
            verb.add_argument("--after", metavar="CURSOR", help="the next page; the last page printed its cursor")
        else:
            verb.add_argument("--apply", action="store_true", help="do it; needs --why")
        if name == "replay":
            _attempts(verb)


def _add_limits(parser: argparse.ArgumentParser, shown: argparse.ArgumentParser) -> None:
    inner = parser.add_subparsers(dest="inner_verb", metavar="SUBCOMMAND", required=True)

    def add(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return inner.add_parser(name, help=text, description=f"{text}.", parents=[shown, *parents])

    def named(verb: argparse.ArgumentParser, *, kind: bool = True) -> argparse.ArgumentParser:
        verb.add_argument("name", metavar="NAME", help="all, queue:NAME, task:PATH, or a key of tasks")
        if kind:
            kinds = [LimitKind.CONCURRENCY, LimitKind.RATE]
            verb.add_argument("--kind", choices=kinds, metavar="KIND", help=f"only this kind: {', '.join(kinds)}")
        return verb

    acts = _acts("--why", "--reason", dry_run=False)
    verb = add("list", "List limits: their bounds, who holds them, how many tasks are parked")
    verb.add_argument("prefix", nargs="?", default="", metavar="NAME", help="only limits whose names begin so")
    verb.add_argument("--after", metavar="CURSOR", help="the next page; the last page printed its cursor")
    verb.add_argument("--limit", type=number(1, MOST), default=50, metavar="N", help="at most N limits [50]")
    verb = named(add("show", "Show a limit, and the tasks that hold its slots"))
    verb.add_argument("--limit", type=number(1, MOST), default=20, metavar="N", help="at most N tasks [20]")
    verb = named(add("set", "Set the bound of a limit for all workers; running tasks go on", acts), kind=False)
    verb.add_argument("--concurrency", type=number(0, 10**9), metavar="N", help="so many at once; 0: nothing starts")
    verb.add_argument("--rate", metavar="RATE", help="so many starts per time: 100/m, 5/30s; 0/m: nothing starts")
    verb.add_argument(
        "--burst", type=number(1, 10**9), metavar="N", help="so many starts together [a quarter second's]"
    )
    verb.add_argument(
        "--until", type=ahead, metavar="WHEN", help="until then: 30m, 2h, or ISO 8601 [until it is reset]"
    )
    named(add("reset", "Let the code's bound of a limit hold again", acts))


def _add_workflows(parser: argparse.ArgumentParser, shown: argparse.ArgumentParser) -> None:
    inner = parser.add_subparsers(dest="inner_verb", metavar="SUBCOMMAND", required=True)

    def add(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return inner.add_parser(name, help=text, description=f"{text}.", parents=[shown, *parents])

    verb = add("list", "List chains, batches and workflows, newest first")
    states = [state.name.lower() for state in WorkflowState]
    verb.add_argument(
        "--state", action="append", choices=states, metavar="STATE", help=f"only these states: {', '.join(states)}"
    )
    verb.add_argument(
        "--kind",
        action="append",
        choices=list(workflows.KINDS),
        metavar="KIND",
        help=f"only these kinds: {', '.join(workflows.KINDS)}",
    )
    verb.add_argument("--name", metavar="NAME", help="only those of this whole name")
    verb.add_argument("--outermost", action="store_true", help="leave out those inside others")
    verb.add_argument("--since", type=moment, metavar="WHEN", help="only what was enqueued since: 2h, 7d, or ISO 8601")
    verb.add_argument("--after", metavar="CURSOR", help="the next page; the last page printed its cursor")
    verb.add_argument("--limit", type=number(1, MOST), default=50, metavar="N", help="at most N workflows [50]")

    verb = add("show", "Show one with its callbacks and members, and why it is where it is")
    verb.add_argument("id", metavar="ID", help="the id of the workflow")
    verb.add_argument("--tree", action="store_true", help="show all inside it, and inside that, as a tree")
    verb.add_argument(
        "--limit", type=number(1, MOST), default=workflows.MOST_MEMBERS, metavar="N", help="at most N members [200]"
    )

    acts = _acts("--why", "--reason")
    _ids(add("cancel", "Cancel workflows with all inside them", acts), "workflows")
    verb = add("replay", "Run again what did not succeed in workflows, and what waited for it", acts)
    _ids(verb, "workflows")
    _how_often(verb)
    verb.add_argument("--from-start", action="store_true", help="run everything again, what succeeded too")


def _add_pauses(add: Callable[..., argparse.ArgumentParser], shown: argparse.ArgumentParser) -> None:
    for name, text in (
        ("pause", "Let workers take nothing from queues, of task types, or at all"),
        ("resume", "Lift pauses"),
    ):
        verb = add(name, text, shown, _acts("--why", "--reason", dry_run=False))
        verb.add_argument("queues", nargs="*", metavar="QUEUE", help="the name of a queue")
        verb.add_argument("--task", action="append", metavar="PATH", help="a task type; may be repeated")
        verb.add_argument("--all", action="store_true", help="everything")
        if name == "resume":
            continue
        verb.add_argument(
            "--until",
            type=ahead,
            metavar="WHEN",
            help="when it ends by itself: 90s, 15m, 2h from now, or ISO 8601 [somebody resumes it]",
        )
        verb.add_argument(
            "--reject",
            action=argparse.BooleanOptionalAction,
            help="refuse new tasks meanwhile [what REJECT_WHEN_PAUSED of a queue says]",
        )
        verb.add_argument("--replace", action="store_true", help="take the place of a pause that holds")
    add("pauses", "List what is paused, by whom, why and until when", shown)


# Parts of verbs


def _actor(options: Mapping[str, Any]) -> str:
    if options["actor"]:
        return str(options["actor"])
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        # A container may run under a number that no user has.
        user = "unknown"
    return f"cli:{user}@{socket.gethostname()}"


def _given_ids(ids: Iterable[str]) -> list[str]:
    found: list[str] = []
    for given in ids:
        found += sys.stdin.read().split() if given == "-" else [given]
    return list(dict.fromkeys(found))


def _checked_ids(ids: Sequence[str], what: str = "task") -> list[str]:
    for given in ids:
        if store.to_uuid(given) is None:
            raise CommandError(
                f"{given!r} is no id of a {what}; ids look like 01994f0e-7c1e-7b52-9d0a-3f1f3c3a9a10", returncode=USAGE
            )
    if len(ids) > MOST:
        raise CommandError(f"at most {MOST} ids at once, got {len(ids)}", returncode=REFUSED)
    return list(ids)


def _known_queues(alias: str, names: Sequence[str] | None) -> list[str] | None:
    """Return the names if all are known: to the registry, or to the settings. None stays None."""
    if not names:
        return None
    known = {*Queue.objects.using(alias).values_list("name", flat=True), *options_for(alias).queues}
    for name in names:
        if name not in known:
            near = get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known)) or 'none yet'}"
            raise CommandError(f"no queue is called {name!r}; {hint}", returncode=NOT_FOUND)
    return list(dict.fromkeys(names))


def _known_types(alias: str, names: Sequence[str] | None) -> list[str]:
    """Return the names if a worker has announced each, or this process knows it."""
    wanted = list(dict.fromkeys(names or ()))
    known = set(TaskType.objects.using(alias).values_list("name", flat=True)) | set(definitions.known())
    for name in wanted:
        if name not in known and pause_store.find(alias, PauseScope.TASK, name, now=vendor_for(alias).now()) is None:
            near = get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "no worker has announced it"
            raise CommandError(f"no task is called {name!r}; {hint}", returncode=NOT_FOUND)
    return wanted


def _dead_filter(alias: str, options: Mapping[str, Any]) -> search.TaskFilter:
    return search.TaskFilter(
        states=frozenset({State.DEAD}),
        discarded=False,
        queues=frozenset(_known_queues(alias, options["queue"]) or ()),
        names=frozenset(options["task"] or ()),
        reasons=frozenset(options["death"] or ()),
        finished_since=options["since"],
    )


def _collect(alias: str, wanted: search.TaskFilter, limit: int) -> list[FinishedTask]:
    """Return up to ``limit`` finished tasks, page after page: a page may look through many and find few."""
    rows: list[FinishedTask] = []
    after: str | None = None
    while len(rows) < limit:
        page = search.finished(alias, wanted, limit=limit - len(rows), after=after)
        rows += page.rows
        after = page.older
        if after is None:
            break
    return rows


def _task_record(row: TaskRow) -> dict[str, Any]:
    return {
        "id": str(row.pk),
        "task": row.name,
        "queue": row.queue,
        "state": State(row.state).name.lower(),
        "priority": row.priority,
        "attempt": row.attempt,
        "max_attempts": row.max_attempts,
        "created_at": row.created_at,
        "run_after": row.run_after,
        "started_at": row.started_at,
        "finished_at": getattr(row, "finished_at", None),
        "reason": getattr(row, "reason", None),
        "error": getattr(row, "error_line", None),
    }


def _step_record(step: Step, *, payload: bool) -> dict[str, Any]:
    found = {
        "name": step.name,
        "state": StepState(step.state).name.lower(),
        "attempt": step.attempt,
        "worker_id": step.worker_id,
        "started_at": step.started_at,
        "finished_at": step.finished_at,
        "error_class": step.error_class,
        "error": step.error_line,
    }
    if payload:
        found["result"] = None
        with suppress(ValueError):
            found["result"] = step.result_value
    return found


def _step_line(step: Step) -> str:
    line = f"{step.name}: {StepState(step.state).name.lower()}"
    if step.attempt is not None:
        line += f", in attempt {step.attempt} on worker {step.worker_id}"
    if step.error_class:
        line += f": {step.error_class}: {step.error_line}"
    return line


def _payload(row: TaskRow) -> dict[str, Any]:
    found: dict[str, Any] = {"args": None, "kwargs": None}
    with suppress(InvalidPayload):
        found["args"], found["kwargs"] = row.arguments
    for name, attribute in (("metadata", "metadata_values"), ("options", "option_values"), ("result", "result_value")):
        found[name] = None
        with suppress(InvalidPayload, ValueError):
            found[name] = getattr(row, attribute, None)
    return found
