"""
What every vendor promises, as tests.

    class TestMyVendor(StoreContract, TransactionTestCase):
        def make_vendor(self):
            return MyVendor("default")

The portable base and the three vendors of this package are held to it on their own databases.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections

from django_taskq.domain import payload
from django_taskq.domain.lease import make_lease
from django_taskq.domain.states import State
from django_taskq.ids import task_ids
from django_taskq.models import Attempt, FinishedTask, Progress, Snapshot, Stat, Step, Task
from django_taskq.store import steps as step_store
from django_taskq.store import tasks as task_store
from django_taskq.store.rows import Again, AttemptRow, Claim, Ending, NewTask
from django_taskq.store.vendors.base import STAT_COUNTERS, Vendor

__all__ = ["StoreContract"]

NOW = datetime(2030, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
WHOLE = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
LEASE = make_lease(7, 1)
OTHER = make_lease(8, 1)
# What text may hold: four-byte characters, what COPY and JSON escape, and what looks like a placeholder.
AWKWARD = "caf\u00e9 \U0001f600 \"quoted\" 'single' back\\slash \\N tab\there\nline\rreturn %s %(x)s {a,b} \u2028"


class StoreContract:
    """Tests that any ``Vendor`` has to pass. The test class that mixes it in provides a clean database for each."""

    def make_vendor(self) -> Vendor:
        """Return the vendor under test."""
        raise NotImplementedError

    @property
    def vendor(self) -> Vendor:
        """The vendor under test, made anew for each use: it holds no state."""
        return self.make_vendor()

    # Helpers, which speak intent

    def new(self, **changes: Any) -> NewTask:
        """Return a ready task that is not stored yet."""
        values: dict[str, Any] = {
            "id": task_ids.one(),
            "queue": "q",
            "rank": 0,
            "state": State.READY,
            "max_attempts": 3,
            "ack": 0,
            "run_after": None,
            "created_at": NOW,
            "deadline_at": None,
            "expires_at": None,
            "name": "contract.task",
            "options": None,
            "metadata": None,
            "parent_id": None,
            "args": '{"args":[],"kwargs":{}}',
        }
        return NewTask(**{**values, **changes})

    def stored(self, *rows: NewTask) -> list[uuid.UUID]:
        """Store tasks and return their ids."""
        self.vendor.insert(rows)
        return [uuid.UUID(int=row.id) for row in rows]

    def live(self, key: uuid.UUID) -> Task | None:
        """Return the live row of a task."""
        return Task.objects.using(self.vendor.alias).filter(pk=key).first()

    def finished(self, key: uuid.UUID) -> FinishedTask | None:
        """Return the finished row of a task."""
        return FinishedTask.objects.using(self.vendor.alias).filter(pk=key).first()

    def claimed(self, count: int = 1, *, lease: int = LEASE, queue: str = "q") -> list[Claim]:
        """Store tasks and claim them."""
        self.stored(*(self.new(queue=queue) for _ in range(count)))
        claims = self.vendor.claim(queue, count, lease=lease, now=NOW)
        assert len(claims) == count
        return claims

    def ids_of(self, claims: Sequence[Claim]) -> list[uuid.UUID]:
        """Return the ids of claims."""
        return [uuid.UUID(self.vendor.public_id(claim.key)) for claim in claims]

    def ending(self, claim: Claim, **changes: Any) -> Ending:
        """Return a success of a claim."""
        values: dict[str, Any] = {
            "key": claim.key,
            "lease": claim.lease,
            "state": State.SUCCEEDED,
            "attempt_back": 0,
            "started": NOW.timestamp(),
            "finished": NOW.timestamp() + 1.5,
            "result": None,
            "reason": None,
            "error_class": None,
            "error_line": None,
            "fingerprint": None,
            "keep": None,
        }
        return Ending(**{**values, **changes})

    def finish(self, *endings: Ending) -> set[Any]:
        """Finish in a transaction, as settle does."""
        with self.vendor.atomic():
            return self.vendor.finish(endings)

    def put_back(self, *rows: Again) -> set[Any]:
        """Put back in a transaction, as settle does."""
        with self.vendor.atomic():
            return self.vendor.put_back(rows)

    # Ids

    def test_a_key_and_its_public_id_stand_for_each_other(self) -> None:
        public_id = "01890a5d-ac96-774b-bcce-b302099a8057"

        key = self.vendor.key_of(public_id)

        assert self.vendor.public_id(key) == public_id
        assert self.vendor.key_of(uuid.UUID(public_id)) == key
        assert self.vendor.key_of(public_id.replace("-", "").upper()) == key

    def test_what_is_no_id_is_a_value_error(self) -> None:
        for text in ("", "x", "01890a5d", "01890a5d-ac96-774b-bcce-b302099a805g"):
            try:
                self.vendor.key_of(text)
            except ValueError:
                continue
            raise AssertionError(f"{text!r} was taken for an id")

    def test_a_claim_brings_its_key_in_the_form_that_key_of_gives(self) -> None:
        [claim] = self.claimed()

        public_id = self.vendor.public_id(claim.key)

        assert self.vendor.key_of(public_id) == claim.key
        assert type(self.vendor.key_of(public_id)) is type(claim.key)
        assert len(public_id) == 36

    def test_keys_sort_by_age(self) -> None:
        keys = [self.vendor.key_of(uuid.UUID(int=number)) for number in task_ids.many(50)]

        assert sorted(keys, key=self.vendor.order_of) == keys

    # Enqueue

    def test_a_task_is_stored_as_given(self) -> None:
        for count in (1, 60):
            parent = uuid.uuid4()
            rows = [
                self.new(
                    queue="mail",
                    rank=-7,
                    state=State.SCHEDULED,
                    max_attempts=9,
                    ack=2,
                    run_after=NOW + timedelta(microseconds=1),
                    deadline_at=WHOLE,
                    expires_at=NOW,
                    name="a" * 200,
                    options='{"timeout":1}',
                    metadata='{"user":{"a":1}}',
                    parent_id=parent.int,
                    args='{"args":["\\u00e9\\ud83d\\ude00\\u0000\\\\\\n"],"kwargs":{}}',
                )
                for _ in range(count)
            ]

            keys = self.stored(*rows)

            for key in keys:
                row = self.live(key)
                assert row is not None
                assert (row.queue, row.rank, row.state, row.attempt) == ("mail", -7, State.SCHEDULED, 0)
                assert (row.max_attempts, row.ack, row.lease, row.cancel, row.replays) == (9, 2, None, False, 0)
                assert (row.run_after, row.created_at) == (NOW + timedelta(microseconds=1), NOW)
                assert (row.deadline_at, row.expires_at, row.started_at) == (WHOLE, NOW, None)
                assert (row.name, row.options, row.parent_id) == ("a" * 200, '{"timeout":1}', parent)
                assert row.metadata_values == {"user": {"a": 1}}
                assert row.arguments == (["\u00e9\U0001f600\x00\\\n"], {})

    def test_awkward_text_comes_back_as_it_was(self) -> None:
        # Arguments are always JSON text of ASCII characters; the other columns may hold anything but NUL.
        args = payload.encode_arguments((AWKWARD,), {AWKWARD: AWKWARD}, limit=None)
        for count in (1, 60):
            keys = self.stored(
                *(self.new(queue=AWKWARD[:60], name=AWKWARD, metadata=AWKWARD, args=args) for _ in range(count))
            )

            row = self.live(keys[-1])

            assert row is not None
            assert (row.queue, row.name, row.metadata, row.args) == (AWKWARD[:60], AWKWARD, AWKWARD, args)

    def test_thousands_at_once_are_all_stored(self) -> None:
        self.stored(*(self.new() for _ in range(2501)))

        assert Task.objects.using(self.vendor.alias).count() == 2501

    def test_no_tasks_is_no_error(self) -> None:
        self.vendor.insert([])

        assert not Task.objects.using(self.vendor.alias).exists()

    def test_a_megabyte_of_arguments_is_stored(self) -> None:
        text = '{"args":["' + "x" * 1_000_000 + '"],"kwargs":{}}'

        [key] = self.stored(self.new(args=text))
        [claim] = self.vendor.claim("q", 1, lease=LEASE, now=NOW)

        assert claim.args == text
        assert key == self.ids_of([claim])[0]

    # Unique keys

    def test_of_tasks_with_a_unique_key_one_is_stored_and_its_holder_is_told(self) -> None:
        first, other = self.new(unique_key="a"), self.new(unique_key="b")
        assert self.vendor.insert_unique([first]) == {first.id}

        assert self.vendor.insert_unique([self.new(unique_key="a"), other]) == {other.id}

        holders = self.vendor.holders(["a", "b", "c"])
        assert {key: holder.id for key, holder in holders.items()} == {"a": first.id, "b": other.id}
        assert (holders["a"].state, holders["a"].created_at) == (State.READY, NOW)

    def test_a_unique_key_that_is_taken_leaves_a_transaction_usable(self) -> None:
        self.vendor.insert_unique([self.new(unique_key="a")])
        with self.vendor.atomic():
            assert self.vendor.insert_unique([self.new(unique_key="a")]) == set()
            for lock in ("share", "update"):
                assert list(self.vendor.holders(["a"], lock=lock)) == ["a"]
            (key,) = self.stored(self.new())

        assert self.live(key) is not None

    def test_unique_keys_are_compared_to_the_letter(self) -> None:
        rows = [self.new(unique_key=key) for key in ("key", "Key", "k\u00e9y", "~key", "'\"%s\\")]

        assert self.vendor.insert_unique(rows) == {row.id for row in rows}
        assert set(self.vendor.holders([row.unique_key or "" for row in rows])) == {row.unique_key for row in rows}

    def test_a_claim_frees_the_keys_that_are_held_until_the_start_and_no_others(self) -> None:
        self.vendor.insert_unique([self.new(unique_key=key) for key in ("~a", "b")])

        assert len(self.vendor.claim("q", 5, lease=LEASE, now=NOW)) == 2
        assert set(self.vendor.holders(["~a", "b"])) == {"b"}

    def test_a_claim_with_limits_leaves_that_to_whoever_starts_the_tasks(self) -> None:
        rows = [self.new(unique_key=key, options='{"frees_key":true}') for key in ("~a", "~b")]
        self.vendor.insert_unique([*rows, self.new(unique_key="c")])
        with self.vendor.atomic():
            claims = self.vendor.claim("q", 5, lease=LEASE, now=NOW, limited=True)
            assert set(self.vendor.holders(["~a", "~b", "c"])) == {"~a", "~b", "c"}
            self.vendor.free_keys(claims[:1] + claims[2:])

        assert set(self.vendor.holders(["~a", "~b", "c"])) == {"~b", "c"}

    def test_an_end_frees_every_key(self) -> None:
        self.vendor.insert_unique([self.new(unique_key="a")])
        [claim] = self.vendor.claim("q", 1, lease=LEASE, now=NOW)
        self.finish(self.ending(claim))

        again = self.new(unique_key="a")
        assert self.vendor.insert_unique([again]) == {again.id}

    # Claim

    def test_a_claim_takes_the_most_urgent_first_then_the_oldest(self) -> None:
        late, urgent, later, last = self.stored(self.new(), self.new(rank=-5), self.new(), self.new(rank=3))

        claims = self.vendor.claim("q", 10, lease=LEASE, now=NOW)

        assert self.ids_of(claims) == [urgent, late, later, last]

    def test_a_claim_takes_no_more_than_its_limit(self) -> None:
        keys = self.stored(*(self.new() for _ in range(5)))

        assert self.ids_of(self.vendor.claim("q", 2, lease=LEASE, now=NOW)) == keys[:2]
        assert self.ids_of(self.vendor.claim("q", 2, lease=LEASE, now=NOW)) == keys[2:4]
        assert self.ids_of(self.vendor.claim("q", 2, lease=LEASE, now=NOW)) == keys[4:]
        assert self.vendor.claim("q", 2, lease=LEASE, now=NOW) == []

    def test_a_claim_takes_only_ready_tasks_of_its_queue(self) -> None:
        for state in (State.SCHEDULED, State.WAITING, State.PARKED):
            self.stored(self.new(state=state, run_after=NOW))
        self.stored(self.new(queue="other"), self.new(queue="q2"))

        assert self.vendor.claim("q", 10, lease=LEASE, now=NOW) == []

    def test_queue_names_differ_by_case_and_accent(self) -> None:
        self.stored(self.new(queue="Email"), self.new(queue="\u00e9mail"))

        assert self.vendor.claim("email", 10, lease=LEASE, now=NOW) == []
        assert len(self.vendor.claim("Email", 10, lease=LEASE, now=NOW)) == 1
        assert self.vendor.ready_queues() == ["\u00e9mail"]

    def test_a_claim_counts_the_attempt_and_writes_lease_and_start(self) -> None:
        [key] = self.stored(self.new(run_after=WHOLE, deadline_at=NOW, expires_at=WHOLE, options="{}", metadata="{}"))

        [claim] = self.vendor.claim("q", 1, lease=LEASE, now=NOW)

        row = self.live(key)
        assert row is not None
        assert (row.state, row.attempt, row.lease, row.started_at) == (State.RUNNING, 1, LEASE, NOW)
        assert (claim.queue, claim.rank, claim.attempt, claim.max_attempts, claim.ack) == ("q", 0, 1, 3, 0)
        assert (claim.name, claim.args, claim.options, claim.metadata) == ("contract.task", row.args, "{}", "{}")
        assert (claim.run_after, claim.created_at, claim.deadline_at, claim.expires_at) == (WHOLE, NOW, NOW, WHOLE)
        assert claim.cancel is False
        assert claim.lease == LEASE
        for moment in (claim.run_after, claim.created_at, claim.deadline_at, claim.expires_at):
            assert moment is not None
            assert moment.tzinfo is not None

    def test_a_resumed_claim_starts_behind_the_last_one(self) -> None:
        keys = self.stored(*(self.new(rank=rank) for rank in (0, 0, 0, 1, 1)))
        first = self.vendor.claim("q", 2, lease=LEASE, now=NOW)
        [urgent] = self.stored(self.new(rank=-1))

        after = first[-1].rank, first[-1].key
        resumed = self.ids_of(self.vendor.claim("q", 10, lease=LEASE, now=NOW, after=after))
        rest = self.ids_of(self.vendor.claim("q", 10, lease=LEASE, now=NOW))

        # How far it reads is the vendor's choice; it must not go back, and nothing may be left out in the end.
        assert resumed == keys[2 : 2 + len(resumed)]
        assert len(resumed) >= 1
        assert urgent not in resumed
        assert rest == [urgent, *keys[2 + len(resumed) :]]

    # Limits

    def take_limited(self, limit: int = 10, *, lease: int = LEASE, slots: str | None = None) -> list[Claim]:
        """Claim with limits, in a transaction, as a gate does."""
        with self.vendor.atomic():
            return self.vendor.claim("q", limit, lease=lease, now=NOW, limited=True, slots=slots)

    def test_a_plain_claim_passes_over_tasks_with_limits(self) -> None:
        limited, free = self.stored(self.new(limits="2c:k"), self.new())

        claims = self.vendor.claim("q", 10, lease=LEASE, now=NOW)

        assert self.ids_of(claims) == [free]
        assert [claim.slots for claim in claims] == [None]
        row = self.live(limited)
        assert row is not None
        assert (row.state, row.attempt, row.lease) == (State.READY, 0, None)
        assert self.vendor.has_limited("q")
        assert not self.vendor.has_limited("other")

    def test_a_limited_claim_writes_down_what_each_task_counts_in(self) -> None:
        keys = self.stored(self.new(limits="2c:a\n2r:a"), self.new())

        claims = self.take_limited(slots="1c:queue:q")

        assert [claim.slots for claim in claims] == ["1c:queue:q\n2c:a\n2r:a", "1c:queue:q"]
        for key, slots in zip(keys, ["1c:queue:q\n2c:a\n2r:a", "1c:queue:q"], strict=True):
            row = self.live(key)
            assert row is not None
            assert (row.slots, row.attempt, row.lease) == (slots, 1, LEASE)

    def test_a_limited_claim_of_tasks_without_limits_leaves_them_without_slots(self) -> None:
        self.stored(self.new())

        assert [claim.slots for claim in self.take_limited()] == [None]

    def test_a_limited_claim_goes_on_behind_the_last_one(self) -> None:
        keys = self.stored(*(self.new(limits="2c:k") for _ in range(3)))
        [first] = self.take_limited(1)

        with self.vendor.atomic():
            found = self.vendor.claim(
                "q", 9, lease=LEASE, now=NOW, after=(first.rank, first.key), limited=True, slots=None
            )

        assert self.ids_of(found) == keys[1:]

    def test_parked_tasks_wait_on_their_key_and_come_back_most_urgent_first(self) -> None:
        keys = self.stored(*(self.new(limits="2c:k", rank=-at) for at in range(4)))
        with self.vendor.atomic():
            claims = self.vendor.claim("q", 10, lease=LEASE, now=NOW, limited=True)
            self.vendor.park([(claim, "2c:k" if claim.rank else None, None) for claim in claims], lease=LEASE)
        rows = [self.live(key) for key in keys]
        assert [
            (row.state, row.parked_on, row.attempt, row.lease, row.slots, row.started_at)
            for row in rows
            if row is not None
        ] == [(State.READY, None, 0, None, None, None), *[(State.PARKED, "2c:k", 0, None, None, None)] * 3]

        with self.vendor.atomic():
            told = self.vendor.unpark([("2c:k", 2), ("2c:nobody", 5)])

        assert told == [("2c:k", "q")] * 2
        back = Task.objects.using(self.vendor.alias).filter(state=State.READY, parked_on=None).order_by("rank")
        assert list(back.values_list("pk", flat=True)) == [keys[3], keys[2], keys[0]]

    def test_a_released_task_carries_the_key_it_was_released_for_until_it_is_claimed(self) -> None:
        self.stored(*(self.new(limits="2c:k\n2r:j") for _ in range(2)), self.new(limits="2c:k"))
        with self.vendor.atomic():
            claims = self.vendor.claim("q", 9, lease=LEASE, now=NOW, limited=True)
            self.vendor.park(
                [(claims[0], "2r:j", None), (claims[1], "p:x", None), (claims[2], "p:x", None)], lease=LEASE
            )
            self.vendor.unpark([("2r:j", 1), ("p:x", 2)])
        found = self.take_limited(slots="1c:queue:q")
        assert [claim.slots for claim in found] == [
            "1c:queue:q\n2c:k\n2r:j\n!2r:j",
            "1c:queue:q\n2c:k\n2r:j",
            "1c:queue:q\n2c:k",
        ]

        with self.vendor.atomic():
            self.vendor.park([(found[0], None, "2r:j"), (found[1], "2c:k", None), (found[2], None, None)], lease=LEASE)

        again = self.take_limited()
        assert [claim.slots for claim in again] == ["2c:k\n2r:j\n!2r:j", "2c:k"]

    def test_nobody_parks_what_another_holds(self) -> None:
        self.stored(self.new(limits="2c:k"))
        [claim] = self.take_limited()

        with self.vendor.atomic():
            self.vendor.park([(claim, "2c:k", None)], lease=OTHER)

        row = self.live(self.ids_of([claim])[0])
        assert row is not None
        assert row.state == State.RUNNING

    def test_a_task_put_back_holds_no_slot(self) -> None:
        self.stored(self.new(limits="2c:k"))
        [claim] = self.take_limited()

        self.put_back(Again(claim.key, LEASE, State.READY, 1, None, None))

        row = self.live(self.ids_of([claim])[0])
        assert row is not None
        assert (row.slots, row.limits) == (None, "2c:k")

    def test_a_finished_task_keeps_what_limited_it(self) -> None:
        self.stored(self.new(limits="2c:k", fair_key="acme", unique_key="once"))
        [claim] = self.take_limited()

        self.finish(self.ending(claim))

        row = self.finished(self.ids_of([claim])[0])
        assert row is not None
        assert (row.limits, row.fair_key, row.unique_key) == ("2c:k", "acme", "once")

    def test_limits_are_locked_in_order_and_saved_as_they_are(self) -> None:
        keys = ["0c:all", "1c:queue:Ärger", "2c:Key", "2c:key", "2r:rate"]
        with self.vendor.atomic():
            self.vendor.make_limits(reversed(keys))
            self.vendor.make_limits(keys)
            found = self.vendor.lock_limits([*keys, "2c:nobody"])
            self.vendor.save_held([("2c:Key", 3), ("0c:all", 1)])
            values = (2, 5, 60.5, 7, 1.25, NOW, True, 4, NOW, NOW, WHOLE)
            self.vendor.save_limits([("2c:key", *values), ("2r:rate", *values)])
            empty = (0, None, None, None, None, None, False, 0, None, None, None)
            self.vendor.save_limits([("2r:rate", *empty)])

        assert [row[0] for row in found] == keys
        rows = {row[0]: row for row in self._limits(keys)}
        assert (rows["2c:Key"][1], rows["0c:all"][1]) == (3, 1)
        assert rows["2c:key"][1:12] == values
        assert rows["2r:rate"][1:12] == empty

    def _limits(self, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        with self.vendor.atomic():
            return self.vendor.lock_limits(keys)

    # Claim in turns over fair keys

    def test_queues_with_fair_keys_are_told_from_the_others(self) -> None:
        self.stored(self.new(queue="a", fair_key="x"), self.new(queue="b"), self.new(queue="A", fair_key="x"))
        self.stored(self.new(queue="c", fair_key="x", state=State.SCHEDULED, run_after=NOW))

        assert self.vendor.fair_queues(["a", "b", "c", "d"]) == {"a"}
        assert self.vendor.fair_queues([]) == set()

    def test_fair_keys_of_ready_tasks_are_listed_once_each_in_order(self) -> None:
        self.stored(*(self.new(fair_key=key) for key in ("b", "a", "c", "a", "b")))
        self.stored(self.new(), self.new(queue="other", fair_key="z"))
        self.stored(self.new(fair_key="d", state=State.SCHEDULED, run_after=NOW))

        assert self.vendor.fair_keys("q", after="", limit=10) == ["a", "b", "c"]
        assert self.vendor.fair_keys("q", after="", limit=2) == ["a", "b"]
        assert self.vendor.fair_keys("q", after="a", limit=10) == ["b", "c"]
        assert self.vendor.fair_keys("q", after="c", limit=10) == []
        assert self.vendor.fair_keys("empty", after="", limit=10) == []

    def test_fair_keys_differ_by_case_and_accent(self) -> None:
        self.stored(*(self.new(fair_key=key) for key in ("acme", "Acme", "\u00e1cme", "acme")))

        found = self.vendor.claim_fair("q", [("acme", 5)], lease=LEASE, now=NOW)

        assert set(self.vendor.fair_keys("q", after="", limit=10)) == {"Acme", "\u00e1cme"}
        assert [len(claims) for claims in found.values()] == [2]

    def test_a_fair_claim_takes_of_each_key_its_share_most_urgent_first(self) -> None:
        of_a = self.stored(*(self.new(fair_key="a", rank=rank) for rank in (0, 0, -1)))
        of_b = self.stored(*(self.new(fair_key="b") for _ in range(3)))
        self.stored(self.new(rank=-9), self.new(queue="other", fair_key="a"))

        found = self.vendor.claim_fair("q", [("a", 2), ("b", 1), ("none", 5)], lease=LEASE, now=NOW)

        assert {key: self.ids_of(claims) for key, claims in found.items()} == {"a": [of_a[2], of_a[0]], "b": of_b[:1]}
        for claims in found.values():
            for claim in claims:
                row = self.live(uuid.UUID(self.vendor.public_id(claim.key)))
                assert row is not None
                assert (row.state, row.attempt, row.lease, row.started_at) == (State.RUNNING, 1, LEASE, NOW)
                assert (claim.attempt, claim.lease, claim.slots, claim.queue) == (1, LEASE, None, "q")
                assert claim.created_at == NOW
        assert Task.objects.using(self.vendor.alias).filter(state=State.READY).count() == 5

    def test_a_resumed_fair_claim_leaves_nothing_out_in_the_end(self) -> None:
        keys = self.stored(*(self.new(fair_key="a") for _ in range(5)))
        [first] = self.vendor.claim_fair("q", [("a", 2)], lease=LEASE, now=NOW).values()
        [urgent] = self.stored(self.new(fair_key="a", rank=-1))

        after = {"a": (first[-1].rank, first[-1].key)}
        [second] = self.vendor.claim_fair("q", [("a", 2)], lease=LEASE, now=NOW, after=after).values()
        [third] = self.vendor.claim_fair("q", [("a", 9)], lease=LEASE, now=NOW).values()

        # Where it starts is the vendor's choice.
        assert self.ids_of(second) in ([keys[2], keys[3]], [urgent, keys[2]])
        assert {*self.ids_of(second), *self.ids_of(third)} == {urgent, *keys[2:]}

    def test_a_fair_claim_from_many_keys_is_complete(self) -> None:
        keys = [f"key {at}" for at in range(230)]
        self.stored(*(self.new(fair_key=key) for key in keys for _ in range(2)))

        found = self.vendor.claim_fair("q", [(key, 1) for key in keys], lease=LEASE, now=NOW)

        assert sorted(found) == sorted(keys)
        assert {len(claims) for claims in found.values()} == {1}
        assert Task.objects.using(self.vendor.alias).filter(state=State.RUNNING, lease=LEASE).count() == 230

    def test_a_fair_claim_passes_over_tasks_with_limits_unless_it_asks_them(self) -> None:
        limited, plain = self.stored(self.new(fair_key="a", limits="rate:x\nconc:y"), self.new(fair_key="a"))

        first = self.vendor.claim_fair("q", [("a", 2)], lease=LEASE, now=NOW)
        with self.vendor.atomic():
            second = self.vendor.claim_fair("q", [("a", 2)], lease=OTHER, now=NOW, limited=True, slots="queue:q")

        assert self.ids_of(first["a"]) == [plain]
        assert self.ids_of(second["a"]) == [limited]
        assert [claim.slots for claim in second["a"]] == ["queue:q\nrate:x\nconc:y"]
        row = self.live(limited)
        assert row is not None
        assert (row.slots, row.lease) == ("queue:q\nrate:x\nconc:y", OTHER)

    def test_tasks_without_a_fair_key_are_found_and_claimed_apart(self) -> None:
        self.stored(*(self.new(fair_key="a") for _ in range(3)))
        late, urgent, limited = self.stored(self.new(), self.new(rank=-1), self.new(limits="conc:x"))
        self.stored(self.new(queue="other"), self.new(state=State.SCHEDULED, run_after=NOW))

        first, last = self.vendor.unkeyed("q", after=None, size=100)
        assert first is not None
        assert last is not None
        taken = self.vendor.claim_between("q", 9, first=first, last=last, lease=LEASE, now=NOW)
        with self.vendor.atomic():
            rest = self.vendor.claim_between(
                "q", 9, first=first, last=last, lease=OTHER, now=NOW, limited=True, slots="queue:q"
            )

        assert self.ids_of(taken) == [urgent, late]
        assert [(claim.attempt, claim.lease, claim.slots) for claim in taken] == [(1, LEASE, None)] * 2
        assert self.ids_of(rest) == [limited]
        assert [claim.slots for claim in rest] == ["queue:q\nconc:x"]
        assert self.vendor.unkeyed("q", after=None, size=100)[0] is None

    def test_a_claim_between_two_tasks_of_one_rank_takes_no_others(self) -> None:
        keys = self.stored(*(self.new() for _ in range(5)))
        self.stored(self.new(rank=-1), self.new(rank=1), self.new(fair_key="a"))
        first, last = ((0, self.vendor.key_of(key)) for key in (keys[1], keys[3]))

        some = self.vendor.claim_between("q", 2, first=first, last=last, lease=LEASE, now=NOW)
        rest = self.vendor.claim_between("q", 9, first=first, last=last, lease=LEASE, now=NOW)

        assert self.ids_of(some) == keys[1:3]
        assert self.ids_of(rest) == [keys[3]]

    def test_the_first_ready_task_of_each_rank_is_found(self) -> None:
        urgent, first, second, _ = self.stored(self.new(rank=-3), self.new(), self.new(), self.new(queue="other"))
        self.stored(self.new(rank=-9, state=State.SCHEDULED, run_after=NOW))

        assert self.vendor.ready_head("q") == (-3, urgent)
        assert self.vendor.ready_head("q", above=-3) == (0, first)
        assert self.vendor.ready_head("q", above=0) is None
        assert self.vendor.ready_head("q", behind=(0, self.vendor.key_of(first))) == (0, second)
        assert self.vendor.ready_head("q", behind=(0, self.vendor.key_of(second))) is None

    def test_a_look_for_tasks_without_a_fair_key_goes_on_where_the_last_one_ended(self) -> None:
        self.stored(*(self.new(fair_key="a") for _ in range(5)))
        [plain] = self.stored(self.new())
        self.stored(*(self.new(fair_key="a") for _ in range(5)))

        after, looks, found = None, 0, None
        while found is None and looks < 10:
            found, after = self.vendor.unkeyed("q", after=after, size=2)
            looks += 1

        # How much it sees at once is the vendor's choice.
        assert found is not None
        assert self.vendor.public_id(found[1]) == self.vendor.public_id(self.vendor.key_of(plain))
        assert self.vendor.unkeyed("empty", after=None, size=2) == (None, None)

    # Settle

    def test_a_finished_task_moves_with_all_it_carried(self) -> None:
        parent = uuid.uuid4()
        given = self.new(
            rank=-3, max_attempts=5, ack=1, run_after=WHOLE, deadline_at=NOW, metadata=AWKWARD, parent_id=parent.int
        )
        [key] = self.stored(given)
        [claim] = self.vendor.claim("q", 1, lease=LEASE, now=NOW)

        held = self.finish(
            self.ending(
                claim,
                state=State.DEAD,
                result='{"a":"\\u00e9"}',
                reason="exhausted",
                error_class="builtins.ValueError",
                error_line=AWKWARD.replace("\n", " "),
                fingerprint="0123456789abcdef",
            )
        )

        row = self.finished(key)
        assert held == {claim.key}
        assert self.live(key) is None
        assert row is not None
        assert (row.queue, row.rank, row.max_attempts, row.ack) == ("q", -3, 5, 1)
        assert (row.run_after, row.created_at, row.deadline_at) == (WHOLE, NOW, NOW)
        assert (row.metadata, row.parent_id, row.attempt, row.lease) == (AWKWARD, parent, 1, LEASE)
        assert (row.state, row.started_at) == (State.DEAD, NOW)
        assert row.finished_at == NOW + timedelta(seconds=1.5)
        assert (row.reason, row.error_class) == ("exhausted", "builtins.ValueError")
        assert row.error_line == AWKWARD.replace("\n", " ")
        assert (row.fingerprint, row.result_value) == ("0123456789abcdef", {"a": "\u00e9"})
        assert (row.delete_at, row.resolved_at) == (None, None)

    def test_a_plain_success_is_finished_without_anything(self) -> None:
        claims = self.claimed(3)

        held = self.finish(*map(self.ending, claims))

        assert held == {claim.key for claim in claims}
        for key in self.ids_of(claims):
            row = self.finished(key)
            assert row is not None
            assert (row.state, row.result, row.reason, row.error_line, row.delete_at) == (
                State.SUCCEEDED,
                None,
                None,
                None,
                None,
            )

    def test_a_success_that_says_why_it_was_skipped_keeps_that(self) -> None:
        plain, skipped = self.claimed(2)

        self.finish(self.ending(skipped, error_line="skipped: nothing to do"))
        self.finish(self.ending(plain))

        lines = [row.error_line for key in self.ids_of([plain, skipped]) if (row := self.finished(key)) is not None]
        assert lines == [None, "skipped: nothing to do"]

    def test_what_is_kept_for_a_time_says_until_when_and_what_is_not_kept_is_gone(self) -> None:
        kept, gone, usual = self.claimed(3)

        held = self.finish(self.ending(kept, keep=60.0), self.ending(gone, keep=0), self.ending(usual))

        keys = self.ids_of([kept, gone, usual])
        assert held == {kept.key, gone.key, usual.key}
        assert [self.live(key) for key in keys] == [None, None, None]
        row = self.finished(keys[0])
        assert row is not None
        assert row.delete_at == row.finished_at + timedelta(seconds=60)
        assert self.finished(keys[1]) is None
        assert self.finished(keys[2]) is not None

    def test_an_attempt_that_does_not_count_is_given_back_at_the_end(self) -> None:
        [claim] = self.claimed()

        self.finish(self.ending(claim, attempt_back=1, started=None))

        row = self.finished(self.ids_of([claim])[0])
        assert row is not None
        assert row.attempt == 0
        assert row.started_at == NOW

    def test_whoever_lost_the_lease_finishes_nothing(self) -> None:
        lost, held = self.claimed(2)

        written = self.finish(self.ending(lost._replace(lease=OTHER)), self.ending(held))

        key = self.ids_of([lost])[0]
        row = self.live(key)
        assert written == {held.key}
        assert self.finished(key) is None
        assert row is not None
        assert (row.state, row.lease, row.attempt) == (State.RUNNING, LEASE, 1)

    def test_the_same_end_is_written_once(self) -> None:
        [claim] = self.claimed()

        assert self.finish(self.ending(claim, result="1")) == {claim.key}
        assert self.finish(self.ending(claim, result="2")) == set()
        row = self.finished(self.ids_of([claim])[0])
        assert row is not None
        assert row.result == "1"

    def test_nobody_finishes_a_task_that_is_not_claimed(self) -> None:
        [key] = self.stored(self.new())
        claim = Claim(
            self.vendor.key_of(key),
            "q",
            0,
            1,
            3,
            0,
            "x",
            "",
            None,
            None,
            None,
            NOW,
            None,
            None,
            False,
            None,
            None,
            None,
            LEASE,
        )

        assert self.finish(self.ending(claim)) == set()
        assert self.live(key) is not None

    def test_a_large_result_and_a_large_batch_are_written(self) -> None:
        claims = self.claimed(500)
        result = '"' + "x" * 1_000_000 + '"'

        held = self.finish(
            *(self.ending(claim, result=result if at == 7 else str(at)) for at, claim in enumerate(claims))
        )

        assert len(held) == 500
        row = self.finished(self.ids_of(claims)[7])
        assert row is not None
        assert row.result == result

    def test_a_task_is_put_back_with_a_time_or_without(self) -> None:
        later, now = self.claimed(2)

        held = self.put_back(
            Again(later.key, LEASE, State.SCHEDULED, 0, NOW.timestamp() + 60, '{"unknown_since":1.5}'),
            Again(now.key, LEASE, State.READY, 1, None, None),
        )

        first, second = map(self.live, self.ids_of([later, now]))
        assert held == {later.key, now.key}
        assert first is not None
        assert second is not None
        assert (first.state, first.lease, first.attempt) == (State.SCHEDULED, None, 1)
        assert (first.run_after, first.option_values) == (NOW + timedelta(seconds=60), {"unknown_since": 1.5})
        assert (second.state, second.lease, second.attempt) == (State.READY, None, 0)
        assert (second.run_after, second.options, second.started_at) == (None, None, NOW)

    def test_options_and_time_stay_where_none_are_given(self) -> None:
        [key] = self.stored(self.new(options='{"timeout":1}', run_after=WHOLE))
        [claim] = self.vendor.claim("q", 1, lease=LEASE, now=NOW)

        self.put_back(Again(claim.key, LEASE, State.READY, 1, None, None))

        row = self.live(key)
        assert row is not None
        assert (row.options, row.run_after) == ('{"timeout":1}', WHOLE)

    def test_whoever_lost_the_lease_puts_nothing_back(self) -> None:
        [claim] = self.claimed()

        held = self.put_back(Again(claim.key, OTHER, State.READY, 1, None, None))

        row = self.live(self.ids_of([claim])[0])
        assert held == set()
        assert row is not None
        assert (row.state, row.lease, row.attempt) == (State.RUNNING, LEASE, 1)

    def test_a_task_put_back_can_be_claimed_again_and_the_old_lease_is_worth_nothing(self) -> None:
        [claim] = self.claimed()
        self.put_back(Again(claim.key, LEASE, State.READY, 0, None, None))

        [again] = self.vendor.claim("q", 1, lease=OTHER, now=NOW)

        assert (again.key, again.attempt) == (claim.key, 2)
        assert self.finish(self.ending(claim)) == set()
        assert self.finish(self.ending(again)) == {claim.key}

    def test_attempts_are_kept_with_their_text(self) -> None:
        [claim] = self.claimed()
        started, ended = NOW.timestamp(), NOW.timestamp() + 2

        with self.vendor.atomic():
            self.vendor.record_attempts(
                [
                    AttemptRow(claim.key, 1, 7, "failed", started, ended, "a.B", AWKWARD, AWKWARD * 100),
                    AttemptRow(claim.key, 2, 7, "lost", None, ended, "c" * 300, "", ""),
                ]
            )

        first, second = Attempt.objects.using(self.vendor.alias).order_by("id")
        assert first.task_id == self.ids_of([claim])[0]
        assert (first.number, first.worker_id, first.outcome) == (1, 7, "failed")
        assert (first.started_at, first.ended_at) == (NOW, NOW + timedelta(seconds=2))
        assert (first.error_class, first.message, first.traceback) == ("a.B", AWKWARD, AWKWARD * 100)
        assert (second.started_at, second.error_class) == (None, "c" * 200)

    def test_statistics_add_up(self) -> None:
        minute = WHOLE
        ones = dict.fromkeys([(minute, "q", f"task.{at}", 7) for at in range(45)], [1] * len(STAT_COUNTERS))
        twos = {
            (minute, "q", "task.0", 7): [2] * len(STAT_COUNTERS),
            (minute, "q", "Task.0", 7): [5] * len(STAT_COUNTERS),
        }

        for sums in (ones, twos):
            with self.vendor.atomic():
                self.vendor.add_stats(sums)

        rows = {row.task: row for row in Stat.objects.using(self.vendor.alias)}
        assert len(rows) == 46
        assert [getattr(rows["task.0"], name) for name in STAT_COUNTERS] == [3] * len(STAT_COUNTERS)
        assert rows["task.1"].succeeded == 1
        assert rows["Task.0"].run_10 == 5

    # Upkeep

    def test_a_task_is_promoted_at_its_time_and_not_a_microsecond_before(self) -> None:
        step = timedelta(microseconds=1)
        for due in (NOW, WHOLE, WHOLE + timedelta(milliseconds=500)):
            [key] = self.stored(self.new(state=State.SCHEDULED, run_after=due, queue="due"))

            assert self.vendor.promote(due - step, 10) == []
            assert self.vendor.promote(due, 10) == ["due"]

            row = self.live(key)
            assert row is not None
            assert (row.state, row.run_after) == (State.READY, due)
            assert self.vendor.promote(due + step, 10) == []

    def test_those_due_longest_are_promoted_first(self) -> None:
        late = self.stored(
            *(self.new(state=State.SCHEDULED, run_after=NOW - timedelta(seconds=at), queue=f"q{at}") for at in range(5))
        )

        promoted = self.vendor.promote(NOW, 2)

        assert sorted(promoted) == ["q3", "q4"]
        assert [row.state for row in map(self.live, late) if row is not None] == [0, 0, 0, 1, 1]

    def test_only_scheduled_tasks_are_promoted(self) -> None:
        for state in (State.WAITING, State.PARKED):
            self.stored(self.new(state=state, run_after=WHOLE))

        assert self.vendor.promote(NOW, 10) == []

    def test_the_next_due_moment_is_told_to_the_microsecond(self) -> None:
        assert self.vendor.next_due() is None
        self.stored(
            self.new(state=State.SCHEDULED, run_after=NOW + timedelta(seconds=1)),
            self.new(state=State.SCHEDULED, run_after=NOW),
            self.new(state=State.READY, run_after=WHOLE),
        )

        assert self.vendor.next_due() == NOW

    def test_far_times_are_stored_as_they_are(self) -> None:
        far = datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC)
        old = datetime(1970, 1, 2, tzinfo=UTC)
        first, second = self.stored(
            self.new(state=State.SCHEDULED, run_after=far), self.new(state=State.SCHEDULED, run_after=old)
        )

        assert self.vendor.next_due() == old
        assert self.vendor.promote(NOW, 10) == ["q"]
        assert self.vendor.next_due() == far
        assert [row.state for row in map(self.live, [first, second]) if row is not None] == [0, 1]

    def _ended(self, finished: datetime, **changes: Any) -> uuid.UUID:
        [claim] = self.claimed()
        key = self.ids_of([claim])[0]
        step_store.plan(step_store.Holder(self.vendor.alias, key, claim.lease, 1, 7), ["only"])
        self.finish(self.ending(claim, **{"finished": finished.timestamp(), "started": None, **changes}))
        with self.vendor.atomic():
            self.vendor.record_attempts([AttemptRow(claim.key, 1, 7, "failed", None, 1.0, "a", "b", "c")])
        task_store.save_progress(self.vendor.alias, str(key), done=1, total=None, note="", now=NOW)
        return key

    def test_pruning_deletes_what_ended_before_and_all_that_belongs_to_it(self) -> None:
        old = self._ended(NOW - timedelta(microseconds=1))
        exact = self._ended(NOW)
        dead = self._ended(NOW - timedelta(days=1), state=State.DEAD)
        marked = self._ended(NOW - timedelta(days=1), keep=86400.0)
        [running] = self.claimed()

        assert self.vendor.prune(State.SUCCEEDED, before=NOW, limit=10) == 1

        alias = self.vendor.alias
        assert self.finished(old) is None
        assert not Attempt.objects.using(alias).filter(task_id=old).exists()
        assert not Progress.objects.using(alias).filter(task_id=old).exists()
        assert not Step.objects.using(alias).filter(task_id=old).exists()
        assert all(self.finished(key) for key in (exact, dead, marked))
        assert Attempt.objects.using(alias).count() == Progress.objects.using(alias).count() == 3
        assert Step.objects.using(alias).count() == 3
        assert self.live(self.ids_of([running])[0]) is not None

    def test_pruning_takes_the_oldest_first_and_no_more_than_its_limit(self) -> None:
        keys = [self._ended(NOW - timedelta(hours=age)) for age in (1, 3, 2)]

        assert self.vendor.prune(State.SUCCEEDED, before=NOW, limit=2) == 2
        assert [self.finished(key) is None for key in keys] == [False, True, True]
        assert self.vendor.prune(State.SUCCEEDED, before=NOW, limit=2) == 1
        assert self.vendor.prune(State.SUCCEEDED, before=NOW, limit=2) == 0

    def test_what_has_a_time_of_its_own_is_pruned_at_that_time(self) -> None:
        key = self._ended(NOW - timedelta(seconds=60), keep=60.0)
        usual = self._ended(NOW - timedelta(days=60))

        assert self.vendor.prune_marked(NOW - timedelta(microseconds=1), 10) == 0
        assert self.finished(key) is not None
        assert self.vendor.prune_marked(NOW, 10) == 1
        assert self.finished(key) is None
        assert self.finished(usual) is not None

    # Depths

    def test_each_queue_with_ready_tasks_is_named_once(self) -> None:
        assert self.vendor.ready_queues() == []
        self.stored(
            *(self.new(queue=queue) for queue in ("b", "a", "b", "c", "a")),
            self.new(queue="d", state=State.SCHEDULED, run_after=NOW),
        )

        assert self.vendor.ready_queues() == ["a", "b", "c"]

    def test_a_depth_is_counted_up_to_its_cap(self) -> None:
        self.stored(*(self.new() for _ in range(5)), self.new(queue="other"))
        self.stored(*(self.new(state=State.SCHEDULED, run_after=NOW) for _ in range(3)))
        self.vendor.claim("q", 2, lease=LEASE, now=NOW)

        depths = {
            state: self.vendor.depth("q", state, cap=10) for state in (State.READY, State.SCHEDULED, State.RUNNING)
        }

        assert depths == {State.READY: 3, State.SCHEDULED: 3, State.RUNNING: 2}
        assert self.vendor.depth("q", State.READY, cap=2) == 2
        assert self.vendor.depth("q", State.PARKED, cap=2) == 0

    def test_the_last_snapshot_of_a_minute_stays(self) -> None:
        for ready in (1, 2):
            self.vendor.save_snapshot({"queue": "q", "at": WHOLE, "ready": ready, "oldest_ready_at": NOW})

        [row] = Snapshot.objects.using(self.vendor.alias)
        assert (row.queue, row.at, row.ready, row.oldest_ready_at) == ("q", WHOLE, 2, NOW)

    # Clock and wake-up

    def test_the_databases_clock_is_aware_and_goes_forward(self) -> None:
        first, second = self.vendor.now(), self.vendor.now()

        assert first.utcoffset() == timedelta(0)
        assert timedelta(0) <= second - first < timedelta(seconds=60)

    def test_a_notification_can_be_sent_from_anywhere(self) -> None:
        self.vendor.notify(["q", "x" * 64])
        with self.vendor.atomic():
            self.vendor.notify(["q"])

        assert not connections[self.vendor.alias].in_atomic_block or not connections[self.vendor.alias].needs_rollback

    def test_a_conflict_is_not_every_error(self) -> None:
        assert not self.vendor.is_conflict(ValueError("deadlock"))
        assert not self.vendor.is_lost_connection(ValueError("gone away"))
