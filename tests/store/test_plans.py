"""
The hot statements use the index meant for them, with 200,000 rows behind.

Each statement is caught as the product sends it, and explained with its own values. A plan may not read
a whole table, and may not sort what an index has in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction

from django_taskq import clock
from django_taskq.domain.lease import make_lease, span_of
from django_taskq.domain.states import State
from django_taskq.lifecycle import rescue
from django_taskq.models import Attempt, FinishedTask, Task
from django_taskq.ops.finished import finished_since
from django_taskq.store import depths, limits, workers
from django_taskq.store.rows import Again, Ending
from django_taskq.store.vendors import vendor_for
from tests import databases

ROWS = 200_000
QUEUES = 10
RUNNING = 500
# Ready tasks of a queue with fair keys: nearly all of one tenant, some of many others, and behind them some of none.
BACKLOG, TENANTS, UNKEYED = 50_000, 40, 200

TASK = Task._meta.db_table
FINISHED = FinishedTask._meta.db_table


# Filling: one statement per table, so that it takes seconds

_SEQUENCE = {
    "postgresql": "SELECT g AS n FROM generate_series(1, {count}) g",
    "mysql": "SELECT seq AS n FROM seq_1_to_{count}",
    "sqlite": "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count}) SELECT n FROM s",
}
# Ids that ascend with n, as client-made ones do, and lie before any made from now on.
_ID = {
    "postgresql": "('01800000-0000-7000-8000-' || lpad(to_hex({base} + n), 12, '0'))::uuid",
    "mysql": "UNHEX(CONCAT('01800000000070008000', LPAD(HEX({base} + n), 12, '0')))",
    "sqlite": "'01800000000070008000' || printf('%%012x', {base} + n)",
}
_MOMENT = {
    "postgresql": "%s::timestamptz + n * interval '1 second'",
    "mysql": "TIMESTAMPADD(SECOND, n, %s)",
    "sqlite": "strftime('%%Y-%%m-%%d %%H:%%M:%%S', %s, '+' || n || ' seconds')",
}


def _fill(table: str, count: int, base: int, columns: dict[str, str], moments: dict[str, datetime]) -> None:
    vendor = connection.vendor
    quote = connection.ops.quote_name
    false = "false" if vendor == "postgresql" else "0"
    shared = {
        "id": _ID[vendor].format(base=base),
        "attempt": "0",
        "max_attempts": "3",
        "ack": "0",
        "name": "'tests.plan'",
        "args": '\'{"args":[],"kwargs":{}}\'',
        "replays": "0",
        **({"cancel": false} if table == TASK else {}),
        **columns,
        **dict.fromkeys(moments, _MOMENT[vendor]),
    }
    names = ", ".join(map(quote, shared))
    values = [connection.ops.adapt_datetimefield_value(moment) for moment in moments.values()]
    sequence = _SEQUENCE[vendor].format(count=count)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {quote(table)} ({names}) SELECT {', '.join(shared.values())} FROM ({sequence}) s", values
        )


def _analyze() -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute(f"ANALYZE TABLE {TASK}, {FINISHED}")
            cursor.fetchall()
        else:
            cursor.execute("ANALYZE")


def _queue_of_n() -> str:
    return {
        "postgresql": f"'q' || (n %% {QUEUES})",
        "mysql": f"CONCAT('q', n MOD {QUEUES})",
        "sqlite": f"'q' || (n %% {QUEUES})",
    }[connection.vendor]


def _fill_live() -> None:
    now = clock.now()
    long_ago = now - timedelta(days=30)
    common = {"queue": _queue_of_n(), "rank": "n %% 7"}
    lease = {"postgresql": "({}::bigint << 32) | n", "mysql": "({} << 32) | n", "sqlite": "({} << 32) | n"}
    rank = {**common, "queue": common["queue"]}
    _fill(TASK, ROWS, 0, {**rank, "state": str(int(State.READY)), "lease": "NULL"}, {"created_at": long_ago})
    _fill(
        TASK,
        ROWS // 2,
        10_000_000,
        {**rank, "state": str(int(State.SCHEDULED)), "lease": "NULL"},
        {"created_at": long_ago, "run_after": now + timedelta(hours=1)},
    )
    _fill(
        TASK,
        RUNNING,
        20_000_000,
        {**rank, "attempt": "1", "state": str(int(State.RUNNING)), "lease": lease[connection.vendor].format(7)},
        {"created_at": long_ago, "started_at": long_ago},
    )


def _fill_fair() -> None:
    ready = {"queue": "'fair'", "rank": "0", "state": str(int(State.READY)), "lease": "NULL"}
    moment = {"created_at": clock.now() - timedelta(days=30)}
    key = f"CONCAT('t', n MOD {TENANTS})" if connection.vendor == "mysql" else f"'t' || (n %% {TENANTS})"
    _fill(TASK, BACKLOG, 50_000_000, {**ready, "fair_key": "'big'"}, moment)
    _fill(TASK, TENANTS * 20, 51_000_000, {**ready, "fair_key": key}, moment)
    _fill(TASK, UNKEYED, 52_000_000, {**ready, "fair_key": "NULL"}, moment)


def _fill_finished() -> None:
    now = clock.now()
    common = {"queue": _queue_of_n(), "rank": "0"}
    _fill(
        FINISHED,
        ROWS,
        30_000_000,
        {**common, "state": str(int(State.SUCCEEDED))},
        {"created_at": now - timedelta(days=30), "finished_at": now - timedelta(days=3)},
    )
    # Dead letters are kept for ever and are older than everything that pruning looks for.
    _fill(
        FINISHED,
        ROWS // 4,
        40_000_000,
        {**common, "state": str(int(State.DEAD)), "reason": "'exhausted'", "fingerprint": "'0123456789abcdef'"},
        {"created_at": now - timedelta(days=90), "finished_at": now - timedelta(days=60)},
    )


def _empty() -> None:
    for model in (Attempt, Task, FinishedTask):
        with connection.cursor() as cursor:
            table = connection.ops.quote_name(model._meta.db_table)
            cursor.execute(f"DELETE FROM {table}" if connection.vendor == "sqlite" else f"TRUNCATE TABLE {table}")


@pytest.fixture(scope="module")
def _statistics_of_nothing(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Fill the tables after the planner has been told that they are empty: the worst it can believe."""
    with django_db_blocker.unblock():
        _empty()
        _analyze()
        _fill_live()
        _fill_fair()
        _fill_finished()
        yield
        _empty()
        _analyze()


