"""Settle the tasks of workers that fell silent."""

from __future__ import annotations

from datetime import datetime

from django_taskq import conf
from django_taskq.lifecycle import rescue
from django_taskq.store.vendors import vendor_for

__all__ = ["run_once"]


def run_once(alias: str, options: conf.Options, now: datetime) -> int:
    """Rescue what dead workers held; return how many tasks that were."""
    count = rescue.rescue(alias, now=now)
    if count and options.notify:
        vendor_for(alias).notify(["*"])
    return count
