"""
What the operator's commands print: a table on a terminal, aligned text elsewhere, JSON on request.

Its surprise: text of rows is never printed as it is. Escape sequences in a task's
name would steer the terminal of whoever looks at it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TextIO
from uuid import UUID

from django_taskq import clock

__all__ = ["FORMATS", "Report", "one_line", "write"]

FORMATS = ("table", "json", "jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    What one command found.

    ``records`` all have the keys of ``fields``, in this order. ``notes`` are sentences for
    people, ``meta`` facts for programs about the list as a whole.
    """

    name: str
    fields: Sequence[str]
    records: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    blocks: Sequence[tuple[str, str]] = ()


def write(report: Report, stream: TextIO, *, form: str, color: bool) -> None:
    """Print a report. ``form`` is one of FORMATS; ``color`` allows it on a terminal."""
    match form:
        case "json":
            envelope = {
                "schema": f"taskq.{report.name}/1",
                "generated_at": clock.now(),
                "data": [dict(record) for record in report.records],
                "meta": dict(report.meta),
            }
            stream.write(json.dumps(envelope, default=_plain, indent=2) + "\n")
        case "jsonl":
            stream.writelines(json.dumps(dict(record), default=_plain) + "\n" for record in report.records)
        case _:
            _write_text(report, stream, color=color)


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case UUID():
            return str(value)
    raise TypeError(f"a report holds no {type(value).__name__}")


def one_line(value: Any) -> str:
    """Return a value as people read it, with everything escaped that would move the cursor."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"
        case int():
            return f"{value:,}"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}Z"
        case dict() | list():
            text = json.dumps(value, default=_plain)
        case _:
            text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _write_text(report: Report, stream: TextIO, *, color: bool) -> None:
    heads = [name.replace("_", " ") for name in report.fields]
    rows = [[one_line(record[name]) for name in report.fields] for record in report.records]
    numeric = [all(isinstance(record[name], int | float | None) for record in report.records) for name in report.fields]
    if rows and stream.isatty():
        _write_table(heads, rows, numeric, stream, color=color)
    elif rows:
        _write_aligned(heads, rows, numeric, stream)
    for title, text in report.blocks:
        stream.write(f"\n{title}\n")
        stream.writelines(f"  {one_line(line) if line else ''}\n" for line in text.split("\n"))
    stream.writelines(f"{one_line(note)}\n" for note in report.notes)


def _write_aligned(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], stream: TextIO
) -> None:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        stream.write("  ".join(cells).rstrip() + "\n")


def _write_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], stream: TextIO, *, color: bool
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head, right in zip(heads, numeric, strict=True):
        table.add_column(head, justify="right" if right else "left", overflow="fold")
    for row in rows:
        # Text, not str: square brackets in a name are no markup.
        table.add_row(*(Text(cell) for cell in row))
    Console(file=stream, no_color=not color).print(table)
