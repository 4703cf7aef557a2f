"""Unique tasks whose worker is killed or suspended: a key is held as long as its task lives, and no longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from django_taskq.models import FinishedTask, Task
from tests.engine import in_threads, state_of, wait_for, worker_process
from tests.guarantees.unique_tasks import work

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.chaos, pytest.mark.timeout(180)]


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_the_key_of_a_killed_workers_task_is_kept_until_its_end_and_then_free(
    tmp_path: Path, max_attempts: int
) -> None:
    path = tmp_path / "log"
    task = work.using(max_attempts=max_attempts)
    with worker_process(threads=1) as victim:
        first = task.enqueue(str(path), "a", 60)
        wait_for(lambda: lines_of(path))
        victim.kill()
        assert task.enqueue(str(path), "a").id == first.id

    with worker_process(threads=1) as second:
        if max_attempts == 1:
            wait_for(lambda: state_of(first) == "dead")
        else:
            wait_for(lambda: len(lines_of(path)) == 2)
            assert task.enqueue(str(path), "a").id == first.id
            second.kill()
            assert state_of(first) == "running"

    again = task.enqueue(str(path), "a")
    assert again.is_duplicate == (max_attempts == 3)
    assert Task.objects.filter(unique_key__isnull=False).count() == 1


def test_a_worker_suspended_past_its_lease_neither_frees_nor_takes_the_key_of_the_next_task(tmp_path: Path) -> None:
    path = tmp_path / "log"
    task = work.using(max_attempts=1)
    with worker_process(threads=1) as zombie:
        first = task.enqueue(str(path), "a", 1.0)
        wait_for(lambda: lines_of(path))
        zombie.suspend()
        with worker_process(threads=1, queues="other"):
            wait_for(lambda: state_of(first) == "dead")
            second = task.enqueue(str(path), "a", 0.0)
            zombie.resume()
            wait_for(lambda: state_of(second) == "succeeded")

    assert not second.is_duplicate
    assert state_of(first) == "dead"
    assert sorted(str(key) for key in FinishedTask.objects.values_list("pk", flat=True)) == sorted(
        [first.id, second.id]
    )


def test_producers_and_workers_that_are_killed_never_leave_two_live_tasks_of_a_key(tmp_path: Path) -> None:
    path = tmp_path / "log"
    most: list[int] = []

    def produce() -> set[str]:
        ids = set()
        for _ in range(60):
            ids.add(work.enqueue(str(path), "a", 0.01).id)
            most.append(Task.objects.filter(unique_key__isnull=False).count())
        return ids

    with worker_process(threads=2) as victim, worker_process(threads=2):

        def kill() -> set[str]:
            wait_for(lambda: len(lines_of(path)) > 3)
            victim.kill()
            return set()

        parts = in_threads(produce, produce, produce, kill)
        ids = set().union(*parts)
        wait_for(lambda: not Task.objects.exists(), 40)

    assert max(most) <= 1
    assert {str(key) for key in FinishedTask.objects.values_list("pk", flat=True)} == ids