class Explainer:
    """Runs a piece of the product and explains each statement it sends."""

    def __init__(self) -> None:
        self.statements: list[tuple[str, Any]] = []

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        self.statements.append((sql, params))
        return execute(sql, params, many, context)

    def plans(self, work: Callable[[], Any]) -> list[str]:
        """Return the plan of each statement that reads or writes the two tables, then undo the work."""
        with transaction.atomic():
            sid = connection.savepoint()
            with connection.execute_wrapper(self):
                work()
            connection.savepoint_rollback(sid)
            found = [self._plan(sql, params) for sql, params in self.statements if _is_explained(sql)]
            transaction.set_rollback(True)
        assert found, "the work sent no statement to explain"
        return found

    def _plan(self, sql: str, params: Any) -> str:
        with connection.cursor() as cursor:
            match connection.vendor:
                case "postgresql":
                    cursor.execute(f"EXPLAIN {sql}", params)
                    return "\n".join(line for (line,) in cursor.fetchall())
                case "mysql":
                    cursor.execute(f"EXPLAIN {sql}", params)
                    names = [column[0] for column in cursor.description]
                    rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
                    return "\n".join(json.dumps({**row, "possible_keys": None}, default=str) for row in rows)
                case _:
                    cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
                    return "\n".join(row[3] for row in cursor.fetchall())


def _is_explained(sql: str) -> bool:
    verb = sql.lstrip(" \n(").split(None, 1)[0].upper()
    return verb in {"SELECT", "UPDATE", "DELETE", "WITH", "INSERT"} and (TASK in sql or FINISHED in sql)


