"""What differs between databases, and nothing else. The only room with raw SQL or a vendor's name."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from django.db import connections

from django_taskq.store.vendors.base import Vendor

__all__ = ["Vendor", "vendor_for"]

_MODULES = {
    "postgresql": ("postgresql", "PostgreSQL"),
    "mysql": ("mysql", "MySQL"),
    "sqlite": ("sqlite", "SQLite"),
}


@cache
def vendor_for(alias: str) -> Vendor:
    """Return the vendor of a database alias: its own where there is one, else the portable base."""
    found = _MODULES.get(connections[alias].vendor)
    if found is None:
        return Vendor(alias)
    module, name = found
    kind: type[Vendor] = getattr(import_module(f"django_taskq.store.vendors.{module}"), name)
    return kind(alias)
