"""Workers and whether they still beat."""

from __future__ import annotations

from django.contrib import admin
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from django_taskq import clock
from django_taskq.admin.base import ReadOnlyAdmin
from django_taskq.admin.shown import ago
from django_taskq.models import Worker
from django_taskq.ops.search import Order
from django_taskq.ops.snapshot import is_stale

__all__ = ["WorkerAdmin"]


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    """Worker processes. One that stops leaves the list; one that falls silent stays until it is pruned."""

    order = Order(name="newest", label=gettext_lazy("last started first"), columns=("id",), descending=True)
    list_display = [
        "name", "state_column", "queues_column", "busy_column", "executor", "beat_column", "started_column", "release",
    ]  # fmt: skip
    fields = [
        "name", "host", "pid", "state_column", "queues_column", "busy_column", "executor", "release", "started_column",
        "beat_column", "lease_seconds",
    ]  # fmt: skip
    readonly_fields = fields  # type: ignore[assignment]  # flat, which "fields" need not be
    empty_text = gettext_lazy("No worker is known. Start one: manage.py runworker")

    @admin.display(description=gettext_lazy("state"))
    def state_column(self, row: Worker) -> SafeString:
        if row.state == Worker.State.DEAD:
            return format_html('<span class="taskq-state taskq-dead">{}</span>', _("declared dead"))
        if is_stale(row, clock.now()):
            title = _("longer silent than its lease of %d s") % row.lease_seconds
            return format_html('<span class="taskq-state taskq-silent" title="{}">{}</span>', title, _("silent"))
        name = "alive" if row.state == Worker.State.ALIVE else "stopping"
        return format_html('<span class="taskq-state taskq-{}">{}</span>', name, row.get_state_display())

    @admin.display(description=gettext_lazy("queues"))
    def queues_column(self, row: Worker) -> str:
        return row.queues or _("all")

    @admin.display(description=gettext_lazy("busy"))
    def busy_column(self, row: Worker) -> str:
        return f"{row.running}/{row.slots}"

    @admin.display(description=gettext_lazy("heartbeat"))
    def beat_column(self, row: Worker) -> SafeString | str:
        return ago(row.beat_at)

    @admin.display(description=gettext_lazy("started"))
    def started_column(self, row: Worker) -> SafeString | str:
        return ago(row.started_at)
