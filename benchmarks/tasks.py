"""The tasks that the benchmark programs run."""

import os
import time

from django_taskq import task


@task
def noop(number):
    """Do nothing."""


@task
def nap(number):
    """Wait for 50 ms, as for an answer from the network."""
    time.sleep(0.05)


@task
def stamp(path):
    """Append the moment of the start to a file."""
    now = time.time_ns()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"%d\n" % now)
    os.close(file)
