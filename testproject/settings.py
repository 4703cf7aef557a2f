"""
Settings of the demo shop.

Everything it writes, the SQLite database too, goes into one folder (SHOP_DATA,
by default ``demo-data`` beside manage.py). DATABASE_URL names another database,
such as ``postgres://user:password@127.0.0.1:5432/shop``.
"""

from datetime import timedelta
from pathlib import Path

import django
import environ

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
# A file of that name beside manage.py is read too; what the environment says wins.
if (BASE_DIR / ".env").is_file():
    env.read_env(BASE_DIR / ".env")

SHOP_DATA = Path(env.str("SHOP_DATA", default=str(BASE_DIR / "demo-data"))).resolve()
SHOP_DATA.mkdir(parents=True, exist_ok=True)

DEBUG = env.bool("DEBUG", default=True)
SECRET_KEY = env.str("SECRET_KEY", default="only for the demo on your own machine")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "[::1]"])

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_prometheus",
    "django_taskq",
    "testproject.shop",
]
if django.VERSION < (6, 0):
    # Django 5.2 has no tasks framework of its own: the backport brings it.
    INSTALLED_APPS.insert(INSTALLED_APPS.index("django_taskq"), "django_tasks")

MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]

ROOT_URLCONF = "testproject.urls"
WSGI_APPLICATION = "testproject.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {"default": env.db_url("DATABASE_URL", default=f"sqlite:///{SHOP_DATA / 'shop.sqlite3'}")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # The web server and the worker write to one file: readers never wait (WAL), and a
    # transaction takes the write lock when it begins, so that it cannot fail half-way.
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
    }

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = env.str("TIME_ZONE", default="UTC")

STATIC_URL = "static/"
MEDIA_URL = "media/"
MEDIA_ROOT = SHOP_DATA / "media"

# Receipts are written into a folder, one file per mail, instead of being sent.
SHOP_MAIL = SHOP_DATA / "mail"
if django.VERSION >= (6, 1):
    MAILERS = {
        "default": {
            "BACKEND": "django.core.mail.backends.filebased.EmailBackend",
            "OPTIONS": {"file_path": str(SHOP_MAIL)},
        }
    }
else:
    EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
    EMAIL_FILE_PATH = SHOP_MAIL
DEFAULT_FROM_EMAIL = "Corner Shop <shop@example.com>"

# Every user of django.tasks, this project's own tasks and those of third-party apps, goes to the database.
TASKS = {"default": {"BACKEND": "django_taskq.backend.DatabaseBackend", "QUEUES": []}}

# None of this has to be set; the reference, under "Settings", has the whole list.
TASKQ = {
    "MAX_ATTEMPTS": 3,
    "QUEUES": {
        # Whatever goes to the outside world is tried longer before a human has to look.
        "webhooks": {"MAX_ATTEMPTS": 8, "TIMEOUT": timedelta(seconds=10)},
    },
    "RETENTION": {"SUCCEEDED": timedelta(days=7)},
    "WORKER": {"THREADS": 4, "GRACE": timedelta(seconds=10)},
}

# Where the warehouse listens; `manage.py demo` starts one and sets this.
SHOP_WAREHOUSE_URL = env.str("SHOP_WAREHOUSE_URL", default="http://127.0.0.1:8001")

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname:<7} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": env.str("LOG_LEVEL", default="WARNING")},
    "loggers": {
        # Django gives this one a handler of its own, and each line would stand there twice.
        "django": {"level": "INFO"},
        "django.server": {
            "handlers": ["console"],
            "level": env.str("SERVER_LOG_LEVEL", default="INFO"),
            "propagate": False,
        },
        # A task's life is INFO, a repair WARNING, a dead task ERROR.
        "django_taskq": {"level": env.str("TASKQ_LOG_LEVEL", default="INFO")},
        # Django's own logger of tasks tells the same once more.
        "django.tasks": {"level": "CRITICAL"},
        "django_tasks": {"level": "CRITICAL"},
    },
}
