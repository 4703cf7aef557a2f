"""``taskq schedules``: list, look ahead, pause, resume, run, skip, enable, disable."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from django_taskq import clock
from django_taskq.exceptions import InvalidOptions, ScheduleNotFound, ScheduleRefused, TaskqError
from django_taskq.lifecycle import schedules as acts
from django_taskq.management.output import Report
from django_taskq.models import Schedule
from django_taskq.ops import schedules

__all__ = ["add_arguments", "report_list", "report_next", "report_verb"]

VERBS = ("pause", "resume", "run", "skip", "enable", "disable")
FIELDS = ("name", "task", "rule", "state", "source", "next_at", "last_at", "last_state")


def add_arguments(
    parser: argparse.ArgumentParser,
    shown: argparse.ArgumentParser,
    acting: argparse.ArgumentParser,
    until: Callable[[str], Any],
) -> None:
    """Add the subcommands of ``schedules``."""
    inner = parser.add_subparsers(dest="inner_verb", metavar="SUBCOMMAND", required=True)

    def add(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return inner.add_parser(name, help=text, description=f"{text}.", parents=[shown, *parents])

    add("list", "List the schedules, their rules in words, and how they stand")
    verb = add("next", "Show when schedules tick next, each in its own time zone")
    verb.add_argument("names", nargs="*", metavar="NAME", help="the name of a schedule [all]")
    verb.add_argument("--count", type=int, choices=range(1, 101), default=5, metavar="N", help="how many, to 100 [5]")
    for name, text in (
        ("pause", "Leave out the ticks of schedules until they are resumed"),
        ("resume", "Let paused schedules tick again, from now on"),
        ("run", "Make a task of schedules now, beside their ticks"),
        ("skip", "Leave out the next tick of schedules"),
        ("enable", "Switch schedules on, from now on"),
        ("disable", "Switch schedules off, whatever the code says"),
    ):
        verb = add(name, text, acting)
        verb.add_argument("names", nargs="+", metavar="NAME", help="the name of a schedule")
        if name == "pause":
            verb.add_argument(
                "--until", type=until, metavar="WHEN", help="resume by itself: in 2h, 7d, or at a moment in ISO 8601"
            )


def record(row: Schedule, last_state: str | None, now: datetime) -> dict[str, Any]:
    """Return a schedule as a record."""
    return {
        "name": row.name,
        "task": row.task,
        "rule": schedules.words_of(row),
        "expression": row.rule,
        "timezone": row.timezone,
        "state": schedules.state_name(row, now),
        "source": row.source,
        "next_at": next((run.at for run in schedules.of_schedule(row, 1, now=now)), None),
        "last_at": row.last_at,
        "last_task": str(row.last_task_id) if last_state else None,
        "last_state": last_state,
        "last_error": row.last_error,
        "paused_until": row.paused_until,
        "paused_by": row.paused_by,
        "pause_reason": row.pause_reason,
        "skips_next": row.skip_next,
    }


def report_list(alias: str) -> Report:
    """Report all schedules."""
    rows, now = schedules.listed(alias), clock.now()
    states = schedules.last_runs(alias, rows)
    records = [record(row, states.get(row.pk), now) for row in rows]
    notes = [f"{len(rows)} schedules"]
    notes += [f"{row.name} fails: {row.last_error}" for row in rows if row.last_error]
    return Report(name="schedules.list", fields=FIELDS, records=records, notes=notes)


def report_next(alias: str, names: list[str], count: int) -> Report:
    """Report the next ticks. Raise ScheduleNotFound for a name that no schedule has."""
    now = clock.now()
    rows = [_found(alias, name) for name in names] if names else schedules.listed(alias)
    records = [
        {"name": row.name, "at": f"{run.at:%Y-%m-%d %H:%M:%S %Z}", "at_utc": run.at, "note": run.note}
        for row in rows
        for run in schedules.of_schedule(row, count, now=now)
    ]
    quiet = [row.name for row in rows if not schedules.of_schedule(row, 1, now=now)]
    notes = [f"Without a next tick: {', '.join(quiet)}"] if quiet else []
    return Report(name="schedules.next", fields=("name", "at", "note"), records=records, notes=notes)


def _found(alias: str, name: str) -> Schedule:
    row = schedules.find(alias, name)
    if row is None:
        known = [found.name for found in schedules.listed(alias)]
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none yet'}"
        raise ScheduleNotFound(f"no schedule is called {name!r}; {hint}")
    return row


def report_verb(alias: str, verb: str, options: Mapping[str, Any], actor: str) -> tuple[Report, int]:
    """Do what an operator wants to each schedule; return what came of it, and how many were refused."""
    names = [_found(alias, name).name for name in dict.fromkeys(options["names"])]
    records = []
    refused = 0
    for name in names:
        try:
            outcome, detail = _act(alias, verb, name, options, {"actor": actor, "reason": options["why"]})
        except (ScheduleRefused, InvalidOptions) as error:
            outcome, detail, refused = "refused", str(error), refused + 1
        except TaskqError as error:
            outcome, detail, refused = "failed", f"{type(error).__name__}: {error}", refused + 1
        records.append({"name": name, "outcome": outcome, "detail": detail})
    return Report(name=f"schedules.{verb}", fields=("name", "outcome", "detail"), records=records), refused


def _act(alias: str, verb: str, name: str, options: Mapping[str, Any], who: Mapping[str, str]) -> tuple[str, str]:
    if verb == "run":
        return "run", acts.run_now(name, alias=alias, **who)
    if verb == "skip":
        at = acts.skip_next(name, alias=alias, **who)
        return ("skips its next tick", at.isoformat()) if at else ("not changed", "it skips its next tick already")
    if verb == "pause":
        changed = acts.pause(name, until=options["until"], alias=alias, **who)
    else:
        changed = getattr(acts, verb)(name, alias=alias, **who)
    done = {"pause": "paused", "resume": "resumed", "enable": "enabled", "disable": "disabled"}[verb]
    return (done, "") if changed else ("not changed", "")
