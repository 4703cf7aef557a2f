"""S2-09 to S2-12, S2-18, S4-46 to S4-53: what is counted, and that no stored text can become a label."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Generator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.test import override_settings
from prometheus_client import CollectorRegistry, generate_latest

from django_taskq import QueueFull, clock, conf, events, set_limit
from django_taskq.lifecycle import control
from django_taskq.models import Limit, Queue, Snapshot, Task
from django_taskq.observability import metrics, prometheus
from django_taskq.store import queues as queue_store
from tests.by_hand import HandWorker
from tests.observability import tasks

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def registry() -> Generator[CollectorRegistry]:
    registry = CollectorRegistry()
    counters = prometheus.Counters(registry)
    counters.subscribe()
    yield registry
    counters.unsubscribe()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(f"taskq_{name}", labels) or 0.0


def name_of(task) -> str:
    return task.module_path


def test_metrics_exported(registry: CollectorRegistry) -> None:
    tasks.add.using(queue_name="sums").enqueue(1, 2)
    tasks.fail_until.enqueue(3)
    tasks.always_fail.enqueue()
    tasks.cancel_itself.enqueue()
    tasks.snooze_once.enqueue()

    HandWorker().work()

    add, fail_until, always = map(name_of, (tasks.add, tasks.fail_until, tasks.always_fail))
    assert value(registry, "tasks_scheduled_total", queue="sums") == 1
    assert value(registry, "tasks_scheduled_total", queue="default") == 4
    assert value(registry, "tasks_claimed_total", task=add) == 1
    assert value(registry, "tasks_claimed_total", task=fail_until) == 3
    assert value(registry, "tasks_processed_total", task=add, outcome="succeeded") == 1
    assert value(registry, "tasks_processed_total", task=fail_until, outcome="retried") == 2
    assert value(registry, "tasks_processed_total", task=fail_until, outcome="succeeded") == 1
    assert value(registry, "tasks_processed_total", task=always, outcome="dead") == 1
    assert value(registry, "tasks_processed_total", task=name_of(tasks.cancel_itself), outcome="cancelled") == 1
    assert value(registry, "tasks_processed_total", task=name_of(tasks.snooze_once), outcome="released") == 1
    assert value(registry, "tasks_completed_total", queue="default") == 2
    assert value(registry, "tasks_failed_total", queue="default") == 1
    assert value(registry, "tasks_cancelled_total", queue="default") == 1
    assert value(registry, "retry_count_total", queue="default") == 3
    assert value(registry, "attempts_failed_total", queue="default") == 4
    assert value(registry, "task_duration_seconds_count", task=fail_until) == 3
    assert value(registry, "task_wait_seconds_count", queue="sums") == 1
    assert value(registry, "task_latency_seconds_count", queue="default") == 4


def test_a_rescue_a_refused_end_and_a_lost_worker_are_counted(registry: CollectorRegistry) -> None:
    from django_taskq.lifecycle import rescue

    tasks.add.enqueue(1, 2)
    lost = HandWorker()
    ended = lost.execute(lost.claim())
    lost.fall_silent()

    rescue.rescue("default", now=clock.now())
    settled = lost.settle(ended)

    assert settled.refused
    assert value(registry, "workers_lost_total") == 1
    assert value(registry, "tasks_rescued_total", queue="default") == 1
    assert value(registry, "settlements_refused_total", queue="default") == 1


def test_what_operators_do_is_counted_where_they_do_it(registry: CollectorRegistry) -> None:
    waiting = tasks.add.using(run_after=timedelta(hours=1)).enqueue(1, 2)

    control.cancel(waiting.id, actor="ana")
    control.replay(waiting.id, actor="ana")
    control.kill(waiting.id, actor="ana")

    assert value(registry, "tasks_cancelled_total", queue="default") == 1
    assert value(registry, "tasks_replayed_total", queue="default") == 1
    assert value(registry, "tasks_failed_total", queue="default") == 1


def test_a_rejected_enqueue_is_counted(registry: CollectorRegistry) -> None:
    with pytest.raises(TypeError):
        tasks.add.enqueue(object(), 2)

    assert value(registry, "enqueues_rejected_total", queue="default") == 1


@pytest.mark.parametrize("policy", ["raise", "drop"])
def test_what_a_full_queue_refuses_or_drops_is_counted(policy: str, registry: CollectorRegistry) -> None:
    with override_settings(TASKQ={"QUEUES": {"default": {"MAX_READY": 1, "FULL_POLICY": policy}}}):
        tasks.add.enqueue(1, 2)
        with suppress(QueueFull):
            tasks.add.enqueue(1, 2)

    assert value(registry, "enqueues_rejected_total", queue="default") == 1
    assert Task.objects.count() == 1


def test_no_stored_text_becomes_a_label(registry: CollectorRegistry) -> None:
    for number in range(20):
        stored = tasks.add.enqueue(1, 2)
        Task.objects.filter(pk=stored.id).update(name=f'evil{number}"}} 1\nfake_metric')

    HandWorker().work(rounds=1)

    assert value(registry, "tasks_claimed_total", task="other") == 20
    assert value(registry, "tasks_processed_total", task="other", outcome="released") == 20
    assert b"evil" not in generate_latest(registry)


def test_a_roundabout_path_to_a_task_counts_under_its_own_name(registry: CollectorRegistry) -> None:
    stored = tasks.add.enqueue(1, 2)
    Task.objects.filter(pk=stored.id).update(name="tests.observability.test_metrics.tasks.add")

    HandWorker().work()

    assert value(registry, "tasks_processed_total", task=name_of(tasks.add), outcome="succeeded") == 1


def test_the_number_of_queue_labels_is_bounded(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(prometheus.MOST_QUEUES + 5):
        tasks.add.using(queue_name=f"q{number}").enqueue(1, 2)

    assert value(registry, "tasks_scheduled_total", queue="other") == 5
    labels = {
        sample.labels["queue"]
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "taskq_tasks_scheduled_total"
    }
    assert len(labels) == prometheus.MOST_QUEUES + 1


def test_values_observed_together_count_as_if_observed_one_by_one() -> None:
    from prometheus_client import Histogram

    values = [0.0, 0.001, 0.0011, 0.3, 0.3, 5.0, 4000.0, 1e9]
    together, alone = CollectorRegistry(), CollectorRegistry()
    buckets = prometheus._BUCKETS

    prometheus._observe(Histogram("seconds", "text", registry=together, buckets=buckets), values)
    one = Histogram("seconds", "text", registry=alone, buckets=buckets)
    for value in values:
        one.observe(value)

    def told(registry: CollectorRegistry) -> list[str]:
        return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]

    assert told(together) == told(alone)


def scrape() -> str:
    registry = CollectorRegistry()
    registry.register(prometheus.Gauges())
    return generate_latest(registry).decode()


def test_depths_come_from_a_fresh_snapshot() -> None:
    queue_store.remember("default", ["email"])
    Snapshot.objects.create(queue="email", at=clock.now(), ready=7, scheduled=3, dead=2)

    text = scrape()

    assert 'taskq_queue_depth{queue="email"} 7.0' in text
    assert 'taskq_queue_tasks{queue="email",state="scheduled"} 3.0' in text
    assert 'taskq_queue_tasks{queue="email",state="dead"} 2.0' in text
    assert 'taskq_database_up{database="default"} 1.0' in text


def test_depths_are_counted_where_no_worker_keeps_the_snapshot_fresh() -> None:
    """A queue that fills up while every worker is down is the one an alert is for."""
    queue_store.remember("default", ["default"])
    Snapshot.objects.create(queue="default", at=clock.now() - timedelta(hours=1), ready=700)
    tasks.add.enqueue(1, 2)

    text = scrape()

    assert 'taskq_queue_depth{queue="default"} 1.0' in text
    assert 'taskq_snapshot_age_seconds{queue="default"} 0.0' in text
    assert 'taskq_workers_alive{database="default"} 0.0' in text


def test_a_paused_queue_shows() -> None:
    control.pause("email", actor="ana")

    assert 'taskq_queue_paused{queue="email"} 1.0' in scrape()


def test_limits_of_everything_of_queues_and_of_tasks_show_and_those_of_keys_do_not() -> None:
    set_limit("all", rate="0/m")
    Limit.objects.create(key="2c:task:shop.send", amount=4, held=3, waits=True)
    Limit.objects.create(key="2c:smtp:7", amount=4, held=3)
    Task.objects.create(state=5, parked_on="2c:task:shop.send", created_at=clock.now())

    text = scrape()

    assert 'taskq_limit_amount{kind="rate",limit="all"} 0.0' in text
    assert 'taskq_limit_amount{kind="concurrency",limit="task:shop.send"} 4.0' in text
    assert 'taskq_limit_held{limit="task:shop.send"} 3.0' in text
    assert 'taskq_limit_parked{kind="concurrency",limit="task:shop.send"} 1.0' in text
    assert "smtp" not in text


def test_more_queues_than_the_bound_are_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "MOST_QUEUES", 2)
    Queue.objects.bulk_create([Queue(name=name) for name in "abcd"])
    Snapshot.objects.bulk_create([Snapshot(queue=name, at=clock.now(), ready=5) for name in "abcd"])

    text = scrape()

    assert 'taskq_queue_depth{queue="other"} 10.0' in text
    assert 'queue="c"' not in text


def test_a_scrape_takes_few_queries_and_leaves_a_closed_connection_closed(django_assert_max_num_queries) -> None:
    Queue.objects.bulk_create([Queue(name=f"q{number}") for number in range(50)])
    Snapshot.objects.bulk_create([Snapshot(queue=f"q{number}", at=clock.now()) for number in range(50)])
    with django_assert_max_num_queries(7):
        scrape()

    connection.close()
    scrape()

    assert connection.connection is None


def test_a_database_that_does_not_answer_fails_no_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import OperationalError

    def refuse(*args: object, **kwargs: object) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(prometheus.snapshot, "queues", refuse)

    text = scrape()

    assert 'taskq_database_up{database="default"} 0.0' in text
    assert "taskq_queue_depth{" not in text


def test_in_flight_returns_to_zero() -> None:
    """S2-12. The gauge is read off the worker itself, so no missed event can leave it wrong."""
    from django_taskq.worker.loop import Plan, Worker

    for number in range(20):
        tasks.add.enqueue(number, 1)
    worker = Worker(Plan(worker=conf.WorkerOptions(threads=2), burst=True))

    worker.start()
    worker.join(60)

    assert worker.finished == 20
    assert worker.in_flight == 0
    assert worker.running_by_queue() == {}


def test_a_live_worker_shows_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        in_flight = 3

        def running_by_queue(self) -> dict[str, int]:
            return {"email": 2}

    monkeypatch.setattr(prometheus, "workers_here", lambda: [Busy()])

    text = scrape()

    assert "taskq_tasks_in_flight 3.0" in text
    assert 'taskq_tasks_running{queue="email"} 2.0' in text


@pytest.mark.parametrize(
    ("setting", "with_django_prometheus", "expected"),
    [(True, False, True), (False, True, False), (None, True, True), (None, False, False)],
)
def test_metrics_are_on_where_asked_for_or_where_django_prometheus_is(
    monkeypatch: pytest.MonkeyPatch, setting: bool | None, with_django_prometheus: bool, expected: bool
) -> None:
    # Changing INSTALLED_APPS itself would run every app's ready() again.
    monkeypatch.setattr(conf, "installed", lambda app: with_django_prometheus and app == "django_prometheus")

    with override_settings(TASKQ={"METRICS": setting}):
        assert metrics.is_on() is expected
        assert (metrics.render() is not None) is expected


def test_nothing_is_imported_while_metrics_are_off() -> None:
    found = run_django({"TASKQ": {}}, "import sys; print('prometheus_client' in sys.modules)")

    assert found == "False"


def test_the_default_registry_carries_the_metrics_when_on() -> None:
    found = run_django(
        {"TASKQ": {"METRICS": True}},
        "from prometheus_client import REGISTRY; "
        "print('taskq_tasks_completed' in {m.name for m in REGISTRY.collect()})",
    )

    assert found == "True"


def run_django(settings: dict[str, object], code: str) -> str:
    """Run code in a process of its own, in which apps are loaded with these settings and no server is near."""
    setup = (
        "import django; from django.conf import settings as s; s.configure("
        "INSTALLED_APPS=['django.contrib.contenttypes', 'django_taskq'], USE_TZ=True, "
        "DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}, "
        f"**{settings!r}); django.setup(); "
    )
    done = subprocess.run(
        [sys.executable, "-c", setup + code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture
def no_logs() -> Generator[None]:
    """Let no handler hear anything: pytest's own listen to every level."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("no_logs")
def test_counting_takes_no_event_per_task(monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry) -> None:
    kinds: list[type[events.Event]] = []
    emit = events.emit
    monkeypatch.setattr(events, "emit", lambda event: (kinds.append(type(event)), emit(event)))
    tasks.add.enqueue_many([(1, 2)] * 50)

    HandWorker().work()

    assert value(registry, "tasks_completed_total", queue="default") == 50
    assert kinds == [events.TasksStored, events.TasksClaimed, events.AttemptsSettled]
