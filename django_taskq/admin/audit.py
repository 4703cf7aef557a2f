"""Who did what and why, and who does which duty."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy

from django_taskq import clock
from django_taskq.admin.base import ReadOnlyAdmin, alias
from django_taskq.admin.paging import FilterForm
from django_taskq.admin.shown import ago, clean
from django_taskq.models import AuditEntry, Duty, Schedule, Task, Workflow
from django_taskq.ops.search import Order, Page, paged
from django_taskq.store.tasks import to_uuid

__all__ = ["AuditEntryAdmin", "DutyAdmin"]

_ON_SCHEDULES = ("change", "create", "delete", "disable", "enable", "pause", "resume", "run", "skip")
_ACTIONS = (
    *("arrange", "cancel", "discard", "forget", "kill", "pause", "replay", "reset_limit", "resume"),
    *(f"schedule.{verb}" for verb in _ON_SCHEDULES),
    "set_limit",
)


class AuditForm(FilterForm):
    """Filters of the audit log."""

    task = forms.UUIDField(label=gettext_lazy("id of a task or workflow"), required=False)
    actor = forms.CharField(label=gettext_lazy("actor"), required=False, max_length=150)
    action = forms.ChoiceField(
        label=gettext_lazy("action"),
        required=False,
        choices=[("", gettext_lazy("all actions")), *((name, name) for name in _ACTIONS)],
    )


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    """The audit log. Nothing here can be changed or deleted."""

    filter_form = AuditForm
    order = Order(name="newest", label=gettext_lazy("newest first"), columns=("id",), descending=True)
    list_display = ["at_column", "actor", "action", "target_column", "task_column", "reason", "detail_column"]
    empty_text = gettext_lazy("Nobody has done anything yet.")

    def find_page(self, form: Any, *, limit: int, after: str | None, before: str | None) -> Page:
        values = form.cleaned_data
        base = AuditEntry.objects.using(alias()).all()
        if values["task"]:
            base = base.filter(task_id=values["task"])
        wanted = {name: values[name] for name in ("actor", "action") if values[name]}

        def keep(found: Any) -> bool:
            return list(found) == list(wanted.values())

        return paged(
            base,
            self.order,
            limit=limit,
            after=after,
            before=before,
            keep=keep if wanted else None,
            columns=tuple(wanted),
        )

    @admin.display(description=gettext_lazy("when"))
    def at_column(self, row: AuditEntry) -> SafeString | str:
        return ago(row.at)

    @admin.display(description=gettext_lazy("target"))
    def target_column(self, row: AuditEntry) -> str:
        return clean(row.target)

    @admin.display(description=gettext_lazy("task or workflow"))
    def task_column(self, row: AuditEntry) -> SafeString | str:
        key = to_uuid(row.task_id)
        # Said by the target, since nothing is looked up for a list.
        model = Workflow if row.target.startswith("workflow ") else Task
        if row.target.startswith("schedule ") and key is not None:
            link = self.link_to(Schedule, key.int)
            return "-" if link is None else format_html('<a href="{}">{}</a>', link, row.target.partition(" ")[2])
        link = None if key is None else self.link_to(model, key)
        if link is None:
            return "-" if key is None else str(key)
        return format_html('<a href="{}"><code class="taskq-id">{}…{}</code></a>', link, str(key)[:8], str(key)[-4:])

    @admin.display(description=gettext_lazy("detail"))
    def detail_column(self, row: AuditEntry) -> str:
        return clean(", ".join(f"{name}: {value}" for name, value in (row.detail or {}).items())) or "-"


@admin.register(Duty)
class DutyAdmin(ReadOnlyAdmin):
    """Upkeep that one worker at a time does."""

    order = Order(name="name", label=gettext_lazy("by name"), columns=("name",))
    list_display = ["name", "holder_column", "ran_column", "took_ms", "count", "error"]
    empty_text = gettext_lazy("No worker has done any upkeep yet.")

    @admin.display(description=gettext_lazy("held by"))
    def holder_column(self, row: Duty) -> str:
        # Only the duty that chooses the leader is held until a moment; the others note who did them last.
        if row.until is not None and row.until <= clock.now():
            return f"{row.worker_id} ({gettext_lazy('over')})"
        return str(row.worker_id) if row.worker_id else "-"

    @admin.display(description=gettext_lazy("last run"))
    def ran_column(self, row: Duty) -> SafeString | str:
        return ago(row.ran_at)
