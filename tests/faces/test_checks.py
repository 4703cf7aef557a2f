"""S0-112, S0-114, S0-134, S4-43: settings are parsed once, told wrong all at once, and documented as they are."""

from __future__ import annotations

import re
import types
from dataclasses import MISSING, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from django.test import override_settings

from django_taskq import Exponential, Fixed, Steps, conf, schedule
from django_taskq import checks as ours
from django_taskq.domain.states import Ack
from django_taskq.exceptions import InvalidOptions
from django_taskq.lifecycle import declarations, definitions

ROOT = Path(__file__).parents[2]
BACKEND = "django_taskq.backend.DatabaseBackend"


def messages() -> list[checks.CheckMessage]:
    return checks.run_checks(tags=[ours.TAG])


def ids() -> list[str]:
    return [message.id for message in messages()]


def test_a_project_without_settings_has_nothing_wrong(settings: Any) -> None:
    del settings.TASKS
    with override_settings(TASKQ={}):
        assert conf.problems() == []
        assert conf.options() == conf.Options()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"MAX_ATTEMPTS": 0}, "must be a whole number of 1 or more, got 0"),
    ({"MAX_ATTEMPTS": True}, "must be a whole number of 1 or more, got True"),
    ({"TIMEOUT": 0}, "must be more than 0 seconds"),
    ({"TIMEOUT": -1}, "must not be negative"),
    ({"TIMEOUT": "30"}, "must be a timedelta or a number of seconds"),
    ({"TIMEOUT": float("inf")}, "must be a timedelta or a number of seconds"),
    ({"TIMEOUT": float("nan")}, "must be a timedelta or a number of seconds"),
    ({"TIMEOUT": 10**30}, "must be a timedelta or a number of seconds"),
    ({"ACK": "never"}, "must be one of 'late', 'now', 'first', 'atomic'"),
    ({"BACKOFF": "no.such.curve"}, "No module named"),
    ({"BACKOFF": {"speed": 1}}, "backoff takes"),
    ({"BACKOFF": None}, "BACKOFF"),
    ({"NOTIFY": "yes"}, "must be True or False"),
    ({"METRICS": "yes"}, "must be True or False"),
    ({"CRASH_EXCEPTIONS": "builtins.OSError"}, "must be a list of strings"),
    ({"DATABASE": 1}, "must be a string"),
    ({"LEASE_SECONDS": 1}, "from 2 to 86400"),
    ({"LEASE_SECONDS": 8, "HEARTBEAT_SECONDS": 5}, "at least twice HEARTBEAT_SECONDS"),
    ({"RETENTION": {"DEAD": "week"}}, "TASKQ['RETENTION']['DEAD']"),
    ({"RETENTION": 5}, "must be a dict"),
    ({"WORKER": {"THREADS": 0}}, "TASKQ['WORKER']['THREADS']"),
    ({"WORKER": {"EXECUTOR": "fibers"}}, "'threads', 'processes', 'asyncio', 'inline'"),
    ({"QUEUES": {"email": {"TIMEOUT": 0}}}, "TASKQ['QUEUES']['email']['TIMEOUT']"),
    ({"QUEUES": ["email"]}, "must be a dict of queue names"),
]


