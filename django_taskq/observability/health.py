"""The worker's page ``/metrics``: there if metrics are on, else a 404."""

from __future__ import annotations

from django_taskq.observability import metrics
from django_taskq.worker import health

__all__ = ["install"]


def install() -> None:
    """Let the worker's health port show the metrics of its process."""
    health.add_page("/metrics", _metrics)


def _metrics() -> tuple[str, bytes] | None:
    text = metrics.render()
    return None if text is None else (metrics.CONTENT_TYPE, text)
