"""Task ids through the ORM, the same on every database; names and moments at their limits."""

from __future__ import annotations

import pickle
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.core import serializers
from django.core.exceptions import ValidationError
from django.db import connection
from django.db.models import Max, Q, Subquery
from django.test import TestCase
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase as HypothesisTestCase

from django_taskq import InvalidOptions, clock
from django_taskq.domain.states import State
from django_taskq.ids import uuid7
from django_taskq.models import Attempt, FinishedTask, Task
from django_taskq.store import tasks as store
from django_taskq.store.vendors import vendor_for
from tests.testing import tasks

NOW = datetime(2030, 5, 1, 12, tzinfo=UTC)


def ready(**changes: object) -> Task:
    return Task.objects.create(**{"queue": "q", "name": "n", "created_at": NOW, "state": State.READY, **changes})


class TaskIds(TestCase):
    def test_an_id_comes_back_as_a_uuid(self) -> None:
        task = ready(parent_id=uuid.uuid4())

        found = Task.objects.get()

        assert isinstance(found.pk, uuid.UUID)
        assert (found.pk, found.parent_id) == (task.pk, task.parent_id)

    def test_a_task_is_found_by_every_spelling_of_its_id(self) -> None:
        task = ready()
        key = task.pk

        for spelling in (key, str(key), key.hex, str(key).upper(), f"{{{key}}}", f"urn:uuid:{key}"):
            assert Task.objects.get(pk=spelling) == task
            assert Task.objects.filter(id__in=[spelling]).count() == 1
            assert Task.objects.exclude(pk=spelling).count() == 0

    def test_in_bulk_takes_text_and_uuids_and_gives_uuids(self) -> None:
        first, second = ready(), ready()

        found = Task.objects.in_bulk([str(first.pk), second.pk])

        assert found == {first.pk: first, second.pk: second}

    def test_order_and_comparison_are_by_age(self) -> None:
        made = [ready() for _ in range(5)]
        keys = [task.pk for task in made]

        assert list(Task.objects.order_by("pk").values_list("pk", flat=True)) == keys
        assert list(Task.objects.filter(pk__gt=keys[2]).order_by("pk")) == made[3:]
        assert list(Task.objects.filter(pk__lte=str(keys[2])).order_by("-pk")) == made[2::-1]
        assert Task.objects.order_by("-pk").first() == made[-1]

    def test_values_subqueries_and_conditions_work(self) -> None:
        task, other = ready(), ready()
        Attempt.objects.create(task_id=str(task.pk), number=1, worker_id=1, outcome="failed", ended_at=NOW)

        failed = Attempt.objects.values("task_id")
        assert Task.objects.get(pk__in=Subquery(failed)) == task
        assert Task.objects.get(pk__in=failed) == task
        assert Task.objects.get(~Q(pk=str(task.pk))) == other
        assert Task.objects.values("id").get(pk=task.pk) == {"id": task.pk}
        assert Attempt.objects.filter(task_id=task.pk.hex).exists()
        assert Task.objects.filter(parent_id__isnull=True).count() == 2

    def test_what_is_no_id_is_refused_or_not_found(self) -> None:
        with pytest.raises(ValidationError):
            Task.objects.filter(pk="not an id").exists()
        assert store.find("default", "not an id") is None
        assert store.find("default", None) is None
        assert store.find_many("default", ["not an id", str(uuid7())]) == {}

    def test_rows_survive_serialisation_and_pickling(self) -> None:
        task = ready(parent_id=uuid.uuid4())

        for form in ("json", "python"):
            [again] = serializers.deserialize(form, serializers.serialize(form, [task]))
            assert (again.object.pk, again.object.parent_id) == (task.pk, task.parent_id)
        assert pickle.loads(pickle.dumps(Task.objects.get())).pk == task.pk

    def test_updates_and_refreshes_keep_the_id(self) -> None:
        task = ready()
        key = task.pk
        task.queue = "other"
        task.save()
        task.refresh_from_db()

        assert (task.pk, task.queue) == (key, "other")
        assert Task.objects.filter(pk__in=[str(key)]).update(rank=5) == 1
        assert Task.objects.filter(pk=key).delete()[0] == 1

    @pytest.mark.skipif("connection.vendor == 'postgresql'", reason="PostgreSQL before 18 has no max(uuid)")
    def test_the_youngest_id_can_be_asked_for(self) -> None:
        ready()
        task = ready()

        assert Task.objects.aggregate(Max("pk")) == {"pk__max": task.pk}

    def test_an_id_says_the_same_in_both_tables_and_outside(self) -> None:
        result = tasks.note.enqueue(1)
        key = vendor_for("default").key_of(result.id)

        assert vendor_for("default").public_id(key) == result.id == str(Task.objects.get().pk)
        assert not FinishedTask.objects.filter(pk=result.id).exists()


class AnyId(HypothesisTestCase):
    @given(st.uuids())
    def test_any_uuid_comes_back_whatever_its_bytes(self, key: uuid.UUID) -> None:
        Task.objects.all().delete()
        ready(id=key)

        assert Task.objects.get(pk=str(key)).pk == key
        vendor = vendor_for("default")
        [claim] = vendor.claim("q", 1, lease=7 << 32, now=NOW)
        assert uuid.UUID(vendor.public_id(claim.key)) == key


class Limits(TestCase):
    def test_names_at_their_limits_are_stored_and_longer_ones_refused_before_the_database(self) -> None:
        wide = "\U0001f600" * 64
        tasks.note.using(queue_name=wide).enqueue(1)

        assert Task.objects.get().queue == wide
        for queue in ("", "x" * 65):
            with pytest.raises(InvalidOptions, match="queue_name must have 1 to 64 characters"):
                tasks.note.using(queue_name=queue)
        assert Task.objects.count() == 1

    def test_far_moments_are_stored_to_the_microsecond(self) -> None:
        for moment in (
            datetime(1970, 1, 2, tzinfo=UTC),
            datetime(2030, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
            datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC),
        ):
            result = tasks.note.using(run_after=moment).enqueue(1)

            row = Task.objects.get(pk=result.id)
            assert row.run_after == moment
            assert row.state == (State.SCHEDULED if moment > clock.now() else State.READY)

    def test_whole_seconds_and_fractions_compare_as_moments(self) -> None:
        """SQLite compares text, and writes whole seconds without a fraction."""
        vendor = vendor_for("default")
        step = timedelta(microseconds=1)
        moments = [NOW - step, NOW, NOW + step, NOW + timedelta(milliseconds=100), NOW + timedelta(seconds=1)]
        for moment in reversed(moments):
            ready(state=State.SCHEDULED, run_after=moment)

        for due, moment in enumerate(moments, 1):
            vendor.promote(moment, 10)
            assert Task.objects.filter(state=State.READY).count() == due

    def test_the_connection_is_the_one_under_test(self) -> None:
        assert connection.vendor in {"postgresql", "mysql", "sqlite"}
