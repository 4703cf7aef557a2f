"""The pytest plugin, loaded as pytest loads it: into a run of its own, with and without Django."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]

PLUGIN = "django_taskq.testing.plugin"


def run_pytest(folder: Path, *arguments: str, settings: str | None = None) -> subprocess.CompletedProcess[str]:
    own = ("DJANGO_", "PYTEST_", "TASKQ_")
    variables = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    variables |= {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if settings is not None:
        variables["DJANGO_SETTINGS_MODULE"] = settings
    command = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider", f"--rootdir={folder}"]
    return subprocess.run(
        [*command, *arguments, str(folder)], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


def test_a_run_without_django_settings_is_not_disturbed(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text(
        "import sys\n"
        "def test_plain():\n"
        "    from django.conf import settings\n"
        "    assert not settings.configured\n"
        "    assert 'django_taskq.models' not in sys.modules\n"
    )

    done = run_pytest(tmp_path)

    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_fixtures_drain_record_and_move_the_clock(tmp_path: Path) -> None:
    (tmp_path / "small_settings.py").write_text(
        "SECRET_KEY = 'x'\n"
        "USE_TZ = True\n"
        "import django\n"
        "INSTALLED_APPS = ['django.contrib.contenttypes', 'django.contrib.auth', 'django_taskq']\n"
        "if django.VERSION < (6, 0): INSTALLED_APPS.append('django_tasks')\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}\n"
    )
    (tmp_path / "small_tasks.py").write_text(
        "from django_taskq import task\n@task\ndef double(value):\n    return 2 * value\n"
    )
    (tmp_path / "test_small.py").write_text(
        "from small_tasks import double\n"
        "def test_drain(taskq_drain):\n"
        "    double.enqueue(21)\n"
        "    assert [one.result for one in taskq_drain()] == [42]\n"
        "def test_recorder(taskq_recorder):\n"
        "    double.enqueue(21)\n"
        "    taskq_recorder.assert_enqueued(double, args=[21], times=1)\n"
        "def test_clock(taskq_clock, taskq_drain):\n"
        "    double.using(delay=60).enqueue(1)\n"
        "    assert len(taskq_drain()) == 0\n"
        "    taskq_clock.shift(60)\n"
        "    assert len(taskq_drain()) == 1\n"
    )

    done = run_pytest(tmp_path, "-p", "pytest_django.plugin", settings="small_settings")

    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_pytest_finds_the_plugin_by_its_entry_point() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert project["project"]["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}


@pytest.mark.parametrize("name", ["drain", "travel", "record_tasks", "StoreContract", "ExecutorContract"])
def test_every_public_name_can_be_had(name: str) -> None:
    from django_taskq import testing

    assert name in testing.__all__
    assert getattr(testing, name).__name__ == name


def test_an_unknown_name_is_told() -> None:
    from django_taskq import testing

    with pytest.raises(AttributeError, match="no attribute 'drian'"):
        testing.drian  # noqa: B018
