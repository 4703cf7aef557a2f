"""``record_tasks`` notes chains, batches and workflows, with what is inside them."""

import pytest
from django.db import transaction
from django.test import TestCase

from django_taskq import batch, chain, previous, result_of, workflow
from django_taskq.models import Workflow
from django_taskq.testing import record_tasks
from tests.testing.tasks import fail_twice, note, note_mail


class RecordingWorkflows(TestCase):
    def test_a_chain_is_recorded_and_not_stored(self) -> None:
        with record_tasks() as recorder:
            handle = (
                chain(note.s(1), note_mail.s(previous, to="a@example.com")).name("mail").then(note.s("done")).enqueue()
            )

        [found] = recorder.workflows
        assert (found.workflow_id, found.kind, found.name) == (handle.id, "chain", "mail")
        assert [member.state for member in found.members] == ["ready", "waiting"]
        assert found.callbacks == {"then": ("tests.testing.tasks.note",)}
        assert not Workflow.objects.exists()
        recorder.assert_chained([note, note_mail])
        recorder.assert_chained([note.s(1), note_mail.s(previous, to="a@example.com")], times=1)
        recorder.assert_chained(["tests.testing.tasks.note", note_mail])
        recorder.assert_enqueued(note, args=[1], times=1)
        recorder.assert_workflow_count(1)

    def test_a_batch_is_found_by_a_function_or_by_its_members(self) -> None:
        with record_tasks() as recorder:
            batch(note.s(number) for number in range(3)).enqueue()

        recorder.assert_batched(lambda found: len(found.members) == 3 and not found.callbacks)
        recorder.assert_batched([note.s(0), note.s(1), note.s(2)])
        with pytest.raises(AssertionError, match="0 such batch was enqueued, expected at least one"):
            recorder.assert_batched([note.s(0)])

    def test_what_is_inside_is_found_too(self) -> None:
        with record_tasks() as recorder:
            chain(note.s("a"), batch(note.s("b"), chain(note.s("c"), fail_twice.s("d"))), note.s(previous)).enqueue()

        recorder.assert_chained([note, batch(note.s("b"), chain(note.s("c"), fail_twice.s("d"))), note])
        recorder.assert_chained([note.s("c"), fail_twice.s("d")])
        recorder.assert_batched(lambda found: len(found.members) == 2)
        recorder.assert_workflow_count(1)
        for wrong in ([note], [note, note, note], [note, batch(note.s("b")), note], [fail_twice, note.s("c")]):
            with pytest.raises(AssertionError):
                recorder.assert_chained(wrong)

    def test_a_graph_is_recorded(self) -> None:
        with record_tasks() as recorder:
            workflow("g").add("b", note.s(result_of("a")), after="a").add("a", note.s(1)).enqueue()

        [found] = recorder.workflows
        assert (found.kind, [member.args for member in found.members]) == ("workflow", [[1], [None]])

    def test_a_failure_lists_what_there_is(self) -> None:
        with record_tasks() as recorder:
            chain(note.s(1)).name("mail").enqueue()

        with pytest.raises(AssertionError) as caught:
            recorder.assert_chained([note.s(2)])
        assert "chain mail of tests.testing.tasks.note(1)" in str(caught.value)

    def test_what_is_rolled_back_is_not_in_the_record(self) -> None:
        with record_tasks() as recorder, transaction.atomic():
            chain(note.s(1)).enqueue()
            assert len(recorder.workflows) == 1
            transaction.set_rollback(True)

        assert recorder.workflows == []
        recorder.assert_workflow_count(0)
