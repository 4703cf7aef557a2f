"""Say in one honest sentence why a task runs, does not run, or is over."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import assert_never

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_taskq import clock
from django_taskq.domain.limits import LimitKind
from django_taskq.domain.parking import is_paused_type
from django_taskq.domain.pauses import PauseScope
from django_taskq.domain.states import DeadReason, State
from django_taskq.domain.workflows import Role, WorkflowState
from django_taskq.models import Duty, FinishedTask, Pause, Task, TaskType, Worker, Workflow
from django_taskq.models.tasks import TaskRow
from django_taskq.ops import limits, snapshot, workflows
from django_taskq.store import pauses
from django_taskq.store.vendors.literal import Literal

__all__ = ["duration", "explain", "explain_workflow", "limit_bound", "limit_title"]

# Counting who stands in front stops here.
AHEAD_CAP = 1000
# So many of those that a task waits for are named.
_NAMED = 3
# So many of those that hold a slot are named.
_MOST_HOLDERS = 5
# So many workflows around a waiting one are asked.
_MOST_AROUND = 10


def explain(alias: str, row: TaskRow, *, now: datetime | None = None) -> str:
    """
    Return why this task is where it is, as far as the database tells.

    At most six small queries, and four for each workflow around one that waits for its turn.
    What it says held at the moment it looked.
    """
    now = now or clock.now()
    match row:
        case FinishedTask():
            return _ended(row, now)
        case Task():
            return _live(alias, row, now)
    raise TypeError(f"explain needs a task, got {type(row).__name__}")


def duration(span: timedelta) -> str:
    """Return a span as people write it: 0.4 s, 1 min 12 s, 3 d 4 h. A negative span shows as 0 s."""
    seconds = max(0.0, span.total_seconds())
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next(at for at, (count, _unit) in enumerate(parts) if count)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count)


# Ended


def _ended(row: FinishedTask, now: datetime) -> str:
    ago = duration(now - row.finished_at)
    match State(row.state):
        case State.SUCCEEDED:
            return _("It succeeded %(ago)s ago, in attempt %(attempt)d.") % {"ago": ago, "attempt": row.attempt}
        case State.CANCELLED if row.reason == DeadReason.UPSTREAM:
            return _(
                "It was cancelled %(ago)s ago, since what it waited for did not succeed. "
                "It runs again if that is replayed, or the whole workflow."
            ) % {"ago": ago}
        case State.CANCELLED:
            return _("It was cancelled %(ago)s ago. It runs again only if somebody replays it.") % {"ago": ago}
        case _other:
            text = _("It died %(ago)s ago: %(why)s.") % {"ago": ago, "why": _death(row)}
            if row.resolved_at is not None:
                return text + " " + _("It was discarded, and can still be replayed.")
            return text + " " + _("It runs again only if somebody replays it.")


def _death(row: FinishedTask) -> str:
    try:
        reason = DeadReason(row.reason or "")
    except ValueError:
        return row.reason or _("no reason was recorded")
    match reason:
        case DeadReason.EXHAUSTED:
            return ngettext(
                "its only attempt failed",
                "%(count)d of %(most)d attempts were used and the last one failed",
                row.attempt,
            ) % {"count": row.attempt, "most": row.max_attempts}
        case DeadReason.CRASHED:
            return _("it failed with an error that is never retried")
        case DeadReason.BUDGET:
            return _("its time budget was over")
        case DeadReason.EXPIRED:
            return _("it had not started before it expired")
        case DeadReason.GAVE_UP:
            return _("it gave up by itself")
        case DeadReason.UNKNOWN_TASK:
            return _("no worker knew a task of its name")
        case DeadReason.UNDECODABLE:
            return _("its arguments could not be read")
        case DeadReason.LOST:
            return _("its worker was lost or stopped, and it may not be run a second time")
        case DeadReason.MOVED:
            return _("somebody moved it to the dead letters")
        case DeadReason.UPSTREAM:
            return _("what it waited for did not succeed")
    assert_never(reason)


# Live


def _live(alias: str, row: Task, now: datetime) -> str:
    state = State(row.state)
    match state:
        case State.RUNNING:
            return _running(alias, row, now)
        case State.SCHEDULED:
            return _scheduled(alias, row, now)
        case State.READY:
            return _ready(alias, row, now)
        case State.WAITING:
            return _waiting(alias, row)
        case State.PARKED:
            pause = _pause(alias, row, now)
            return _parked(alias, row, now) if pause is None else _paused(pause, now)
        case _other:
            raise ValueError(f"a {state.name.lower()} task is not live")


def _running(alias: str, row: Task, now: datetime) -> str:
    worker = Worker.objects.using(alias).filter(pk=row.worker_id or 0).first()
    if worker is None or worker.state == Worker.State.DEAD:
        return _("Its worker is gone; another worker takes the task over within seconds, if one is alive.")
    if snapshot.is_stale(worker, now):
        return _(
            "Its worker %(name)s has been silent for %(silent)s, longer than its lease of %(lease)d s; "
            "another worker takes the task over, if one is alive."
        ) % {"name": worker.name, "silent": duration(now - worker.beat_at), "lease": worker.lease_seconds}
    facts = {"name": worker.name, "number": row.attempt, "most": row.max_attempts}
    if row.cancel:
        return _("It runs on %(name)s and was asked to stop; it ends when it listens.") % facts
    if row.started_at is None:
        return _("Worker %(name)s holds it for attempt %(number)d of %(most)d.") % facts
    return _("It runs on %(name)s, attempt %(number)d of %(most)d, claimed %(since)s ago.") % {
        **facts,
        "since": duration(now - row.started_at),
    }


def _scheduled(alias: str, row: Task, now: datetime) -> str:
    if row.run_after is None:
        return _("It is scheduled but has no time at which to run; this should not be.")
    if row.run_after > now:
        facts = {"wait": duration(row.run_after - now), "number": row.attempt, "most": row.max_attempts}
        if row.attempt:
            text = _("Attempt %(number)d of %(most)d did not succeed; the next may start in %(wait)s.") % facts
        else:
            text = _("Its time has not come: it may start in %(wait)s.") % facts
    else:
        text = _("It has been due for %(late)s.") % {"late": duration(now - row.run_after)}
        if not Duty.objects.using(alias).filter(until__gt=now).exclude(worker_id=0).exists():
            return text + " " + _("No worker does the upkeep that makes it ready: none is alive.")
        text += " " + _("A worker makes it ready any moment.")
    obstacle = _obstacle(alias, row, now)
    return f"{text} {obstacle}" if obstacle else text


def _ready(alias: str, row: Task, now: datetime) -> str:
    if row.expires_at is not None and row.expires_at <= now:
        return _("It expired %(ago)s ago and dies as soon as a worker takes it.") % {
            "ago": duration(now - row.expires_at)
        }
    obstacle = _obstacle(alias, row, now)
    if obstacle:
        return obstacle
    full = limits.full(alias, limits.keys_of(row), now=now)
    if full is not None:
        return _("It is ready, but cannot start:") + " " + _held_up(alias, full, now)
    ahead = _ahead(alias, row)
    if row.fair_key is not None:
        return _turn_of_its_key(ahead)
    if ahead > AHEAD_CAP:
        return _("It is ready; more than %(cap)d tasks of its queue come first.") % {"cap": AHEAD_CAP}
    if ahead:
        return ngettext(
            "It is ready; %(count)d task of its queue comes first.",
            "It is ready; %(count)d tasks of its queue come first.",
            ahead,
        ) % {"count": ahead}
    return _("It is ready and the next of its queue; it starts as soon as a worker has a free slot.")


def _turn_of_its_key(ahead: int) -> str:
    if ahead > AHEAD_CAP:
        return _("It is ready; more than %(cap)d tasks of its fair key come first, and the keys take turns.") % {
            "cap": AHEAD_CAP
        }
    return ngettext(
        "It is ready; %(count)d task of its fair key comes first, and the keys take turns.",
        "It is ready; %(count)d tasks of its fair key come first, and the keys take turns.",
        ahead,
    ) % {"count": ahead}


def _obstacle(alias: str, row: Task, now: datetime) -> str:
    """Return what would keep a due task from being claimed, empty if nothing is known to."""
    pause = _pause(alias, row, now)
    if pause is not None:
        return _paused(pause, now)
    alive = [worker for worker in snapshot.workers(alias) if not snapshot.is_stale(worker, now)]
    if not alive:
        return _("No worker is alive.")
    if not any(snapshot.listens_to(worker, row.queue) for worker in alive):
        return ngettext(
            "The only worker that is alive does not serve the queue “%(queue)s”.",
            "None of the %(count)d workers that are alive serves the queue “%(queue)s”.",
            len(alive),
        ) % {"count": len(alive), "queue": row.queue}
    if not TaskType.objects.using(alias).filter(pk=row.name).exists():
        return _("No worker has ever announced a task called “%(name)s”.") % {"name": row.name}
    return ""


def _pause(alias: str, row: Task, now: datetime) -> Pause | None:
    """Return the pause that stops a task, the widest where there are several."""
    names = {PauseScope.EVERYTHING: "", PauseScope.QUEUE: row.queue, PauseScope.TASK: row.name}
    held = pauses.in_force(alias, now)
    return next((pause for pause in held if names[PauseScope(pause.scope)] == pause.name), None)


def _paused(pause: Pause, now: datetime) -> str:
    match PauseScope(pause.scope):
        case PauseScope.EVERYTHING:
            text = _("Everything is paused")
        case PauseScope.QUEUE:
            text = _("The queue “%(queue)s” is paused") % {"queue": pause.name}
        case PauseScope.TASK:
            text = _("Tasks called “%(name)s” are paused") % {"name": pause.name}
        case other:
            assert_never(other)
    if pause.paused_by:
        text += " " + _("by %(who)s") % {"who": pause.paused_by}
    text += " " + _("since %(since)s") % {"since": duration(now - pause.paused_at)}
    if pause.until is not None:
        text += " " + _("for another %(left)s") % {"left": duration(pause.until - now)}
    return f"{text} ({pause.reason})." if pause.reason else f"{text}."


def _ahead(alias: str, row: Task) -> int:
    ready = Task.objects.using(alias).filter(queue=row.queue, state=Literal(State.READY)).order_by("rank", "id")
    if row.fair_key is not None:
        ready = ready.filter(fair_key=row.fair_key)
    more_urgent = ready.filter(rank__lt=row.rank).values_list("id")[: AHEAD_CAP + 1]
    count = len(more_urgent)
    if count <= AHEAD_CAP:
        count += len(ready.filter(rank=row.rank, pk__lt=row.pk).values_list("id")[: AHEAD_CAP + 1 - count])
    return count


# Limits


def _parked(alias: str, row: Task, now: datetime) -> str:
    if row.parked_on is None:
        return _("It waits until its limit has room.")
    if is_paused_type(row.parked_on):
        return _("Tasks of its type were paused when its turn came; it goes back to its queue when that is over.")
    found = limits.find_key(alias, row.parked_on, now=now)
    if found is None:
        return _("Its limit is gone; the upkeep sends it back.")
    if not found.is_full:
        return _("Its limit %(name)s has room: it goes back to its queue as soon as its turn comes.") % {
            "name": limit_title(found)
        }
    return _("It is parked:") + " " + _held_up(alias, found, now)


def limit_title(found: limits.LimitView) -> str:
    """Return a limit's name and its bound, as people read it."""
    return f"“{found.name}” ({limit_bound(found.bound)})"


