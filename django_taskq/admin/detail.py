"""Everything the page of one task shows. A fixed number of small queries, whatever the task has been through."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from django_taskq import clock
from django_taskq.admin import acting
from django_taskq.admin.base import alias
from django_taskq.admin.shown import Shown, ago, clean, exact, pretty, tail
from django_taskq.domain.limits import key_name
from django_taskq.domain.states import Ack, State, StepState
from django_taskq.domain.workflows import Role
from django_taskq.models import (
    Attempt,
    AuditEntry,
    DeadTask,
    FinishedTask,
    Limit,
    Progress,
    Queue,
    Schedule,
    Step,
    Task,
    Worker,
    Workflow,
)
from django_taskq.models.tasks import TaskRow
from django_taskq.ops import snapshot, workflows
from django_taskq.ops.explain import duration, explain

if TYPE_CHECKING:
    from django_taskq.admin.tasks import TaskRowAdmin

__all__ = ["Fact", "audit", "facts"]

_MOST_ATTEMPTS = 20
_MOST_ENTRIES = 50
_MOST_STEPS = 200
_MOST_BLOCKERS = 20
_MOST_LIMITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One line of the page: a word, a value, and where it leads."""

    label: Any
    value: Any
    link: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A stored JSON value; ``raw`` leads to the whole of it."""

    label: Any
    shown: Shown
    raw: str


def facts(page: TaskRowAdmin, request: HttpRequest, row: TaskRow) -> dict[str, Any]:
    """Return the template's context for one task."""
    now = clock.now()
    worker = None if not row.worker_id else Worker.objects.using(alias()).filter(pk=row.worker_id).first()
    attempts = list(Attempt.objects.using(alias()).filter(task_id=row.pk).order_by("-id")[: _MOST_ATTEMPTS + 1])
    steps = Step.objects.using(alias()).filter(task_id=row.pk).order_by("position", "id").defer("result")
    shown_steps = list(steps[: _MOST_STEPS + 1])
    flow = None if row.workflow_id is None else Workflow.objects.using(alias()).filter(pk=row.workflow_id).first()
    return {
        "row": row,
        "state_name": State(row.state).name.lower(),
        "state_label": row.get_state_display(),
        "why": clean(explain(alias(), row, now=now)),
        "buttons": [{"verb": verb, "action": page.act_link(verb.name)} for verb in acting.offered(row, request)],
        "error": _error(page, row),
        "facts": [*_facts(page, row, worker), *_limit_facts(page, row), *_workflow_facts(page, row, flow)],
        "timeline": _timeline(row),
        "progress": _progress(row),
        "values": _values(page, row),
        "steps": [_step(step) for step in shown_steps[:_MOST_STEPS]],
        "has_more_steps": len(shown_steps) > _MOST_STEPS,
        "attempts": [_attempt(row, attempt) for attempt in attempts[:_MOST_ATTEMPTS]],
        "has_more_attempts": len(attempts) > _MOST_ATTEMPTS,
        **audit(request, row.pk),
    }


def audit(request: HttpRequest, key: uuid.UUID) -> dict[str, Any]:
    """Return what operators did to a task or workflow, if the user may see it."""
    user: Any = request.user
    may_audit = user.has_perm("django_taskq.view_auditentry")
    entries = AuditEntry.objects.using(alias()).filter(task_id=key).order_by("-id")[:_MOST_ENTRIES]
    return {"may_audit": may_audit, "audit": [_entry(entry) for entry in entries] if may_audit else []}


