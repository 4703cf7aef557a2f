"""Limits while their holders are killed and suspended: never exceeded, no slot lost, nobody left behind."""

import random
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest

from django_taskq.duties import reconcile
from django_taskq.models import FinishedTask, Limit, Task, Worker
from tests.engine import ALIAS, SHORT, WorkerProcess, db_now, state_of, wait_for, worker_process, worker_processes
from tests.guarantees.tasks import free_span, note, one_at_once, span

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.chaos, pytest.mark.timeout(240)]

# How many seconds after its claim a task may begin, on a busy machine.
LATE_START = 1.0


class Span(NamedTuple):
    """When one run of a task began and ended, and in which process."""

    key: str
    pid: int
    begin: float
    end: float


def spans_of(path: Path, lost: dict[int, float]) -> list[Span]:
    """
    Return what was written of each run, in the order of the begins.

    Those that a process had begun when it was ``lost``, killed or suspended, end at that moment.
    """
    open_: dict[tuple[str, int], tuple[str, float]] = {}
    found: list[Span] = []
    for line in path.read_text().splitlines():
        kind, key, pid, thread, moment = line.split()
        place, at = (thread, int(pid)), float(moment)
        if kind == "begin":
            assert place not in open_, f"a slot of {place} began twice"
            open_[place] = key, at
            continue
        _, begin = open_.pop(place)
        went = lost.get(place[1], at)
        found.append(Span(key, place[1], begin, went if begin < went < at else at))
    for (_, pid), (key, begin) in open_.items():
        assert pid in lost, f"a span of {key} in {pid} has no end"
        found.append(Span(key, pid, begin, lost[pid]))
    return sorted(found, key=lambda span: span.begin)


def crowds(bound: int, spans: Iterable[Span], *, by_key: bool = True) -> list[list[Span]]:
    """Return, of each moment at which more spans of one key, or of all, overlapped than allowed, those that did."""
    now: defaultdict[str, list[Span]] = defaultdict(list)
    found: list[list[Span]] = []
    for one in spans:
        key = one.key if by_key else ""
        now[key] = [*(other for other in now[key] if other.end > one.begin), one]
        if len(now[key]) > bound:
            found.append(now[key])
    return found


def _runs_now(path: Path, pids: Collection[int]) -> int | None:
    """Return a process out of some that began the last run, if that has not ended."""
    kind, _, pid, *_ = path.read_text().splitlines()[-1].split()
    return int(pid) if kind == "begin" and int(pid) in pids else None


def test_workers_killed_at_random_never_let_more_run_than_a_limit_allows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    count = 300
    span.enqueue_many([(str(path), at % 3) for at in range(count)])
    draw = random.Random(11)
    killed: dict[int, float] = {}
    workers = [WorkerProcess(threads=4) for _ in range(3)]
    try:
        for worker in workers:
            worker.wait_until_ready()
        for turn in range(4):
            goal = (turn + 1) * count // 10
            wait_for(lambda goal=goal: FinishedTask.objects.count() >= goal, 60)
            victim = draw.randrange(3)
            workers[victim].kill()
            killed[workers[victim].pid] = time.monotonic()
            workers[victim].close()
            workers[victim] = WorkerProcess(threads=4)
            workers[victim].wait_until_ready()
        wait_for(lambda: FinishedTask.objects.count() == count, 120)
    finally:
        for worker in workers:
            worker.close()

    assert crowds(3, spans_of(path, killed)) == []
    assert not Limit.objects.filter(held__gt=0).exists()
    assert not Task.objects.exists()


