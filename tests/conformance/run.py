"""
Run ``tests/tasks`` of Django with our backends in the place of Django's.

``python -m tests.conformance.run FOLDER``, FOLDER being Django's ``tests``.
Where a test names ``DummyBackend`` it gets the database backend, and for
``ImmediateBackend`` it gets ours: by import, by dotted path and by ``isinstance``.
Its surprise: Django's suite forbids itself the database, so its
``SimpleTestCase`` becomes a ``TransactionTestCase`` here.
"""

from __future__ import annotations

import asyncio
import os
import sys
import unittest
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def main(folder: str) -> int:
    """Run the suite; return 0 if all is as it should be."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    sys.path.insert(0, folder)
    import django

    django.setup()
    _replace_backends()
    from django.test.runner import DiscoverRunner

    class Runner(DiscoverRunner):
        def build_suite(self, *args: Any, **kwargs: Any) -> unittest.TestSuite:
            suite = super().build_suite(*args, **kwargs)
            found = _expect_failures(suite)
            if not found:
                raise SystemExit("no test was found")
            return suite

    failed: int = Runner(verbosity=1, interactive=False).run_tests(["tasks"])
    return 1 if failed else 0


def _elsewhere(call: Callable[[], Any]) -> Any:
    """
    Call, from a coroutine in a thread of its own whose connection is closed.

    The suite's coroutines call the dummy's synchronous methods, which Django
    refuses where a database is behind them.
    """
    from django.db import connections

    if asyncio._get_running_loop() is None:
        return call()

    def work() -> Any:
        try:
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _replace_backends() -> None:
    import django.test
    from django.tasks.backends import dummy, immediate

    from django_taskq import backend, models

    class DummyBackend(backend.DatabaseBackend):
        """The database backend with the two names by which the tests look into the dummy."""

        @property
        def results(self) -> list[Any]:
            keys = _elsewhere(lambda: list(models.Task.objects.order_by("id").values_list("pk", flat=True)))
            return [self.get_result(str(key)) for key in keys]

        def clear(self) -> None:
            _elsewhere(lambda: models.Task.objects.all().delete())

        def get_result(self, result_id: str) -> Any:
            return _elsewhere(lambda: super(DummyBackend, self).get_result(result_id))

    dummy.DummyBackend = DummyBackend  # type: ignore[misc, assignment]
    immediate.ImmediateBackend = backend.ImmediateBackend  # type: ignore[misc, assignment]
    django.test.SimpleTestCase = django.test.TransactionTestCase  # type: ignore[misc, assignment]


def _expect_failures(suite: unittest.TestSuite) -> int:
    from tests.conformance.exclusions import DO_NOT_APPLY

    tests = list(_each(suite))
    unknown = set(DO_NOT_APPLY) - {test.id() for test in tests}
    if unknown:
        raise SystemExit(f"Django has no such tests: {', '.join(sorted(unknown))}")
    for test in tests:
        if test.id() in DO_NOT_APPLY:
            test.__unittest_expecting_failure__ = True  # type: ignore[attr-defined]  # as @expectedFailure does
    return len(tests)


def _each(suite: Any) -> Any:
    for item in suite:
        if isinstance(item, unittest.TestCase):
            yield item
        else:
            yield from _each(item)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
