"""What the worker of another library runs in ``memory.py``: the no-op of ``tasks.py``."""

from django.tasks import task


@task
def noop(number):
    """Do nothing."""
