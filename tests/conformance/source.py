"""
Get the source distribution of the Django that is installed, for its tests; wheels have none.

Nothing of it is kept in the repository: pip fetches it from the user's package
index into the user's cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import django


class SourceMissing(Exception):
    """Say why the source of Django could not be had."""


def folder_of_tests() -> Path:
    """Return the folder ``tests`` of the installed Django's source distribution. Raise SourceMissing."""
    version = django.get_version()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "django-taskq-tests"
    target = cache / f"django-{version}"
    if not (target / "tests" / "tasks" / "test_tasks.py").exists():
        _unpack(_download(version, cache), cache)
    return target / "tests"


def _download(version: str, cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(cache), f"django=={version}"], capture_output=True, text=True, check=False
    )
    found = [path for path in cache.glob("*.tar.gz") if path.name.lower() == f"django-{version}.tar.gz"]
    if done.returncode or not found:
        raise SourceMissing(f"pip could not download the source of Django {version}: {done.stderr.strip()[-500:]}")
    return found[0]


def _unpack(archive: Path, cache: Path) -> None:
    with tarfile.open(archive) as opened:
        wanted = [member for member in opened.getmembers() if "/tests/tasks/" in member.name]
        if not wanted:
            raise SourceMissing(f"{archive.name} has no tests/tasks")
        for member in wanted:
            # The name of the folder is spelled "Django" in some releases.
            member.name = "django" + member.name[len("django") :]
        opened.extractall(cache, members=wanted, filter="data")
