"""What is kept of an exception, whatever it does when it is looked at."""

from __future__ import annotations

import traceback

from django_taskq.domain.outcomes import ErrorInfo, clean_text, fingerprint
from django_taskq.exceptions import error_class_path

__all__ = ["describe"]


def describe(error: BaseException) -> ErrorInfo:
    """Return what is kept of an exception, fit for every database."""
    path = error_class_path(error)
    try:
        message = str(error)
    except BaseException as failure:
        message = f"<no message: str() raised {type(failure).__name__}>"
    try:
        text = "".join(traceback.format_exception(error, chain=True))
    except BaseException as failure:
        text = f"{path}: {message}\n<no traceback: formatting raised {type(failure).__name__}>"
    frames = traceback.extract_tb(error.__traceback__, limit=-1) if error.__traceback__ else []
    place = f"{frames[-1].filename}:{frames[-1].name}" if frames else ""
    return ErrorInfo(
        class_path=clean_text(path, 200),
        message=clean_text(message, 10_000),
        traceback=clean_text(text),
        fingerprint=fingerprint(path, message, place),
    )
