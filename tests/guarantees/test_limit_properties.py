"""Limits under random histories: after every step the counters say what the rows say, and in the end nobody waits."""

import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

import django_taskq
from django_taskq import Concurrency, Rate, cancel, clock, conf, task
from django_taskq.domain.outcomes import Cancelled, ErrorInfo, Failed, Interrupted, Outcome, Snoozed, Succeeded
from django_taskq.domain.states import State
from django_taskq.duties import promote, reconcile, release
from django_taskq.lifecycle import rescue
from django_taskq.lifecycle.claim import Claimer
from django_taskq.lifecycle.settle import Ended, settle
from django_taskq.models import FinishedTask, Limit, Task
from django_taskq.store import limits as limit_store
from django_taskq.store.rows import Claim
from tests.engine import ALIAS, announce, db_now

pytestmark = pytest.mark.django_db(transaction=True)

CAPS = {"2c:few": 2, "2c:many": 4, "1c:queue:default": 5, "0c:all": 6}
SETTINGS: dict[str, dict[str, Any]] = {
    "limits of tasks": {},
    "limits of everything": {
        "CONCURRENCY": 6,
        "RATE": "20/s",
        "QUEUES": {"default": {"CONCURRENCY": 5, "RATE": "15/s"}},
    },
    "fair keys": {},
    "fair keys and limits of everything": {"CONCURRENCY": 6, "QUEUES": {"default": {"CONCURRENCY": 5}}},
    "ageing and a limit": {"QUEUES": {"default": {"CONCURRENCY": 5, "AGE_STEP": 60}}},
    "a type that is paused and resumed": {},
}
KEYS = ("a", "b", "c")
ERROR = ErrorInfo(class_path="x.Y", message="m", traceback="", fingerprint="f")
RATE, BURST = 5.0, 4


@task(limits=Concurrency(2, key="few"), max_attempts=100)
def few(at: int) -> None:
    """Do nothing, two at once."""


@task(limits=[Concurrency(4, key="many"), Concurrency(1, key="only:{key}")], max_attempts=100)
def both(key: str) -> None:
    """Do nothing, four at once and one of a key."""


@task(limits=[Rate("5/s", burst=4, key="pace"), Concurrency(2, key="few")], max_attempts=100)
def paced(at: int) -> None:
    """Do nothing, five in a second, and two at once."""


@task(max_attempts=100)
def free(at: int) -> None:
    """Do nothing, within no limit of its own."""


