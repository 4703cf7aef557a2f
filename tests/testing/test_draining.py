"""``drain`` runs stored tasks in the test's own thread and transaction, and never before their time."""

from datetime import UTC, datetime, timedelta

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase
from django.utils import timezone
from freezegun import freeze_time

from django_taskq import clock, pause, pause_queue, resume_queue
from django_taskq.models import FinishedTask, Step, Task, Worker
from django_taskq.testing import DrainOverrun, adrain, assert_state, drain, travel
from tests.app.models import Effect
from tests.testing import tasks

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)


class InATransaction(TestCase):
    def test_a_task_runs_inside_the_tests_transaction(self) -> None:
        result = tasks.note.enqueue([1, "x"])

        drained = drain()

        assert connection.in_atomic_block
        assert [(one.task_id, one.outcome, one.state, one.result) for one in drained] == [
            (result.id, "succeeded", "succeeded", [1, "x"])
        ]
        assert tasks.ran == [("note", [1, "x"])]
        result.refresh()
        assert (result.status, result.return_value) == ("SUCCESSFUL", [1, "x"])

    def test_a_drain_of_nothing_is_complete_and_leaves_no_worker(self) -> None:
        drained = drain()

        assert len(drained) == 0
        assert drained.is_complete
        assert not Worker.objects.exists()

    def test_what_a_task_enqueues_is_run_too(self) -> None:
        tasks.enqueue_more.enqueue(3)

        drained = drain()

        assert [value for _, value in tasks.ran] == [3, 2, 1, 0]
        assert drained.succeeded == 4
        assert not Worker.objects.exists()

    def test_the_most_urgent_runs_first_then_the_oldest(self) -> None:
        tasks.note.enqueue("late")
        tasks.note.using(priority=10).enqueue("urgent")
        tasks.note.enqueue("later")

        drain("default")

        assert [value for _, value in tasks.ran] == ["urgent", "late", "later"]

    def test_a_task_with_steps_goes_on_after_the_last_one_inside_the_tests_transaction(self) -> None:
        for kind in (tasks.take_steps, tasks.take_steps_async):
            with self.subTest(kind.name):
                tasks.ran.clear()
                Effect.objects.all().delete()
                result = kind.enqueue()

                drained = drain(with_scheduled=True)

                assert [attempt.outcome for attempt in drained] == ["failed", "succeeded"]
                assert drained.attempts[-1].result == ["stored", 2, [1, 2]]
                assert tasks.ran == [("step", "stored"), ("step", 1), ("step", 2)]
                assert Step.objects.filter(task_id=result.id).count() == 3

    def test_only_the_queues_named_are_drained(self) -> None:
        tasks.note.enqueue(1)
        mail = tasks.note_mail.enqueue(2)

        drained = drain(["mail"])

        assert [one.task_id for one in drained] == [mail.id]
        assert Task.objects.get().queue == "default"

    def test_a_paused_queue_is_left_alone(self) -> None:
        tasks.note_mail.enqueue(2)
        pause_queue("mail")

        paused, _ = len(drain()), resume_queue("mail")

        assert paused == 0
        assert len(drain()) == 1

    def test_a_task_of_a_paused_type_is_left_alone_and_does_not_keep_a_drain_from_its_end(self) -> None:
        held = tasks.note.enqueue(1)
        pause(task=tasks.note)

        drained = drain(with_scheduled=True)

        assert drained.is_complete
        assert_state(held, "parked")

    def test_the_end_of_the_pause_of_a_type_is_followed(self) -> None:
        held = tasks.note.enqueue(1)
        pause(task=tasks.note, until=timedelta(days=2))
        other = tasks.note_mail.enqueue(2)

        drained = drain(until=timedelta(hours=1))
        assert_state(held, "parked")
        followed = drain(with_scheduled=True)

        assert [attempt.task_id for attempt in (*drained, *followed)] == [other.id, held.id]

    def test_a_retry_waits_for_its_time(self) -> None:
        result = tasks.fail_twice.enqueue("k")

        drained = drain()

        assert [(one.outcome, one.state) for one in drained] == [("failed", "scheduled")]
        assert isinstance(drained.attempts[0].exception, ValueError)
        assert drained.again == 1
        assert_state(result, "scheduled")

    def test_retries_are_followed_to_their_end(self) -> None:
        result = tasks.fail_twice.enqueue("k")

        with travel(NOON) as hands:
            Task.objects.update(created_at=NOON)
            drained = drain(with_scheduled=True)
            end = hands.now()

        assert [(one.attempt, one.state) for one in drained] == [(1, "scheduled"), (2, "scheduled"), (3, "succeeded")]
        assert end == NOON + timedelta(seconds=120)
        assert assert_state(result, "succeeded").finished_at == end

    def test_without_a_clock_of_the_test_time_is_real_again_after_a_drain(self) -> None:
        tasks.note.using(delay=timedelta(days=3)).enqueue(1)

        drained = drain(with_scheduled=True)

        assert drained.succeeded == 1
        assert abs(clock.now() - timezone.now()) < timedelta(seconds=5)

    def test_backoff_is_kept_to_the_second_and_ends_in_a_dead_letter(self) -> None:
        with travel(NOON) as hands:
            result = tasks.always_fail.enqueue()
            drained = drain(with_scheduled=True)

            assert hands.now() == NOON + timedelta(seconds=10 + 20 + 40)

        assert [one.outcome for one in drained] == ["failed"] * 4
        assert drained.dead == 1
        assert_state(result, "dead", reason="exhausted")

    def test_freezegun_moves_with_the_drain_and_tasks_see_it(self) -> None:
        with freeze_time(NOON) as frozen:
            tasks.fail_twice.enqueue("k")
            drain(with_scheduled=True)
            end = frozen()

        seen = [moment for _, moment in tasks.ran]
        assert seen == [NOON, NOON + timedelta(seconds=60), NOON + timedelta(seconds=120)]
        assert end.replace(tzinfo=UTC) == seen[-1]

    def test_a_ticking_freezegun_works_too(self) -> None:
        with freeze_time(NOON, tick=True):
            tasks.fail_twice.enqueue("k")
            drained = drain(with_scheduled=True)

        assert drained.succeeded == 1

    def test_until_stops_before_what_is_due_later_and_leaves_the_clock_there(self) -> None:
        with travel(NOON) as hands:
            tasks.note.using(delay=60).enqueue("soon")
            tasks.note.using(delay=3600).enqueue("later")

            drained = drain(until=timedelta(minutes=30))

            assert hands.now() == NOON + timedelta(minutes=30)
        assert [one.result for one in drained] == ["soon"]

    def test_a_task_due_at_the_very_moment_of_until_runs(self) -> None:
        with travel(NOON):
            tasks.note.using(run_after=NOON + timedelta(seconds=60)).enqueue(1)

            assert len(drain(until=NOON + timedelta(seconds=59, microseconds=999_999))) == 0
            assert len(drain(until=NOON + timedelta(seconds=60))) == 1

    def test_a_task_never_runs_before_its_time(self) -> None:
        with travel(NOON) as hands:
            tasks.note.using(run_after=NOON + timedelta(seconds=10)).enqueue(1)
            hands.shift(9.999999)

            assert len(drain()) == 0
            hands.shift(0.000001)
            assert len(drain()) == 1

    def test_a_snoozed_task_keeps_its_attempt(self) -> None:
        tasks.snooze_once.enqueue()

        drained = drain(with_scheduled=True)

        assert [(one.attempt, one.outcome) for one in drained] == [(1, "snoozed"), (1, "succeeded")]

    def test_steering_is_told_by_its_outcome(self) -> None:
        tasks.steer.enqueue("cancel")
        tasks.steer.enqueue("give_up")

        drained = drain()

        assert [(one.outcome, one.state, one.reason) for one in drained] == [
            ("cancelled", "cancelled", None),
            ("gave_up", "dead", "gave_up"),
        ]

    def test_max_tasks_stops_early_and_says_so(self) -> None:
        tasks.note.enqueue_many([(1,), (2,), (3,)])

        drained = drain(max_tasks=2)

        assert (len(drained), drained.is_complete) == (2, False)
        assert Task.objects.count() == 1

    def test_a_task_that_comes_back_for_ever_ends_the_drain(self) -> None:
        tasks.come_back_for_ever.enqueue()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("django_taskq.testing.draining.RUNAWAY", 5)
            with pytest.raises(DrainOverrun, match="come_back_for_ever"):
                drain(with_scheduled=True)

        assert not Worker.objects.exists()

    def test_raise_errors_raises_what_the_task_raised_once_it_is_settled(self) -> None:
        result = tasks.fail_twice.enqueue("k")

        with pytest.raises(ValueError, match="not yet, k") as caught:
            drain(raise_errors=True)

        assert f"task tests.testing.tasks.fail_twice ({result.id})" in caught.value.__notes__[0]
        assert_state(result, "scheduled")

    def test_a_statement_that_fails_does_not_spoil_the_tests_transaction(self) -> None:
        result = tasks.break_transaction.enqueue("twice")

        drained = drain()

        assert drained.attempts[0].error.class_path == "django.db.utils.IntegrityError"
        assert_state(result, "dead")
        assert not Effect.objects.exists()

    def test_a_task_that_goes_on_after_a_failed_statement_is_settled(self) -> None:
        tasks.swallow_broken_statement.enqueue("twice")

        drained = drain()

        assert [one.result for one in drained] == ["went on"]

    def test_a_coroutine_task_uses_the_tests_connection(self) -> None:
        tasks.note_async.enqueue(7)

        drained = drain()

        assert drained.attempts[0].result == 7
        assert Effect.objects.get().key == "async-7"

    def test_an_atomic_task_writes_its_effect_and_its_end(self) -> None:
        result = tasks.atomic_effect.enqueue("once")

        drained = drain()

        assert drained.succeeded == 1
        assert Effect.objects.get().key == "once"
        assert_state(result, "succeeded")

    def test_a_result_that_is_not_kept_leaves_no_row(self) -> None:
        tasks.leave_nothing.enqueue()

        drained = drain()

        assert drained.succeeded == 1
        assert not FinishedTask.objects.exists()

    def test_a_keyboard_interrupt_reaches_the_test_after_the_task_is_settled(self) -> None:
        result = tasks.interrupt.enqueue()

        with pytest.raises(KeyboardInterrupt):
            drain()

        assert_state(result, "dead", reason="crashed")
        assert not Worker.objects.exists()

    def test_a_drain_inside_an_inner_atomic_block_is_undone_with_it(self) -> None:
        result = tasks.note.enqueue(1)

        with transaction.atomic():
            drain()
            transaction.set_rollback(True)

        assert_state(result, "ready")
        assert drain().succeeded == 1

    def test_the_attempts_of_one_task_can_be_picked_out(self) -> None:
        first, second = tasks.note.enqueue(1), tasks.note_mail.enqueue(2)

        drained = drain()

        assert [one.task_id for one in drained.of(tasks.note)] == [first.id]
        assert [one.task for one in drained.of(second)] == ["tests.testing.tasks.note_mail"]
        assert drained.outcomes == {"succeeded": 2}


