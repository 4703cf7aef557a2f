"""Pause and resume queues, task types and everything: the button, the page that asks, and the deed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from django_taskq import clock
from django_taskq.admin.acting import MOST_SELECTED, ReasonForm, ask, check_post, safe_back
from django_taskq.admin.base import ReadOnlyAdmin, alias
from django_taskq.admin.shown import ago, clean, exact
from django_taskq.domain.pauses import PauseScope
from django_taskq.exceptions import InvalidOptions
from django_taskq.lifecycle import pausing
from django_taskq.models import Pause, Queue, TaskType
from django_taskq.store import pauses as store
from django_taskq.store.vendors import vendor_for

__all__ = ["PERMISSION", "PausableAdmin", "PauseForm", "act", "button", "facts", "held"]

PERMISSION = "django_taskq.pause_queue"
_FIELDS = {PauseScope.QUEUE: "queue", PauseScope.TASK: "task", PauseScope.EVERYTHING: "everything"}
_TITLES = {
    ("pause", PauseScope.QUEUE): gettext_lazy("Pause the queue"),
    ("pause", PauseScope.TASK): gettext_lazy("Pause the task type"),
    ("pause", PauseScope.EVERYTHING): gettext_lazy("Pause everything"),
    ("resume", PauseScope.QUEUE): gettext_lazy("Resume the queue"),
    ("resume", PauseScope.TASK): gettext_lazy("Resume the task type"),
    ("resume", PauseScope.EVERYTHING): gettext_lazy("Resume everything"),
}
_EFFECTS = {
    ("pause", PauseScope.QUEUE): gettext_lazy(
        "Within a second no worker takes a task from it any more. Running tasks finish, and enqueueing goes on "
        "unless you say otherwise."
    ),
    ("pause", PauseScope.TASK): gettext_lazy(
        "Within a second no worker runs a task of this type any more, on whatever queue. Running tasks finish, and "
        "enqueueing goes on unless you say otherwise."
    ),
    ("pause", PauseScope.EVERYTHING): gettext_lazy(
        "Within a second no worker takes any task any more. Running tasks finish, and enqueueing goes on "
        "unless you say otherwise."
    ),
    ("resume", PauseScope.QUEUE): gettext_lazy("Workers take tasks from it again at once."),
    ("resume", PauseScope.TASK): gettext_lazy("Workers run tasks of this type again at once."),
    ("resume", PauseScope.EVERYTHING): gettext_lazy(
        "Workers take tasks again at once. Queues and task types that were paused for themselves stay paused."
    ),
}
_DONE = {
    ("pause", PauseScope.QUEUE): gettext_lazy("The queue “%s” is paused."),
    ("pause", PauseScope.TASK): gettext_lazy("Tasks called “%s” are paused."),
    ("pause", PauseScope.EVERYTHING): gettext_lazy("Everything is paused."),
    ("resume", PauseScope.QUEUE): gettext_lazy("The queue “%s” goes on."),
    ("resume", PauseScope.TASK): gettext_lazy("Tasks called “%s” go on."),
    ("resume", PauseScope.EVERYTHING): gettext_lazy("Everything goes on."),
}
_NOT_DONE = {
    ("pause", PauseScope.QUEUE): gettext_lazy("The queue “%s” was paused already."),
    ("pause", PauseScope.TASK): gettext_lazy("Tasks called “%s” were paused already."),
    ("pause", PauseScope.EVERYTHING): gettext_lazy("Everything was paused already."),
    ("resume", PauseScope.QUEUE): gettext_lazy("The queue “%s” was not paused."),
    ("resume", PauseScope.TASK): gettext_lazy("Tasks called “%s” were not paused."),
    ("resume", PauseScope.EVERYTHING): gettext_lazy("There was no pause of everything."),
}


class PauseForm(ReasonForm):
    """Why, until when, and whether new tasks are refused."""

    until = forms.DateTimeField(
        label=gettext_lazy("until"),
        required=False,
        help_text=gettext_lazy("When it ends by itself. Empty: when somebody resumes it."),
        widget=forms.DateTimeInput(attrs={"type": "datetime-local"}),
    )
    reject = forms.BooleanField(
        label=gettext_lazy("refuse new tasks"),
        required=False,
        help_text=gettext_lazy(
            "Whoever enqueues gets an error meanwhile. Unticked: what the settings of the queue say, and that is "
            "to store them, as a rule."
        ),
    )

    def clean_until(self) -> datetime | None:
        """Return the moment, which must lie ahead."""
        until: datetime | None = self.cleaned_data["until"]
        try:
            return pausing.until_moment(until, now=vendor_for(alias()).now())
        except InvalidOptions as error:
            raise forms.ValidationError(_("This moment has passed.")) from error

    def options(self) -> dict[str, Any]:
        return {"until": self.cleaned_data["until"], "reject": self.cleaned_data["reject"] or None}


def held(scope: PauseScope, name: str = "") -> Pause | None:
    """Return the pause of exactly this that holds just now."""
    return store.find(alias(), scope, name, now=clock.now())


def facts(pause: Pause | None) -> dict[str, Any] | None:
    """Return what a page says of a pause, None for none."""
    if pause is None:
        return None
    return {
        "is_of_everything": pause.scope == PauseScope.EVERYTHING,
        "since": ago(pause.paused_at),
        "by": clean(pause.paused_by),
        "reason": clean(pause.reason),
        "until": None if pause.until is None else exact(pause.until),
        "rejects": pause.rejects,
    }


def button(
    request: HttpRequest, scope: PauseScope, name: str, *, pause: Pause | None, action: str
) -> dict[str, Any] | None:
    """Return what a page needs to offer the one verb that fits, None for a user who may not."""
    user: Any = request.user
    if not user.has_perm(PERMISSION):
        return None
    verb = "pause" if pause is None else "resume"
    return {
        "title": _TITLES[verb, scope],
        "action": action.replace("/pause/", f"/{verb}/"),
        "field": _FIELDS[scope],
        "value": name or "1",
    }


def act(
    page: ReadOnlyAdmin,
    request: HttpRequest,
    verb: str,
    *,
    scope: PauseScope,
    action: str,
    names: Sequence[str] = (),
) -> HttpResponse:
    """Ask for confirmation, or pause or resume when it was given. Raise PermissionDenied without the permission."""
    if (answer := check_post(page, request, PERMISSION)) is not None:
        return answer
    if verb not in ("pause", "resume"):
        raise Http404
    if "everything" in request.POST:
        scope = PauseScope.EVERYTHING
    chosen = _chosen(request, scope, names)
    is_confirmed = "confirmed" in request.POST
    kind = PauseForm if verb == "pause" else ReasonForm
    form = kind(request.POST if is_confirmed else None, needs_reason=verb == "pause")
    # The column of a pause is shorter than that of the audit log.
    form.fields["reason"].widget.attrs["maxlength"] = 200
    fallback = page.link_to(page.model, chosen[0]) if chosen[0] else page.list_link(page.model)
    back = safe_back(request, fallback or request.path)
    if is_confirmed and form.is_valid():
        for name in chosen:
            _do(page, request, verb, scope, name, form)
        return HttpResponseRedirect(back)
    title = str(_TITLES[verb, scope])
    if len(chosen) > 1:
        title += ": " + ngettext("%d row", "%d rows", len(chosen)) % len(chosen)
    elif chosen[0]:
        title += f" {clean(chosen[0])}"
    return ask(
        page,
        request,
        title=title,
        verb={"name": verb, "title": _TITLES[verb, scope], "effect": _EFFECTS[verb, scope]},
        form=form,
        back=back,
        action=action,
        hidden=[(_FIELDS[scope], name or "1") for name in chosen],
        listed=[clean(name) for name in chosen] if len(chosen) > 1 else [],
    )


def _chosen(request: HttpRequest, scope: PauseScope, names: Sequence[str]) -> list[str]:
    """Return the names that are meant. Raise Http404 for one that nobody knows."""
    if scope == PauseScope.EVERYTHING:
        return [""]
    wanted = list(dict.fromkeys(names or request.POST.getlist(_FIELDS[scope])))
    model: Any = Queue if scope == PauseScope.QUEUE else TaskType
    known = set(model.objects.using(alias()).filter(pk__in=wanted[:MOST_SELECTED]).values_list("pk", flat=True))
    if not wanted or not known.issuperset(wanted):
        raise Http404
    return wanted


def _do(page: ReadOnlyAdmin, request: HttpRequest, verb: str, scope: PauseScope, name: str, form: ReasonForm) -> None:
    user: Any = request.user
    change: Callable[..., bool] = pausing.pause if verb == "pause" else pausing.resume
    done = change(
        **{_FIELDS[scope]: name or True},
        actor=user.get_username(),
        reason=form.cleaned_data["reason"],
        alias=alias(),
        **form.options(),
    )
    text = str((_DONE if done else _NOT_DONE)[verb, scope])
    page.message_user(request, text % clean(name) if name else text, messages.SUCCESS if done else messages.WARNING)


class PausableAdmin(ReadOnlyAdmin):
    """A list whose rows can be paused and resumed, one or many, and with them everything."""

    scope: ClassVar[PauseScope]
    actions = ["pause_selected", "resume_selected"]
    change_list_template = "admin/django_taskq/pausable_list.html"

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.act_view)
        return [path("act/<slug:verb>/", view, name=f"django_taskq_{self.opts.model_name}_act"), *super().get_urls()]

    def act_link(self, verb: str) -> str:
        """Return the address that a verb's confirmation goes to."""
        name = f"admin:django_taskq_{self.opts.model_name}_act"
        return reverse(name, args=[verb], current_app=self.admin_site.name)

    def act_view(self, request: HttpRequest, verb: str) -> HttpResponse:
        """Ask for confirmation, or pause or resume one of the rows or everything when it was given."""
        return act(self, request, verb, scope=self.scope, action=request.path)

    def has_pause_permission(self, request: HttpRequest) -> bool:
        user: Any = request.user
        return bool(user.has_perm(PERMISSION))

    @admin.action(description=gettext_lazy("Pause…"), permissions=["pause"])
    def pause_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        return self._act_on_selected(request, "pause")

    @admin.action(description=gettext_lazy("Resume…"), permissions=["pause"])
    def resume_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        return self._act_on_selected(request, "resume")

    def _act_on_selected(self, request: HttpRequest, verb: str) -> HttpResponse:
        names = request.POST.getlist(ACTION_CHECKBOX_NAME)
        return act(self, request, verb, scope=self.scope, action=self.act_link(verb), names=names)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the list, with a banner while everything is paused and the button that changes that."""
        link = reverse("admin:django_taskq_queue_act", args=["pause"], current_app=self.admin_site.name)
        pause = held(PauseScope.EVERYTHING)
        context = {
            "pause": facts(pause),
            "button": button(request, PauseScope.EVERYTHING, "", pause=pause, action=link),
            **(extra_context or {}),
        }
        response: HttpResponse = super().changelist_view(request, context)
        return response
