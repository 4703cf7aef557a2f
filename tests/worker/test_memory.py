"""What a worker process does not load and does not keep, and what it still looks at before it starts."""

import gc
import subprocess
import sys
import weakref

import pytest
from django.apps import apps
from django.core import checks
from django.core.checks.registry import registry
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from django_taskq import events
from django_taskq.management.commands.runworker import Command
from django_taskq.models import DeadTask
from django_taskq.worker.memory import pack_models
from tests.worker import tasks
from tests.worker.running import eventually, run_worker, running

# By what would load them. Each costs an idle worker memory for all its life.
NOT_LOADED = {
    "tests.urls": "the checks of the URLs; with it come all views of a project",
    "django.core.management.commands.migrate": "a check of the commands",
    "django.core.management.commands.makemigrations": "a check of the commands",
    "django.views.csrf": "a security check of the web server's settings",
    "django_taskq.worker.children": "--processes and --executor processes; with it comes multiprocessing",
    "django_taskq.worker.executors.processes": "--executor processes",
    "django_taskq.worker.supervisor": "--processes and --reload",
    "http.server": "--health-port",
    "django_taskq.worker.executors.aio": "a coroutine",
    "django_taskq.api": "what programs do with tasks besides enqueueing one",
    "django_taskq.domain.arguments": "arguments that are validated",
    "django_taskq.lifecycle.around": "middleware",
    "django_taskq.lifecycle.arrange": "enqueue middleware",
    "django_taskq.lifecycle.results": "a task that takes a context, and whoever listens to the signals of django.tasks",
    "django_taskq.lifecycle.reconcile": "a workflow",
    "django_taskq.lifecycle.steps": "a task that runs in steps",
    "cronsim": "a schedule with a cron expression",
    "rich": "the bar of a burst on a terminal",
    "django_taskq.testing": "tests",
}


@pytest.mark.django_db(transaction=True)
def test_a_worker_loads_nothing_that_it_does_not_use() -> None:
    result = tasks.loaded_modules.enqueue()

    process = run_worker("--burst", "--threads", "1")

    assert process.returncode == 0, process.stderr
    result.refresh()
    assert {name: NOT_LOADED[name] for name in NOT_LOADED if name in result.return_value} == {}


def test_without_schedules_limits_and_the_admin_nothing_of_them_is_loaded() -> None:
    program = """
import sys
import django
from django.conf import settings

apps = ["django.contrib.contenttypes", "django.contrib.auth", "django_taskq"]
databases = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
settings.configure(INSTALLED_APPS=apps, DATABASES=databases, USE_TZ=True)
django.setup()
import django_taskq.duties.runner, django_taskq.worker.loop, django_taskq.lifecycle.results
words = ("schedules", "cronsim", "lifecycle.tick", "limits")
print(*sorted(name for name in sys.modules if any(word in name for word in words)))
"""

    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert found.stdout.split() == ["django_taskq.models.limits", "django_taskq.models.schedules"]


def test_a_worker_makes_the_checks_that_are_not_about_pages() -> None:
    tags = set(Command().get_check_kwargs({})["tags"])

    assert {"django_taskq", "caches", "translation"} <= tags
    # "models" are asked by migrate, without which there is nothing to work for.
    assert tags.isdisjoint({"urls", "templates", "security", "commands", "models"})
    # Django itself runs them only for databases that are named.
    assert "database" not in tags


@pytest.mark.django_db
def test_a_failed_check_keeps_a_worker_from_starting() -> None:
    def wrong(**kwargs: object) -> list[checks.CheckMessage]:
        return [checks.Error("of the test", id="test.E001")]

    registry.register(wrong, "of_the_test")
    try:
        with pytest.raises(SystemCheckError, match=r"test\.E001"):
            call_command("runworker", "--burst", skip_checks=False)
    finally:
        registry.registered_checks.discard(wrong)


@pytest.mark.django_db(transaction=True)
def test_an_idle_worker_keeps_nothing_of_the_tasks_that_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[BaseException]] = []
    # Without those that write the log: pytest keeps every record, and the exceptions in them.
    monkeypatch.setattr(events, "_listeners", {})
    events.subscribe(events.TaskDead, lambda event: seen.append(weakref.ref(event.exception)))

    with running(threads=2):
        for number in range(5):
            tasks.fail.enqueue(f"error {number}")
        eventually(lambda: DeadTask.objects.count() == 5)

        # With an exception go its frames, and the arguments and locals of the task in them.
        eventually(lambda: len(seen) == 5 and not gc.collect() and not any(ref() for ref in seen))


def test_packed_models_are_the_same_models() -> None:
    fields = [field for model in apps.get_models() for field in model._meta.local_fields]
    before = [dict(vars(field)) for field in fields]
    size = sum(sys.getsizeof(vars(field)) for field in fields)

    pack_models()

    assert [field for model in apps.get_models() for field in model._meta.local_fields] == fields
    assert [vars(field) for field in fields] == before
    assert sum(sys.getsizeof(vars(field)) for field in fields) <= size
