"""
Schedules: the list, the page of one with its ticks ahead and behind, what operators do, and the form of their own.

A schedule that the code declares is read here and steered by verbs; one made here can also be changed and deleted. The
form shows the next runs before anything is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.contrib.admin.widgets import AdminTextareaWidget
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_taskq import clock, conf
from django_taskq.admin import detail
from django_taskq.admin.acting import MOST_SELECTED, ReasonForm, ask, check_post, fitting, refuse, safe_back
from django_taskq.admin.base import ReadOnlyAdmin, alias
from django_taskq.admin.detail import Fact
from django_taskq.admin.shown import ago, clean, exact
from django_taskq.compat import ADMIN_BREADCRUMBS_ARE_A_LIST
from django_taskq.domain.schedules import MISFIRES, MOST_MISFIRES, OVERLAPS, Policy, Rule, check_policy, check_rule
from django_taskq.exceptions import (
    InvalidOptions,
    InvalidPayload,
    ScheduleNotFound,
    ScheduleRefused,
    TaskqError,
)
from django_taskq.lifecycle import schedules as acts
from django_taskq.models import Schedule, Task
from django_taskq.ops import schedules
from django_taskq.ops.search import Order, Page

__all__ = ["ScheduleAdmin"]

RUN_PERMISSION = "django_taskq.run_schedule"
_PREVIEW = 5
_HISTORY = 60


def _moment() -> forms.SplitDateTimeWidget:
    """Return the inputs of a date and a time that browsers know, so that no script is needed."""
    return forms.SplitDateTimeWidget(
        date_format="%Y-%m-%d",
        time_format="%H:%M:%S",
        date_attrs={"type": "date"},
        time_attrs={"type": "time", "step": "1"},
    )


class PauseForm(ReasonForm):
    """How long a schedule is paused."""

    until = forms.SplitDateTimeField(
        label=gettext_lazy("until"),
        required=False,
        widget=_moment(),
        help_text=gettext_lazy("Empty: until somebody resumes it."),
    )

    def options(self) -> dict[str, Any]:
        return {"until": self.cleaned_data["until"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One thing that can be done to schedules. ``act`` returns something false where nothing changed."""

    name: str
    label: Any
    title: Any
    effect: Any
    act: Callable[..., Any]
    form: type[ReasonForm] = ReasonForm
    style: str = ""
    permission: str = RUN_PERMISSION


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            name="run",
            label=gettext_lazy("Run now…"),
            title=gettext_lazy("Run now"),
            effect=gettext_lazy(
                "A task is made at once, beside the ticks of the schedule. It may repeat what its last run did."
            ),
            act=acts.run_now,
            style="default",
        ),
        Verb(
            name="pause",
            label=gettext_lazy("Pause…"),
            title=gettext_lazy("Pause"),
            effect=gettext_lazy("Its ticks are left out, and not made up for. Tasks that were made already run."),
            act=acts.pause,
            form=PauseForm,
        ),
        Verb(
            name="resume",
            label=gettext_lazy("Resume…"),
            title=gettext_lazy("Resume"),
            effect=gettext_lazy("It ticks again from now on. Ticks of the pause are noted as left out."),
            act=acts.resume,
        ),
        Verb(
            name="skip",
            label=gettext_lazy("Skip the next tick…"),
            title=gettext_lazy("Skip the next tick"),
            effect=gettext_lazy("The next tick makes no task; the one after it does."),
            act=acts.skip_next,
        ),
        Verb(
            name="enable",
            label=gettext_lazy("Enable…"),
            title=gettext_lazy("Enable"),
            effect=gettext_lazy("It ticks from now on. What would have ticked while it was off is not made up for."),
            act=acts.enable,
        ),
        Verb(
            name="disable",
            label=gettext_lazy("Disable…"),
            title=gettext_lazy("Disable"),
            effect=gettext_lazy("It does not tick any more, whatever the code says, until somebody enables it."),
            act=acts.disable,
        ),
        Verb(
            name="delete",
            label=gettext_lazy("Delete…"),
            title=gettext_lazy("Delete"),
            effect=gettext_lazy("The schedule and the record of its ticks are deleted. Its tasks stay."),
            act=acts.delete,
            style="deletelink",
            permission="django_taskq.delete_schedule",
        ),
    )
}


