"""The worker as a process: signals, exit codes, several processes, bursts, reloading, and what the operator reads."""

import errno
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest
from django.core.management import CommandError, call_command

from django_taskq import conf
from django_taskq.domain.states import State
from django_taskq.models import Attempt, FinishedTask, Task, Worker
from django_taskq.worker import children, command
from django_taskq.worker.loop import Plan
from django_taskq.worker.supervisor import run_many
from tests.app.models import Effect
from tests.worker import tasks
from tests.worker.running import ROOT, children_of, eventually, run_worker, worker_command, worker_process

pytestmark = [pytest.mark.slow, pytest.mark.any_database, pytest.mark.django_db(transaction=True)]


def _began(key: str) -> int:
    """Wait until a lingering task has begun; return the process it runs in."""
    effect = eventually(lambda: Effect.objects.filter(key__startswith=f"{key} began").first(), seconds=40)
    return int(effect.key.rsplit(" ", 1)[1])


def test_a_first_sigterm_lets_running_tasks_finish() -> None:
    result = tasks.linger.enqueue("it", 1.0)
    with worker_process("--threads", "1") as process:
        _began("it")

        process.terminate()

        assert process.wait(30) == 0
    result.refresh()
    assert result.state == "succeeded"
    assert not Worker.objects.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_hands_running_tasks_back_and_a_third_changes_nothing(number: int) -> None:
    result = tasks.linger.enqueue("it", 300)
    with worker_process("--threads", "1", "--grace", "600") as process:
        _began("it")
        process.send_signal(number)
        eventually(lambda: Worker.objects.filter(state=Worker.State.STOPPING).exists())

        process.send_signal(number)
        process.send_signal(number)

        assert process.wait(30) == 3
    row = Task.objects.get(pk=result.id)
    assert (row.state, row.attempt, row.lease) == (State.READY, 0, None)
    assert Attempt.objects.get(task_id=result.id).outcome == "interrupted"
    assert not Worker.objects.exists()


@pytest.mark.parametrize("executor", ["threads", "asyncio"])
def test_a_grace_time_that_is_over_is_told_by_the_exit_code(executor: str) -> None:
    result = tasks.linger.enqueue("it", 300)
    with worker_process("--threads", "1", "--grace", "0.3", "--executor", executor) as process:
        _began("it")

        process.terminate()

        assert process.wait(30) == 3
    assert Task.objects.get(pk=result.id).state == State.READY


def test_with_the_process_executor_nothing_outlives_the_grace_time() -> None:
    result = tasks.linger.enqueue("it", 300)
    with worker_process("--threads", "1", "--grace", "0.3", "--executor", "processes") as process:
        runner = _began("it")
        assert runner != process.pid

        process.terminate()

        assert process.wait(30) == 3
        assert not psutil.pid_exists(runner)
    assert Task.objects.get(pk=result.id).state == State.READY


def test_a_signal_to_the_whole_group_is_not_taken_twice() -> None:
    """systemd and terminals send it to all processes at once; the children of an executor must not die of it."""
    result = tasks.linger.enqueue("it", 1.5)
    with worker_process("--threads", "1", "--executor", "processes", "--processes", "2") as process:
        _began("it")

        os.killpg(process.pid, signal.SIGTERM)

        assert process.wait(40) == 0
    result.refresh()
    assert result.state == "succeeded"


def test_a_worker_process_that_is_killed_is_replaced_and_its_task_rescued_at_once() -> None:
    tasks.linger.enqueue("it", 1.0)
    with worker_process("--threads", "1", "--processes", "2") as process:
        first = _began("it")
        assert first in children_of(process.pid)
        # The supervisor has been told the worker's id.
        eventually(lambda: Worker.objects.filter(pid=first).exists())
        Effect.objects.all().delete()
        threshold = time.monotonic()

        os.kill(first, signal.SIGKILL)

        second = _began("it")
        assert second != first
        eventually(FinishedTask.objects.exists)
        eventually(lambda: len(children_of(process.pid)) == 2)
        assert time.monotonic() - threshold < 40
        process.terminate()
        assert process.wait(40) == 0
    assert [attempt.outcome for attempt in Attempt.objects.all()] == ["lost"]
    assert FinishedTask.objects.get().attempt == 2


def test_children_leave_when_their_supervisor_is_killed() -> None:
    with worker_process("--processes", "2") as process:
        eventually(lambda: Worker.objects.count() == 2, seconds=40)
        pids = children_of(process.pid)
        assert len(pids) == 2

        process.kill()

        eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), seconds=40)
    assert not Worker.objects.exists()


def test_a_second_signal_to_a_supervisor_hands_everything_back() -> None:
    result = tasks.linger.enqueue("it", 300)
    with worker_process("--threads", "1", "--processes", "2", "--grace", "600") as process:
        _began("it")
        process.terminate()
        eventually(lambda: Worker.objects.filter(state=Worker.State.STOPPING).exists())

        process.terminate()

        assert process.wait(40) == 3
    row = Task.objects.get(pk=result.id)
    assert (row.state, row.attempt) == (State.READY, 0)


def test_a_worker_that_reached_max_tasks_leaves_with_0() -> None:
    for number in range(9):
        tasks.leave.enqueue(str(number))

    done = run_worker("--max-tasks", "5")

    assert done.returncode == 0, done.stderr
    assert Effect.objects.count() == 5


def test_a_worker_process_that_reached_max_tasks_is_replaced() -> None:
    for number in range(12):
        tasks.leave.enqueue(str(number))
    with worker_process("--max-tasks", "3", "--processes", "2"):
        eventually(lambda: Effect.objects.count() == 12, seconds=60)


