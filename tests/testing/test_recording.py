"""``record_tasks`` notes what would have been stored; assertions say what is there when they fail."""

from datetime import UTC, datetime, timedelta

import django
import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from django.test import TestCase, TransactionTestCase

from django_taskq import InvalidPayload, Task
from django_taskq.models import Task as TaskModel
from django_taskq.testing import assert_state, drain, record_tasks, stored_tasks
from tests.testing import tasks

SOON = datetime(2030, 5, 1, 12, tzinfo=UTC)


def pretend_checkout(order: int) -> None:
    tasks.note_mail.enqueue(order, to="a@example.com")
    tasks.note.using(run_after=SOON).enqueue((order, "x"))


class Recording(TestCase):
    def test_an_enqueue_is_recorded_and_not_stored(self) -> None:
        with record_tasks() as recorder:
            result = tasks.note_mail.enqueue(1, to="a@example.com")

        [recorded] = recorder.tasks
        assert (recorded.task_id, recorded.args, recorded.kwargs) == (result.id, [1], {"to": "a@example.com"})
        assert (recorded.queue, recorded.priority, recorded.state) == ("mail", 5, "ready")
        assert recorded.task == tasks.note_mail
        assert not recorded.is_on_commit
        assert not TaskModel.objects.exists()

    def test_after_the_block_tasks_are_stored_again(self) -> None:
        with record_tasks():
            pass
        tasks.note.enqueue(1)

        assert TaskModel.objects.count() == 1

    def test_every_kind_of_enqueue_is_recorded(self) -> None:
        with record_tasks() as recorder:
            tasks.note.enqueue(1)
            tasks.note.enqueue_many([(2,), {"value": 3}, tasks.note.s(4)])
            tasks.after_commit.enqueue(5)
            tasks.note.s(6).enqueue()

        assert [(one.args, one.kwargs) for one in recorder.tasks] == [
            ([1], {}),
            ([2], {}),
            ([], {"value": 3}),
            ([4], {}),
            ([5], {}),
            ([6], {}),
        ]
        assert [one.is_on_commit for one in recorder.tasks] == [False, False, False, False, True, False]
        assert not TaskModel.objects.exists()

    def test_djangos_own_task_is_recorded(self) -> None:
        if django.VERSION < (6, 0):
            from django_tasks import task
        else:
            from django.tasks import task
        plain = task(tasks.note.func)

        with record_tasks() as recorder:
            plain.using(queue_name="other").enqueue(1)

        recorder.assert_enqueued("tests.testing.tasks.note", args=[1], queue="other", times=1)

    def test_aenqueue_is_recorded(self) -> None:
        with record_tasks() as recorder:
            async_to_sync(tasks.note.aenqueue)(1)
            async_to_sync(tasks.note.aenqueue_many)([(2,)])

        recorder.assert_count(2, tasks.note)

    def test_arguments_are_checked_as_when_stored(self) -> None:
        with record_tasks() as recorder, pytest.raises(InvalidPayload):
            tasks.note.enqueue(object())

        recorder.assert_nothing_enqueued()

    def test_what_is_rolled_back_is_not_recorded(self) -> None:
        with record_tasks() as recorder:
            tasks.note.enqueue("stays")
            with transaction.atomic():
                tasks.note.enqueue("goes")
                tasks.after_commit.enqueue("goes")
                transaction.set_rollback(True)
            with transaction.atomic():
                tasks.note.enqueue("stays too")

        assert [one.args for one in recorder.tasks] == [["stays"], ["stays too"]]

    def test_callbacks_of_the_commit_may_be_run_by_the_test(self) -> None:
        with record_tasks() as recorder, self.captureOnCommitCallbacks(execute=True):
            tasks.after_commit.enqueue(1)

        recorder.assert_enqueued(tasks.after_commit, times=1)

    def test_the_inner_recorder_records(self) -> None:
        with record_tasks() as outer, record_tasks() as inner:
            tasks.note.enqueue(1)

        outer.assert_nothing_enqueued()
        inner.assert_count(1)

    def test_a_record_can_be_cleared(self) -> None:
        with record_tasks() as recorder:
            tasks.note.enqueue(1)
            recorder.clear()

            recorder.assert_nothing_enqueued()


class RecordingOutsideOfTransactions(TransactionTestCase):
    def test_a_transaction_that_is_rolled_back_as_a_whole_leaves_nothing(self) -> None:
        with record_tasks() as recorder:
            tasks.note.enqueue("autocommit")
            with transaction.atomic():
                tasks.note.enqueue("goes")
                transaction.set_rollback(True)
            with transaction.atomic():
                tasks.note.enqueue("stays")

        assert [one.args for one in recorder.tasks] == [["autocommit"], ["stays"]]


