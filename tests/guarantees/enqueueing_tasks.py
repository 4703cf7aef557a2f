"""Tasks for the tests of enqueueing and results."""

from __future__ import annotations

import asyncio
from typing import Any

from django.utils import timezone, translation

from django_taskq import TaskContext, task


@task
def note(key: str) -> str:
    return key


@task
async def anote(key: str) -> str:
    await asyncio.sleep(0)
    return key


@task(takes_context=True)
def surroundings(context: TaskContext) -> list[Any]:
    return [translation.get_language(), timezone.get_current_timezone_name(), context.metadata]


@task(takes_context=True)
async def asurroundings(context: TaskContext) -> list[Any]:
    await asyncio.sleep(0)
    return [translation.get_language(), timezone.get_current_timezone_name(), context.metadata]


@task(takes_context=True)
def parent(context: TaskContext) -> list[str]:
    by_context = context.enqueue(note, "a")
    return [by_context.id, note.enqueue("b").id]


@task(queue_name="slow", max_attempts=4, timeout=30)
def careful() -> None:
    """Do nothing."""
