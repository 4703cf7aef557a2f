"""For worker processes: a schedule that ticks each second, and a leader that is killed while it ticks."""

import os
import signal
from typing import Any

from django_taskq import schedule
from django_taskq.store import schedules as store
from tests.guarantees.tasks import note


def declare(_with: Any = None) -> None:
    """Declare the schedule."""
    schedule(cron="* * * * * *", name="killer", misfire_grace=0)(note)


def kill_before_the_tick_is_noted(_with: Any = None) -> None:
    """Let the process die when the task is stored and the tick is not."""
    declare()

    def die(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    store.note_ticks = die
