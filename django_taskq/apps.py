"""The app: finds the tasks of the other apps, registers checks and observers."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class TaskqConfig(AppConfig):
    """Configuration of django_taskq."""

    name = "django_taskq"
    label = "django_taskq"
    verbose_name = _("Background tasks")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django_taskq import checks  # noqa: F401 - registers them
        from django_taskq.observability import contract, health, logs, metrics

        contract.install()
        logs.install()
        metrics.install()
        health.install()
        autodiscover_modules("tasks")
