"""
Pause and resume a queue, a task type, or everything. Each is audited and told.

A pause with an end needs nobody to end it: from that moment on it does not
count. Its row is tidied away by the first worker that comes across it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django_taskq import conf, events
from django_taskq.domain.pauses import PauseScope
from django_taskq.exceptions import InvalidOptions
from django_taskq.lifecycle import admission, definitions, wake
from django_taskq.lifecycle.databases import main_database
from django_taskq.models import Pause
from django_taskq.store import pauses as store
from django_taskq.store import queues as queue_store
from django_taskq.store import tasks as task_store
from django_taskq.store.vendors import vendor_for

__all__ = ["lift_ended", "pause", "resume", "until_moment"]

# Who resumes where the time of a pause was over.
ITS_END = "its end"
_LONGEST = {PauseScope.QUEUE: 64, PauseScope.TASK: 200}


def pause(
    queue: str | None = None,
    *,
    task: Any = None,
    everything: bool = False,
    until: datetime | timedelta | None = None,
    reject: bool | None = None,
    replace: bool = False,
    actor: str = "",
    reason: str = "",
    alias: str | None = None,
) -> bool:
    """
    Let no worker take tasks of a queue, of a task type, or any, within a second.

    Running tasks finish, and scheduled ones become ready and wait. Enqueueing goes on unless
    ``reject``; None: what the settings of the queue say. Return False if it was paused already:
    then nothing changes, unless ``replace``. Raise InvalidOptions.
    """
    scope, name = _target(queue, task, everything)
    alias = alias or main_database()
    now = vendor_for(alias).now()
    end = until_moment(until, now=now)
    admission.forget(alias)
    if scope == PauseScope.QUEUE:
        queue_store.remember(alias, [name])
    if not store.put(
        alias, scope, name, actor=actor, reason=reason, now=now, until=end, rejects=reject, replace=replace
    ):
        return False
    task_store.audit(
        alias, actor=actor, action="pause", now=now, reason=reason, target=name, detail=_detail(scope, end, reject)
    )
    # Idle workers must know of an end, too: they wake up for it.
    wake.after_commit(alias, name if scope == PauseScope.QUEUE else wake.ALL, ready=True, notify=conf.options().notify)
    kind, facts = _event(scope, name, events.QueuePaused, events.TaskTypePaused, events.EverythingPaused)
    if events.wanted(kind):
        events.emit_on_commit(kind, [kind(**facts, actor=actor, reason=reason, until=end)], using=alias)
    return True


def resume(
    queue: str | None = None,
    *,
    task: Any = None,
    everything: bool = False,
    actor: str = "",
    reason: str = "",
    alias: str | None = None,
) -> bool:
    """
    Lift the pause of a queue, of a task type, or that of everything; return False if there was none.

    Each pause is lifted for itself: a queue stays paused while everything is. Raise InvalidOptions.
    """
    scope, name = _target(queue, task, everything)
    alias = alias or main_database()
    now = vendor_for(alias).now()
    admission.forget(alias)
    held = store.find(alias, scope, name, now=now) is not None
    if not store.lift(alias, scope, name) or not held:
        return False
    _tell_resumed(alias, scope, name, actor=actor, reason=reason, now=now)
    return True


def lift_ended(alias: str, pauses: Iterable[Pause], *, now: datetime) -> None:
    """Tidy away pauses whose time is over; of workers that do it at once, one does and tells."""
    for pause in pauses:
        scope = PauseScope(pause.scope)
        if store.lift(alias, scope, pause.name, over_at=now):
            _tell_resumed(alias, scope, pause.name, actor=ITS_END, reason="", now=now)


def _tell_resumed(alias: str, scope: PauseScope, name: str, *, actor: str, reason: str, now: datetime) -> None:
    task_store.audit(
        alias, actor=actor, action="resume", now=now, reason=reason, target=name, detail=_detail(scope, None, None)
    )
    if scope == PauseScope.TASK:
        # Loaded where a task type was paused. The leader sends the tasks back that were parked meanwhile.
        from django_taskq.domain.parking import paused_type_key
        from django_taskq.store import limits

        limits.look_at(alias, paused_type_key(name), now=now)
    wake.after_commit(alias, name if scope == PauseScope.QUEUE else wake.ALL, ready=True, notify=conf.options().notify)
    kind, facts = _event(scope, name, events.QueueResumed, events.TaskTypeResumed, events.EverythingResumed)
    if events.wanted(kind):
        events.emit_on_commit(kind, [kind(**facts, actor=actor)], using=alias)


def _target(queue: str | None, task: Any, everything: bool) -> tuple[PauseScope, str]:
    if (queue is not None) + (task is not None) + everything != 1:
        raise InvalidOptions(
            f"name exactly one of queue, task and everything, got queue={queue!r}, task={task!r}, "
            f"everything={everything!r}",
            field="queue",
            code="target",
        )
    if everything:
        return PauseScope.EVERYTHING, ""
    scope = PauseScope.TASK if queue is None else PauseScope.QUEUE
    name = queue if queue is not None else task if isinstance(task, str) else definitions.stored_name(task)
    if not 0 < len(name) <= _LONGEST[scope]:
        raise InvalidOptions(
            f"the name of a {scope.name.lower()} must have 1 to {_LONGEST[scope]} characters, got {name!r}",
            field=scope.name.lower(),
            code="length",
        )
    return scope, name


def until_moment(until: datetime | timedelta | None, *, now: datetime) -> datetime | None:
    """Return the moment at which a pause ends. Raise InvalidOptions for one that is naive or not ahead."""
    try:
        moment = now + until if isinstance(until, timedelta) else until
    except OverflowError:
        raise InvalidOptions(f"until is beyond all dates: {until!r}", field="until", code="range") from None
    if moment is None:
        return None
    if not isinstance(moment, datetime) or moment.tzinfo is None:  # type: ignore[redundant-expr]  # callers err
        raise InvalidOptions(
            f"until must be an aware datetime or a timedelta, got {until!r}", field="until", code="type"
        )
    if moment <= now:
        raise InvalidOptions(f"until must lie ahead, got {until!r} at {now.isoformat()}", field="until", code="range")
    return moment


def _detail(scope: PauseScope, until: datetime | None, reject: bool | None) -> dict[str, Any]:
    # An entry without a scope is of a queue, as all were once.
    found: dict[str, Any] = {} if scope == PauseScope.QUEUE else {"scope": scope.name.lower()}
    if until is not None:
        found["until"] = until.isoformat()
    if reject is not None:
        found["reject"] = reject
    return found


def _event(
    scope: PauseScope, name: str, queue: type[Any], task: type[Any], everything: type[Any]
) -> tuple[type[Any], dict[str, Any]]:
    match scope:
        case PauseScope.QUEUE:
            return queue, {"queue": name}
        case PauseScope.TASK:
            return task, {"task": name}
        case PauseScope.EVERYTHING:
            return everything, {}
