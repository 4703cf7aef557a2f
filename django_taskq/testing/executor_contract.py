"""
What every executor promises, as tests.

    class TestMyExecutor(ExecutorContract):
        def make_executor(self, host, slots):
            return MyExecutor(host, slots)

No database is needed. The tasks they run stand in this file, so that a process
of its own can import them; they meet their test through files.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from django_taskq import clock, conf
from django_taskq.domain import payload
from django_taskq.domain.lease import make_lease
from django_taskq.domain.outcomes import Cancelled, Crashed, Failed, Interrupted, Succeeded, Undecodable, Unknown
from django_taskq.domain.states import Ack
from django_taskq.exceptions import GiveUp
from django_taskq.ids import uuid7
from django_taskq.lifecycle.context import Run
from django_taskq.lifecycle.settle import Ended
from django_taskq.store.rows import Claim
from django_taskq.store.vendors import vendor_for
from django_taskq.task import task
from django_taskq.worker.executors.base import Executor

__all__ = ["ContractHost", "ExecutorContract"]

DEADLINE_SECONDS = 60.0
_LOOK_SECONDS = 0.002


@task
def double(value: Any) -> Any:
    """Return twice the value."""
    return value * 2


@task
async def adouble(value: Any) -> Any:
    """Return twice the value, from a coroutine."""
    await asyncio.sleep(0)
    return value * 2


@task(max_attempts=1)
def leave(how: str) -> None:
    """Leave in one of the ways a function can."""
    raise _WAYS[how]("as told")


@task(max_attempts=1)
async def aleave(how: str) -> None:
    """Leave in one of the ways a coroutine can."""
    raise _WAYS[how]("as told")


_WAYS: dict[str, type[BaseException]] = {
    "error": ValueError,
    "exit": SystemExit,
    "interrupt": KeyboardInterrupt,
    "memory": MemoryError,
    "give_up": GiveUp,
    "cancelled": asyncio.CancelledError,
}


@task
def hold(gate: str) -> str:
    """Say that it runs by a file, and return once the gate, another file, is there."""
    _sign(gate)
    until = time.monotonic() + DEADLINE_SECONDS
    while not Path(gate).exists() and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    return gate


@task
async def ahold(gate: str) -> str:
    """Do what ``hold`` does, in a coroutine."""
    _sign(gate)
    until = time.monotonic() + DEADLINE_SECONDS
    while not Path(gate).exists() and time.monotonic() < until:  # noqa: ASYNC110,ASYNC240 - the gate is a file
        await asyncio.sleep(_LOOK_SECONDS)
    return gate


@task(takes_context=True)
def listen(context: Any, gate: str) -> str:
    """Ask again and again whether to stop."""
    _sign(gate)
    until = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < until:
        context.raise_if_cancelled()
        time.sleep(_LOOK_SECONDS)
    return gate


def _sign(gate: str) -> None:
    with tempfile.NamedTemporaryFile(dir=Path(gate).parent, prefix="runs-", delete=False):
        pass


class ContractHost:
    """A worker that notes what its executor tells it."""

    def __init__(self) -> None:
        self.alias = "default"
        self.options = conf.options()
        self.changed = threading.Condition()
        self.offset = timedelta(0)
        self.runs: list[Run] = []
        self.ends: list[Ended] = []
        self.most_at_once = 0
        self.lets_start = True
        self.writes_at_once = True
        self.unwritten: list[threading.Event] = []

    def may_start(self, claim: Claim) -> bool:
        return self.lets_start

    def started(self, run: Run) -> bool:
        with self.changed:
            self.runs.append(run)
            over = {id(ended.claim) for ended in self.ends}
            self.most_at_once = max(self.most_at_once, sum(id(one.claim) not in over for one in self.runs))
            self.changed.notify_all()
        return True

    def ended(self, ended: Ended, *, settled: threading.Event | None = None) -> None:
        with self.changed:
            self.ends.append(ended)
            if settled is not None and self.writes_at_once:
                settled.set()
            elif settled is not None:
                self.unwritten.append(settled)
            self.changed.notify_all()

    def taken(self) -> None:
        """Nothing to wake."""

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something told makes the condition true."""
        until = time.monotonic() + DEADLINE_SECONDS
        with self.changed:
            while not condition():
                left = until - time.monotonic()
                assert left > 0, f"waited {DEADLINE_SECONDS:g} seconds for {what}"
                self.changed.wait(min(left, 0.05))


