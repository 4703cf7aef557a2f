"""What holds from the first moment of a process: before apps are ready, and with only INSTALLED_APPS set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import django
import pytest
from django.test import override_settings

from django_taskq import UnsupportedCapability, exceptions
from django_taskq.backend import ImmediateBackend, NullBackend
from django_taskq.compat import primary
from django_taskq.models import Task
from tests.faces import backend_tasks as tasks

pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]
Status = primary.base.TaskResultStatus
BACKPORT = [] if django.VERSION >= (6, 0) else ["django_tasks"]
MINIMAL = f"""
SECRET_KEY = "x"
INSTALLED_APPS = {[*BACKPORT, "django_taskq", "shop"]!r}
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}}}
"""
SHOP_TASKS = """
from django_taskq import task

@task
def double(number):
    with open("effect", "a") as effect:
        effect.write(str(number * 2))
    return number * 2
"""


def run(folder: Path, *command: str) -> str:
    """Run Python in a project of its own and return what it printed."""
    for name in ("settings", "shop/__init__", "shop/tasks"):
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text({"settings": MINIMAL, "shop/tasks": SHOP_TASKS}.get(name, ""))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "DJANGO_SETTINGS_MODULE": "settings"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_only_installed_apps_is_needed_to_enqueue_and_run(tmp_path: Path) -> None:
    run(tmp_path, "-m", "django", "migrate", "--verbosity", "0")
    run(tmp_path, "-m", "django", "check")
    task_id = run(
        tmp_path, "-c", "import django; django.setup(); from shop.tasks import double; print(double.enqueue(21).id)"
    ).strip()

    run(tmp_path, "-m", "django", "runworker", "--burst")
    shown = run(
        tmp_path,
        "-c",
        f"import django; django.setup(); from shop.tasks import double; print(double.get_result({task_id!r}).get(0))",
    )

    assert (tmp_path / "effect").read_text() == "42"
    assert shown.strip() == "42"


def test_tasks_can_be_defined_before_any_app_or_model_is_ready(tmp_path: Path) -> None:
    """The constructor of a backend and validate_task import no model and ask no database."""
    settings = MINIMAL + 'TASKS = {"default": {"BACKEND": "django_taskq.backend.DatabaseBackend", "QUEUES": ["a"]}}\n'
    (tmp_path / "settings.py").write_text(settings)
    program = """
import sys
from django.apps import apps
import shop.early
assert not apps.models_ready
assert not any(name.startswith("django_taskq.models") for name in sys.modules)
made = shop.early.work.using(priority=3, run_after=__import__("datetime").timedelta(1))
made.get_backend().validate_task(made)
assert not any(name.startswith(("django_taskq.models", "django_taskq.store")) for name in sys.modules)
print(made.priority, shop.early.core.priority)
"""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "early.py").write_text(
        f"from django_taskq import task\nfrom {primary.name} import task as core_task\n"
        '@task(queue_name="a", max_attempts=2)\ndef work(): pass\n'
        '@core_task(queue_name="a")\ndef core(): pass\n'
    )

    assert run(tmp_path, "-c", program).strip() == "3 0"


def test_a_tasks_setting_without_the_alias_is_an_error_of_the_contract() -> None:
    with (
        override_settings(TASKS={"other": {"BACKEND": "django_taskq.backend.DatabaseBackend"}}),
        pytest.raises(primary.error("InvalidTaskBackend"), match="'default' doesn't exist"),
    ):
        tasks.add.enqueue(1)


def test_without_a_tasks_setting_an_unknown_alias_is_an_error_of_the_contract(tmp_path: Path) -> None:
    program = f"""
import django; django.setup()
from shop.tasks import double
from {primary.name}.exceptions import {primary.error("InvalidTaskBackend").__name__} as expected
try:
    double.using(backend="other")
except expected as error:
    print(error)
