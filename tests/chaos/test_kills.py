"""Workers killed and stopped under load: nothing lost, nothing ended twice, everything goes on within a lease."""

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from django_taskq.domain.states import State
from django_taskq.models import Attempt, FinishedTask, Task, Worker
from tests.capabilities import requires
from tests.engine import SHORT, WorkerProcess, row_of, state_of, totals, wait_for, worker_process, worker_processes
from tests.guarantees.tasks import append, note

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.chaos, pytest.mark.timeout(180)]


def lines_of(path: Path, kind: str = "start") -> list[list[str]]:
    if not path.exists():
        return []
    return [line.split() for line in path.read_text().splitlines() if line.startswith(kind)]


def test_workers_killed_at_random_under_load_lose_no_task(tmp_path: Path) -> None:
    """S0-45, S0-75, S0-125, S3-36: each task ends; each end is counted once."""
    path = tmp_path / "log"
    count = 400
    append.using(max_attempts=50).enqueue_many([(str(path), at, 0.02) for at in range(count)])
    draw = random.Random(7)
    workers = [WorkerProcess(threads=4) for _ in range(3)]
    try:
        for worker in workers:
            worker.wait_until_ready()
        for turn in range(4):
            goal = (turn + 1) * count // 10
            wait_for(lambda goal=goal: FinishedTask.objects.count() >= goal, 60)
            victim = draw.randrange(3)
            workers[victim].kill()
            workers[victim].close()
            workers[victim] = WorkerProcess(threads=4)
            workers[victim].wait_until_ready()
        wait_for(lambda: FinishedTask.objects.count() == count, 90)
    finally:
        for worker in workers:
            worker.close()

    assert not Task.objects.exists()
    assert set(FinishedTask.objects.values_list("state", flat=True)) == {State.SUCCEEDED}
    assert totals()["succeeded"] == count
    starts = Counter(line[1] for line in lines_of(path))
    assert len(starts) == count
    # A second start is the exception: only what was in a killed worker's hands.
    assert sum(starts.values()) - count <= totals().get("rescued", 0)


def test_a_killed_workers_tasks_run_again_within_its_lease_and_one_heartbeat(tmp_path: Path) -> None:
    """S0-45, S4-07: measured from the kill to the second start, plus what a busy machine takes to poll."""
    path = tmp_path / "log"
    with worker_processes(2, threads=1) as (first, second):
        task = append.enqueue(str(path), "long", 60)
        [start] = wait_for(lambda: lines_of(path))
        victim = first if int(start[3]) == first.pid else second
        victim.kill()
        killed = time.time()

        starts = wait_for(lambda: found if len(found := lines_of(path)) == 2 else None, 20)

    took = float(starts[1][4]) - killed
    assert took >= SHORT["LEASE_SECONDS"] - SHORT["HEARTBEAT_SECONDS"] - 0.1
    # A tenth of a second each for the leader's own rhythm, the claim and the start; one second for a loaded machine.
    assert took <= SHORT["LEASE_SECONDS"] + SHORT["HEARTBEAT_SECONDS"] + 1.3
    row = row_of(task)
    assert row is not None
    assert row.attempt == 2


def test_a_worker_stopped_past_its_lease_writes_nothing_and_starts_nothing_it_held(tmp_path: Path) -> None:
    """S4-02, S4-17: the zombie's settlement is refused, its line is dropped, and it goes on under a new id."""
    path = tmp_path / "log"
    with worker_process(threads=1) as zombie:
        zombie_id = Worker.objects.get().pk
        held = append.using(priority=50).enqueue(str(path), "held", 1.0)
        wait_for(lambda: lines_of(path))
        zombie.suspend()
        with worker_process(threads=1):
            wait_for(lambda: state_of(held) == "succeeded", 30)
            ended = row_of(held)
            zombie.resume()
            # It finishes what ran, is refused, and hears that it was declared dead.
            wait_for(lambda: Worker.objects.filter(state=Worker.State.ALIVE).count() == 2, 20)
            after = [note.enqueue(at) for at in range(20)]
            wait_for(lambda: {state_of(task) for task in after} == {"succeeded"}, 30)

    row = row_of(held)
    assert row is not None
    assert ended is not None
    assert (row.finished_at, row.lease) == (ended.finished_at, ended.lease)
    assert row.worker_id != zombie_id
    assert Counter(line[1] for line in lines_of(path))[held.id] == 2
    assert list(Attempt.objects.filter(task_id=held.id).values_list("outcome", "worker_id")) == [("lost", zombie_id)]
    assert totals()["succeeded"] == 21