def limit_bound(bound: limits.Bound | None) -> str:
    """Return a bound as people read it."""
    if bound is None:
        return _("no bound")
    if bound.per_seconds is None:
        return _("%(amount)d at once") % {"amount": bound.amount}
    return _("%(amount)d per %(span)s") % {
        "amount": bound.amount,
        "span": duration(timedelta(seconds=bound.per_seconds)),
    }


def _held_up(alias: str, found: limits.LimitView, now: datetime) -> str:
    """Say what a full limit is full of, who set it so, and what can be done."""
    names = {"name": limit_title(found)}
    if found.bound is not None and not found.bound.amount:
        parts = [_("the limit %(name)s lets nothing start.") % names]
    elif found.kind == LimitKind.RATE:
        parts = [_("the rate limit %(name)s has no start left.") % names]
        if found.next_start_at is not None:
            parts.append(_("The next is due in %(span)s.") % {"span": duration(found.next_start_at - now)})
    else:
        held = limits.holders(alias, found.row.key, limit=_MOST_HOLDERS + 1)
        parts = [
            _("all slots of the limit %(name)s are taken, by %(ids)s.")
            % {**names, "ids": ", ".join(str(holder.id) for holder in held[:_MOST_HOLDERS]) or _("nobody any more")}
        ]
        if len(held) > _MOST_HOLDERS:
            parts[0] = parts[0][:-1] + _(" and others.")
    if found.is_set:
        parts.append(_set_by(found, now))
        parts.append(_("An operator can reset it, or set another bound."))
    else:
        parts.append(_("An operator can raise it for a time."))
    return " ".join(parts)


