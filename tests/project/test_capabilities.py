"""A test may be skipped only for what docs/guarantees.md admits."""

import re
from pathlib import Path

from tests.capabilities import CAPABILITIES

TESTS = Path(__file__).parents[1]
GUARANTEES = TESTS.parent / "docs" / "guarantees.md"


def _used() -> set[str]:
    calls = [
        arguments
        for path in TESTS.rglob("test_*.py")
        for arguments in re.findall(r"(?:@|= |\[)requires\(([^)]*)\)", path.read_text())
    ]
    return {name for arguments in calls for name in re.findall(r"[\"'](\w+)[\"']", arguments)}


def test_every_capability_in_use_is_known() -> None:
    assert _used() <= CAPABILITIES.keys()


def test_every_capability_in_use_is_in_the_guarantees() -> None:
    used = _used()
    admitted = GUARANTEES.read_text() if used else ""

    assert not [name for name in sorted(used) if f"`{name}`" not in admitted]