class ScheduleForm(forms.Form):
    """An operator's schedule."""

    name = forms.CharField(
        label=gettext_lazy("name"), max_length=100, widget=forms.TextInput(attrs={"class": "vTextField"})
    )
    task = forms.ChoiceField(
        label=gettext_lazy("task"), help_text=gettext_lazy("Only tasks that the code exposes: @task(schedulable=True).")
    )
    cron = forms.CharField(
        label=gettext_lazy("cron"),
        required=False,
        max_length=200,
        widget=forms.TextInput(attrs={"class": "vTextField", "placeholder": "0 3 * * MON-FRI"}),
        help_text=gettext_lazy("Minute, hour, day, month, weekday; or six fields, with seconds first."),
    )
    every = forms.DurationField(
        label=gettext_lazy("or every"),
        required=False,
        help_text=gettext_lazy("As days, hours, minutes and seconds: 00:15:00 is a quarter of an hour."),
    )
    at = forms.SplitDateTimeField(label=gettext_lazy("or once, at"), required=False, widget=_moment())
    timezone = forms.CharField(
        label=gettext_lazy("time zone"), max_length=64, help_text=gettext_lazy("What cron means by a time.")
    )
    args = forms.JSONField(
        label=gettext_lazy("arguments"),
        required=False,
        widget=AdminTextareaWidget(attrs={"rows": 2}),
        help_text=gettext_lazy("A JSON list."),
    )
    kwargs = forms.JSONField(
        label=gettext_lazy("keyword arguments"),
        required=False,
        widget=AdminTextareaWidget(attrs={"rows": 3}),
        help_text=gettext_lazy("A JSON object."),
    )
    queue_name = forms.CharField(
        label=gettext_lazy("queue"), required=False, max_length=64, help_text=gettext_lazy("Empty: the task's own.")
    )
    priority = forms.IntegerField(
        label=gettext_lazy("priority"), required=False, min_value=-100, max_value=100,
        help_text=gettext_lazy("Empty: the task's own."),
    )  # fmt: skip
    overlap = forms.ChoiceField(
        label=gettext_lazy("while an earlier task is live"),
        choices=list(
            zip(
                OVERLAPS,
                (gettext_lazy("make another"), gettext_lazy("leave the tick out"), gettext_lazy("cancel that one")),
                strict=True,
            )
        ),
    )
    misfire = forms.ChoiceField(
        label=gettext_lazy("missed ticks"),
        choices=list(
            zip(
                MISFIRES,
                (gettext_lazy("one task for all"), gettext_lazy("one task each"), gettext_lazy("leave them out")),
                strict=True,
            )
        ),
    )
    misfire_limit = forms.IntegerField(
        label=gettext_lazy("of those, at most"), initial=10, min_value=1, max_value=MOST_MISFIRES
    )
    misfire_grace = forms.FloatField(
        label=gettext_lazy("missed after"), initial=60, min_value=0, help_text=gettext_lazy("Seconds.")
    )
    jitter = forms.FloatField(
        label=gettext_lazy("jitter"), initial=0, min_value=0,
        help_text=gettext_lazy("Seconds. Each task starts up to so much later."),
    )  # fmt: skip
    start = forms.SplitDateTimeField(label=gettext_lazy("not before"), required=False, widget=_moment())
    end = forms.SplitDateTimeField(label=gettext_lazy("not after"), required=False, widget=_moment())
    reason = forms.CharField(
        label=gettext_lazy("reason"),
        required=False,
        max_length=300,
        widget=forms.TextInput(attrs={"class": "vTextField", "autocomplete": "off"}),
        help_text=gettext_lazy("Kept in the audit log."),
    )

    rule: Rule
    policy: Policy

    def __init__(self, *args: Any, row: Schedule | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = list(acts.schedulable())
        if row is not None:
            self.fields["name"].disabled = True
            self.fields["name"].initial = row.name
        self.fields["task"].choices = [(name, name) for name in names]  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        values = super().clean() or {}
        for field, kind in (("args", list), ("kwargs", dict)):
            empty: Any = kind()
            values[field] = empty if values.get(field) in (None, "") else values[field]
            if not isinstance(values[field], kind):
                text = _("This must be a JSON list.") if kind is list else _("This must be a JSON object.")
                self.add_error(field, text)
        if self.errors:
            return values
        try:
            self.rule = check_rule(
                cron=values["cron"] or None,
                **{name: values[name] for name in ("every", "at", "timezone", "start", "end")},
            )
            self.policy = check_policy(
                **{name: values[name] for name in ("jitter", "misfire", "misfire_limit", "misfire_grace", "overlap")}
            )
        except InvalidOptions as error:
            self.refuse(error)
        return values

    def refuse(self, error: TaskqError) -> None:
        """Show an error beside the field that it is about."""
        field = getattr(error, "field", "")
        self.add_error(field if field in self.fields else None, str(error))

    def call(self) -> dict[str, Any]:
        """Return what ``create`` and ``change`` take."""
        values = self.cleaned_data
        return {
            "task": values["task"],
            "rule": self.rule,
            "policy": self.policy,
            "args": values["args"],
            "kwargs": values["kwargs"],
            "queue_name": values["queue_name"] or None,
            "priority": values["priority"],
            "reason": values["reason"],
        }


def _initial(row: Schedule) -> dict[str, Any]:
    """Return what the form shows of a schedule."""
    rule, options = row.rule_value, row.option_values
    args, kwargs = row.arguments
    shown: dict[str, Any] = {
        "task": row.task,
        "timezone": row.timezone,
        "args": args,
        "kwargs": kwargs,
        "start": rule.start,
        "end": rule.end,
        "queue_name": options.get("queue_name", ""),
        "priority": options.get("priority"),
    }
    policy = row.policy
    for name in ("jitter", "misfire", "misfire_limit", "misfire_grace", "overlap"):
        shown[name] = getattr(policy, name)
    match row.get_kind_display():
        case "cron":
            shown["cron"] = rule.text
        case "interval":
            shown["every"] = timedelta(seconds=float(rule.text))
        case _:
            shown["at"] = clock.from_timestamp(0).fromisoformat(rule.text)
    return shown


def _pill(row: Schedule) -> SafeString:
    state = schedules.state_name(row, clock.now())
    look = {"active": "alive", "paused": "paused", "failing": "dead", "gone": "silent"}.get(state, "cancelled")
    return format_html('<span class="taskq-state taskq-{}">{}</span>', look, _(state))


def _action(verb: Verb) -> Any:
    """Return the list's action of a verb."""

    def body(page: Any, request: HttpRequest, queryset: Any) -> HttpResponse:
        found: HttpResponse = page.act(request, verb, request.POST.getlist(ACTION_CHECKBOX_NAME))
        return found

    permission = "erase" if verb.name == "delete" else "run"
    body.__name__ = f"{verb.name}_selected"
    return admin.action(description=verb.label, permissions=[permission])(body)


@admin.register(Schedule)
class ScheduleAdmin(ReadOnlyAdmin):
    """Schedules: when they tick, what came of it, and ways to steer them."""

    order = Order(name="name", label=gettext_lazy("by name"), columns=("name",))
    list_display = [
        "name", "task_column", "rule_column", "state_column", "last_column", "next_column", "source",
    ]  # fmt: skip
    actions = [_action(verb) for verb in VERBS.values()]
    empty_text = gettext_lazy("There is no schedule. The code declares one with @schedule above @task.")

    def _may(self, request: HttpRequest, permission: str) -> bool:
        user: Any = request.user
        return bool(user.has_perm(permission)) and self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "django_taskq.add_schedule") and bool(acts.schedulable())

    def has_run_permission(self, request: HttpRequest) -> bool:
        return self._may(request, RUN_PERMISSION)

    def has_erase_permission(self, request: HttpRequest) -> bool:
        return self._may(request, VERBS["delete"].permission)

    # The list

    def find_page(self, form: Any, *, limit: int, after: str | None, before: str | None) -> Page:
        page = super().find_page(form, limit=limit, after=after, before=before)
        states = schedules.last_runs(alias(), page.rows)
        for row in page.rows:
            row.last_state = states.get(row.pk)
        return page

    @admin.display(description=gettext_lazy("task"))
    def task_column(self, row: Schedule) -> str:
        return clean(row.task)

    @admin.display(description=gettext_lazy("when"))
    def rule_column(self, row: Schedule) -> SafeString:
        return format_html('{}<span class="taskq-line">{}</span>', schedules.words_of(row), row.rule)

    @admin.display(description=gettext_lazy("state"))
    def state_column(self, row: Schedule) -> SafeString:
        error = clean(row.last_error)
        return format_html('{}<span class="taskq-line">{}</span>', _pill(row), error)

    @admin.display(description=gettext_lazy("last run"))
    def last_column(self, row: Any) -> SafeString | str:
        if row.last_at is None and row.last_task_id is None:
            return "-"
        return format_html("{} {}", ago(row.last_at), self._task_link(row.last_task_id, row.last_state or ""))

    @admin.display(description=gettext_lazy("next run"))
    def next_column(self, row: Schedule) -> SafeString | str:
        ahead = schedules.of_schedule(row, 1, now=clock.now())
        if not ahead:
            return "-"
        skipped = _(" (skipped)") if ahead[0].note == schedules.SKIPPED else ""
        return format_html("{}{}", ago(ahead[0].at), skipped)

    def _task_link(self, key: Any, state: str) -> SafeString | str:
        if key is None:
            return ""
        link = self.link_to(Task, key)
        if link is None or state == "gone":
            return state
        return format_html('<a href="{}" class="taskq-state taskq-{}">{}</a>', link, state, state)

    # Verbs

    def get_urls(self) -> list[Any]:
        wrap = self.admin_site.admin_view
        return [
            path("act/<slug:verb>/", wrap(self.act_view), name="django_taskq_schedule_act"),
            path("<path:object_id>/edit/", wrap(self.edit_view), name="django_taskq_schedule_edit"),
            *super().get_urls(),
        ]

    def act_link(self, verb: str) -> str:
        """Return the address that a verb's confirmation goes to."""
        return reverse("admin:django_taskq_schedule_act", args=[verb], current_app=self.admin_site.name)

    def act_view(self, request: HttpRequest, verb: str) -> HttpResponse:
        """Ask for confirmation, or act when it was given."""
        if verb not in VERBS:
            raise Http404
        return self.act(request, VERBS[verb], request.POST.getlist("id"))

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        if request.method == "POST":
            refused = refuse(self, request, VERBS, is_key=str.isdecimal)
            if refused is not None:
                return refused
        return super().changelist_view(request, extra_context)

    def act(self, request: HttpRequest, verb: Verb, ids: Sequence[str]) -> HttpResponse:
        """Ask for confirmation, or act on these schedules when it was given."""
        if (answer := check_post(self, request, verb.permission)) is not None:
            return answer
        keys = [int(key) for key in dict.fromkeys(ids) if key.isdecimal() and len(key) < 19][:MOST_SELECTED]
        rows = list(Schedule.objects.using(alias()).filter(pk__in=keys).order_by("name"))
        back = safe_back(request, self.list_link(Schedule) or request.path)
        if not rows:
            self.message_user(request, _("No schedule was selected."), messages.WARNING)
            return HttpResponseRedirect(back)
        is_confirmed = "confirmed" in request.POST
        form = verb.form(request.POST if is_confirmed else None, needs_reason=verb.name != "resume")
        form.fields["reason"].widget.attrs["maxlength"] = 200
        if is_confirmed and form.is_valid() and self._do(request, verb, rows, form):
            is_deleted = verb.name == "delete"
            return HttpResponseRedirect((self.list_link(Schedule) or back) if is_deleted else back)
        count = ngettext("%d schedule", "%d schedules", len(rows)) % len(rows)
        return ask(
            self,
            request,
            title=f"{verb.title}: {clean(rows[0].name) if len(rows) == 1 else count}",
            verb=verb,
            form=form,
            back=back,
            action=self.act_link(verb.name),
            ids=[row.pk for row in rows],
            names=[clean(row.name) for row in rows],
        )

    def _do(self, request: HttpRequest, verb: Verb, rows: Sequence[Schedule], form: ReasonForm) -> bool:
        """Act on each; return whether to go on, False where the form has to be filled in anew."""
        user: Any = request.user
        options = {**form.options(), "actor": user.get_username(), "reason": form.cleaned_data["reason"]}
        done = 0
        for row in rows:
            name = clean(row.name)
            try:
                changed = verb.act(row.name, alias=alias(), **options)
            except InvalidOptions as error:
                form.add_error(error.field if error.field in form.fields else None, str(error))
                return False
            except (ScheduleRefused, ScheduleNotFound) as error:
                self.message_user(request, clean(str(error)), messages.WARNING)
                continue
            except TaskqError as error:
                self.message_user(request, clean(f"{name}: {error}"), messages.ERROR)
                continue
            if changed is False:
                self.message_user(request, _("Nothing to change: %s") % name, messages.WARNING)
            else:
                done += 1
        if done:
            text = ngettext("%(what)s: %(count)d schedule.", "%(what)s: %(count)d schedules.", done)
            self.message_user(request, text % {"what": verb.title, "count": done}, messages.SUCCESS)
        return True

    # One

    def _find(self, object_id: str) -> Schedule | None:
        key = unquote(object_id)
        if not key.isdecimal() or len(key) > 18:
            return None
        return Schedule.objects.using(alias()).filter(pk=int(key)).first()

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = self._find(object_id)
        if row is None:
            self.message_user(request, _("There is no such schedule. It may have been deleted."), messages.WARNING)
            return HttpResponseRedirect(self.list_link(Schedule) or "/")
        context = self.page_context(
            request,
            title=clean(row.name),
            original=row,
            row=row,
            pill=_pill(row),
            words=schedules.words_of(row),
            why=self._why(row),
            buttons=[{"verb": verb, "action": self.act_link(verb.name)} for verb in self._offered(request, row)],
            edit_link=self._edit_link(request, row),
            facts=self._facts(row),
            runs=[_shown_run(run) for run in schedules.of_schedule(row, _PREVIEW, now=clock.now())],
            ticks=[self._tick(ticked) for ticked in schedules.history(alias(), row, limit=_HISTORY)],
            **detail.audit(request, acts.audit_key(row)),
        )
        return TemplateResponse(request, "admin/django_taskq/schedule.html", context)

    def _offered(self, request: HttpRequest, row: Schedule) -> list[Verb]:
        fits = {
            "run": True,
            "pause": row.is_on and not row.is_paused(clock.now()),
            "resume": row.is_paused(clock.now()),
            "skip": row.is_on and row.next_at is not None and not row.skip_next and not row.is_paused(clock.now()),
            "enable": not row.enabled,
            "disable": row.enabled,
            "delete": row.source != "code" or row.gone_at is not None,
        }
        return fitting(VERBS, fits, request)

    def _why(self, row: Schedule) -> str:
        if row.gone_at is not None:
            return _("The code does not declare it any more, so it does not tick.")
        if row.is_paused(clock.now()):
            who = f"{row.paused_by}: {row.pause_reason}".strip(": ")
            until = _(" until %s") % exact(row.paused_until) if row.paused_until else ""
            return clean(_("Paused%(until)s. %(who)s") % {"until": until, "who": who})
        if row.last_error:
            return clean(_("Its tick could not make a task, and is tried again: %s") % row.last_error)
        return ""

    def _edit_link(self, request: HttpRequest, row: Schedule) -> str | None:
        if row.source == "code" or not self._may(request, "django_taskq.change_schedule"):
            return None
        return reverse("admin:django_taskq_schedule_edit", args=[row.pk], current_app=self.admin_site.name)

    def _facts(self, row: Schedule) -> list[Fact]:
        source = _("declared in code") if row.source == "code" else _("made in the admin")
        found = [
            Fact(label=_("Task"), value=clean(row.task)),
            Fact(label=_("Rule"), value=f"{row.get_kind_display()} {row.rule}"),
            Fact(label=_("Time zone"), value=row.timezone),
            Fact(label=_("Source"), value=source),
            Fact(label=_("Arguments"), value=clean(row.args[:500])),
        ]
        found += [Fact(label=clean(str(key)), value=clean(str(value))) for key, value in row.option_values.items()]
        found += [
            Fact(label=label, value=exact(at))
            for label, at in ((_("Not before"), row.start_at), (_("Not after"), row.end_at))
            if at is not None
        ]
        if row.skip_next:
            found.append(Fact(label=_("Next tick"), value=_("is skipped")))
        return found

    def _tick(self, ticked: schedules.Ticked) -> dict[str, Any]:
        row = ticked.row
        return {
            "at": exact(row.at),
            "since": "" if row.since is None else exact(row.since),
            "kind": row.get_kind_display(),
            "late": f"{max((row.made_at - row.at).total_seconds(), 0):.1f} s",
            "task": self._task_link(row.task_id, ticked.state),
        }

    # The form

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        return self._form_view(request, None)

    def edit_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show the form of an operator's schedule, its next runs, or store it."""
        row = self._find(object_id)
        if row is None:
            raise Http404
        if self._edit_link(request, row) is None:
            raise PermissionDenied
        return self._form_view(request, row)

    def _form_view(self, request: HttpRequest, row: Schedule | None) -> HttpResponse:
        initial = {"timezone": conf.time_zone(), **({} if row is None else _initial(row))}
        form = ScheduleForm(request.POST if request.method == "POST" else None, initial=initial, row=row)
        runs = None
        words = ""
        if request.method == "POST" and form.is_valid():
            if "preview" not in request.POST:
                stored = self._store(request, form, row)
                if stored is not None:
                    return HttpResponseRedirect(self.link_to(Schedule, stored.pk) or "/")
            else:
                runs = [_shown_run(run) for run in schedules.next_runs(form.rule, _PREVIEW, after=clock.now())]
                words = schedules.describe(form.rule)
        context = self.page_context(
            request,
            title=_("Add schedule") if row is None else _("Change %s") % clean(row.name),
            form=form,
            row=row,
            media=self.media + form.media,
            runs=runs,
            words=words,
            back=(None if row is None else self.link_to(Schedule, row.pk)) or self.list_link(Schedule),
            breadcrumbs_are_a_list=ADMIN_BREADCRUMBS_ARE_A_LIST,
            list_link=self.list_link(Schedule),
        )
        return TemplateResponse(request, "admin/django_taskq/schedule_form.html", context)

    def _store(self, request: HttpRequest, form: ScheduleForm, row: Schedule | None) -> Schedule | None:
        user: Any = request.user
        call: Mapping[str, Any] = {**form.call(), "actor": user.get_username(), "alias": alias()}
        try:
            if row is None:
                stored = acts.create(form.cleaned_data["name"], **call)
            else:
                acts.change(row.name, **call)
                stored = row
        except (InvalidOptions, InvalidPayload, ScheduleRefused, ScheduleNotFound) as error:
            form.refuse(error)
            return None
        text = _("The schedule “%s” was stored.") % clean(stored.name)
        self.message_user(request, text, messages.SUCCESS)
        return stored


def _shown_run(run: schedules.Run) -> dict[str, str]:
    return {"at": f"{run.at:%a %Y-%m-%d %H:%M:%S %Z}", "viewer": exact(run.at), "note": run.note}
