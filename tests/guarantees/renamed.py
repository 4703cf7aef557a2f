"""A task that was renamed, and one that moved."""

from django_taskq import task
from tests.guarantees.tasks import ran


@task(name="billing.charge", aliases=["billing.bill", "tests.guarantees.old_place.bill"])
def charge(key: str) -> str:
    """Run under today's name, and under those of rows stored before."""
    ran.append(key)
    return key
