"""
Turn what tasks hold into text a page may show: bounded, and harmless.

Arguments, results and errors are hostile input. Templates escape the HTML; this
file takes care of the rest: sizes, lone surrogates that no page could encode,
and characters that change the direction of a line or show nothing at all.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from django_taskq import clock
from django_taskq.ops.explain import duration

__all__ = ["MOST", "Shown", "ago", "clean", "pretty", "tail"]

MOST = 64 * 1024
"""So many characters of one value are shown."""

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A text to show; ``size`` is that of the whole, in characters."""

    text: str
    size: int
    is_cut: bool = False


def clean(text: str) -> str:
    """Write characters that cannot be seen, or cannot be sent, as ``\\uXXXX``."""
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def pretty(text: str | None) -> Shown | None:
    """Return JSON text indented, or its beginning as it stands where it is too long or damaged; None for None."""
    if text is None:
        return None
    if len(text) > MOST:
        return Shown(text=clean(text[:MOST]), size=len(text), is_cut=True)
    try:
        shown = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        shown = text
    return Shown(text=clean(shown[: 4 * MOST]), size=len(text), is_cut=len(shown) > 4 * MOST)


def tail(text: str) -> Shown:
    """Return the end of a long text: the end of a traceback says what went wrong."""
    return Shown(text=clean(text[-MOST:]), size=len(text), is_cut=len(text) > MOST)


def ago(moment: datetime | None) -> SafeString | str:
    """Return a moment as people speak of it, with the exact time behind it."""
    if moment is None:
        return "-"
    span = clock.now() - moment
    text = (
        _("in %(span)s") % {"span": duration(-span)}
        if span < timedelta(0)
        else _("%(span)s ago") % {"span": duration(span)}
    )
    return format_html(
        '<time datetime="{}" title="{}" class="taskq-time">{}</time>', moment.isoformat(), exact(moment), text
    )


def exact(moment: datetime | None) -> str:
    """Return a moment to the second, in the viewer's time zone, with the zone's name."""
    if moment is None:
        return "-"
    local = timezone.template_localtime(moment)  # type: ignore[attr-defined]  # unknown to the stubs
    return f"{date_format(local, 'Y-m-d H:i:s')} {local.tzname()}"