def test_what_waited_in_a_stopped_workers_line_is_started_once_by_another(tmp_path: Path) -> None:
    """S4-16: after SIGCONT the zombie hands its line back, or drops it; it starts none of it."""
    path = tmp_path / "log"
    append.enqueue_many([(str(path), at, 0.3) for at in range(12)])
    with worker_process(threads=2) as zombie:
        wait_for(lambda: len(lines_of(path)) >= 2)
        zombie.suspend()
        before = {line[1] for line in lines_of(path)}
        with worker_process(threads=4):
            wait_for(lambda: FinishedTask.objects.count() == 12, 40)
            zombie.resume()
            wait_for(lambda: Worker.objects.filter(state=Worker.State.ALIVE).count() == 2, 20)

    starts = Counter(line[1] for line in lines_of(path))
    assert {task_id for task_id, count in starts.items() if count > 1} <= before
    assert totals()["succeeded"] == 12
    assert FinishedTask.objects.filter(state=State.SUCCEEDED).count() == 12


def test_eight_workers_start_each_of_many_tasks_once(tmp_path: Path) -> None:
    """S0-156, S1-31, S4-16: eight processes, one file, no id twice."""
    path = tmp_path / "log"
    count = 20_000
    append.enqueue_many([(str(path), at) for at in range(count)])

    with worker_processes(8, threads=2, burst=True, taskq={"LEASE_SECONDS": 60, "HEARTBEAT_SECONDS": 2}) as workers:
        statuses = [worker.wait(150) for worker in workers]

    starts = Counter(line[1] for line in lines_of(path))
    assert statuses == [0] * 8
    assert len(starts) == sum(starts.values()) == count
    assert FinishedTask.objects.filter(state=State.SUCCEEDED, attempt=1).count() == count
    assert not Task.objects.exists()
    assert totals()["succeeded"] == count


@requires("server_clock")
@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_worker_whose_clock_is_an_hour_wrong_starts_nothing_early_and_is_not_rescued(
    seconds: float, tmp_path: Path
) -> None:
    """S0-52, S4-94: the database's clock decides for all."""
    path = tmp_path / "log"
    broken = {"prepare": "tests.chaos.breaking.shift_clock", "prepare_with": seconds, "threads": 1}
    with worker_process(**broken), worker_process(threads=1):
        long = append.enqueue(str(path), "long", 5.0)
        later = append.using(delay=1.5).enqueue(str(path), "later")
        budget = append.using(max_time=1800).enqueue(str(path), "budget")
        wait_for(lambda: state_of(later) == state_of(budget) == "succeeded", 20)
        wait_for(lambda: state_of(long) == "succeeded", 20)

    row = row_of(later)
    assert row is not None
    assert row.run_after is not None
    [start] = [line for line in lines_of(path) if line[1] == later.id]
    assert float(start[4]) >= row.run_after.timestamp()
    assert not Attempt.objects.exists()
    assert totals().get("rescued", 0) == 0


def test_a_deaf_worker_is_only_slower() -> None:
    """S0-13: behind a pooler that swallows notifications tasks are found by polling."""
    with worker_process(threads=1, prepare="tests.chaos.breaking.hear_nothing", poll=1.0):
        time_of_first = time.monotonic()
        for at in range(3):
            task = note.enqueue(at)
            wait_for(lambda task=task: state_of(task) == "succeeded", 10)

    assert time.monotonic() - time_of_first < 3 * (1.0 + 1.5)


def test_a_full_disk_is_waited_for() -> None:
    """S0-13: what is done is not forgotten while the database takes nothing."""
    with worker_process(threads=2, prepare="tests.chaos.breaking.fill_the_disk", prepare_with=4.0):
        tasks = [note.enqueue(at) for at in range(30)]
        wait_for(lambda: FinishedTask.objects.count() == 30, 40)

    assert {state_of(task) for task in tasks} == {"succeeded"}
    assert set(FinishedTask.objects.values_list("attempt", flat=True)) == {1}
    assert totals()["succeeded"] == 30