def _set_by(found: limits.LimitView, now: datetime) -> str:
    row = found.row
    text = _("It was set by %(who)s") % {"who": row.set_by or _("somebody")}
    if row.set_until is not None:
        text += " " + _("for another %(span)s") % {"span": duration(row.set_until - now)}
    return f"{text} ({row.set_reason})." if row.set_reason else f"{text}."


# Waiting for others


def _waiting(alias: str, row: Task) -> str:
    before = workflows.blockers(alias, row.pk)
    if row.role == Role.FINALLY:
        return _("It is called finally: it waits until what was called before it has ended: %(names)s.") % {
            "names": _names(before)
        }
    flow = None if row.workflow_id is None else Workflow.objects.using(alias).filter(pk=row.workflow_id).first()
    gate = None if flow is None else workflows.gate_name(flow, row)
    parts = []
    if before:
        parts.append(_("It waits for %(names)s.") % {"names": _names(before)})
    if gate is not None:
        parts.append(_("It waits for the signal “%(name)s”.") % {"name": gate})
    if flow is not None and flow.state == WorkflowState.WAITING:
        parts.append(_turn(alias, flow))
    if flow is not None and flow.cancel:
        parts.append(_("Its workflow is being cancelled."))
    return " ".join(parts) or _("It waits until the tasks before it have succeeded.")