def _faults(plan: str) -> list[str]:
    """Return what is wrong with a plan, whatever the statement."""
    match connection.vendor:
        case "postgresql":
            bad = re.findall(rf"Seq Scan on (?:{TASK}|{FINISHED})\b.*|.*\bSort\b.*", plan)
        case "mysql":
            bad = []
            for line in plan.splitlines():
                row = json.loads(line)
                about = str(row.get("table"))
                if about in {TASK, FINISHED, "t"} and row.get("type") in {"ALL", "index"} and not row.get("key"):
                    bad.append(line)
                if re.search(r"filesort|temporary", str(row.get("Extra"))):
                    bad.append(line)
        case _:
            bad = re.findall(rf"^SCAN (?:{TASK}|{FINISHED}|t)(?! USING)\b.*|.*TEMP B-TREE.*", plan, re.MULTILINE)
    return bad


def check(plans: list[str], *, uses: str, but: tuple[str, ...] = ()) -> None:
    """Assert that the named index is used, and that nothing is read whole or sorted (but what ``but`` allows)."""
    text = "\n\n".join(plans)
    assert re.search(_index(uses), text), f"{uses} is not used:\n{text}"
    faults = [fault for plan in plans for fault in _faults(plan) if not any(word in fault for word in but)]
    assert not faults, f"{faults}\n\n{text}"


def _index(name: str) -> str:
    if name != "primary":
        return name
    return {
        "postgresql": rf"{TASK}_pkey|{FINISHED}_pkey",
        "mysql": "PRIMARY",
        "sqlite": rf"sqlite_autoindex_({TASK}|{FINISHED})_1",
    }[connection.vendor]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.django_db,
    pytest.mark.timeout(120),
]

CLAIM = "taskq_task_claim"
DUE = "taskq_task_due"
LEASED = "taskq_task_lease"
PARKED = "taskq_task_parked"
FAIR = "taskq_task_fair"
# MariaDB and MySQL answer the smallest of a range from the end of the index, and do not name it.
JUMPS = f"{FAIR}|Select tables optimized away"


@pytest.fixture(scope="module")
def stale(_statistics_of_nothing: None) -> None:
    """The planner still believes in empty tables. Tests that ask for this stand first in the file."""


@pytest.fixture(scope="module")
def fresh(_statistics_of_nothing: None, django_db_blocker: Any) -> None:
    """The planner knows what is in the tables."""
    with django_db_blocker.unblock():
        _analyze()


@pytest.fixture
def vendor() -> Any:
    return vendor_for("default")


@pytest.fixture
def plans() -> Callable[[Callable[[], Any]], list[str]]:
    return lambda work: Explainer().plans(work)


def _due_soon() -> None:
    """Let an hour's worth of scheduled tasks be due in an hour and a half."""
    assert Task.objects.filter(state=State.SCHEDULED, run_after__lt=clock.now() + timedelta(minutes=90)).exists()


def _held(count: int) -> list[tuple[Any, int]]:
    vendor = vendor_for("default")
    rows = Task.objects.filter(lease__isnull=False).order_by("lease").values_list("id", "lease")[:count]
    return [(vendor.key_of(key), lease) for key, lease in rows]


def _endings(count: int, **changes: Any) -> list[Ending]:
    now = clock.timestamp()
    values = {"state": int(State.SUCCEEDED), "attempt_back": 0, "started": now, "finished": now, "result": None}
    values |= {"reason": None, "error_class": None, "error_line": None, "fingerprint": None, "keep": None}
    return [Ending(**{"key": key, "lease": lease, **values, **changes}) for key, lease in _held(count)]


def _claim(vendor: Any, queue: str, after: Any = None) -> Callable[[], Any]:
    return lambda: vendor.claim(queue, 100, lease=make_lease(9, 1), now=clock.now(), after=after)


