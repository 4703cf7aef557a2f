"""Django settings of the benchmark programs."""

import os
from urllib.parse import parse_qs, unquote, urlsplit

_url = urlsplit(os.environ["TASKQ_BENCH_DATABASE"])

SECRET_KEY = "benchmark"
USE_TZ = True
DEBUG = False
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django_taskq"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGGING = {"version": 1, "root": {"level": "WARNING"}}
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url.path[1:],
        "USER": unquote(_url.username or "postgres"),
        "PASSWORD": unquote(_url.password or ""),
        # A server from the wheel listens on a socket, named in the query.
        "HOST": parse_qs(_url.query).get("host", [_url.hostname])[0],
        "PORT": _url.port or "",
        "CONN_MAX_AGE": None,
    }
}
TASKS = {"default": {"BACKEND": "django_taskq.backend.DatabaseBackend", "QUEUES": []}}

if "TASKQ_BENCH_PEER" in os.environ:
    # memory.py compares with another library's worker.
    INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django_tasks_db"]
    TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend", "QUEUES": []}}