def _turn(alias: str, flow: Workflow) -> str:
    """Say what a workflow inside another one waits for, be it the outer one's own turn."""
    at = flow
    for _step in range(_MOST_AROUND):
        before = workflows.blockers(alias, at.pk)
        if before:
            return _("The turn of %(flow)s has not come: it waits for %(names)s.") % {
                "flow": _name(at),
                "names": _names(before),
            }
        outer = Workflow.objects.using(alias).filter(pk=at.parent_id, state=WorkflowState.WAITING).first()
        if outer is None:
            break
        at = outer
    return _("The turn of %(flow)s has not come.") % {"flow": _name(flow)}


def _name(row: Task | Workflow) -> str:
    return f"{workflows.title(row)} ({workflows.state_name(row)})"


def _names(rows: Sequence[Task | Workflow]) -> str:
    named = ", ".join(_name(row) for row in rows[:_NAMED])
    if not rows:
        return _("nothing that is left")
    rest = len(rows) - _NAMED
    return named + ngettext(" and %(count)d more", " and %(count)d more", rest) % {"count": rest} if rest > 0 else named


# Workflows


def explain_workflow(alias: str, row: Workflow, *, now: datetime | None = None) -> str:
    """Return why a chain, batch or workflow is where it is. Few queries for one that waits, none for others."""
    now = now or clock.now()
    ago = duration(now - row.finished_at) if row.finished_at is not None else ""
    failed = ngettext("%(count)d member is dead", "%(count)d members are dead", row.failed) % {"count": row.failed}
    match WorkflowState(row.state):
        case WorkflowState.WAITING:
            return _turn(alias, row)
        case WorkflowState.RUNNING:
            text = ngettext(
                "%(open)d of its %(total)d members has not ended.",
                "%(open)d of its %(total)d members have not ended.",
                row.open,
            ) % {"open": row.open, "total": row.total}
            if row.cancel:
                return text + " " + _("It is being cancelled, and ends when nothing in it runs.")
            if row.failed:
                return f"{text} {failed}; " + _("it allows %(allowed)d.") % {"allowed": row.allowed}
            return text
        case WorkflowState.COMPLETED:
            text = _("It completed %(ago)s ago.") % {"ago": ago}
            lost = row.failed + row.cancelled
            if lost:
                text += " " + _("%(count)d of its members did not succeed, and it allows %(allowed)d.") % {
                    "count": lost,
                    "allowed": row.allowed,
                }
            return text
        case WorkflowState.FAILED:
            return _("It failed %(ago)s ago: %(failed)s, and it allows %(allowed)d. Replay what failed to go on.") % {
                "ago": ago,
                "failed": failed,
                "allowed": row.allowed,
            }
        case WorkflowState.CANCELLED:
            return _("It was cancelled %(ago)s ago. It runs again only if somebody replays it.") % {"ago": ago}
    assert_never(WorkflowState(row.state))
