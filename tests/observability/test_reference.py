"""What the reference says of events and metrics is what the code has, and nothing else."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from django_taskq import events
from django_taskq.observability import prometheus

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
INTERNAL = {"claim", "result"}


def table_rows(page: str) -> list[list[str]]:
    """Return the cells of each table row that begins with a name in code."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]


def test_every_metric_is_in_the_reference_with_its_labels() -> None:
    registry = CollectorRegistry()
    counters = prometheus.Counters(registry)
    found: dict[str, set[str]] = {}
    for metric in vars(counters).values():
        if hasattr(metric, "_labelnames"):
            name = metric._name + ("_total" if metric._type == "counter" else "")
            found[name] = set(metric._labelnames)
    for family in prometheus._families().values():
        found[family.name] = set(family._labelnames)

    documented = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in table_rows("metrics.md")}

    assert len(found) > 20
    assert documented == found


def test_the_metrics_that_the_catalogue_names_exist() -> None:
    """S2-09 to S2-12, S4-46 to S4-53."""
    wanted = {
        *("tasks_claimed_total", "tasks_processed_total", "task_duration_seconds", "tasks_in_flight"),
        *("tasks_scheduled_total", "tasks_running", "tasks_completed_total", "tasks_failed_total"),
        *("tasks_cancelled_total", "task_latency_seconds", "queue_depth", "retry_count_total"),
    }

    assert {f"taskq_{name}" for name in wanted} <= {row[0].strip("`") for row in table_rows("metrics.md")}


def test_the_alerts_use_metrics_that_exist() -> None:
    text = (REFERENCE / "metrics.md").read_text(encoding="utf-8")
    known = {row[0].strip("`") for row in table_rows("metrics.md")}

    used = set(re.findall(r"taskq_\w+", text[text.index("```yaml") :]))

    assert used
    assert used <= known


def test_every_public_event_is_in_the_reference_with_its_fields() -> None:
    shared = {field.name for field in fields(events.TaskEvent)}
    found = {}
    for kind, signal in events._SIGNALS.items():
        name = next(name for name in events.signals.__all__ if getattr(events.signals, name) is signal)
        own = {field.name for field in fields(kind)} - INTERNAL
        found[kind.__name__] = (name, own - shared if issubclass(kind, events.TaskEvent) else own)

    documented = {
        row[0].strip("`"): (row[1].strip("`"), set(re.findall(r"`(\w+)`", row[2])))
        for row in table_rows("events.md")
        if len(row) == 4
    }

    assert documented == found


@pytest.mark.parametrize("name", ["task_id", "task", "queue", "attempt", "alias"])
def test_the_shared_fields_of_task_events_are_named(name: str) -> None:
    assert name in {field.name for field in fields(events.TaskEvent)}
    assert f"`{name}`" in (REFERENCE / "events.md").read_text(encoding="utf-8")