@pytest.mark.parametrize(("taskq", "expected"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_setting_is_told_with_its_place_rule_and_value(taskq: dict[str, Any], expected: str) -> None:
    with override_settings(TASKQ=taskq):
        found = [message for message in messages() if message.id == "taskq.E001"]
        with pytest.raises(ImproperlyConfigured) as caught:
            conf.options()

    assert len(found) == 1
    assert expected in found[0].msg
    assert expected in str(caught.value)


def test_everything_wrong_is_told_at_once() -> None:
    taskq = {"MAX_ATEMPTS": 3, "TIMEOUT": -1, "WORKER": {"THREDS": 1}, "RETENTION": {"DEAD": -1}}
    tasks = {"default": {"BACKEND": BACKEND, "OPTIONS": {"ACK": "maybe"}}}
    with override_settings(TASKQ=taskq, TASKS=tasks):
        found = {message.obj: message for message in messages() if message.id == "taskq.E001"}
        with pytest.raises(ImproperlyConfigured) as caught:
            conf.options("default")

    assert set(found) == {
        "TASKQ['MAX_ATEMPTS']",
        "TASKQ['TIMEOUT']",
        "TASKQ['WORKER']['THREDS']",
        "TASKQ['RETENTION']['DEAD']",
        "TASKS['default']['OPTIONS']['ACK']",
    }
    assert found["TASKQ['MAX_ATEMPTS']"].hint == "Did you mean 'MAX_ATTEMPTS'?"
    assert found["TASKQ['WORKER']['THREDS']"].hint == "Did you mean 'THREADS'?"
    assert len(str(caught.value).splitlines()) == 5


@pytest.mark.parametrize("key", ["zzz", "max_attempts", 7])
def test_a_key_that_nobody_knows_is_told_with_those_that_are_known(key: object) -> None:
    with override_settings(TASKQ={key: 1}):
        (found,) = [message for message in messages() if message.id == "taskq.E001"]

    assert repr(key) in found.msg
    assert found.hint


@pytest.mark.django_db
def test_manage_check_fails_on_a_wrong_setting() -> None:
    with override_settings(TASKQ={"TIMEOUT": -1}), pytest.raises(SystemCheckError, match=r"taskq\.E001"):
        call_command("check")


@pytest.mark.django_db
def test_a_database_that_stores_local_times_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = connections["default"]
    monkeypatch.setattr(connection, "timezone_name", "Europe/Rome")

    found = [message.id for message in messages()]

    assert ("taskq.W005" in found) is not connection.features.supports_timezones


def test_definitions_that_share_a_limit_but_not_its_bound_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from django_taskq import Concurrency, Rate
    from django_taskq.lifecycle import definitions

    def known(**limits: Any) -> None:
        made = {name: types.SimpleNamespace(limits=given) for name, given in limits.items()}
        monkeypatch.setattr(definitions, "known", lambda: made)

    def free(**_arguments: Any) -> str:
        return "crm"

    known(a=[Concurrency(2, key="crm")], b=[Concurrency(2, key="crm"), Rate("1/s", key="crm")], c=[Concurrency(3)])
    assert ours.check_limits() == []
    known(a=[Concurrency(2, key=free)], b=[Concurrency(3, key=free)], c=())
    assert ours.check_limits() == []

    known(a=[Concurrency(2, key="crm")], b=[Concurrency(4, key="crm")])

    (told,) = ours.check_limits()
    assert told.id == "taskq.W006"
    assert "a and b share the limit 'crm'" in told.msg
    assert "same bound" in str(told.hint)


def test_checks_ids() -> None:
    """S0-134: the ids are stable, since projects silence them by id."""
    source = (ROOT / "django_taskq" / "checks.py").read_text()

    assert set(re.findall(r'id="(taskq\.\w+)"', source)) >= {
        *("taskq.E001", "taskq.E002", "taskq.E003", "taskq.E004"),
        *("taskq.W001", "taskq.W002", "taskq.W003", "taskq.W004", "taskq.W005", "taskq.W006"),
        *("taskq.E005", "taskq.E006", "taskq.E007", "taskq.E008", "taskq.E009"),
    }


def test_naive_time_is_an_error() -> None:
    with override_settings(USE_TZ=False):
        assert "taskq.E002" in ids()
    assert "taskq.E002" not in ids()


def test_a_database_that_does_not_exist_is_an_error() -> None:
    with override_settings(TASKQ={"DATABASE": "nowhere"}):
        (found,) = [message for message in messages() if message.id == "taskq.E003"]

    assert "nowhere" in found.msg
    assert "default" in found.hint


def test_metrics_without_the_library_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "find_spec", lambda name: None)

    with override_settings(TASKQ={"METRICS": True}):
        assert "taskq.E004" in ids()
    with override_settings(TASKQ={"METRICS": False}):
        assert "taskq.E004" not in ids()


def test_another_runworker_in_front_of_ours_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "get_commands", lambda: {"runworker": "channels"})
    (found,) = [message for message in messages() if message.id == "taskq.W002"]

    assert "'channels'" in found.msg
    assert "taskq worker" in found.hint


def test_settings_are_read_anew_when_a_test_changes_them() -> None:
    before = conf.options().max_attempts
    with override_settings(TASKQ={"MAX_ATTEMPTS": 9}):
        inside = conf.options().max_attempts
    after = conf.options().max_attempts

    assert (before, inside, after) == (3, 9, 3)


