"""What a test breaks in a worker process, by dotted path: each is called once, before the worker starts."""

import time
from typing import Any

from django.db import OperationalError

from django_taskq import clock
from django_taskq.store.vendors import vendor_for
from django_taskq.store.vendors.base import Vendor


def shift_clock(seconds: float) -> None:
    """Set this machine's wall clock wrong, for the engine and for everybody who asks Python."""
    real_time, real_ns = time.time, time.time_ns
    real_now = clock.now

    def now() -> Any:
        from datetime import timedelta

        return real_now() + timedelta(seconds=seconds)

    clock.now = now
    clock.timestamp = lambda: real_time() + seconds
    clock.now_ns = lambda: real_ns() + int(seconds * 1e9)


def hear_nothing(_: Any) -> None:
    """Be behind a pooler in transaction mode: LISTEN is accepted, and nothing ever comes."""
    kind = type(vendor_for("default"))
    listen = kind.listen

    class Deaf:
        def __init__(self, listener: Any) -> None:
            self._listener = listener

        def fileno(self) -> int:
            return int(self._listener.fileno())

        def heard(self) -> list[str]:
            self._listener.heard()
            return []

    def deaf_listen(self: Vendor) -> Any:
        found = listen(self)
        return None if found is None else Deaf(found)

    kind.listen = deaf_listen  # type: ignore[method-assign]


def fill_the_disk(seconds: float) -> None:
    """Let the database refuse to write any ending for a while, as it does on a full disk."""
    kind = type(vendor_for("default"))
    finish, put_back = kind.finish, kind.put_back
    until = time.monotonic() + seconds

    def refuse(method: Any) -> Any:
        def work(self: Vendor, rows: Any) -> Any:
            if time.monotonic() < until:
                raise OperationalError("could not extend file: No space left on device")
            return method(self, rows)

        return work

    kind.finish = refuse(finish)  # type: ignore[method-assign]
    kind.put_back = refuse(put_back)  # type: ignore[method-assign]


def migrate_and_fill(order: list[Any]) -> None:
    """Make the tables in a database of its own, and store tasks there."""
    from django.core.management import call_command

    from tests.guarantees.tasks import append

    path, count = order
    call_command("migrate", verbosity=0)
    append.using(max_attempts=20).enqueue_many([(path, at, 0.02) for at in range(count)])


def kill_at(order: list[Any]) -> None:
    """Kill this process where a function is called: before or after its work, the first time that happens."""
    import os
    import pkgutil
    import signal

    where, name, is_late = order
    place = type(vendor_for("default")) if where == "vendor" else pkgutil.resolve_name(where)
    work = getattr(place, name)

    def die(*args: Any, **options: Any) -> Any:
        found = work(*args, **options) if is_late else None
        # A claim of nothing is no claim.
        if not is_late or found is None or found:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(place, name, die)
