"""The tasks that the benchmark programs run."""

import os
import time

from django_taskq import Concurrency, Rate, task


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


@task(limits=Concurrency(5, key="five:{number}"))
def five_of_a_key(number):
    """Do nothing, at most five times at once for each number."""


@task(limits=Concurrency(1, key="one:{number}"))
def one_of_a_key(number):
    """Do nothing, one at a time for each number."""


@task(limits=Concurrency(10, key="ten:{number}"))
def ten_of_a_key(number):
    """Do nothing, at most ten times at once for each number."""


@task(limits=Rate("100000/s", key="often:{number}"))
def often_of_a_key(number):
    """Do nothing, as often as ever, but counted."""