def _thousandth(vendor: Any) -> tuple[int, Any]:
    found = Task.objects.filter(queue="q3", state=State.READY).order_by("rank", "id").values_list("rank", "id")
    rank, key = found[1000]
    return rank, vendor.key_of(key)


@pytest.mark.usefixtures("stale")
def test_statistics_of_an_empty_table_do_not_spoil_the_claim(vendor: Any, plans: Any) -> None:
    check(plans(_claim(vendor, "q3")), uses=CLAIM)
    check(plans(_claim(vendor, "q3", _thousandth(vendor))), uses=CLAIM)
    check(plans(_claim(vendor, "nothing here")), uses=CLAIM)


@pytest.mark.usefixtures("stale")
def test_statistics_of_an_empty_table_do_not_spoil_the_settlement(vendor: Any, plans: Any) -> None:
    check(plans(lambda: vendor.finish(_endings(100))), uses="primary")


@pytest.mark.usefixtures("fresh")
class TestClaim:
    def test_a_claim_reads_its_index_in_order(self, vendor: Any, plans: Any) -> None:
        check(plans(_claim(vendor, "q3")), uses=CLAIM)

    def test_a_resumed_claim_reads_its_index_in_order(self, vendor: Any, plans: Any) -> None:
        check(plans(_claim(vendor, "q3", _thousandth(vendor))), uses=CLAIM)

    def test_a_claim_from_an_empty_queue_reads_its_index(self, vendor: Any, plans: Any) -> None:
        check(plans(_claim(vendor, "nothing here")), uses=CLAIM)


def _shares(count: int) -> list[tuple[str, int]]:
    return [("big", 5), *((f"t{at}", 5) for at in range(count - 1))]


def _fair_claim(vendor: Any, **changes: Any) -> Callable[[], Any]:
    given = {"lease": make_lease(9, 1), "now": clock.now(), **changes}
    return lambda: vendor.claim_fair("fair", _shares(20), **given)


def _unkeyed_claim(vendor: Any, size: int) -> Callable[[], Any]:
    after = first = None
    while first is None:
        first, after = vendor.unkeyed("fair", after=after, size=size)
    given = {"lease": make_lease(9, 1), "now": clock.now()}
    return lambda: vendor.claim_between("fair", 50, first=first, last=after, **given)


@pytest.mark.usefixtures("stale")
def test_statistics_of_an_empty_table_do_not_spoil_the_fair_claim(vendor: Any, plans: Any) -> None:
    check(plans(_fair_claim(vendor)), uses=FAIR)
    check(plans(lambda: vendor.fair_keys("fair", after="", limit=100)), uses=JUMPS)
    check(plans(lambda: vendor.fair_queues(["fair", "q3"])), uses=FAIR)


@pytest.mark.usefixtures("fresh")
class TestFairClaim:
    def test_a_fair_claim_reads_each_key_in_order_of_the_index(self, vendor: Any, plans: Any) -> None:
        check(plans(_fair_claim(vendor)), uses=FAIR)
        check(plans(_fair_claim(vendor, limited=True, slots="queue:fair")), uses=FAIR)

    def test_keys_are_found_by_jumps(self, vendor: Any, plans: Any) -> None:
        check(plans(lambda: vendor.fair_keys("fair", after="", limit=100)), uses=JUMPS)

    def test_whether_queues_have_keys_is_one_look_into_the_index_each(self, vendor: Any, plans: Any) -> None:
        check(plans(lambda: vendor.fair_queues(["fair", "q3", "nothing here"])), uses=FAIR)

    def test_tasks_without_a_key_are_looked_for_in_a_part_of_the_queue(self, vendor: Any, plans: Any) -> None:
        found = plans(lambda: vendor.unkeyed("fair", after=None, size=1000))

        # What is sorted is the part that was read.
        check(found, uses=f"{CLAIM}|{FAIR}", but=("Sort", "TEMP B-TREE", "SCAN w"))

    def test_tasks_without_a_key_are_claimed_in_order_of_an_index(self, vendor: Any, plans: Any) -> None:
        check(plans(_unkeyed_claim(vendor, 10_000)), uses=f"{CLAIM}|{FAIR}")


