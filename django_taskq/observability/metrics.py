"""Prometheus metrics."""

from __future__ import annotations

__all__ = ["install"]


def install() -> None:
    """Start to count."""