def test_eight_workers_that_are_killed_and_suspended_never_exceed_what_all_tasks_share(tmp_path: Path) -> None:
    """
    S4-03, S4-63: limits of two queues, of everything, and the rate of a third queue.

    In the end no slot is held, nobody is left behind, and reconcile has nothing to mend.
    """
    path = tmp_path / "log"
    shares = {"default": 3, "other": 2}
    taskq = {
        **SHORT,
        "CONCURRENCY": 4,
        "QUEUES": {"paced": {"RATE": "8/s"}, **{name: {"CONCURRENCY": bound} for name, bound in shares.items()}},
    }
    counts = {"default": 90, "other": 60, "paced": 60}
    order = {"threads": 2, "taskq": taskq, "queues": "default:1,other:1,paced:1"}
    lost: dict[int, float] = {}
    free_span.enqueue_many([(str(path), "default", 1.5)] * 2)
    with worker_process(**order) as zombie:
        wait_for(lambda: path.exists() and path.read_text().count("begin default") == 2)
        zombie.suspend()
        lost[zombie.pid] = time.monotonic()
        for queue, count in counts.items():
            free_span.using(queue_name=queue).enqueue_many([(str(path), queue, 0.05)] * count)
        with worker_processes(8, **order) as workers:
            pids = {worker.pid: worker for worker in workers}
            for goal in (15, 30, 45):
                wait_for(lambda goal=goal: FinishedTask.objects.count() >= goal, 60)
                victim = pids.pop(wait_for(lambda: _runs_now(path, pids)))
                victim.kill()
                lost[victim.pid] = time.monotonic()
            wait_for(lambda: not Worker.objects.filter(pid__in=list(lost), state=Worker.State.ALIVE).exists(), 60)
            zombie.resume()
            wait_for(lambda: FinishedTask.objects.count() == sum(counts.values()) + 2, 120)
            wait_for(lambda: not Limit.objects.exclude(held=0).exists(), 10)

    spans = spans_of(path, lost)
    assert not Task.objects.exists()
    for queue, bound in shares.items():
        assert crowds(bound, (span for span in spans if span.key == queue)) == []
    assert crowds(4, spans, by_key=False) == []
    # Two at once and eight a second, counted when they are claimed. They begin a little later, so some may bunch up.
    starts = [span.begin for span in spans if span.key == "paced"]
    assert len(starts) >= counts["paced"]
    for first, last in combinations(range(len(starts)), 2):
        assert last - first + 1 <= 2 + 8 * (starts[last] - starts[first] + LATE_START)
    # What the suspended worker had begun was run again, and its end was not given back a second time.
    assert len(spans) >= sum(counts.values()) + 4
    assert reconcile.run_once(ALIAS, _options(), db_now()) == 0


def test_the_slot_of_a_killed_worker_is_free_again_within_its_lease_and_one_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with worker_process(threads=3) as victim:
        span.enqueue_many([(str(path), "k", 60)] * 3)
        wait_for(lambda: path.exists() and path.read_text().count("begin") == 3)
        span.using(priority=50).enqueue(str(path), "k", 0)
        with worker_process(threads=1) as heir:
            victim.kill()
            killed = time.monotonic()
            wait_for(lambda: any(str(heir.pid) in line for line in path.read_text().splitlines()), 30)
            took = time.monotonic() - killed

    assert took <= SHORT["LEASE_SECONDS"] + SHORT["HEARTBEAT_SECONDS"] + 2.0
    assert took >= SHORT["LEASE_SECONDS"] - SHORT["HEARTBEAT_SECONDS"] - 0.2


def test_a_suspended_holder_loses_its_slots_once(tmp_path: Path) -> None:
    """When it wakes up, its settlement is refused, and what it held is not given back a second time."""
    path = tmp_path / "log"
    with worker_process(threads=2) as zombie:
        span.enqueue_many([(str(path), "k", 0.5)] * 2)
        wait_for(lambda: path.exists() and path.read_text().count("begin") == 2)
        zombie.suspend()
        with worker_process(threads=4):
            wait_for(lambda: FinishedTask.objects.count() == 2, 40)
            zombie.resume()
            after = [note.enqueue(at) for at in range(10)]
            wait_for(lambda: {state_of(task) for task in after} == {"succeeded"}, 30)
            wait_for(lambda: not Limit.objects.exclude(held=0).exists(), 10)

    assert reconcile.run_once(ALIAS, _options(), db_now()) == 0


def test_parked_tasks_are_run_in_order_by_workers_that_come_and_go() -> None:
    # As many as the first claim parks: who is not parked yet may slip in.
    one_at_once.enqueue_many([(at,) for at in range(500)])

    for _ in range(3):
        with worker_process(threads=2) as worker:
            before = FinishedTask.objects.count()
            wait_for(lambda before=before: FinishedTask.objects.count() >= before + 100, 60)
            worker.terminate()
    with worker_process(threads=2):
        wait_for(lambda: FinishedTask.objects.count() == 500, 90)

    ended = FinishedTask.objects.order_by("finished_at", "id").values_list("id", flat=True)
    assert list(ended) == sorted(ended)
    assert not Limit.objects.exclude(held=0).exists()


def _options() -> object:
    from django_taskq import conf

    return conf.options()
