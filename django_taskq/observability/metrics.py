"""
Prometheus metrics: on where METRICS is True, or where django-prometheus is installed and METRICS says nothing.

Nothing of ``prometheus_client`` is imported while they are off. The series
live in the default registry, so that whatever exposes that registry exposes them.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec

from django_taskq import conf

__all__ = ["CONTENT_TYPE", "install", "is_on", "render"]

logger = logging.getLogger("django_taskq")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def is_on() -> bool:
    """Return whether this project wants metrics, and can have them."""
    return conf.wants_metrics() and find_spec("prometheus_client") is not None


def install() -> None:
    """Start to count, once per process. Without ``prometheus_client`` this does nothing; a system check tells."""
    if not is_on():
        return
    from django_taskq.observability import prometheus

    prometheus.install()


def render() -> bytes | None:
    """Return the text exposition of this process's default registry, None where metrics are off."""
    if not is_on():
        return None
    from prometheus_client import generate_latest

    return generate_latest()
