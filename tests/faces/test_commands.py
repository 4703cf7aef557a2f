"""S4-62, S4-77, S4-93, S4-96 to S4-98: the operator's tool, from its parser to its exit codes."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command, load_command_class
from django.core.management.base import CommandError
from django.db import OperationalError

from django_taskq import clock, conf
from django_taskq.domain.states import State, StepState
from django_taskq.ids import uuid7
from django_taskq.lifecycle import control
from django_taskq.models import Attempt, AuditEntry, Duty, FinishedTask, Queue, Snapshot, Step, Task
from tests.faces import rows
from tests.faces.schedules import made

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).parents[2]
UNKNOWN = "01994f0e-7c1e-7b52-9d0a-3f1f3c3a9a10"


def run(*args: str) -> str:
    """Return what a command printed."""
    out = io.StringIO()
    call_command("taskq", *args, stdout=out, stderr=io.StringIO())
    return out.getvalue()


def data(*args: str) -> list[dict[str, Any]]:
    """Return the records that a command printed as JSON."""
    return json.loads(run(*args, "--format", "json"))["data"]


def refusal(*args: str) -> CommandError:
    """Return the error that a command ended with."""
    with pytest.raises(CommandError) as caught:
        run(*args)
    return caught.value


# Reading


def test_stats_shows_each_queue_with_what_was_settled_lately() -> None:
    rows.registered("email", "billing")
    rows.worker(queues="email")
    now = clock.now()
    for name, ready in (("email", 7), ("billing", 1)):
        Snapshot.objects.create(queue=name, at=now, ready=ready, dead=2, oldest_ready_at=now - timedelta(minutes=5))
    control.pause("billing")

    found = {record["queue"]: record for record in data("stats")}

    assert (found["email"]["state"], found["email"]["ready"], found["email"]["dead"]) == ("served", 7, 2)
    assert found["email"]["oldest_ready_seconds"] >= 300
    assert found["billing"]["state"] == "paused"


def test_stats_says_so_when_nobody_is_left_to_look() -> None:
    rows.registered("email")
    Snapshot.objects.create(queue="email", at=clock.now(), ready=7, running=2)

    alone, served = io.StringIO(), io.StringIO()
    call_command("taskq", "stats", stdout=alone)
    rows.worker(queues="email")
    call_command("taskq", "stats", stdout=served)

    assert "No worker is alive" in alone.getvalue()
    assert "No worker is alive" not in served.getvalue()


def test_stats_sums_the_window_and_nothing_older() -> None:
    from django_taskq.models import Stat

    rows.registered("email")
    minute = clock.now().replace(second=0, microsecond=0)
    for at, count in ((minute, 3), (minute - timedelta(hours=2), 100)):
        Stat.objects.create(minute=at, queue="email", task="a", succeeded=count, run_ms=count * 500, wait_2=count)

    (short,) = data("stats", "--window", "1h")
    (long,) = data("stats", "--window", "1d")

    assert (short["succeeded"], short["run_mean_seconds"], short["wait_p95_seconds"]) == (3, 0.5, 0.1)
    assert long["succeeded"] == 103


def test_stats_counts_for_itself_where_nobody_looked_lately() -> None:
    """A page that shows an old figure lies."""
    rows.registered("default")
    Snapshot.objects.create(queue="default", at=clock.now() - timedelta(hours=1), ready=700, scheduled=5)
    rows.live_task()

    (found,) = data("stats")

    assert (found["ready"], found["scheduled"], found["state"]) == (1, None, "unserved")
    assert "counted now" in run("stats")


def test_tasks_pages_by_cursor_without_losing_or_repeating_one() -> None:
    stored = {str(rows.live_task(id=uuid7()).pk) for _ in range(7)}
    seen: list[str] = []
    more: list[str] = []

    while True:
        page = json.loads(run("tasks", "--limit", "3", "--format", "json", *more))
        seen += [record["id"] for record in page["data"]]
        if page["meta"]["after"] is None:
            break
        more = ["--after", page["meta"]["after"]]

    assert len(seen) == 7
    assert set(seen) == stored


def test_tasks_filters_by_state_queue_name_and_time() -> None:
    rows.registered("default", "email")
    ready = rows.live_task()
    rows.live_task(State.SCHEDULED)
    mail = rows.live_task(queue="email", name="app.tasks.mail")
    old = rows.live_task(id=rows.id_at(clock.now() - timedelta(days=3)))
    dead = rows.dead_task()

    def ids(*args: str) -> set[str]:
        return {record["id"] for record in data("tasks", *args)}

    assert ids("--state", "ready") == {str(ready.pk), str(mail.pk), str(old.pk)}
    assert ids("--queue", "email") == {str(mail.pk)}
    assert ids("--task", "app.tasks.mail") == {str(mail.pk)}
    assert str(old.pk) not in ids("--since", "1d")
    assert ids("--state", "dead") == {str(dead.pk)}
    assert ids("--ended") == {str(dead.pk)}


def test_tasks_does_not_mix_live_and_ended() -> None:
    assert refusal("tasks", "--state", "ready", "--state", "dead").returncode == 2


def test_cli_inspect_shows_attempts_traceback_and_why_it_does_not_run() -> None:
    """S4-62."""
    task = rows.live_task(State.SCHEDULED, attempt=1, args=["hush"])
    Attempt.objects.create(
        task_id=task.pk, number=1, worker_id=7, outcome="failed", ended_at=clock.now(),
        error_class="builtins.ValueError", message="boom", traceback="Traceback …\nValueError: boom",
    )  # fmt: skip

    text = run("inspect", str(task.pk))
    (record,) = data("inspect", str(task.pk))

    assert "Attempt 1: failed, on worker 7" in text
    assert "ValueError: boom" in text
    assert "the next may start in" in record["why"]
    assert record["attempts"][0]["traceback"].startswith("Traceback")
    assert "hush" not in text
    assert "args" not in record


def _steps(task: FinishedTask) -> None:
    now = clock.now()
    values = {"task_id": task.pk, "attempt": 3, "worker_id": 7, "started_at": now, "finished_at": now}
    Step.objects.create(**values, name="parse", position=0, state=StepState.SUCCEEDED, result='["rows"]')
    failed = {"error_class": "builtins.ValueError", "error_line": "no room\x1b[2J"}
    Step.objects.create(**values, name="save", position=1, state=StepState.FAILED, **failed)
    Step.objects.create(task_id=task.pk, name="tell", position=2)


def test_inspect_shows_the_steps() -> None:
    """S3-02: their states, and where it failed."""
    task = rows.dead_task()
    _steps(task)

    text = run("inspect", str(task.pk))
    (record,) = data("inspect", str(task.pk))
    (whole,) = data("inspect", str(task.pk), "--payload")

    assert "  parse: succeeded, in attempt 3 on worker 7\n" in text
    assert "  save: failed, in attempt 3 on worker 7: builtins.ValueError: no room\\x1b[2J\n" in text
    assert "  tell: pending\n" in text
    assert [(step["name"], step["state"]) for step in record["steps"]] == [
        ("parse", "succeeded"),
        ("save", "failed"),
        ("tell", "pending"),
    ]
    assert "result" not in record["steps"][0]
    assert whole["steps"][0]["result"] == ["rows"]


def test_a_replay_from_the_start_forgets_the_steps() -> None:
    """S3-24: without the option they are kept."""
    kept, begun_anew = rows.dead_task(), rows.dead_task()
    _steps(kept)
    _steps(begun_anew)

    run("retry", str(kept.pk))
    run("dead", "replay", "--from-start", "--apply", "--why", "INC-90")

    assert Step.objects.filter(task_id=kept.pk).count() == 3
    assert not Step.objects.filter(task_id=begun_anew.pk).exists()
    assert AuditEntry.objects.get(task_id=begun_anew.pk).detail == {"from_start": True}


def test_inspect_shows_the_payload_only_when_asked() -> None:
    task = rows.finished_task(args=["hush"], result='"done"')

    (record,) = data("inspect", str(task.pk), "--payload")

    assert (record["args"], record["kwargs"], record["result"]) == (["hush"], {}, "done")


def test_inspect_of_damaged_arguments_shows_the_rest() -> None:
    task = rows.live_task(raw_args="{not json")

    (record,) = data("inspect", str(task.pk), "--payload")

    assert (record["id"], record["args"]) == (str(task.pk), None)


def test_queues_and_workers_are_listed() -> None:
    rows.registered("email")
    rows.worker(queues="email:3", name="alive")
    rows.worker(name="silent", beat_at=clock.now() - timedelta(hours=1))

    (queue,) = data("queues")
    found = {record["name"]: record["state"] for record in data("workers")}

    assert (queue["queue"], queue["workers"], queue["paused"]) == ("email", 1, False)
    assert found == {"alive": "alive", "silent": "silent"}


# Health


def healthy() -> None:
    now = clock.now()
    rows.registered("default")
    rows.worker()
    Snapshot.objects.create(queue="default", at=now)
    for name in ("promote", "rescue", "snapshot", "prune", "reconcile"):
        Duty.objects.create(name=name, ran_at=now)


def exit_of_health(*args: str) -> tuple[int, dict[str, str]]:
    out = io.StringIO()
    code = 0
    try:
        call_command("taskq", "health", *args, "--json", stdout=out)
    except SystemExit as left:
        code = int(left.code or 0)
    return code, {record["check"]: record["level"] for record in json.loads(out.getvalue())["data"]}


def test_health_is_0_when_all_is_well() -> None:
    healthy()

    code, found = exit_of_health()

    assert code == 0
    assert set(found) == {"database", "migrations", "workers", "oldest", "dead", "duties"}
    assert set(found.values()) == {"ok"}


@pytest.mark.parametrize(("minutes", "level", "code"), [(4, "ok", 0), (6, "degraded", 1), (51, "bad", 2)])
def test_health_judges_the_oldest_ready_task(minutes: int, level: str, code: int) -> None:
    healthy()
    since = clock.now() - timedelta(minutes=minutes)
    Snapshot.objects.update(ready=1, oldest_ready_at=since)

    assert exit_of_health() == (code, {**exit_of_health()[1], "oldest": level})


def test_health_takes_its_limit_from_the_command_line() -> None:
    healthy()
    Snapshot.objects.update(ready=1, oldest_ready_at=clock.now() - timedelta(minutes=6))

    assert exit_of_health("--max-oldest", "10m")[0] == 0


def test_a_paused_queue_is_not_late() -> None:
    healthy()
    Snapshot.objects.update(ready=1, oldest_ready_at=clock.now() - timedelta(hours=6))
    for name in Queue.objects.values_list("name", flat=True):
        control.pause(name)

    assert exit_of_health()[0] == 0


def test_health_without_a_worker_is_bad_once_something_waits() -> None:
    healthy()
    from django_taskq.models import Worker

    Worker.objects.all().delete()
    idle = exit_of_health()
    Snapshot.objects.update(ready=1)
    waiting = exit_of_health()

    assert (idle[0], idle[1]["workers"]) == (1, "degraded")
    assert (waiting[0], waiting[1]["workers"]) == (2, "bad")


@pytest.mark.parametrize(("count", "code"), [(2, 0), (3, 1), (21, 2)])
def test_health_judges_the_number_of_dead_letters(count: int, code: int) -> None:
    healthy()
    rows.dead_tasks(count)

    assert exit_of_health("--max-dead", "2")[0] == code


@pytest.mark.parametrize("facts", [{"ran_at": None}, {"ran_at": clock.now() - timedelta(hours=1)}, {"error": "boom"}])
def test_health_tells_of_a_duty_that_is_not_done(facts: dict[str, Any]) -> None:
    healthy()
    Duty.objects.filter(name="prune").update(**facts)

    code, found = exit_of_health()

    assert (code, found["duties"]) == (1, "degraded")


def test_health_tells_of_missing_migrations(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db.migrations.recorder import MigrationRecorder

    healthy()
    applied = MigrationRecorder.applied_migrations

    def some(self: MigrationRecorder) -> dict[Any, Any]:
        return {key: value for key, value in applied(self).items() if key[0] != "django_taskq"}

    monkeypatch.setattr(MigrationRecorder, "applied_migrations", some)

    code, found = exit_of_health()

    assert (code, found["migrations"]) == (2, "bad")


def test_health_of_a_database_that_does_not_answer_is_bad_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from django_taskq.ops import health

    def refuse(*args: object, **kwargs: object) -> None:
        raise OperationalError("gone")

    healthy()
    monkeypatch.setattr(health.snapshot, "workers", refuse)

    code, found = exit_of_health()

    assert (code, found["database"]) == (2, "bad")


# Acting


def test_retry_sends_a_dead_task_back_and_writes_down_who_and_why() -> None:
    dead = rows.dead_task()

    (record,) = data("retry", str(dead.pk), "--reason", "provider is back")

    assert (record["id"], record["outcome"]) == (str(dead.pk), "replayed")
    assert Task.objects.get(pk=dead.pk).state == State.READY
    entry = AuditEntry.objects.get()
    assert re.fullmatch(r"cli:\S+@\S+", entry.actor)
    assert (entry.action, entry.reason, entry.task_id) == ("replay", "provider is back", dead.pk)


def test_the_actor_can_be_named() -> None:
    dead = rows.dead_task()

    run("discard", str(dead.pk), "--actor", "ana")

    assert AuditEntry.objects.get().actor == "ana"
    assert FinishedTask.objects.get(pk=dead.pk).resolved_at is not None


def test_cancel_ends_waiting_tasks_and_asks_running_ones() -> None:
    waiting, running = rows.live_task(), rows.live_task(State.RUNNING)

    found = {record["id"]: record["outcome"] for record in data("cancel", str(waiting.pk), str(running.pk))}

    assert found == {str(waiting.pk): "cancelled", str(running.pk): "asked"}
    assert Task.objects.get().cancel is True


def test_ids_may_come_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = rows.live_task(), rows.live_task()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{first.pk}\n{second.pk}\n"))

    run("cancel", "-")

    assert not Task.objects.exists()


@pytest.mark.parametrize("verb", ["retry", "cancel", "discard"])
def test_a_dry_run_changes_nothing(verb: str) -> None:
    task = rows.live_task() if verb == "cancel" else rows.dead_task()

    (record,) = data(verb, str(task.pk), "--dry-run")

    assert record["outcome"] == "planned"
    assert type(task).objects.get(pk=task.pk).state == task.state
    assert not AuditEntry.objects.exists()


@pytest.mark.parametrize("verb", ["inspect", "retry", "cancel", "discard"])
def test_a_malformed_id_is_wrong_usage_and_an_unknown_one_is_not_found(verb: str) -> None:
    malformed, unknown = refusal(verb, "12'; DROP TABLE"), refusal(verb, UNKNOWN)

    assert (malformed.returncode, unknown.returncode) == (2, 3)
    assert "is no id of a task" in str(malformed)
    assert UNKNOWN in str(unknown)


def test_what_cannot_be_done_is_refused_and_half_done_is_partly() -> None:
    succeeded, dead = rows.finished_task(), rows.dead_task()

    refused = refusal("retry", str(succeeded.pk))
    partly = refusal("retry", str(succeeded.pk), str(dead.pk))

    assert refused.returncode == 4
    assert "cannot be replayed" in str(refused)
    assert partly.returncode == 5
    assert Task.objects.filter(pk=dead.pk).exists()


def test_replay_dry_run_default() -> None:
    """S4-97."""
    rows.dead_task()

    for verb in ("replay", "discard"):
        printed = json.loads(run("dead", verb, "--json"))
        assert printed["meta"] == {"applied": False}

    assert FinishedTask.objects.filter(state=State.DEAD, resolved_at=None).count() == 1
    assert not AuditEntry.objects.exists()


def test_replay_guards() -> None:
    """S4-96: a bound, a reason, and no replay of what nobody here can run."""
    unknown = rows.dead_task(name="gone.tasks.nobody")

    assert refusal("dead", "replay", "--apply").returncode == 2
    assert refusal("dead", "replay", "--limit", "1001").returncode is not None
    assert refusal("dead", "replay", "--apply", "--why", "test").returncode == 4
    assert FinishedTask.objects.filter(pk=unknown.pk).exists()

    run("dead", "replay", "--apply", "--why", "test", "--force")

    assert Task.objects.filter(pk=unknown.pk).exists()


def test_replay_filters() -> None:
    """S4-98."""
    rows.registered("default", "email")
    old = rows.dead_task(finished_at=clock.now() - timedelta(days=2))
    mail = rows.dead_task(queue="email", reason="gave_up")
    named = rows.dead_task(name="app.tasks.named")

    def ids(*args: str) -> set[str]:
        return {record["id"] for record in data("dead", "replay", *args)}

    assert ids("--queue", "email") == {str(mail.pk)}
    assert ids("--task", "app.tasks.named") == {str(named.pk)}
    assert ids("--reason", "gave_up") == {str(mail.pk)}
    assert ids("--since", "1d") == {str(mail.pk), str(named.pk)}
    assert len(ids("--limit", "1")) == 1
    assert len(ids()) == 3
    assert old.pk


def test_cli_dlq_replay() -> None:
    """S4-62."""
    dead = rows.dead_task()

    (record,) = data("dead", "replay", "--apply", "--why", "INC-88", "--attempts", "1")

    assert (record["id"], record["outcome"]) == (str(dead.pk), "replayed")
    task = Task.objects.get(pk=dead.pk)
    assert task.max_attempts == dead.attempt + 1
    assert AuditEntry.objects.get().reason == "INC-88"


def test_dead_discard_applies() -> None:
    rows.dead_task()

    run("dead", "discard", "--apply", "--why", "known bug")

    assert data("dead", "list") == []
    assert refusal("dead", "replay").returncode == 3


def test_pause_and_resume_are_audited_and_may_be_repeated() -> None:
    rows.registered("email")

    first = data("pause", "email", "--reason", "outage")
    again = data("pause", "email")
    run("resume", "email")

    assert first[0]["outcome"] == "paused"
    assert again[0]["outcome"] == "not changed, was paused already"
    assert list(AuditEntry.objects.order_by("id").values_list("action", "reason")) == [
        ("pause", "outage"),
        ("resume", ""),
    ]


def test_a_queue_is_given_its_place_and_weight() -> None:
    rows.registered("email")

    first = data("arrange", "email", "--position", "-2", "--weight", "3", "--why", "launch")
    again = data("arrange", "email", "--weight", "3")
    nothing = refusal("arrange", "email")

    assert first[0]["outcome"] == "arranged"
    assert again[0]["outcome"] == "not changed, was arranged already"
    assert "--weight" in str(nothing)
    [queue] = data("queues")
    assert (queue["position"], queue["weight"]) == (-2, 3)
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.target, entry.reason) == ("arrange", "email", "launch")
    assert entry.detail == {"position": -2, "weight": 3}


@pytest.mark.parametrize(
    "args",
    [
        ("pause", "emial"),
        ("arrange", "emial", "--weight", "2"),
        ("stats", "--queue", "emial"),
        ("tasks", "--queue", "emial"),
        ("dead", "list", "--queue", "emial"),
    ],
)
def test_a_queue_that_nobody_knows_is_named_with_the_one_that_was_meant(args: tuple[str, ...]) -> None:
    rows.registered("email")

    error = refusal(*args)

    assert error.returncode == 3
    assert "did you mean 'email'?" in str(error)
    assert not Queue.objects.filter(name="emial").exists()


def test_prune_deletes_what_it_said_it_would(settings: Any) -> None:
    settings.TASKQ = {"RETENTION": {"SUCCEEDED": 3600, "DEAD": None}}
    old = clock.now() - timedelta(hours=2)
    for _ in range(3):
        rows.finished_task(finished_at=old)
    kept = [rows.finished_task(), rows.dead_task(finished_at=old)]

    planned = {record["state"]: record["count"] for record in data("prune", "--dry-run")}
    before = FinishedTask.objects.count()
    deleted = json.loads(run("prune", "--json"))["meta"]["deleted"]

    assert planned == {"own": 0, "succeeded": 3, "cancelled": 0, "workflow": 0}
    assert (before, deleted) == (5, 3)
    assert set(FinishedTask.objects.values_list("pk", flat=True)) == {row.pk for row in kept}


# Output


@pytest.mark.parametrize(
    "args", [("stats",), ("tasks",), ("queues",), ("workers",), ("dead", "list"), ("prune", "--dry-run")]
)
def test_json_is_one_object_with_stable_keys(args: tuple[str, ...]) -> None:
    printed = json.loads(run(*args, "--json"))

    assert set(printed) == {"schema", "generated_at", "data", "meta"}
    assert printed["schema"] == f"taskq.{'.'.join(args[:2] if args[0] == 'dead' else args[:1])}/1"
    assert printed["generated_at"].endswith("Z")


def test_jsonl_is_one_object_a_line() -> None:
    for _ in range(3):
        rows.live_task()

    printed = [json.loads(line) for line in run("tasks", "--format", "jsonl").splitlines()]

    assert [record["state"] for record in printed] == ["ready"] * 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_table_and_a_pipe_gets_aligned_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows.registered("email", "a-rather-long-name")
    terminal = Terminal()

    call_command("taskq", "queues", stdout=terminal)
    piped = run("queues")

    assert "───" in terminal.getvalue()
    assert "─" not in piped
    starts = {re.search(r"\s+\d", line).end() for line in piped.splitlines()[1:3] if re.search(r"\s+\d", line)}
    assert len(starts) == 1, "columns line up"


def test_no_text_of_a_row_steers_the_terminal() -> None:
    rows.live_task(name="evil\x1b[2J\nforged [red]x[/red]")
    terminal = Terminal()

    call_command("taskq", "tasks", stdout=terminal, no_color=True)
    piped = run("tasks")

    for text in (terminal.getvalue(), piped):
        assert "\x1b[2J" not in text
        assert "\nforged" not in text
    assert "[red]x[/red]" in piped


def test_a_cursor_that_nobody_made_is_wrong_usage() -> None:
    assert refusal("tasks", "--after", "bogus").returncode == 2


@pytest.mark.parametrize(
    "args", [("stats", "--window", "soon"), ("tasks", "--limit", "0"), ("tasks", "--since", "yesterday"), ("dead",), ()]
)
def test_wrong_usage_is_told_in_one_line(args: tuple[str, ...]) -> None:
    assert "\n" not in str(refusal(*args)).strip()


def test_an_unknown_database_alias_is_wrong_usage() -> None:
    assert refusal("stats", "--database", "nowhere").returncode == 2


def manage(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a program of its own, on an SQLite database without tables."""
    variables = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "TASKQ_TEST_DB": "sqlite"}
    return subprocess.run(
        [sys.executable, "-m", "django", "taskq", *args],
        capture_output=True, text=True, check=False, env=variables, cwd=ROOT, timeout=60,
    )  # fmt: skip