class ExecutorContract:
    """
    Tests that any ``Executor`` has to pass.

    ``runs_in_caller``: submit returns when the tasks have ended.
    ``is_async``: the slots are for coroutines, so the contract's tasks are. ``can_stop``: whether tasks of
    that kind can be ended though they do not listen (default: what the executor says).
    """

    runs_in_caller = False
    is_async = False
    can_stop: bool | None = None

    def make_executor(self, host: ContractHost, slots: int) -> Executor:
        """Return an executor that has not started."""
        raise NotImplementedError

    def setup_method(self) -> None:
        self.host = ContractHost()
        self.folder = tempfile.TemporaryDirectory(prefix="taskq-contract-")
        self.gate = str(Path(self.folder.name) / "gate")
        self._executors: list[Executor] = []
        self._claim_no = 0

    def teardown_method(self) -> None:
        self.open_gate()
        for settled in self.host.unwritten:
            settled.set()
        for executor in self._executors:
            executor.stop(5.0)
        self.folder.cleanup()

    def started(self, slots: int) -> Executor:
        """Return an executor that is ready to work."""
        executor = self.make_executor(self.host, slots)
        self._executors.append(executor)
        executor.start()
        return executor

    def claim(self, function: Any, *args: Any, ack: Ack = Ack.LATE, text: str | None = None) -> Claim:
        """Return a claim of a task of this file; ``text`` replaces its arguments."""
        self._claim_no += 1
        return Claim(
            key=vendor_for("default").key_of(uuid7()),
            queue="default",
            rank=0,
            attempt=1,
            max_attempts=3,
            ack=int(ack),
            name=function if isinstance(function, str) else function.module_path,
            args=payload.encode_arguments(args, {}, limit=None) if text is None else text,
            options=None,
            metadata=None,
            run_after=None,
            created_at=clock.now(),
            deadline_at=None,
            expires_at=None,
            cancel=False,
            workflow_id=None,
            role=None,
            slots=None,
            lease=make_lease(1, self._claim_no),
        )

    def open_gate(self) -> None:
        """Let held tasks end."""
        Path(self.gate).touch()

    def held(self) -> int:
        """Return how many held tasks have begun."""
        return len(list(Path(self.folder.name).glob("runs-*")))

    def wait_until_held(self, count: int) -> None:
        """Wait until so many held tasks have begun."""
        self.host.wait_for(lambda: self.held() >= count, f"{count} tasks to begin")

    def wait_until_ended(self, count: int) -> None:
        """Wait until so many claims have ended."""
        self.host.wait_for(
            lambda: len(self.host.ends) >= count, f"{count} claims to end, of which {len(self.host.ends)} did"
        )

    def ends_by_key(self) -> dict[Any, Ended]:
        """Return the ends, having made sure that there is no more than one per claim."""
        keys = [ended.claim.key for ended in self.host.ends]
        assert len(keys) == len(set(keys)), "a claim ended twice"
        return {ended.claim.key: ended for ended in self.host.ends}

    @property
    def _double(self) -> Any:
        return adouble if self.is_async else double

    @property
    def _leave(self) -> Any:
        return aleave if self.is_async else leave

    @property
    def _hold(self) -> Any:
        return ahold if self.is_async else hold

    # What is promised

    def test_every_claim_ends_exactly_once_however_its_function_leaves(self) -> None:
        executor = self.started(3)
        good = [self.claim(self._double, at) for at in range(20)]
        bad = {how: self.claim(self._leave, how) for how in _WAYS}
        odd = {
            "unknown": self.claim("contract.no_such_module.task"),
            "undecodable": self.claim(self._double, text="{not json"),
            "wrong arguments": self.claim(self._double, 1, 2, 3),
        }
        claims = [*good, *bad.values(), *odd.values()]

        executor.submit(claims)
        self.wait_until_ended(len(claims))

        ends = self.ends_by_key()
        assert set(ends) == {claim.key for claim in claims}
        assert [ends[claim.key].outcome for claim in good] == [Succeeded(str(2 * at)) for at in range(20)]
        kinds = {how: type(ends[claim.key].outcome).__name__ for how, claim in {**bad, **odd}.items()}
        assert kinds == {
            "error": Failed.__name__,
            "exit": Crashed.__name__,
            "interrupt": Crashed.__name__,
            "memory": Crashed.__name__,
            "give_up": "GaveUp",
            "cancelled": Failed.__name__,
            "unknown": Unknown.__name__,
            "undecodable": Undecodable.__name__,
            "wrong arguments": Failed.__name__,
        }
        self.host.wait_for(lambda: executor.in_hand() == 0, "the slots to be free")
        assert executor.stop(5.0) == []
        self.ends_by_key()

    def test_an_end_tells_when_its_function_ran(self) -> None:
        executor = self.started(1)
        before = clock.timestamp()

        executor.submit([self.claim(self._double, 1)])
        self.wait_until_ended(1)

        [ended] = self.host.ends
        assert ended.started is not None
        assert before <= ended.started <= ended.ended <= clock.timestamp()
        assert ended.exception is None

    def test_a_claim_is_judged_by_the_databases_clock(self) -> None:
        executor = self.started(1)
        half_an_hour = timedelta(minutes=30)
        early = self.claim(self._double, 1)._replace(run_after=clock.now() + half_an_hour)
        late = self.claim(self._double, 2)._replace(deadline_at=clock.now() - half_an_hour)

        self.host.offset = timedelta(hours=1)
        executor.submit([early])
        self.wait_until_ended(1)
        self.host.offset = -timedelta(hours=1)
        executor.submit([late])
        self.wait_until_ended(2)

        assert [ended.outcome for ended in self.host.ends] == [Succeeded("2"), Succeeded("4")]

    def test_a_failure_carries_its_error(self) -> None:
        executor = self.started(1)

        executor.submit([self.claim(self._leave, "error")])
        self.wait_until_ended(1)

        outcome = self.host.ends[0].outcome
        assert isinstance(outcome, Failed)
        assert (outcome.error.class_path, outcome.error.message) == ("builtins.ValueError", "as told")
        assert "ValueError: as told" in outcome.error.traceback
        assert outcome.retry_in is not None

    def test_a_slot_survives_whatever_its_task_raised(self) -> None:
        executor = self.started(1)
        ways = [self.claim(self._leave, how) for how in _WAYS]

        executor.submit([*ways, self.claim(self._double, 21)])
        self.wait_until_ended(len(ways) + 1)

        assert self.host.ends[-1].outcome == Succeeded("42")

    def test_no_more_tasks_run_at_once_than_there_are_slots(self) -> None:
        if self.runs_in_caller:
            self.open_gate()
        executor = self.started(2)

        executor.submit([self.claim(self._hold, self.gate) for _ in range(6)])
        if not self.runs_in_caller:
            self.wait_until_held(2)
            self.host.wait_for(lambda: executor.in_hand() == 6, "all to be in hand")
            assert not self.host.ends
            self.open_gate()
        self.wait_until_ended(6)

        assert self.host.most_at_once == (1 if self.runs_in_caller else 2)
        assert len(self.ends_by_key()) == 6

    def test_submitting_does_not_wait_for_the_tasks(self) -> None:
        if self.runs_in_caller:
            return
        executor = self.started(1)

        executor.submit([self.claim(self._hold, self.gate)])
        executor.submit([self.claim(self._double, 1)])

        # Both calls came back although the gate is shut.
        self.host.wait_for(lambda: executor.in_hand() == 2, "both to be in hand")
        self.open_gate()
        self.wait_until_ended(2)

    def test_what_is_taken_back_was_not_begun_and_does_not_end_here(self) -> None:
        if self.runs_in_caller:
            assert self.started(1).take_back() == []
            return
        executor = self.started(1)
        claims = [self.claim(self._hold, self.gate), *(self.claim(self._double, at) for at in range(4))]
        executor.submit(claims)
        self.wait_until_held(1)

        taken = executor.take_back()
        self.open_gate()
        self.wait_until_ended(len(claims) - len(taken))
        self.host.wait_for(lambda: executor.in_hand() == 0, "the slots to be free")

        ends = self.ends_by_key()
        assert len(taken) >= 1
        assert claims[0] not in taken
        assert {claim.key for claim in taken}.isdisjoint(ends)
        assert {claim.key for claim in taken} | set(ends) == {claim.key for claim in claims}
        assert executor.take_back() == []

    def test_a_claim_whose_lease_is_lost_is_not_begun(self) -> None:
        executor = self.started(1)
        self.host.lets_start = False

        executor.submit([self.claim(self._double, 1)])
        self.wait_until_ended(1)

        assert self.host.ends[0].outcome == Interrupted(started=False)
        assert self.host.ends[0].started is None
        assert self.host.runs == []

    def test_a_task_acknowledged_now_holds_its_slot_until_its_end_is_written(self) -> None:
        if self.runs_in_caller:
            executor = self.started(1)
            executor.submit([self.claim(self._double, 1, ack=Ack.NOW)])
            assert len(self.host.ends) == 1
            return
        executor = self.started(1)
        self.host.writes_at_once = False

        executor.submit([self.claim(self._double, 1, ack=Ack.NOW), self.claim(self._double, 2)])
        self.host.wait_for(lambda: bool(self.host.unwritten), "the first end")
        assert len(self.host.runs) == 1
        self.host.wait_for(lambda: executor.in_hand() == 2, "both to be in hand")
        self.host.unwritten[0].set()
        self.wait_until_ended(2)

        assert [ended.outcome for ended in self.host.ends] == [Succeeded("2"), Succeeded("4")]

    def test_a_task_that_listens_hears_that_it_is_cancelled(self) -> None:
        if self.runs_in_caller:
            return
        executor = self.started(1)
        executor.submit([self.claim(ahold if self.is_async else listen, self.gate)])
        self.wait_until_held(1)
        [run] = self.host.runs

        self._cancel(executor, run)
        self.wait_until_ended(1)

        assert isinstance(self.host.ends[0].outcome, Cancelled)

    def test_a_task_that_does_not_listen_is_ended_only_where_the_executor_says_so(self) -> None:
        if self.runs_in_caller:
            return
        executor = self.started(1)
        executor.submit([self.claim(self._hold, self.gate)])
        self.wait_until_held(1)
        [run] = self.host.runs

        can_stop = executor.can_stop_tasks if self.can_stop is None else self.can_stop

        self._cancel(executor, run)
        if not can_stop:
            assert not self.host.ends
            self.open_gate()
        self.wait_until_ended(1)

        kind = Cancelled if can_stop else Succeeded
        assert isinstance(self.host.ends[0].outcome, kind)
        self._still_works(executor)

    def _cancel(self, executor: Executor, run: Run) -> None:
        """Ask a task to stop as the heartbeat does."""
        event = threading.Event()
        event.set()
        run.cancel_event = event
        executor.cancel(run)

    def _still_works(self, executor: Executor) -> None:
        claim = self.claim(self._double, 4)
        executor.submit([claim])
        self.host.wait_for(lambda: any(ended.claim is claim for ended in self.host.ends), "one more task")

    def test_an_abandoned_task_gives_its_slot_to_others(self) -> None:
        if self.runs_in_caller:
            return
        executor = self.started(1)
        executor.submit([self.claim(self._hold, self.gate)])
        self.wait_until_held(1)

        if executor.abandon(self.host.runs[0]):
            self._still_works(executor)
        else:
            assert not self.host.ends

    def test_stopping_waits_for_what_runs(self) -> None:
        executor = self.started(2)
        claims = [self.claim(self._double, at) for at in range(4)]

        executor.submit(claims)
        self.wait_until_ended(4)

        assert executor.stop(5.0) == []
        assert executor.stop(5.0) == []
        assert len(self.ends_by_key()) == 4

    def test_stopping_does_not_wait_for_ever(self) -> None:
        if self.runs_in_caller:
            return
        executor = self.started(1)
        executor.submit([self.claim(self._hold, self.gate)])
        self.wait_until_held(1)
        began = time.monotonic()

        left = executor.stop(0.1)

        # It ended, or it is still accounted for; it is not both, and it is nobody else's.
        assert time.monotonic() - began < 10.0
        assert len(self.host.ends) == 1 or left or executor.in_hand()
        assert {run.claim.key for run in left} <= {self.host.runs[0].claim.key}

    def test_an_executor_that_never_started_can_be_stopped(self) -> None:
        executor = self.make_executor(self.host, 1)

        assert executor.stop(1.0) == []
        assert executor.take_back() == []

    def test_nothing_in_hand_at_first(self) -> None:
        executor = self.started(2)

        assert executor.in_hand() == 0
        executor.submit([])
        assert executor.in_hand() == 0
        assert _is_sequence(executor.take_back())


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) == 0
