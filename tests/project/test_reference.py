"""The reference names what the code has: every option, every method, every exception."""

import inspect
import re
from pathlib import Path
from typing import Any, get_overloads

import pytest

from django_taskq import Task, exceptions, task
from django_taskq.lifecycle.results import TaskContext, TaskResult

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """Return the cells of a section's first table, by what stands in the first cell."""
    section = re.split(rf"^## {re.escape(heading)}$", (REFERENCE / page).read_text(), flags=re.MULTILINE)[1]
    section = re.split(r"^## ", section, flags=re.MULTILINE)[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if "|" in line[:1]
    ]
    return {re.match(r"`?(\w+)", first)[1]: rest for first, *rest in cells[2:]}  # type: ignore[index]


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "function"}


def test_every_option_is_listed_where_it_can_be_given() -> None:
    listed = rows("tasks.md", "`@task`")

    in_task = {name for name, (at_task, *_) in listed.items() if at_task == "yes"}
    in_using = {name for name, (_, at_using, *_) in listed.items() if at_using == "yes"}

    assert in_task == parameters(get_overloads(task)[-1])
    assert in_using == parameters(Task.using)


def test_every_attribute_of_the_context_is_listed() -> None:
    own = {name for name, value in vars(TaskContext).items() if isinstance(value, property)}

    assert set(rows("tasks.md", "The context")) == own | {"task_result"}


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("Methods of a task", Task), ("Methods of a result", TaskResult), ("Methods of the context", TaskContext)],
)
def test_every_method_is_listed(heading: str, kind: type) -> None:
    contract = {"enqueue", "aenqueue", "get_result", "aget_result", "call", "acall"} if kind is Task else set()
    inherited = {"refresh", "arefresh"} if kind is TaskResult else set()
    own = {name for base in kind.__mro__ if base.__module__.startswith("django_taskq") for name in vars(base)}
    methods = {name for name in own if not name.startswith("_") and inspect.isfunction(getattr(kind, name))}

    assert set(rows("tasks.md", heading)) == methods | contract | inherited


def test_every_method_of_workflows_is_listed() -> None:
    from django_taskq.lifecycle.handles import WorkflowHandle
    from django_taskq.workflows import Composition

    def public(kind: type) -> set[str]:
        return {
            name
            for name, value in vars(kind).items()
            if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
        }

    text = (REFERENCE / "workflows.md").read_text()
    section = re.split(r"^## Builders$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    builders = set(re.findall(r"^\| `(\w+)\(", section, flags=re.MULTILINE))

    assert builders == public(Composition) | {"chain", "batch", "workflow"}
    assert set(rows("workflows.md", "Handles")) == public(WorkflowHandle)


def test_every_option_of_a_schedule_is_listed_with_its_default() -> None:
    from django_taskq import schedule

    listed = rows("schedules.md", "`@schedule`")
    taken = inspect.signature(schedule).parameters

    assert set(listed) == set(taken)
    for name, (shown, *_) in listed.items():
        if name not in ("name", "timezone"):
            assert shown.strip("`").replace('"', "'") == repr(taken[name].default), name


def test_every_exception_is_listed() -> None:
    listed = {
        *rows("exceptions.md", "Raised by django_taskq"),
        *rows("exceptions.md", "Raised by a task to steer itself"),
    }

    assert listed == set(exceptions.__all__)


def test_defaults_in_the_table_are_the_decorators() -> None:
    listed = rows("tasks.md", "`@task`")
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(get_overloads(task)[-1]).parameters.items()
    }

    for name, (at_task, _, shown, *_) in listed.items():
        if at_task == "yes" and name not in ("name", "aliases"):
            assert shown.split(",")[0].strip("`").replace('"', "'") == repr(defaults[name]).strip("`"), name
