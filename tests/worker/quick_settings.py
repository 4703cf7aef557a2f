"""The tests' settings for worker processes, with leases short enough to be waited for."""

from tests.settings import *  # noqa: F403 - a settings module

TASKQ = {"LEASE_SECONDS": 3, "HEARTBEAT_SECONDS": 0.3}