@pytest.mark.usefixtures("fresh")
class TestLimits:
    def test_a_claim_with_limits_reads_the_same_index_in_order(self, vendor: Any, plans: Any) -> None:
        def work() -> None:
            vendor.claim("q3", 100, lease=make_lease(9, 1), now=clock.now(), limited=True, slots="1c:queue:q3")

        check(plans(work), uses=CLAIM)

    def test_parked_tasks_are_found_by_their_key(self, vendor: Any, plans: Any) -> None:
        def work() -> None:
            vendor.unpark([("2c:one", 10), ("2c:two", 5)])

        check(plans(work), uses=PARKED)

    def test_the_keys_that_tasks_are_parked_on_are_found_without_reading_each_task(self, plans: Any) -> None:
        check(plans(lambda: limits.parked_keys("default")), uses=PARKED)

    def test_a_slot_is_counted_among_the_running_tasks_only(self, plans: Any) -> None:
        check(plans(lambda: limits.held_by_key("default", ["2c:one"])), uses=LEASED)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", ["plain", "with everything", "not kept"])
def test_a_settlement_finds_its_rows_by_key(vendor: Any, plans: Any, kind: str) -> None:
    changes = {"plain": {}, "with everything": {"result": "1", "reason": "x", "keep": 5.0}, "not kept": {"keep": 0}}
    endings = _endings(100, **changes[kind])

    found = plans(lambda: vendor.finish(endings))

    # Not the lease index: compared with each other's leases, 100 rows become 10,000 comparisons.
    check(found, uses="primary")
    assert LEASED not in "".join(found)


@pytest.mark.usefixtures("fresh")
def test_putting_back_finds_its_rows_by_key(vendor: Any, plans: Any) -> None:
    rows = [Again(key, lease, int(State.READY), 1, None, None) for key, lease in _held(100)]

    found = plans(lambda: vendor.put_back(rows))

    check(found, uses="primary")
    assert LEASED not in "".join(found)


@pytest.mark.usefixtures("fresh")
def test_promotion_reads_what_is_due_and_nothing_else(vendor: Any, plans: Any) -> None:
    _due_soon()

    found = plans(lambda: vendor.promote(clock.now() + timedelta(minutes=90), 1000))

    check(found, uses=DUE)


@pytest.mark.usefixtures("fresh")
def test_nothing_due_costs_one_look_into_the_index(vendor: Any, plans: Any) -> None:
    check(plans(lambda: vendor.promote(clock.now(), 1000)), uses=DUE)
    check(plans(vendor.next_due), uses=DUE)


@pytest.mark.usefixtures("fresh")
def test_the_queues_with_ready_tasks_are_found_by_jumps(vendor: Any, plans: Any) -> None:
    check(plans(vendor.ready_queues), uses=CLAIM)


@pytest.mark.usefixtures("fresh")
def test_pruning_reads_by_age(vendor: Any, plans: Any) -> None:
    before = clock.now() - timedelta(days=2)

    found = plans(lambda: vendor.prune(State.SUCCEEDED, before=before, limit=500))

    check(found, uses="taskq_finished_at")


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("since", ["the beginning", "a moment", "a cursor"])
def test_what_finished_is_read_in_order_from_where_a_client_was(plans: Any, since: str) -> None:
    moment = clock.now() - timedelta(days=2)
    begin = None if since == "the beginning" else moment
    if since == "a cursor":
        begin = finished_since("default", moment, limit=10, lag=5).cursor

    found = plans(lambda: finished_since("default", begin, limit=500, lag=5))

    # Only rows of one moment are sorted, by their ids: those of the client's, and then of each that follows.
    same, later = found[-2:]
    check([same], uses="taskq_finished_at", but=("Sort", "TEMP B-TREE"))
    assert re.search(r"finished_at ?= ?['?]|\"type\": \"(ref|range)\"", same), same
    check(
        [later],
        uses="taskq_finished_at",
        but=("Incremental Sort", "Sort Key: finished_at, id", "RIGHT PART", "LAST TERM"),
    )


