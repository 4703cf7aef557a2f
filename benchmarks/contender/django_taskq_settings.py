"""Settings of the contender: the harness's own, with this app added."""

from adapters._settings import *

INSTALLED_APPS += ["django_taskq"]
TASKS = {"default": {"BACKEND": "django_taskq.backend.DatabaseBackend"}}
