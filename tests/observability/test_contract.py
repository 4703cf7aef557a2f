"""The signals of ``django.tasks``: sent with the right result, and only built where somebody hears them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from typing import Any

import pytest
from django.test import override_settings
from django.utils.log import RequireDebugFalse, RequireDebugTrue

from django_taskq import clock, events
from django_taskq.backend import DatabaseBackend
from django_taskq.compat import primary
from django_taskq.lifecycle import control, rescue, results
from django_taskq.observability.contract import would_be_written
from tests.by_hand import HandWorker
from tests.observability import tasks

pytestmark = pytest.mark.django_db(transaction=True)

NAMES = ("task_enqueued", "task_started", "task_finished")


@pytest.fixture
def heard() -> Generator[list[tuple[str, Any, Any, Any]]]:
    """What each signal said: its name, sender, status at that moment, and the exception at hand."""
    found: list[tuple[str, Any, Any, Any]] = []
    receivers = {}
    for name in NAMES:

        def receive(sender: type, task_result: Any, _name: str = name, **kwargs: object) -> None:
            found.append((_name, sender, task_result, sys.exc_info()[1]))

        receivers[name] = receive
        getattr(primary.signals, name).connect(receive)
    yield found
    for name, receive in receivers.items():
        getattr(primary.signals, name).disconnect(receive)


def test_a_success_sends_the_three_signals_with_its_result(heard: list[Any]) -> None:
    enqueued = tasks.add.enqueue(1, 2)

    HandWorker().work()

    assert [(name, result.status.name) for name, _, result, _ in heard] == [
        ("task_enqueued", "READY"),
        ("task_started", "RUNNING"),
        ("task_finished", "SUCCESSFUL"),
    ]
    assert {sender for _, sender, _, _ in heard} == {DatabaseBackend}
    assert {result.id for _, _, result, _ in heard} == {enqueued.id}
    finished = heard[-1][2]
    assert (finished.return_value, finished.args, finished.kwargs) == (3, [1, 2], {})
    assert finished.enqueued_at <= finished.started_at <= finished.finished_at
    assert len(finished.worker_ids) == 1
    assert heard[-1][3] is None


def test_each_attempt_starts_and_the_task_finishes_once(heard: list[Any]) -> None:
    tasks.fail_until.enqueue(3)

    HandWorker().work()

    assert [name for name, *_ in heard] == ["task_enqueued", *["task_started"] * 3, "task_finished"]
    assert len(heard[-1][2].errors) == 2
    assert heard[-1][2].attempts == 3


def test_a_failure_is_told_with_its_exception_at_hand(heard: list[Any]) -> None:
    tasks.always_fail.enqueue("why")

    HandWorker().work()

    name, _, result, error = heard[-1]
    assert (name, result.status.name) == ("task_finished", "FAILED")
    assert isinstance(error, ZeroDivisionError)
    assert [item.exception_class_path for item in result.errors] == ["builtins.ZeroDivisionError"] * 2
    # The frames are those of the task, not those of whoever told.
    frames: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert frames[-1] == "always_fail"
    assert "_finish" not in frames


def test_a_waiting_task_that_is_cancelled_or_killed_finishes_as_failed(heard: list[Any]) -> None:
    cancelled, killed = tasks.add.enqueue(1, 2), tasks.add.enqueue(1, 2)

    control.cancel(cancelled.id)
    control.kill(killed.id)

    finished = [(result.id, result.status.name) for name, _, result, _ in heard if name == "task_finished"]
    assert finished == [(cancelled.id, "FAILED"), (killed.id, "FAILED")]


def test_a_task_whose_worker_was_lost_for_good_finishes_without_an_exception(heard: list[Any]) -> None:
    tasks.add.using(max_attempts=1).enqueue(1, 2)
    lost = HandWorker()
    lost.claim()
    lost.fall_silent()

    rescue.rescue("default", now=clock.now())

    name, _, result, error = heard[-1]
    assert (name, result.status.name, error) == ("task_finished", "FAILED", None)
    assert result.errors[-1].exception_class_path == "django_taskq.exceptions.WorkerLost"


def test_a_receiver_that_fails_keeps_no_other_from_hearing(heard: list[Any]) -> None:
    def fail(**kwargs: object) -> None:
        raise RuntimeError("receiver is broken")

    receivers = primary.signals.task_finished.receivers
    primary.signals.task_finished.connect(fail)
    # First in line, so that the others come after it.
    receivers.insert(0, receivers.pop())
    primary.signals.task_finished.sender_receivers_cache.clear()
    try:
        tasks.add.enqueue(1, 2)
        HandWorker().work()
    finally:
        primary.signals.task_finished.disconnect(fail)

    assert [name for name, *_ in heard] == list(NAMES)


def test_a_receiver_is_heard_from_the_moment_it_is_connected() -> None:
    """Whether anybody listens must not be remembered from before."""
    found: list[str] = []
    tasks.add.enqueue(1, 2)
    HandWorker().work()

    def receive(task_result: Any, **kwargs: object) -> None:
        found.append(task_result.id)

    primary.signals.task_finished.connect(receive)
    result = tasks.add.enqueue(1, 2)
    HandWorker().work()
    primary.signals.task_finished.disconnect(receive)

    assert found == [result.id]


# Django's own receivers, which write a log


def test_djangos_log_is_written_at_its_levels(caplog: pytest.LogCaptureFixture) -> None:
    name = primary.name
    caplog.set_level(logging.DEBUG, name)
    good, bad = tasks.add.enqueue(1, 2), tasks.always_fail.using(max_attempts=1).enqueue()

    HandWorker().work()

    told = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == name]
    assert [level for level, text in told if good.id in text] == ["DEBUG", "INFO", "INFO"]
    assert [level for level, text in told if bad.id in text] == ["DEBUG", "INFO", "ERROR"]
    error = next(record for record in caplog.records if record.name == name and record.levelname == "ERROR")
    assert error.exc_info is not None
    assert error.exc_info[0] is ZeroDivisionError


def test_nothing_is_built_where_no_handler_would_write_it(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []
    monkeypatch.setattr(results, "result_of_claim", lambda *args, **kwargs: built.append(args))
    logging.disable(logging.CRITICAL)
    try:
        tasks.add.enqueue(1, 2)
        HandWorker().work()
        was_wanted = events.wanted(events.TaskSucceeded)
    finally:
        logging.disable(logging.NOTSET)

    assert built == []
    assert was_wanted is False


# The short cut: whether a record would be written


@pytest.fixture
def family() -> Generator[tuple[logging.Logger, logging.Logger]]:
    """A logger and its parent."""
    parent, child = logging.getLogger("tests_shortcut"), logging.getLogger("tests_shortcut.child")
    parent.setLevel(logging.DEBUG)
    yield parent, child
    for logger in (parent, child):
        logger.handlers.clear()
        logger.filters.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        logger.disabled = False


def cut_off(family: tuple[logging.Logger, logging.Logger]) -> tuple[logging.Logger, logging.Logger]:
    """Cut the two off from the root, which pytest listens on. In the test: before, pytest would listen here, too."""
    family[0].propagate = False
    return family


class Kept(logging.Handler):
    """Keeps what it is given."""

    def __init__(self, level: int = logging.NOTSET, *filters: Any) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []
        for item in filters:
            self.addFilter(item)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.ERROR])
@pytest.mark.parametrize("handler_level", [logging.NOTSET, logging.INFO, logging.ERROR])
@pytest.mark.parametrize("kind", [None, RequireDebugTrue, RequireDebugFalse])
@pytest.mark.parametrize("on_parent", [True, False])
def test_the_short_cut_says_what_logging_does(
    family: tuple[logging.Logger, logging.Logger],
    debug: bool,
    level: int,
    handler_level: int,
    kind: type[logging.Filter] | None,
    on_parent: bool,
) -> None:
    parent, child = cut_off(family)
    handler = Kept(handler_level, *([kind()] if kind else []))
    (parent if on_parent else child).addHandler(handler)

    with override_settings(DEBUG=debug):
        said = would_be_written(child, level)
        child.log(level, "record")

    assert said is bool(handler.records)


def test_the_short_cut_knows_switched_off_loggers(family: tuple[logging.Logger, logging.Logger]) -> None:
    parent, child = cut_off(family)
    parent.addHandler(Kept())

    before = would_be_written(child, logging.ERROR)
    child.disabled = True
    disabled = would_be_written(child, logging.ERROR)
    child.disabled, child.propagate = False, False
    child.addHandler(logging.NullHandler())
    by_itself = would_be_written(child, logging.ERROR)

    assert (before, disabled, by_itself) == (True, False, False)


def test_the_short_cut_knows_the_last_resort(family: tuple[logging.Logger, logging.Logger]) -> None:
    """Without any handler Python writes warnings to stderr."""
    _, child = cut_off(family)

    assert would_be_written(child, logging.INFO) is False
    assert would_be_written(child, logging.WARNING) is True


def test_a_filter_that_nobody_knows_has_to_see_the_record(family: tuple[logging.Logger, logging.Logger]) -> None:
    class Picky(RequireDebugTrue):
        def filter(self, record: logging.LogRecord) -> bool:
            return True

    parent, child = cut_off(family)
    parent.addHandler(Kept(logging.NOTSET, Picky()))

    with override_settings(DEBUG=False):
        assert would_be_written(child, logging.INFO) is True


def test_root_handlers_count(family: tuple[logging.Logger, logging.Logger]) -> None:
    _, child = family
    handler = Kept(logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        assert would_be_written(child, logging.ERROR) is True
    finally:
        logging.getLogger().removeHandler(handler)