def test_a_burst_of_several_processes_ends_when_all_is_done() -> None:
    for number in range(50):
        tasks.leave.enqueue(str(number))
    tasks.leave.using(delay=3600).enqueue("later")

    done = run_worker("--burst", "--processes", "2")

    assert done.returncode == 0, done.stderr
    assert Effect.objects.count() == 50


def test_a_burst_writes_a_line_per_event_with_its_facts() -> None:
    result = tasks.leave.enqueue("told")

    done = run_worker("--burst", "-v", "2")

    assert done.returncode == 0
    [line] = [line for line in done.stderr.splitlines() if "succeeded in" in line]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO Task tests\.worker\.tasks\.leave ", line)
    assert f"task_id={result.id}" in line
    assert "queue=default attempt=1" in line


def test_a_log_file_gets_no_line_per_success_unless_asked_for() -> None:
    tasks.leave.enqueue("told")

    done = run_worker("--burst")

    assert done.returncode == 0
    assert "started as" in done.stderr
    assert "succeeded in" not in done.stderr


def test_verbosity_0_writes_nothing_but_trouble() -> None:
    tasks.leave.enqueue("told")

    done = run_worker("--burst", "-v", "0")

    assert (done.returncode, done.stderr) == (0, "")


def test_a_burst_on_a_terminal_shows_a_bar() -> None:
    import pty

    for number in range(20):
        tasks.leave.enqueue(str(number))
    parent, child = pty.openpty()
    process = subprocess.Popen(worker_command("--burst"), cwd=ROOT, stderr=child, stdout=child)
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 4096):
            shown += piece
    except OSError:
        # How Linux says that the other end was closed.
        pass
    os.close(parent)

    assert process.wait(30) == 0
    assert b"20/20" in shown
    assert b"succeeded in" not in shown


def test_the_worker_begins_anew_when_the_code_changes(tmp_path) -> None:
    package = tmp_path / "changing"
    package.mkdir()
    module = package / "__init__.py"
    module.write_text("")
    process = subprocess.Popen(
        [sys.executable, "-m", "django", "runworker", "--settings", "tests.worker.reload_settings", "--reload"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    try:
        result = tasks.linger.enqueue("it", 2.0)
        first = _began("it")
        worker = Worker.objects.get()

        ages = itertools.count(5, 5)

        def is_renewed() -> Worker | None:
            # Again and again: the reloader takes what it sees on its first look as unchanged.
            if Worker.objects.filter(pk=worker.pk, state=Worker.State.ALIVE).exists():
                moment = time.time() + next(ages)
                os.utime(module, (moment, moment))
            return Worker.objects.exclude(pk=worker.pk).exclude(pid=first).first()

        renewed = eventually(is_renewed, seconds=40)
        result.refresh()
        assert result.state == "succeeded"
        assert renewed.pid != first
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
        assert not Worker.objects.exists()
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threads", "0"], "must be a whole number"),
        (["--queues", "a:0"], "must be a whole number above 0"),
        (["--executor", "steam"], "must be 'threads'"),
        (["--backend", "nobody"], "must be an alias in TASKS"),
        (["--reload", "--burst"], "--reload is for one process"),
        (["--grace", "soon"], "invalid float value"),
    ],
)
def test_a_wrong_option_says_what_is_allowed(arguments: list[str], words: str) -> None:
    with pytest.raises(CommandError, match=re.escape(words)):
        call_command("runworker", *arguments)


def test_every_option_is_a_setting_and_every_setting_an_option() -> None:
    assert {option.name for option in command.OPTIONS} == set(conf.WorkerOptions.__dataclass_fields__)


def test_what_the_command_line_leaves_out_the_settings_decide(settings) -> None:
    settings.TASKQ = {"WORKER": {"THREADS": 7, "QUEUES": ["a", "b"], "BURST": True}}

    plan = command.plan_of({"processes": 3})

    assert (plan.worker.threads, plan.worker.processes, plan.worker.queues, plan.burst) == (7, 3, "a,b", True)


def test_a_log_that_the_project_writes_itself_is_left_alone(settings) -> None:
    import logging

    from django_taskq.worker import console

    logger = logging.getLogger("django_taskq")
    before = (list(logger.handlers), logger.level, logger.propagate)
    own = logging.StreamHandler()
    try:
        logger.handlers = [own]
        logger.setLevel(logging.INFO)
        assert console.install(1) is None
        assert logger.handlers == [own]

        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
        assert console.install(1) is not None
    finally:
        logger.handlers, logger.level, logger.propagate = before
        logger.setLevel(before[1])


def test_a_system_short_of_processes_costs_none_of_those_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second child cannot be started at first; the first one goes on, and the second comes later."""
    spawn = children.spawn
    started: list[str] = []

    def refuse(*args: Any, name: str, **given: Any) -> Any:
        started.append(name)
        if len(started) == 2:
            raise BlockingIOError(errno.EAGAIN, "no more processes")
        return spawn(*args, name=name, **given)

    monkeypatch.setattr(children, "spawn", refuse)
    results = [tasks.leave.enqueue(f"task {at}") for at in range(10)]

    code = run_many(Plan(worker=conf.WorkerOptions(processes=2), burst=True), verbosity=0)

    assert code == 0
    assert started == ["taskq-worker-1", "taskq-worker-2", "taskq-worker-2"]
    assert {result.get(1) for result in results} == {f"task {at}" for at in range(10)}