@pytest.mark.slow
def test_exit_codes_and_streams_as_a_shell_sees_them() -> None:
    wrong = manage("inspect", "nonsense")
    usage = manage("nonsense")
    help_ = manage("--help")

    assert (wrong.returncode, usage.returncode, help_.returncode) == (2, 2, 0)
    assert wrong.stdout == ""
    assert len(wrong.stderr.strip().splitlines()) == 1
    assert "Traceback" not in wrong.stderr + usage.stderr


def test_the_worker_answers_to_taskq_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    from django_taskq.worker import command

    given: list[Any] = []
    monkeypatch.setattr(command, "run", lambda options: given.append(options) or 0)

    with pytest.raises(SystemExit) as left:
        call_command("taskq", "worker", "--burst", "--threads", "2")

    assert left.value.code == 0
    assert (given[0]["burst"], given[0]["threads"]) == (True, 2)


# The reference


def verbs(parser: argparse.ArgumentParser, prefix: str = "") -> dict[str, argparse.ArgumentParser]:
    """Return each subcommand with its parser, "dead replay" included."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                inner = verbs(sub, f"{prefix}{name} ")
                found |= inner or {f"{prefix}{name}": sub}
    return found


def parsers() -> dict[str, argparse.ArgumentParser]:
    command = load_command_class("django_taskq", "taskq")
    return verbs(command.create_parser("manage.py", "taskq"))


def test_cli_help_lists_all() -> None:
    """S4-93."""
    assert set(parsers()) == {
        *("stats", "tasks", "inspect", "retry", "cancel", "discard", "dead list", "dead replay", "dead discard"),
        *("pause", "resume", "pauses", "arrange", "queues", "workers", "prune", "health", "worker"),
        *("limits list", "limits show", "limits set", "limits reset", "keys list", "keys forget"),
        *("workflows list", "workflows show", "workflows cancel", "workflows replay"),
        *("schedules list", "schedules next", "schedules pause", "schedules resume", "schedules run"),
        *("schedules skip", "schedules enable", "schedules disable"),
    }
    command = load_command_class("django_taskq", "taskq")
    text = command.create_parser("manage.py", "taskq").format_help()
    assert all(re.search(rf"^\s+{name}\s+\w", text, re.MULTILINE) for name in {verb.split()[0] for verb in parsers()})


def documented() -> dict[str, str]:
    """Return each section of the reference by its heading's command."""
    text = (ROOT / "docs" / "reference" / "commands.md").read_text()
    parts = re.split(r"^### `taskq ([a-z ]+)`.*$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_reference_and_the_parser_know_the_same_commands_and_options() -> None:
    sections = documented()
    found = {name: sub for name, sub in parsers().items() if name != "worker"}

    assert set(sections) == {*found, "worker"}
    shared = {"--help", "--format", "--json", "--database", "-h"}
    for name, sub in found.items():
        options = {option for action in sub._actions for option in action.option_strings} - shared
        told = set(re.findall(r"`(--[a-z-]+)", sections[name]))
        assert told == options, name


def test_every_record_key_is_in_the_reference() -> None:
    rows.registered("email")
    rows.worker()
    dead = rows.dead_task()
    text = (ROOT / "docs" / "reference" / "commands.md").read_text()

    commands = [("stats",), ("tasks", "--ended"), ("queues",), ("workers",), ("dead", "list"), ("prune", "--dry-run")]
    made()
    commands += [("schedules", "list"), ("schedules", "next"), ("schedules", "skip", "daily")]
    commands += [("inspect", str(dead.pk), "--payload"), ("dead", "replay"), ("retry", str(dead.pk))]
    keys = {key for args in commands for record in data(*args) for key in record}

    assert not {key for key in keys if f"`{key}`" not in text}


def test_the_limits_told_are_those_that_hold() -> None:
    from django_taskq.ops.health import FAR, Limits

    text = (ROOT / "docs" / "reference" / "commands.md").read_text()

    assert f"{Limits().oldest.total_seconds() / 60:g} minutes" in text
    assert f"{Limits().dead} dead letters" in text
    assert FAR == 10
    assert conf.Retention().dead is None
