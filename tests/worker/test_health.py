"""What the health port answers, and to whom it says no."""

import json
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from django.core.management import CommandError, call_command

from django_taskq.worker import health, single
from tests.worker import tasks
from tests.worker.running import eventually, make_worker, running, worker_process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.any_database,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("quick"),
]


def _get(port: int, path: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@contextmanager
def _serving(worker, problem: str = ""):
    report = lambda: [single.status_of(worker)]  # noqa: E731
    with health.serving("127.0.0.1", 0, report, lease_seconds=3, database=lambda: problem) as port:
        yield port


def test_a_running_worker_is_live_and_ready_and_says_what_it_does() -> None:
    with running() as worker, _serving(worker) as port:
        tasks.nothing.enqueue()
        eventually(lambda: worker.finished == 1)

        code, body = _get(port, "/ready")

        assert (code, body["ready"]) == (200, True)
        [told] = body["workers"]
        assert (told["worker_id"], told["state"], told["finished"], told["running"]) == (worker.id, "running", 1, 0)
        assert told["heartbeat_age"] < 3
        assert _get(port, "/live")[0] == 200


def test_a_worker_without_a_fresh_heartbeat_is_live_but_not_ready() -> None:
    with running() as worker, _serving(worker) as port:
        status = {**single.status_of(worker), "heartbeat_age": 4.0}
        assert "longer than its lease" in health.judge(status, lease_seconds=3)[0]
        worker.stop()
        worker.join(20)

        code, body = _get(port, "/ready")

        assert code == 503
        assert body["workers"][0]["problems"] == ["is stopped"]
        assert _get(port, "/live")[0] == 200


def test_a_worker_that_has_not_started_is_not_ready() -> None:
    with _serving(make_worker()) as port:
        assert _get(port, "/ready")[0] == 503


def test_a_database_that_does_not_answer_makes_a_worker_unready() -> None:
    with running() as worker, _serving(worker, "connection refused") as port:
        code, body = _get(port, "/ready")

        assert code == 503
        assert body["problems"] == ["the database does not answer: connection refused"]


def test_an_unknown_page_is_a_404_that_names_the_known_ones() -> None:
    with _serving(make_worker()) as port:
        code, body = _get(port, "/nothing")

        assert code == 404
        assert {"/live", "/ready"} <= set(body["pages"])


def test_metrics_are_served_where_they_are_on(settings) -> None:
    settings.TASKQ = {**settings.TASKQ, "METRICS": True}
    with _serving(make_worker()) as port, urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert b"# TYPE" in answer.read()


def test_metrics_are_a_404_where_they_are_off(settings) -> None:
    settings.TASKQ = {**settings.TASKQ, "METRICS": False}
    with _serving(make_worker()) as port:
        assert _get(port, "/metrics")[0] == 404


def test_a_port_that_is_taken_is_told_before_the_worker_starts() -> None:
    with _serving(make_worker()) as port, pytest.raises(CommandError, match=f"--health-port {port} cannot be used"):
        call_command("runworker", health_port=port)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_worker_process_answers_on_its_health_port(processes: str) -> None:
    with worker_process("--health-port", "0", "--processes", processes) as process:
        line = next(line for line in process.stderr if "Health is told" in line)
        port = int(line.split("/live")[0].rsplit(":", 1)[1])

        eventually(lambda: _get(port, "/ready")[0] == 200, seconds=40)

        assert len(_get(port, "/ready")[1]["workers"]) == int(processes)
        process.terminate()
        assert process.wait(40) == 0
