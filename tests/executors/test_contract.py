"""Every executor of this package keeps the contract."""

from typing import Any

import pytest

from django_taskq.testing import ExecutorContract
from django_taskq.worker.executors import Executor, make_executor


class TestThreads(ExecutorContract):
    def make_executor(self, host: Any, slots: int) -> Executor:
        return make_executor("threads", host, slots)


class TestAsyncio(ExecutorContract):
    is_async = True

    def make_executor(self, host: Any, slots: int) -> Executor:
        return make_executor("asyncio", host, slots)


class TestPlainFunctionsOnAsyncio(ExecutorContract):
    """Where asyncio is the only executor, plain functions run in its threads, which nothing ends."""

    can_stop = False

    def make_executor(self, host: Any, slots: int) -> Executor:
        return make_executor("asyncio", host, slots)


class TestInline(ExecutorContract):
    runs_in_caller = True

    def make_executor(self, host: Any, slots: int) -> Executor:
        return make_executor("inline", host, slots)


@pytest.mark.slow
class TestProcesses(ExecutorContract):
    def make_executor(self, host: Any, slots: int) -> Executor:
        return make_executor("processes", host, slots)