"""
    assert "no backend is called 'other'" in run(tmp_path, "-c", program)


# Backends that store nothing


@pytest.fixture
def immediate() -> ImmediateBackend:
    return ImmediateBackend(alias="immediate", params={"QUEUES": []})


@pytest.fixture
def null() -> NullBackend:
    return NullBackend(alias="null", params={"QUEUES": []})


def test_the_immediate_backend_runs_at_once_through_json(immediate: ImmediateBackend) -> None:
    done, failed = immediate.enqueue(tasks.add, ((1).__int__(),), {"b": 2}), immediate.enqueue(tasks.fail, ("x",), {})
    unfit = immediate.enqueue(tasks.return_a_set, (), {})

    assert (done.status, done.return_value, done.state) == (Status.SUCCESSFUL, 3, "succeeded")
    assert (failed.status, failed.errors[0].exception_class, failed.state) == (Status.FAILED, ValueError, "dead")
    assert issubclass(unfit.errors[0].exception_class, TypeError)
    with pytest.raises(exceptions.InvalidPayload):
        immediate.enqueue(tasks.add, ({1},), {})
    assert [result.return_value for result in immediate.enqueue_many(tasks.add, [((1,), {}), ((), {"a": 5})])] == [1, 5]


def test_the_immediate_backend_gives_tasks_the_same_context(immediate: ImmediateBackend) -> None:
    made = tasks.use_context.using(metadata={"tenant": 7})

    result = immediate.enqueue(made, (), {})

    assert result.errors == []
    assert result.return_value == [False, False, {"tenant": 7}]
    told = immediate.enqueue(tasks.tell_attempt, (), {"extra": 2})
    assert told.return_value == {"attempt": 1, "id": told.id, "result_id": told.id, "extra": 2}


def test_the_immediate_backend_runs_steps_through_json_and_stores_nothing(immediate: ImmediateBackend) -> None:
    """S3-02: without a database; the rules are the same."""
    done, later = immediate.enqueue(tasks.use_steps, (), {}), immediate.enqueue(tasks.use_steps_async, (), {})
    twice = immediate.enqueue(tasks.use_steps, (), {"twice": True})

    assert (done.errors, done.return_value) == ([], [[1, 2], "7"])
    assert (later.errors, later.return_value) == ([], [[1, 2], 1])
    assert twice.errors[0].exception_class is exceptions.InvalidStep


def test_the_immediate_backend_runs_coroutines(immediate: ImmediateBackend) -> None:
    assert immediate.enqueue(tasks.add_later, (1,), {}).return_value == 1


def test_the_immediate_backend_refuses_what_it_cannot_do(immediate: ImmediateBackend) -> None:
    from datetime import timedelta

    later = tasks.add.using(run_after=timedelta(hours=1))

    with pytest.raises(primary.error("InvalidTask"), match="does not support run_after"):
        immediate.enqueue(later, (1,), {})
    with pytest.raises(NotImplementedError):
        immediate.get_result("123")


@pytest.mark.django_db
def test_the_null_backend_checks_and_drops(null: NullBackend) -> None:
    result = null.enqueue(tasks.fail, ("x",), {})

    assert (result.status, result.attempts) == (Status.READY, 0)
    assert [found.status for found in null.enqueue_many(tasks.add, [((1,), {})])] == [Status.READY]
    with pytest.raises(exceptions.InvalidPayload):
        null.enqueue(tasks.add, ({1},), {})
    assert Task.objects.count() == 0


@pytest.mark.parametrize("kind", [ImmediateBackend, NullBackend])
def test_what_a_backend_cannot_do_is_said_by_name(kind: type) -> None:
    backend = kind(alias="x", params={})

    for capability in ("get_result", "pause", "stats", "admin"):
        assert not backend.supports(capability)
        with pytest.raises(UnsupportedCapability) as caught:
            backend.require(capability)
        assert (caught.value.capability, caught.value.backend) == (capability, kind.__name__)
    assert not kind.supports_get_result
