"""
Change limits at run time: an operator's bound holds until its time is over or somebody resets it, then the code's.

Whoever sets a bound marks the limit to be looked at: so parked tasks are released, and workers that found a queue
full are woken, within the second that a duty takes at most.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django_taskq import clock, conf, events
from django_taskq.domain.limits import LimitKind, default_burst, is_shared, key_of, parse_rate, queue_of, whole
from django_taskq.exceptions import InvalidOptions, LimitNotFound
from django_taskq.lifecycle import wake
from django_taskq.lifecycle.databases import main_database
from django_taskq.store import limits as store
from django_taskq.store import tasks as task_store

__all__ = ["reset_limit", "set_limit"]

_LONGEST = 190
_KINDS = (LimitKind.CONCURRENCY, LimitKind.RATE)


def set_limit(
    name: str,
    *,
    concurrency: int | None = None,
    rate: str | None = None,
    burst: int | None = None,
    until: datetime | timedelta | None = None,
    actor: str = "",
    reason: str = "",
    alias: str | None = None,
) -> None:
    """
    Set the bound of a limit for all workers, until a moment or until it is reset; 0 lets nothing start.

    ``name`` is "all", "queue:email", "task:shop.send" or a key of tasks. Give ``concurrency`` or ``rate``: a name may
    have one limit of each kind. Running tasks go on. Raise InvalidOptions, or LimitNotFound for a key that no task has.
    """
    alias = alias or main_database()
    now = clock.now()
    values: dict[str, Any] = {"set_until": _end(until, now), "set_by": actor[:150], "set_reason": reason[:200]}
    if (concurrency is None) is (rate is None):
        raise InvalidOptions(
            f"a limit is set by concurrency or by rate, one of them, got concurrency={concurrency!r} and rate={rate!r}",
            field="concurrency",
            code="one",
        )
    if concurrency is not None:
        if burst is not None:
            raise InvalidOptions(f"burst belongs to a rate, got {burst!r} for concurrency", field="burst", code="one")
        kind = LimitKind.CONCURRENCY
        values |= {"set_amount": whole(concurrency, "concurrency", 0), "set_per_seconds": None, "set_burst": None}
    else:
        kind = LimitKind.RATE
        amount, seconds = parse_rate(rate, least=0)
        most = default_burst(amount, seconds) if burst is None else whole(burst, "burst")
        values |= {"set_amount": amount, "set_per_seconds": seconds, "set_burst": most}
    key = _key(kind, name)
    if not store.set_bound(alias, key, now=now, make=is_shared(key), **values):
        raise LimitNotFound(
            f"no task has a {kind} limit called {name!r}. A limit has a row once the first task with it was claimed; "
            "a task whose code has no such limit cannot get one at run time: limit its queue ('queue:…')"
        )
    _tell(alias, key, kind, name, values, actor=actor, reason=reason, now=now)


def reset_limit(
    name: str, *, kind: str | None = None, actor: str = "", reason: str = "", alias: str | None = None
) -> bool:
    """
    Let the code's bounds of a limit hold again; return False if nothing was set.

    ``kind`` is "concurrency" or "rate", None for both. Raise InvalidOptions.
    """
    if kind is not None and kind not in _KINDS:
        raise InvalidOptions(f"kind must be 'concurrency' or 'rate', got {kind!r}", field="kind", code="choice")
    alias = alias or main_database()
    now = clock.now()
    done = False
    for each in (kind,) if kind else _KINDS:
        key = _key(each, name)
        if store.reset_bound(alias, key, now=now):
            _tell(alias, key, each, name, {}, actor=actor, reason=reason, now=now)
            done = True
    return done


def _key(kind: str, name: object) -> str:
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > _LONGEST:
        raise InvalidOptions(
            f"the name of a limit must be 'all', 'queue:…', 'task:…' or a key of tasks, of {_LONGEST} printable "
            f"characters at most, got {name!r}",
            field="name",
            code="format",
        )
    return key_of(kind, name)


def _end(until: object, now: datetime) -> datetime | None:
    if until is None:
        return None
    if isinstance(until, timedelta) and until > timedelta(0):
        try:
            return now + until
        except OverflowError:
            pass
    elif isinstance(until, datetime) and until.tzinfo is not None and until > now:
        return until
    raise InvalidOptions(
        f"until must be a moment ahead that names its time zone, a timedelta above 0, or None, got {until!r}",
        field="until",
        code="range",
    )


def _tell(
    alias: str, key: str, kind: str, name: str, values: dict[str, Any], *, actor: str, reason: str, now: datetime
) -> None:
    until = values.get("set_until")
    bound = {what: values.get(f"set_{what}") for what in ("amount", "per_seconds", "burst")}
    detail = {"kind": kind, **{what: value for what, value in bound.items() if value is not None}}
    if until is not None:
        detail["until"] = until.isoformat()
    action = "set_limit" if values else "reset_limit"
    task_store.audit(alias, actor=actor, action=action, now=now, reason=reason, target=name, detail=detail)
    if is_shared(key):
        wake.after_commit(alias, queue_of(key) or wake.ALL, ready=True, notify=conf.options().notify)
    if events.wanted(events.LimitChanged):
        changed = events.LimitChanged(limit=name, kind=kind, **bound, until=until, actor=actor, reason=reason)
        events.emit_on_commit(events.LimitChanged, [changed], using=alias)