def _facts(page: TaskRowAdmin, row: TaskRow, worker: Worker | None) -> list[Fact]:
    found = [
        Fact(label=_("Id"), value=str(row.pk)),
        Fact(label=_("Queue"), value=clean(row.queue), link=page.link_to(Queue, row.queue)),
        Fact(label=_("Priority"), value=row.priority),
        Fact(label=_("Attempt"), value=_("%(number)d of %(most)d") % {"number": row.attempt, "most": row.max_attempts}),
        Fact(label=_("Acknowledged"), value=_ack(row.ack)),
    ]
    if row.fair_key is not None:
        found.append(Fact(label=_("Fair key"), value=clean(row.fair_key)))
    if row.worker_id:
        found += _worker_facts(page, row, worker)
    if row.unique_key is not None:
        found.append(Fact(label=_("Unique key"), value=clean(row.unique_key)))
    if row.parent_id is not None:
        found.append(Fact(label=_("Enqueued by"), value=str(row.parent_id), link=page.link_to(Task, row.parent_id)))
    if row.schedule is not None:
        made_by = f"{clean(row.schedule.name)}, {exact(row.schedule.at)}"
        found.append(Fact(label=_("Made by schedule"), value=made_by, link=page.list_link(Schedule)))
    if row.replays:
        found.append(Fact(label=_("Replayed"), value=ngettext("%d time", "%d times", row.replays) % row.replays))
    if isinstance(row, Task) and row.cancel:
        found.append(Fact(label=_("Cancel"), value=_("requested")))
    if isinstance(row, FinishedTask) and row.reason:
        found.append(Fact(label=_("Reason"), value=row.reason.replace("_", " ")))
    return found


def _limit_facts(page: TaskRowAdmin, row: TaskRow) -> list[Fact]:
    if not isinstance(row, Task):
        return []
    found = []
    if row.parked_on is not None:
        found.append(_limit_fact(page, _("Parked on"), row.parked_on))
    # What it runs with, which may be limits of its queue; else what it was enqueued with.
    keys = (row.slots or row.limits or "").split("\n")
    label = _("Holds a slot of") if row.slots else _("Limit")
    return [*found, *(_limit_fact(page, label, key) for key in keys[:_MOST_LIMITS] if key)]


def _limit_fact(page: TaskRowAdmin, label: Any, key: str) -> Fact:
    kind, name = key_name(key)
    return Fact(label=label, value=f"{clean(name)} ({kind})", link=page.link_to(Limit, key))


def _workflow_facts(page: TaskRowAdmin, row: TaskRow, flow: Workflow | None) -> list[Fact]:
    if row.workflow_id is None:
        return []
    is_member = row.role in (None, Role.MEMBER)
    name = _("gone") if flow is None else clean(workflows.title(flow))
    label = _("Member of") if is_member else _("Called by")
    found = [Fact(label=label, value=name, link=None if flow is None else page.link_to(Workflow, flow.pk))]
    if not is_member:
        found.append(Fact(label=_("Called as"), value=row.get_role_display()))
    if row.state == State.WAITING:
        before = workflows.blockers(alias(), row.pk)
        found += [
            Fact(
                label=_("Waits for"),
                value=f"{clean(workflows.title(node))} ({workflows.state_name(node)})",
                link=page.link_to(type(node), node.pk),
            )
            for node in before[:_MOST_BLOCKERS]
        ]
        if len(before) > _MOST_BLOCKERS:
            found.append(Fact(label=_("Waits for"), value=_("%d more") % (len(before) - _MOST_BLOCKERS)))
    return found


def _worker_facts(page: TaskRowAdmin, row: TaskRow, worker: Worker | None) -> list[Fact]:
    runs = row.state == State.RUNNING
    label = _("Worker") if runs else _("Last worker")
    if worker is None:
        name = _("number %d, gone") % row.worker_id
        return [Fact(label=label, value=name), Fact(label=_("Lease"), value=row.lease)]
    found = [
        Fact(label=label, value=clean(worker.name), link=page.link_to(Worker, worker.pk)),
        Fact(label=_("Lease"), value=row.lease),
    ]
    if runs:
        until = worker.beat_at + timedelta(seconds=worker.lease_seconds)
        stale = _(" (over: the worker is silent)") if snapshot.is_stale(worker, clock.now()) else ""
        found.append(Fact(label=_("Lease until"), value=f"{exact(until)}{stale}"))
    return found


def _ack(value: int) -> str:
    try:
        return Ack(value).name.lower()
    except ValueError:
        return str(value)


