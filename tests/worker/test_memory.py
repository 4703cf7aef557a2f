"""What a worker process does not load, and what it still looks at before it starts."""

import pytest
from django.core import checks
from django.core.checks.registry import registry
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from django_taskq.management.commands.runworker import Command
from tests.worker import tasks
from tests.worker.running import run_worker

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
    "django_taskq.lifecycle.reconcile": "a workflow",
    "django_taskq.lifecycle.steps": "a task that runs in steps",
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


def test_a_worker_makes_the_checks_that_are_not_about_pages() -> None:
    tags = set(Command().get_check_kwargs({})["tags"])

    assert {"django_taskq", "models", "caches"} <= tags
    assert tags.isdisjoint({"urls", "templates", "security", "commands"})
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