class History:
    """A random history of one database, on a clock of its own."""

    def __init__(self, seed: int, kind: str) -> None:
        self.draw = random.Random(seed)
        self.is_fair = "fair" in kind
        self.late = self.elapsed = 0.0
        self.bounds = shared_rates(kind)
        self.shared_starts: list[float] = []
        self.now = self.began = db_now()
        self.workers = [announce(), announce()]
        self.claimers = [Claimer(ALIAS, worker_id, [("default", None)]) for worker_id in self.workers]
        self.held: list[Claim] = []
        self.zombies: list[Claim] = []
        self.starts: list[float] = []
        self.enqueued = 0

    def enqueue(self) -> None:
        count = self.draw.randint(1, 6)
        self.enqueued += count
        kind: Any = self.draw.choice([few, both, paced, free])
        options = {"fair_key": self.draw.choice(["x", "y", "z"])} if self.is_fair and self.draw.random() < 0.8 else {}
        kind.using(priority=self.draw.choice([0, 0, 5]), **options).enqueue_many(
            [(self.draw.choice(KEYS) if kind is both else at,) for at in range(count)]
        )

    def claim(self) -> None:
        claimer = self.draw.choice(self.claimers)
        # A queue is claimed from with limits once a short claim has passed over some; that is asked now and then.
        claimer.refresh()
        # Some have asked a moment ago: they waited for a lock since then, or were suspended.
        self.late = self.draw.choice([0.0, 0.0, 0.0, 0.0, 2.0, 30.0])
        found = claimer.claim(self.draw.randint(1, 8), now=self.now - timedelta(seconds=self.late))
        self.late = 0.0
        self.held += found
        seconds = (self.now - self.began).total_seconds()
        self.starts += [seconds for claimed in found if "2r:pace" in (claimed.slots or "")]
        self.shared_starts += [seconds] * len(found)

    def settle(self) -> None:
        self.draw.shuffle(self.held)
        count = self.draw.randint(0, len(self.held))
        batch, self.held = self.held[:count], self.held[count:]
        if batch:
            self.write(batch, self.outcome)

    def outcome(self) -> Outcome:
        return self.draw.choice(
            [
                Succeeded(),
                Succeeded(),
                Failed(error=ERROR, retry_in=0.0),
                Failed(error=ERROR, retry_in=None),
                Snoozed(0.0),
                Cancelled(),
                Interrupted(),
            ]
        )

    def write(self, batch: list[Claim], outcome: Any) -> int:
        moment = self.now.timestamp()
        ended = [Ended(claimed, outcome(), moment, moment) for claimed in batch]
        return settle(ended, alias=ALIAS, worker_id=batch[0].lease >> 32, now=self.now).count

    def wait_for_rows(self) -> None:
        """Let the time pass for which a claim has to wait for its limits."""
        self.elapsed += self.late
        self.late = 0.0

    def hold_or_resume(self) -> None:
        if not django_taskq.pause(task=few):
            django_taskq.resume(task=few)

    def lose(self) -> None:
        """A worker dies: what it held is rescued, and it comes back as a zombie."""
        worker_id = self.draw.choice(self.workers)
        rescue.rescue_worker(ALIAS, worker_id, now=self.now)
        self.zombies += [claimed for claimed in self.held if claimed.lease >> 32 == worker_id]
        self.held = [claimed for claimed in self.held if claimed.lease >> 32 != worker_id]

    def haunt(self) -> None:
        zombies, self.zombies = self.zombies, []
        if zombies:
            assert self.write(zombies, Succeeded) == 0

    def cancel(self) -> None:
        waiting = list(Task.objects.exclude(state=State.RUNNING).values_list("pk", flat=True))
        if waiting:
            cancel([str(key) for key in self.draw.sample(waiting, min(3, len(waiting)))])

    def wait(self) -> None:
        self.pass_time(self.draw.choice([0.05, 0.3, 1.2, 2.5]))

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        promote.run_once(ALIAS, conf.options(), self.now)
        release.run_once(ALIAS, conf.options(), self.now)

    def check(self) -> None:
        slots: Counter[str] = Counter()
        for text in Task.objects.filter(state=State.RUNNING).values_list("slots", flat=True):
            slots.update(key for key in (text or "").split("\n") if key[1:2] == "c")
        rows = dict(Limit.objects.filter(key__regex="^[012]c").values_list("key", "held"))
        assert {key: count for key, count in rows.items() if count} == dict(slots)
        for key, count in slots.items():
            assert count <= CAPS.get(key, 1), key
        for first in range(len(self.starts)):
            count = len(self.starts) - first
            assert count <= BURST + (self.starts[-1] - self.starts[first]) * RATE + 0.01
        for burst, rate in self.bounds:
            for first, began in enumerate(self.shared_starts):
                count = len(self.shared_starts) - first
                assert count <= burst + (self.shared_starts[-1] - began) * rate + 0.01
        parked = Task.objects.filter(state=State.PARKED)
        assert not parked.filter(parked_on__isnull=True).exists()
        assert not Task.objects.exclude(state=State.PARKED).filter(parked_on__isnull=False).exists()

    def finish(self) -> None:
        """Let everything run to its end."""
        for _ in range(400):
            self.pass_time(0.3)
            self.claim()
            if self.held:
                self.write(self.held, Succeeded)
                self.held = []
            if not Task.objects.exists():
                return
        raise AssertionError(f"stranded: {list(Task.objects.values('state', 'parked_on', 'limits'))}")


def shared_rates(kind: str) -> list[tuple[int, float]]:
    """Return burst and starts a second of each rate that all tasks share."""
    taskq = SETTINGS[kind]
    rates = [taskq.get("RATE"), taskq.get("QUEUES", {}).get("default", {}).get("RATE")]
    return [(rate.burst, rate.amount / rate.per_seconds) for rate in map(Rate, filter(None, rates))]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", SETTINGS)
def test_no_history_lets_a_limit_be_exceeded_or_strands_a_task(
    kind: str, seed: int, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.TASKQ = SETTINGS[kind]
    history = History(seed, kind)
    locked = limit_store.locked

    def locked_late(*args: Any, **kwargs: Any) -> Any:
        history.wait_for_rows()
        return locked(*args, **kwargs)

    monkeypatch.setattr(clock, "elapsed", lambda: history.elapsed)
    monkeypatch.setattr(limit_store, "locked", locked_late)
    moves = [
        *[history.enqueue] * 3,
        *[history.claim] * 5,
        *[history.settle] * 4,
        *[history.wait] * 3,
        history.cancel,
        history.lose,
        history.haunt,
        *([history.hold_or_resume] if "paused" in kind else []),
    ]

    for _ in range(60):
        history.draw.choice(moves)()
        history.check()
    assert reconcile.run_once(ALIAS, conf.options(), history.now) == 0
    django_taskq.resume(task=few)
    history.finish()

    assert FinishedTask.objects.count() == history.enqueued
    assert not Limit.objects.exclude(held=0).exists()