def _timeline(row: TaskRow) -> list[dict[str, Any]]:
    ended = row if isinstance(row, FinishedTask) else None
    steps = [
        (_("Enqueued"), row.created_at),
        (_("Not before"), row.run_after),
        (_("Claimed") if row.state == State.RUNNING else _("Last attempt"), row.started_at),
        (_("Ended"), ended.finished_at if ended else None),
        (_("Discarded"), ended.resolved_at if ended else None),
        (_("Deadline"), row.deadline_at),
        (_("Expires if not started"), row.expires_at),
        (_("Deleted"), ended.delete_at if ended else None),
    ]
    known = sorted(((at, what) for what, at in steps if at is not None), key=lambda step: step[0])
    found = []
    previous = None
    for at, what in known:
        wait = "" if previous is None else duration(at - previous)
        found.append({"what": what, "exact": exact(at), "ago": ago(at), "after": wait, "is_ahead": at > clock.now()})
        previous = at
    return found


def _progress(row: TaskRow) -> dict[str, Any] | None:
    found = Progress.objects.using(alias()).filter(task_id=row.pk).first()
    if found is None:
        return None
    return {
        "done": f"{found.done:g}",
        "total": f"{found.total:g}" if found.total else None,
        "share": max(0, min(100, round(100 * found.done / found.total))) if found.total and found.total > 0 else None,
        "note": clean(found.note),
        "at": ago(found.at),
    }


def _values(page: TaskRowAdmin, row: TaskRow) -> list[Value]:
    columns = [("args", _("Arguments"))]
    if isinstance(row, FinishedTask):
        columns.append(("result", _("Result")))
    columns += [("metadata", _("Metadata")), ("options", _("Options"))]
    found = []
    for column, label in columns:
        shown = pretty(getattr(row, column))
        if shown is not None:
            name = f"admin:{page.opts.app_label}_{page.opts.model_name}_raw"
            raw = reverse(name, args=[row.pk, column], current_app=page.admin_site.name)
            found.append(Value(label=label, shown=shown, raw=raw))
    return found


def _error(page: TaskRowAdmin, row: TaskRow) -> dict[str, Any] | None:
    if not isinstance(row, FinishedTask) or not (row.error_class or row.error_line):
        return None
    same = page.list_link(DeadTask, f"?fingerprint={row.fingerprint}") if row.fingerprint else None
    return {
        "name": clean(row.error_class or ""),
        "line": clean(row.error_line or ""),
        "same": same,
        # Why a task was skipped is no error.
        "is_note": row.state == State.SUCCEEDED,
    }


def _attempt(row: TaskRow, attempt: Attempt) -> dict[str, Any]:
    ran = None if attempt.started_at is None else duration(attempt.ended_at - attempt.started_at)
    return {
        "number": attempt.number,
        "outcome": attempt.outcome.replace("_", " "),
        "worker": attempt.worker_id,
        "ended": ago(attempt.ended_at),
        "ran": ran,
        "error_class": clean(attempt.error_class),
        "message": tail(attempt.message),
        "traceback": tail(attempt.traceback) if attempt.traceback else None,
    }


def _step(step: Step) -> dict[str, Any]:
    ran = None
    if step.started_at is not None and step.finished_at is not None:
        ran = duration(step.finished_at - step.started_at)
    return {
        "name": clean(step.name),
        "state": StepState(step.state).name.lower(),
        "label": step.get_state_display(),
        "attempt": step.attempt,
        "worker": step.worker_id,
        "started": None if step.started_at is None else ago(step.started_at),
        "ran": ran,
        "error": clean(": ".join(filter(None, (step.error_class, step.error_line)))),
    }


def _entry(entry: AuditEntry) -> dict[str, Any]:
    details: Sequence[str] = [f"{key}: {value}" for key, value in (entry.detail or {}).items()]
    return {
        "at": ago(entry.at),
        "actor": clean(entry.actor),
        "action": clean(entry.action),
        "reason": clean(entry.reason),
        "detail": clean(", ".join(details)),
    }
