"""``taskq keys``: list idempotency keys and keys that are held for a time, and forget them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from django_taskq import clock
from django_taskq.lifecycle import control
from django_taskq.management.output import Report
from django_taskq.models import IdempotencyKey

__all__ = ["SHOWN", "add_arguments", "key_record", "report_forget"]

SHOWN = ("key", "task_id", "created_at", "expires_at", "is_over")


def add_arguments(
    parser: argparse.ArgumentParser,
    shown: argparse.ArgumentParser,
    acting: argparse.ArgumentParser,
    number: Callable[[str], int],
) -> None:
    """Add the subcommands of ``keys``."""
    inner = parser.add_subparsers(dest="inner_verb", metavar="SUBCOMMAND", required=True)

    def add(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return inner.add_parser(name, help=text, description=f"{text}.", parents=[shown, *parents])

    verb = add("list", "List idempotency keys and keys that are held for a time, with the task each leads to")
    verb.add_argument("prefix", nargs="?", default="", metavar="KEY", help="only keys that begin so")
    verb.add_argument("--after", metavar="CURSOR", help="the next page; the last page printed its cursor")
    verb.add_argument("--limit", type=number, default=50, metavar="N", help="at most N keys [50]")
    verb = add("forget", "Forget keys before their time; the next enqueue with them stores a new task", acting)
    verb.add_argument("keys", nargs="+", metavar="KEY", help="a key, as it is stored")


def key_record(row: IdempotencyKey) -> dict[str, Any]:
    """Return a key as a record."""
    return {
        "key": row.key,
        "task_id": str(row.task_id),
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "is_over": row.expires_at <= clock.now(),
    }


def report_forget(alias: str, keys: Sequence[str], *, actor: str, reason: str) -> tuple[Report, int]:
    """Forget keys; return what came of each, and how many there were."""
    records = []
    count = 0
    for key in dict.fromkeys(keys):
        found = control.forget_keys([key], actor=actor, reason=reason, alias=alias)
        count += found
        records.append({"key": key, "outcome": "forgotten" if found else "not found"})
    return Report(name="keys.forget", fields=("key", "outcome"), records=records), count
