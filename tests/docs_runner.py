"""
Read the Markdown pages and run their samples.

A ```` ```python ```` block is run, in the order of its page. Its first line may name
the file it belongs to, as in ``# shop/tasks.py``. ``<!-- not run: reason -->``
above a block keeps it from being run. ``<!-- test`` … ``-->`` holds lines that
are run and not shown: what a sample needs, and what must be true after it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_PART = re.compile(
    r"^<!-- not run: (?P<reason>.*?) -->$"
    r"|^<!-- test\n(?P<hidden>.*?)^-->$"
    r"|^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<code>.*?)^ *(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"# (?P<path>[\w/]+\.py)\s*\n")
PYTHON = {"python", "py", "{code-block} python"}
SHELL = {"bash", "sh", "shell", "console", "{code-block} bash"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A piece of a page. ``kind`` is "python", "shell", "hidden" or "other"."""

    page: str
    line: int
    kind: str
    code: str
    not_run: str | None = None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that a sample says it belongs to."""
        found = _FILE.match(self.code)
        return found["path"] if found else None

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, without prompts, comments and continued lines."""
        joined = self.code.replace("\\\n", " ")
        lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def pages() -> list[Path]:
    """Return every Markdown page a user reads."""
    docs = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]
    return [ROOT / "README.md", *docs]


def name_of(page: Path) -> str:
    """Return how a page is called in messages."""
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


def blocks(page: Path) -> list[Block]:
    """Return the parts of a page in order."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    reason: tuple[int, str] | None = None
    for part in _PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        if part["reason"] is not None:
            reason = (line, part["reason"])
            continue
        if part["hidden"] is not None:
            found.append(Block(page=name_of(page), line=line, kind="hidden", code=part["hidden"]))
            continue
        language = part["language"].strip()
        kind = "python" if language in PYTHON else "shell" if language in SHELL else "other"
        indent = len(part["indent"])
        code = "".join(item[indent:] if item[:indent].isspace() else item for item in part["code"].splitlines(True))
        # The mark stands right above its block, at most one empty line between them.
        not_run = reason[1] if reason is not None and line - reason[0] <= 2 else None
        found.append(Block(page=name_of(page), line=line, kind=kind, code=code, not_run=not_run))
        reason = None
    return found