def test_the_options_of_an_alias_win_over_the_shared_ones_key_by_key() -> None:
    taskq = {"MAX_ATTEMPTS": 5, "TIMEOUT": 10, "RETENTION": {"DEAD": 60}, "QUEUES": {"email": {"TIMEOUT": 1}}}
    own = {"MAX_ATTEMPTS": 7, "RETENTION": {"CANCELLED": 30}, "QUEUES": {"slow": {"TIMEOUT": 2}}}
    tasks = {"default": {"BACKEND": BACKEND}, "other": {"BACKEND": BACKEND, "OPTIONS": own}}
    with override_settings(TASKQ=taskq, TASKS=tasks):
        shared, other = conf.options("default"), conf.options("other")

    assert (shared.max_attempts, other.max_attempts) == (5, 7)
    assert other.timeout == timedelta(seconds=10)
    assert (other.retention.dead, other.retention.cancelled) == (timedelta(seconds=60), timedelta(seconds=30))
    assert set(other.queues) == {"email", "slow"}
    assert set(shared.queues) == {"email"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, Fixed(7)),
        ([1, 2, 3], Steps(1, 2, 3)),
        ({"base": 1, "cap": 9}, Exponential(base=1, cap=9)),
        (Fixed(1), Fixed(1)),
        ("tests.faces.test_checks.curve", lambda: curve),
    ],
)
def test_a_backoff_may_be_written_in_several_ways(value: Any, expected: Any) -> None:
    with override_settings(TASKQ={"BACKOFF": value}):
        found = conf.options().backoff

    assert found == (expected() if callable(expected) else expected)


def curve(error: BaseException, result: Any) -> float:
    return 1.0


# S0-84: which value holds


@pytest.mark.parametrize("option", ["max_attempts", "timeout", "max_time", "keep_result"])
@pytest.mark.parametrize("said_by", ["call", "decorator", "queue", "project", "nobody"])
def test_option_precedence(option: str, said_by: str) -> None:
    """S0-84: the call wins over the decorator, that over the queue, that over the project."""
    from tests.observability.tasks import add

    order = ["call", "decorator", "queue", "project"]
    value = {"project": 40, "queue": 30, "decorator": 20, "call": 10}
    says = order[order.index(said_by) :] if said_by in order else []
    shared = {option.upper(): value["project"]} if "project" in says else {}
    if "queue" in says:
        shared["QUEUES"] = {"email": {option.upper(): value["queue"]}}
    with override_settings(TASKQ=shared):
        task = add.using(queue_name="email")
        if "decorator" in says:
            task = task.using(**{option: value["decorator"]})
        if "call" in says:
            task = task.using(**{option: value["call"]})

        found = getattr(definitions.behaviour_of(task, "email", conf.options()), option)

    default = getattr(conf.Options(), option)
    assert found == (value[said_by] if said_by in order else default)


@pytest.mark.django_db(transaction=True)
def test_a_call_wins_over_the_decorator_in_what_is_stored_and_run() -> None:
    from django_taskq.models import FinishedTask, Task
    from tests.by_hand import HandWorker
    from tests.observability.tasks import always_fail

    own, called = always_fail.enqueue(), always_fail.using(max_attempts=1).enqueue()
    stored = {str(task.pk): task.max_attempts for task in Task.objects.all()}

    HandWorker().work()

    assert stored == {own.id: 2, called.id: 1}
    ran = {str(task.pk): task.attempt for task in FinishedTask.objects.all()}
    assert ran == stored


# The reference