class WithoutATransaction(TransactionTestCase):
    def test_a_drain_works_outside_of_transactions(self) -> None:
        tasks.fail_twice.enqueue("k")
        tasks.break_transaction.enqueue("twice")

        drained = drain(with_scheduled=True)

        assert (drained.succeeded, drained.dead) == (1, 1)
        # In autocommit the first statement stays, as it would with a worker.
        assert Effect.objects.count() == 1
        assert not Worker.objects.exists()

    def test_adrain_works_from_a_coroutine(self) -> None:
        async def scenario() -> int:
            await tasks.note_async.aenqueue(1)
            return (await adrain()).succeeded

        assert async_to_sync(scenario)() == 1


def test_a_naive_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"), travel(datetime(2030, 1, 1)):
        pass


def test_travel_may_be_nested_and_gives_the_clock_back() -> None:
    with travel(NOON) as outer:
        with travel(NOON + timedelta(days=1)) as inner:
            inner.shift(60)
            assert clock.now() == NOON + timedelta(days=1, seconds=60)
        assert clock.now() == outer.now() == NOON
        assert clock.from_timestamp(clock.timestamp()) == NOON
        assert clock.now_ns() == int(NOON.timestamp()) * 10**9

    assert clock.now() != NOON


def test_a_ticking_clock_goes_on_from_where_it_was_put() -> None:
    with travel(NOON, ticking=True) as hands:
        first = clock.now()
        while clock.now() == first:
            pass

        assert hands.now() > first >= NOON
