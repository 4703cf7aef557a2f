"""The state machine, row by row of its table: same facts, same answer, and no way out of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_taskq.domain import outcomes as o
from django_taskq.domain.states import FINAL, LIVE, Ack, DeadReason, State, StepState, status_name
from django_taskq.domain.transitions import (
    Facts,
    Transition,
    after_cancel,
    after_replay,
    decide,
    initial_state,
    may_leave_step,
    step_after,
)
from django_taskq.exceptions import InvalidTransition

NOW = datetime(2030, 5, 1, 12, tzinfo=UTC)
ERROR = o.ErrorInfo(class_path="a.B", message="m", traceback="t", fingerprint="f" * 16)
DIED = o.ErrorInfo(class_path="django_taskq.exceptions.WorkerLost", message="m", traceback="", fingerprint="f" * 16)


def decided(outcome: o.Outcome, **facts: object) -> Transition:
    return decide(Facts(**{"attempt": 1, "max_attempts": 3, **facts}), outcome, now=NOW)  # type: ignore[arg-type]


def test_success_keeps_its_result() -> None:
    assert decided(o.Succeeded()) == Transition(state=State.SUCCEEDED)
    assert decided(o.Succeeded("1")) == Transition(state=State.SUCCEEDED, result="1")


@pytest.mark.parametrize(("kind", "record"), [(o.Failed, "failed"), (o.TimedOut, "timed_out")])
def test_a_failure_with_attempts_left_comes_back_after_its_backoff(kind: type, record: str) -> None:
    assert decided(kind(error=ERROR, retry_in=30.0)) == Transition(
        state=State.SCHEDULED, run_after=NOW + timedelta(seconds=30), record=record, error=ERROR
    )


@pytest.mark.parametrize(("kind", "record"), [(o.Failed, "failed"), (o.TimedOut, "timed_out")])
def test_a_failure_without_wait_is_ready_at_once(kind: type, record: str) -> None:
    found = decided(kind(error=ERROR, retry_in=0.0))

    assert found == Transition(state=State.READY, run_after=NOW, record=record, error=ERROR)


@pytest.mark.parametrize(("attempt", "maximum"), [(3, 3), (4, 3), (1, 1)])
def test_the_last_attempt_is_the_last(attempt: int, maximum: int) -> None:
    for kind, record in ((o.Failed, "failed"), (o.TimedOut, "timed_out"), (o.Lost, "lost")):
        wait = {} if kind is o.Lost else {"retry_in": 1.0}

        found = decided(kind(error=ERROR, **wait), attempt=attempt, max_attempts=maximum)

        assert found == Transition(state=State.DEAD, reason=DeadReason.EXHAUSTED, record=record, error=ERROR)


def test_a_backoff_of_none_means_no_retry() -> None:
    found = decided(o.Failed(error=ERROR, retry_in=None))

    assert (found.state, found.reason) == (State.DEAD, DeadReason.EXHAUSTED)


def test_a_retry_that_would_overrun_the_budget_is_dead_instead() -> None:
    for seconds, state in ((29.9, State.SCHEDULED), (30.0, State.DEAD), (31.0, State.DEAD)):
        found = decided(o.Failed(error=ERROR, retry_in=seconds), deadline_at=NOW + timedelta(seconds=30))

        assert found.state == state
        assert found.reason == (DeadReason.BUDGET if state == State.DEAD else None)


def test_a_lost_attempt_is_ready_at_once_and_counts() -> None:
    assert decided(o.Lost(error=ERROR)) == Transition(state=State.READY, run_after=NOW, record="lost", error=ERROR)


def test_a_lost_attempt_that_must_not_be_repeated_is_dead() -> None:
    found = decided(o.Lost(error=ERROR), ack=Ack.FIRST)

    assert found == Transition(state=State.DEAD, reason=DeadReason.LOST, record="lost", error=ERROR)


def test_at_most_once_is_never_retried() -> None:
    for outcome in (o.Failed(error=ERROR, retry_in=1.0), o.TimedOut(error=ERROR, retry_in=0.0)):
        assert decided(outcome, ack=Ack.FIRST).state == State.DEAD


@pytest.mark.parametrize(
    ("outcome", "reason", "record"),
    [
        (o.Crashed(error=ERROR), DeadReason.CRASHED, "crashed"),
        (o.GaveUp(error=ERROR), DeadReason.GAVE_UP, "gave_up"),
        (o.Undecodable(error=ERROR), DeadReason.UNDECODABLE, "undecodable"),
        (o.BudgetOver(error=ERROR), DeadReason.BUDGET, "budget_expired"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_retry_can_mend_is_dead_at_once(outcome: o.Outcome, reason: DeadReason, record: str) -> None:
    assert decided(outcome) == Transition(state=State.DEAD, reason=reason, record=record, error=ERROR)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (o.BudgetOver(), DeadReason.BUDGET),
        (o.Expired(), DeadReason.EXPIRED),
        (o.Unknown(is_final=True, retry_in=5.0, since=1.0), DeadReason.UNKNOWN_TASK),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_never_ran_is_dead_without_having_used_an_attempt(outcome: o.Outcome, reason: DeadReason) -> None:
    assert decided(outcome) == Transition(state=State.DEAD, reason=reason, attempt_back=True)


def test_a_snooze_and_an_unknown_name_come_back_with_their_attempt() -> None:
    later = Transition(state=State.SCHEDULED, run_after=NOW + timedelta(seconds=5), attempt_back=True)

    assert decided(o.Snoozed(5.0), attempt=3) == later
    assert decided(o.Unknown(is_final=False, retry_in=5.0, since=1.0), attempt=3) == later
    assert decided(o.NotYet(NOW + timedelta(seconds=5)), attempt=3) == later


def test_a_snoozing_task_that_was_asked_to_stop_is_cancelled() -> None:
    assert decided(o.Snoozed(5.0), cancel_requested=True) == Transition(state=State.CANCELLED)


def test_a_cancel_that_was_heard_ends_the_task() -> None:
    assert decided(o.Cancelled("why")) == Transition(state=State.CANCELLED)


def test_an_interruption_gives_the_attempt_back_and_is_recorded_if_it_had_begun() -> None:
    assert decided(o.Interrupted()) == Transition(state=State.READY, attempt_back=True, record="interrupted")
    assert decided(o.Interrupted(started=False)) == Transition(state=State.READY, attempt_back=True)


def test_an_interruption_of_what_runs_at_most_once_is_the_end_only_if_it_had_begun() -> None:
    assert decided(o.Interrupted(), ack=Ack.FIRST).reason == DeadReason.LOST
    assert decided(o.Interrupted(started=False), ack=Ack.FIRST).state == State.READY


@pytest.mark.parametrize(
    "outcome",
    [
        o.Failed(error=ERROR, retry_in=1.0),
        o.TimedOut(error=ERROR, retry_in=1.0),
        o.Lost(error=ERROR),
        o.Interrupted(),
        o.Interrupted(started=False),
    ],
    ids=repr,
)
def test_whoever_was_asked_to_stop_does_not_come_back(outcome: o.Outcome) -> None:
    assert decided(outcome, cancel_requested=True).state == State.CANCELLED


def test_success_wins_over_a_cancel_request_that_came_too_late() -> None:
    assert decided(o.Succeeded("1"), cancel_requested=True) == Transition(state=State.SUCCEEDED, result="1")


def test_a_skipped_task_has_succeeded_and_says_why() -> None:
    found = decided(o.Skipped("nothing to do"), cancel_requested=True)

    assert found == Transition(state=State.SUCCEEDED, note="skipped: nothing to do")


EVERY_OUTCOME: list[o.Outcome] = [
    o.Succeeded(),
    o.Succeeded("1"),
    o.Skipped("nothing to do"),
    *(kind(error=ERROR, retry_in=wait) for kind in (o.Failed, o.TimedOut) for wait in (None, 0.0, 60.0)),
    *(kind(error=ERROR) for kind in (o.Crashed, o.GaveUp, o.Undecodable, o.BudgetOver, o.Lost)),
    o.BudgetOver(),
    o.Expired(),
    *(o.Unknown(is_final=final, retry_in=5.0, since=0.0) for final in (True, False)),
    o.Snoozed(0.0),
    o.Snoozed(60.0),
    o.NotYet(NOW + timedelta(seconds=1)),
    o.Cancelled(),
    *(o.Interrupted(started=started) for started in (True, False)),
]


def test_every_decision_keeps_the_rules_of_the_table() -> None:
    kinds = {type(outcome) for outcome in EVERY_OUTCOME}
    assert kinds == set(o.Outcome.__args__)  # type: ignore[attr-defined]

    for outcome, attempt, ack, deadline, asked in product(
        EVERY_OUTCOME,
        (1, 2, 3, 4),
        Ack,
        (None, NOW - timedelta(seconds=1), NOW + timedelta(seconds=30), NOW + timedelta(days=1)),
        (True, False),
    ):
        facts = Facts(attempt=attempt, max_attempts=3, ack=ack, deadline_at=deadline, cancel_requested=asked)
        found = decide(facts, outcome, now=NOW)
        case = f"{outcome} {facts}"

        assert decide(facts, outcome, now=NOW) == found, case
        assert found.state in {State.SUCCEEDED, State.DEAD, State.CANCELLED, State.SCHEDULED, State.READY}, case
        assert (found.reason is not None) == (found.state == State.DEAD), case
        assert (found.run_after is not None) >= (found.state == State.SCHEDULED), case
        assert found.run_after is None or found.run_after >= NOW, case
        if found.state in LIVE and not found.attempt_back:
            assert attempt < 3, case
            assert ack != Ack.FIRST, case
            assert deadline is None or found.run_after is None or found.run_after < deadline, case
        if asked and found.error is not None and found.state in LIVE:
            raise AssertionError(f"asked to stop, and came back: {case}")


@given(st.integers(1, 50), st.integers(1, 50), st.floats(0, 1e8))
def test_a_task_is_run_at_most_as_often_as_it_may(attempt: int, maximum: int, wait: float) -> None:
    found = decided(o.Failed(error=ERROR, retry_in=wait), attempt=attempt, max_attempts=maximum)

    assert (found.state == State.DEAD) == (attempt >= maximum)


def test_a_task_is_stored_by_its_time_and_its_predecessors() -> None:
    step = timedelta(microseconds=1)

    assert initial_state(None, now=NOW) == State.READY
    assert initial_state(NOW, now=NOW) == State.READY
    assert initial_state(NOW - step, now=NOW) == State.READY
    assert initial_state(NOW + step, now=NOW) == State.SCHEDULED
    assert initial_state(NOW + step, now=NOW, predecessors=1) == State.WAITING


@pytest.mark.parametrize("state", State)
def test_a_cancel_leads_where_the_table_says(state: State) -> None:
    if state in FINAL:
        with pytest.raises(InvalidTransition, match="it has ended"):
            after_cancel(state)
    elif state == State.RUNNING:
        assert after_cancel(state) is None
    else:
        assert after_cancel(state) == State.CANCELLED


@pytest.mark.parametrize("state", State)
def test_only_dead_and_cancelled_tasks_are_replayed(state: State) -> None:
    if state in {State.DEAD, State.CANCELLED}:
        assert after_replay(state) == State.READY
    else:
        with pytest.raises(InvalidTransition, match="only dead and cancelled tasks can"):
            after_replay(state)


def test_states_are_shown_to_django_as_four() -> None:
    assert {state: status_name(state) for state in State} == {
        State.WAITING: "READY",
        State.SCHEDULED: "READY",
        State.READY: "READY",
        State.PARKED: "READY",
        State.RUNNING: "RUNNING",
        State.SUCCEEDED: "SUCCESSFUL",
        State.DEAD: "FAILED",
        State.CANCELLED: "FAILED",
    }


def test_the_stored_numbers_never_change() -> None:
    assert {state.name: int(state) for state in State} == {
        "SCHEDULED": 0,
        "READY": 1,
        "RUNNING": 2,
        "SUCCEEDED": 3,
        "DEAD": 4,
        "PARKED": 5,
        "WAITING": 6,
        "CANCELLED": 7,
    }
    assert {ack.name: int(ack) for ack in Ack} == {"LATE": 0, "NOW": 1, "FIRST": 2, "ATOMIC": 3}
    assert LIVE.isdisjoint(FINAL)
    assert set(State) == LIVE | FINAL
    assert all(state.is_final == (state in FINAL) for state in State)


# Steps


@pytest.mark.parametrize(
    ("outcome", "state", "after"),
    [
        (o.Lost(error=ERROR), State.READY, StepState.INTERRUPTED),
        (o.Lost(error=ERROR), State.DEAD, StepState.INTERRUPTED),
        (o.Interrupted(), State.READY, StepState.INTERRUPTED),
        (o.Failed(error=DIED, retry_in=1.0), State.SCHEDULED, StepState.INTERRUPTED),
        (o.Failed(error=ERROR, retry_in=1.0), State.SCHEDULED, StepState.FAILED),
        (o.TimedOut(error=ERROR, retry_in=1.0), State.SCHEDULED, StepState.FAILED),
        (o.BudgetOver(error=ERROR), State.DEAD, StepState.FAILED),
        (o.Crashed(error=ERROR), State.DEAD, StepState.FAILED),
        (o.Snoozed(1.0), State.SCHEDULED, StepState.PENDING),
        (o.Succeeded(), State.SUCCEEDED, StepState.INTERRUPTED),
        (o.Lost(error=ERROR), State.CANCELLED, StepState.CANCELLED),
        (o.Cancelled(), State.CANCELLED, StepState.CANCELLED),
    ],
)
def test_what_becomes_of_a_step_that_ran_when_its_attempt_ended(
    outcome: o.Outcome, state: State, after: StepState
) -> None:
    assert step_after(outcome, state) == after


def test_only_what_ends_an_attempt_from_outside_or_cancels_its_task_leaves_steps_behind() -> None:
    inside = [o.Succeeded(), o.Failed(error=ERROR, retry_in=None), o.Crashed(error=ERROR), o.GaveUp(error=ERROR)]
    not_begun = [o.Interrupted(started=False), o.BudgetOver(), o.Expired(), o.NotYet(NOW), o.Snoozed(1.0)]
    outside = [
        o.Lost(error=ERROR),
        o.Interrupted(),
        o.TimedOut(error=ERROR, retry_in=1.0),
        o.BudgetOver(error=ERROR),
    ]

    assert not any(may_leave_step(outcome, State.DEAD) for outcome in (*inside, *not_begun))
    assert all(may_leave_step(outcome, State.READY) for outcome in outside)
    assert all(may_leave_step(outcome, State.CANCELLED) for outcome in (*inside, *not_begun, *outside))


def test_the_numbers_of_step_states_never_change() -> None:
    assert {state.name: int(state) for state in StepState} == {
        "PENDING": 0,
        "RUNNING": 1,
        "SUCCEEDED": 2,
        "FAILED": 3,
        "CANCELLED": 4,
        "INTERRUPTED": 5,
    }
