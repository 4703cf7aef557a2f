"""Settings of a project that keeps its tasks in a database of their own; see tests/two_databases.py."""

from tests.databases import beside
from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, TASKS

DATABASES = {**DATABASES, "other": beside(DATABASES["default"])}
TASKS = {
    **TASKS,
    "elsewhere": {
        "BACKEND": "django_taskq.backend.DatabaseBackend",
        "QUEUES": [],
        "OPTIONS": {"DATABASE": "other", "LEASE_SECONDS": 3, "HEARTBEAT_SECONDS": 0.5},
    },
}