class Assertions(TestCase):
    def setUp(self) -> None:
        with record_tasks() as self.recorder:
            pretend_checkout(7)

    def fails(self, *parts: str):
        caught = pytest.raises(AssertionError)

        class Told:
            def __enter__(self):
                self.info = caught.__enter__()

            def __exit__(self, *error):
                assert caught.__exit__(*error)
                for part in parts:
                    assert part in str(self.info.value)
                return True

        return Told()

    def test_arguments_compare_as_the_task_will_get_them(self) -> None:
        [found] = self.recorder.assert_enqueued(tasks.note, args=((7, "x"),), run_after=SOON)

        assert found.args == [[7, "x"]]
        assert found.state == "scheduled"

    def test_a_missing_task_is_told_with_what_was_enqueued(self) -> None:
        with self.fails(
            "tests.testing.tasks.fail_twice was not enqueued.",
            "Enqueued, 2 in all:",
            "tests.testing.tasks.note_mail(7, to='a@example.com') [queue=mail, priority=5, ready]",
            "tests.testing.tasks.note([7, 'x']) [queue=default, run_after=2030-05-01T12:00:00+00:00, scheduled]",
        ):
            self.recorder.assert_enqueued(tasks.fail_twice)

    def test_other_arguments_are_a_failure(self) -> None:
        with self.fails("note_mail with args=[8] was not enqueued", "note_mail(7"):
            self.recorder.assert_enqueued(tasks.note_mail, args=[8])
        with self.fails("kwargs={}"):
            self.recorder.assert_enqueued(tasks.note_mail, kwargs={})

    def test_times_are_counted(self) -> None:
        self.recorder.assert_enqueued(tasks.note_mail, times=1)
        with self.fails("was enqueued once, expected twice"):
            self.recorder.assert_enqueued(tasks.note_mail, times=2)
        with self.fails("was enqueued once, expected never"):
            self.recorder.assert_enqueued(tasks.note_mail, times=0)

    def test_not_enqueued(self) -> None:
        self.recorder.assert_not_enqueued(tasks.fail_twice)
        self.recorder.assert_not_enqueued(tasks.note_mail, args=[8])
        with self.fails("note_mail was enqueued once, expected never", "Enqueued, 2"):
            self.recorder.assert_not_enqueued(tasks.note_mail)

    def test_nothing_enqueued(self) -> None:
        with self.fails("Nothing was to be enqueued", "note_mail(7"):
            self.recorder.assert_nothing_enqueued()

    def test_on_a_queue(self) -> None:
        self.recorder.assert_enqueued_on("mail", tasks.note_mail, times=1)
        assert len(self.recorder.assert_enqueued_on("default")) == 1
        with self.fails("Any task was enqueued never on queue 'fax', expected at least once"):
            self.recorder.assert_enqueued_on("fax")

    def test_counts(self) -> None:
        self.recorder.assert_count(2)
        self.recorder.assert_count(1, tasks.note)
        with self.fails("Any task was enqueued twice, expected 3 times"):
            self.recorder.assert_count(3)

    def test_a_long_list_is_cut(self) -> None:
        with record_tasks() as recorder:
            tasks.note.enqueue_many([(at,) for at in range(30)])

        with self.fails("Enqueued, 30 in all", "… and 10 more"):
            recorder.assert_nothing_enqueued()


class StoredRows(TestCase):
    def test_stored_rows_take_the_same_assertions(self) -> None:
        pretend_checkout(7)
        drain()

        rows = stored_tasks()

        rows.assert_count(2)
        rows.assert_enqueued(tasks.note_mail, args=[7], state="succeeded", times=1)
        rows.assert_enqueued(tasks.note, state="scheduled", run_after=SOON)
        rows.assert_not_enqueued(tasks.note, state="ready")

    def test_an_unexpected_state_is_told_with_the_last_error(self) -> None:
        result = tasks.always_fail.using(max_attempts=1).enqueue()
        drain()

        assert assert_state(result, "dead", reason="exhausted").attempt == 1
        with pytest.raises(AssertionError, match=r"is dead \(exhausted\), expected succeeded.\s+.*LookupError: never"):
            assert_state(result.id, "succeeded")
        with pytest.raises(AssertionError, match="No task has the id"):
            assert_state("00000000-0000-7000-8000-000000000000", "dead")

    def test_the_drain_can_be_moved_by_hand(self) -> None:
        tasks.note.using(delay=timedelta(hours=1)).enqueue(1)

        assert len(drain(until=timedelta(minutes=59))) == 0
        assert len(drain(until=timedelta(minutes=61))) == 1


def test_a_task_of_ours_is_typed() -> None:
    assert isinstance(tasks.note, Task)
