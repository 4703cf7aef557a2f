"""The columns of a limit, in the order in which ``limits.Room`` takes them. Apart: most processes never load that."""

from __future__ import annotations

__all__ = ["LIMIT_CHANGING", "LIMIT_FIELDS"]

LIMIT_FIELDS = (
    "key",
    "held",
    "amount",
    "per_seconds",
    "burst",
    "tokens",
    "refilled_at",
    "waits",
    "promised",
    "promised_at",
    "next_at",
    "used_at",
    "set_amount",
    "set_per_seconds",
    "set_burst",
    "set_until",
)
# Those of them that counting changes.
LIMIT_CHANGING = LIMIT_FIELDS[1:12]