@pytest.mark.usefixtures("fresh")
def test_pruning_what_has_its_own_time_reads_by_that_time(vendor: Any, plans: Any) -> None:
    found = plans(lambda: vendor.prune_marked(clock.now(), 500))

    check(found, uses="taskq_finished_delete_at")


@pytest.mark.usefixtures("fresh")
def test_a_rescue_finds_a_workers_tasks_by_their_leases(plans: Any) -> None:
    assert Task.objects.filter(lease__gte=span_of(7)[0]).count() == RUNNING

    found = plans(lambda: rescue.rescue("default", now=clock.now()))

    check(found, uses=LEASED)


@pytest.mark.usefixtures("fresh")
def test_cancel_requests_are_found_by_lease(plans: Any) -> None:
    check(plans(lambda: workers.cancel_requests("default", 7)), uses=LEASED)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("state", [State.READY, State.RUNNING])
def test_the_depth_of_a_queue_is_counted_in_an_index(vendor: Any, plans: Any, state: State) -> None:
    found = plans(lambda: vendor.depth("q3", state, cap=10_000))

    # Few tasks run at a time, so there either index will do where both hold them.
    check(found, uses=f"{CLAIM}|{LEASED}" if state == State.RUNNING else CLAIM)


@pytest.mark.usefixtures("fresh")
def test_depths_of_all_queues_read_no_table(plans: Any) -> None:
    check(plans(lambda: depths.scheduled_by_queue("default", cap=1000)), uses=DUE)
    check(plans(lambda: depths.running_by_queue("default")), uses=LEASED, but=("Sort", "temporary", "TEMP B-TREE"))
    check(plans(lambda: depths.dead_by_queue("default", cap=1000)), uses="taskq_finished_open|taskq_finished_at")


@pytest.mark.usefixtures("fresh")
def test_the_oldest_ready_task_is_the_first_of_its_index(plans: Any) -> None:
    check(plans(lambda: depths.oldest_ready("default", "q3")), uses=CLAIM)


@pytest.mark.usefixtures("fresh")
def test_a_task_is_found_by_its_id(plans: Any) -> None:
    live, ended = (
        Task.objects.values_list("pk", flat=True)[0],
        list(FinishedTask.objects.values_list("pk", flat=True)[:2]),
    )

    check(plans(lambda: list(Task.objects.filter(pk=str(live)))), uses="primary")
    check(plans(lambda: FinishedTask.objects.in_bulk(list(map(str, ended)))), uses="primary")


@pytest.mark.usefixtures("fresh")
def test_a_statement_without_its_index_is_found_out(plans: Any) -> None:
    """The checks above can fail: a search that no index serves is called what it is."""
    found = plans(lambda: list(Task.objects.filter(name="no such task").order_by("created_at")))

    assert _faults(found[0])


@pytest.mark.usefixtures("fresh")
def test_the_database_is_the_one_under_test() -> None:
    assert connection.vendor == databases.vendor()
    assert Task.objects.count() >= ROWS + ROWS // 2 + RUNNING


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("lock", [None, "share", "update"])
def test_who_holds_unique_keys_is_found_by_the_keys(vendor: Any, plans: Any, lock: Any) -> None:
    found = plans(lambda: vendor.holders(["tests.plan:1", "tests.plan:2", "tests.plan:3"], lock=lock))

    # A few rows may be sorted.
    check(found, uses="taskq_task_unique", but=("Sort", "TEMP B-TREE", "filesort"))


@pytest.mark.usefixtures("fresh")
def test_a_claim_reads_its_index_in_order_also_where_tasks_hold_keys(vendor: Any, plans: Any) -> None:
    key = Task.objects.filter(queue="q3", state=State.READY).order_by("rank", "id").values_list("pk", flat=True)[0]
    Task.objects.filter(pk=key).update(unique_key="~tests.plan:1")

    check(plans(_claim(vendor, "q3")), uses=CLAIM)