def documented() -> dict[str, dict[str, str]]:
    """Return the tables of the reference: heading, then key, then default as written."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for line in (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ").strip("`")
        elif re.match(r"\| `[A-Z_]+` \|", line):
            key, default, *_ = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
            found.setdefault(heading, {})[key] = default
    return found


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("TASKQ", conf.Options),
        ('TASKQ["RETENTION"]', conf.Retention),
        ('TASKQ["QUEUES"][name]', conf.QueueOptions),
        ('TASKQ["WORKER"]', conf.WorkerOptions),
    ],
)
def test_defaults_locked(heading: str, kind: type) -> None:
    """S0-114: what the reference says is what holds, both ways."""
    table = documented()[heading]
    known = {"timedelta": timedelta, "Exponential": Exponential}
    nested = {"retention": conf.Retention(), "worker": conf.WorkerOptions()}

    assert set(table) == {item.name.upper() for item in fields(kind)}
    for item in fields(kind):
        written = eval(table[item.name.upper()], known)
        default = item.default if item.default is not MISSING else item.default_factory()
        if item.name in nested and written == {}:
            written = nested[item.name]
        assert (Ack[written.upper()] if isinstance(default, Ack) else written) == default, item.name


def test_every_key_that_is_documented_is_accepted() -> None:
    tables = documented()
    known = {"timedelta": timedelta, "Exponential": Exponential}

    def values(heading: str) -> dict[str, Any]:
        return {key: eval(default, known) for key, default in tables[heading].items()}

    taskq = values("TASKQ") | {
        "RETENTION": values('TASKQ["RETENTION"]'),
        "WORKER": values('TASKQ["WORKER"]'),
        "QUEUES": {"email": values('TASKQ["QUEUES"][name]')},
    }
    with override_settings(TASKQ=taskq):
        assert conf.problems() == []
        assert conf.options() == conf.Options(queues={"email": conf.QueueOptions()})


# Schedules


def test_two_schedules_of_one_name_are_reported() -> None:
    from tests.faces.schedules import hidden, report

    schedule(cron="0 3 * * *", name="twice")(report)
    schedule(cron="0 4 * * *", name="twice")(hidden)
    try:
        [found] = [message for message in messages() if message.id == "taskq.E005"]
        assert "'twice'" in found.msg
        assert "tests.faces.schedules.hidden" in found.msg
    finally:
        declarations.forget("twice")
    assert "taskq.E005" not in ids()


def test_a_task_with_two_schedules_without_names_is_reported() -> None:
    from tests.faces.schedules import report

    schedule(cron="0 3 * * *")(schedule(cron="0 4 * * *")(report))
    try:
        assert "taskq.E005" in ids()
    finally:
        declarations.forget("tests.faces.schedules.report")


def test_a_schedule_of_a_task_that_cannot_be_found_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.faces.schedules import report

    schedule(cron="0 3 * * *", name="lost")(report)
    try:
        assert "taskq.E006" not in ids()
        monkeypatch.setattr(definitions, "find", lambda name: None)
        assert "taskq.E006" in ids()
    finally:
        declarations.forget("lost")


def test_a_schedule_in_a_time_zone_that_this_machine_does_not_know_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.faces.schedules import report

    schedule(cron="0 3 * * *", name="far", timezone="Europe/Rome")(report)
    try:
        monkeypatch.setattr("django_taskq.domain.schedules.ZoneInfo", _no_zone)
        [found] = [message for message in messages() if message.id == "taskq.E007"]
        assert "Europe/Rome" in found.msg
    finally:
        declarations.forget("far")


def _no_zone(name: str) -> None:
    raise KeyError(name)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": "0 3 * * *", "timezone": "Europe/Roma"}, "IANA"),
        ({"cron": "0 3 * * *", "priority": 1000}, "priority"),
        ({"cron": "0 3 * * *", "args": [1, 2, 3]}, "does not take these arguments"),
        ({"cron": "0 3 * * *", "args": "abc"}, "list or a tuple"),
        ({"cron": "0 3 * * *", "kwargs": [1]}, "dict"),
        ({"cron": "0 3 * * *", "kwargs": {"day": object()}}, "object"),
        ({"cron": "0 3 * * *", "name": " x"}, "printable"),
        ({}, "one of cron, every and at"),
    ],
)
def test_a_schedule_that_could_not_run_is_refused_where_it_is_declared(options: dict[str, Any], match: str) -> None:
    from tests.faces.schedules import report

    with pytest.raises(ValueError, match=match):
        schedule(**options)(report)

    assert not declarations.declared().keys() & {"tests.faces.schedules.report", " x"}


def test_a_copy_of_a_task_is_refused_since_its_options_would_be_lost() -> None:
    from tests.faces.schedules import report

    with pytest.raises(InvalidOptions, match=r"using\(\) changed would be lost"):
        schedule(cron="0 3 * * *", name="copy")(report.using(max_attempts=7))

    assert "copy" not in declarations.declared()


def test_schedule_below_task_is_refused() -> None:
    def plain() -> None: ...

    with pytest.raises(TypeError, match="above @task"):
        schedule(cron="0 3 * * *")(plain)
