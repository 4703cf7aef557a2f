"""
Every sample in the docs runs; every command the docs show is one that exists.

tests/docs_runner.py says how a page is read. The pages in PROJECTS start from
nothing, so they are run as a project of their own, with a real worker; the
others run in this process, on the database under test.
"""

from __future__ import annotations

import ast
import copy
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import get_commands, load_command_class
from django.core.management.base import CommandError
from django.test import override_settings

from django_taskq import conf
from django_taskq.lifecycle import declarations
from django_taskq.worker.loop import Plan, Worker
from tests import databases
from tests.docs_runner import ROOT, Block, blocks, name_of, pages
from tests.engine import in_a_loop

PROJECTS = [ROOT / "README.md", ROOT / "docs" / "tutorial.md"]
# Whoever adds a sample that is not run raises this, and says on the page why it cannot be.
NOT_RUN_AT_MOST = 12

PAGES = [page for page in pages() if page not in PROJECTS]


# Pages that run in this process


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let ``shop`` be the app that the samples import; forget the modules that a page made."""
    from tests import docs_shop
    from tests.docs_shop import bank, models

    bank.charges.clear()
    before = set(sys.modules)
    declared = set(declarations.declared())
    for name, module in {"shop": docs_shop, "shop.models": models, "shop.bank": bank}.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield
    for name in set(declarations.declared()) - declared:
        declarations.forget(name)
    for name in set(sys.modules) - before:
        if name.startswith(("shop.", "docs_page")):
            del sys.modules[name]


def run_tasks(**worker: Any) -> None:
    """Let a real worker do what is ready; samples call it in their hidden lines."""
    plan = Plan(worker=conf.WorkerOptions(threads=2, **worker), burst=True)
    found = Worker(plan)
    found.start()
    found.join(60)


def module_of(name: str) -> types.ModuleType:
    """Return the module of that name, made empty the first time."""
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        parent, _, last = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], last, sys.modules[name])
    return sys.modules[name]


def run_code(block: Block, namespace: dict[str, Any]) -> None:
    """Run a block; ``await`` is allowed at its top level, as in ``manage.py shell``."""
    code = compile(block.code, block.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        in_a_loop(eval(code, namespace))
    else:
        exec(code, namespace)


def changed_settings(block: Block) -> dict[str, Any]:
    """Return what a block of settings sets."""
    known = {
        name: getattr(settings, name, {}) for name in ("TASKQ", "TASKS", "DATABASES", "INSTALLED_APPS", "MIDDLEWARE")
    }
    values = {**copy.deepcopy(known), "__name__": "settings"}
    run_code(block, values)
    return {
        name: value
        for name, value in values.items()
        # The rest would need a restart: it has run, so it is Python, and that is all that can be said here.
        if name in ("TASKQ", "TASKS") and value != known.get(name)
    }


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_samples_of_a_page_run(page: Path, shop: None) -> None:
    # Named after the page: a task of one page is none of another's.
    shell = module_of("docs_page_" + re.sub(r"\W", "_", name_of(page)))
    shell.__dict__["run_tasks"] = run_tasks
    overridden: list[override_settings] = []
    try:
        for block in blocks(page):
            if block.kind not in ("python", "hidden") or block.not_run:
                continue
            if block.file is None:
                run_code(block, shell.__dict__)
            elif block.file.endswith("settings.py"):
                change = override_settings(**changed_settings(block))
                change.enable()
                overridden.append(change)
                assert not conf.problems(), block.place
            else:
                run_code(block, module_of(block.file.removesuffix(".py").replace("/", ".")).__dict__)
    finally:
        for change in reversed(overridden):
            change.disable()


# Pages that are a project of their own


class Project:
    """A project in an empty folder that does what a page says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        self.variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "TASKQ_TEST_"))},
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONWARNINGS": "default",
            "PYTHONUNBUFFERED": "1",
        }

    def do(self, block: Block) -> None:
        if block.not_run:
            return
        if block.kind == "shell":
            for command in block.commands:
                self.run(command, block.place)
        elif block.kind == "hidden" or (block.kind == "python" and block.file is None):
            self.python("manage.py", "shell", "-v", "0", "-c", _WAITING + block.code, place=block.place)
        elif block.kind == "python":
            path = self.folder / str(block.file)
            assert path.parent.is_dir(), f"{block.place}: the page never makes {path.parent.name}"
            before = path.read_text() if path.exists() else ""
            path.write_text(f"{before}\n{block.code}")

    def run(self, command: str, place: str) -> None:
        words = shlex.split(command, comments=True)
        match words:
            case ["pip", "install", *_]:
                # The tests run with the package installed already.
                assert "django-taskq-db" in command, place
            case ["django-admin", *rest]:
                self.python("-m", "django", *rest, place=place)
            case ["python", "manage.py", "runworker", *rest] if "--burst" not in rest:
                # Whoever starts it again has stopped it before: it runs the code it started with.
                assert self.stop() == [0] * len(self.workers), self.log
                self.workers.append(self.start("manage.py", "runworker", *rest))
            case ["python", *rest]:
                self.python(*rest, place=place)
            case _:
                pytest.fail(f"{place}: nobody knows how to try {command!r}; mark the block as not run, and say why")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / "worker.log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=self.variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def python(self, *arguments: str, place: str) -> None:
        found = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert found.returncode == 0, (
            f"{place}: {' '.join(arguments)[:200]}\n{found.stdout}\n{found.stderr}\n{self.log}"
        )

    @property
    def log(self) -> str:
        path = self.folder / "worker.log"
        return path.read_text() if path.exists() else ""

    def stop(self) -> list[int]:
        """Stop the workers as a deploy would, and return their exit statuses."""
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        statuses = []
        for worker in self.workers:
            try:
                statuses.append(worker.wait(40))
            except subprocess.TimeoutExpired:
                worker.kill()
                statuses.append(worker.wait())
        return statuses


# What the hidden lines of such a page may call: the worker is another process, so they have to wait for it.
_WAITING = """
import time
def wait_until(true, seconds=60):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
"""


@pytest.mark.newcomer
@pytest.mark.skipif(os.name != "posix", reason="stops workers by signals")
@pytest.mark.skipif(databases.vendor() != "sqlite", reason="the page's project is on SQLite, whatever is under test")
@pytest.mark.parametrize("page", PROJECTS, ids=name_of)
def test_a_new_project_gets_where_the_page_promises(page: Path, tmp_path: Path) -> None:
    project = Project(tmp_path)
    try:
        for block in blocks(page):
            project.do(block)
    finally:
        began = time.monotonic()
        statuses = project.stop()

    assert project.workers, "the page never starts a worker"
    assert statuses == [0] * len(statuses), project.log
    assert time.monotonic() - began < 40


# All pages


def test_few_samples_are_not_run_and_each_says_why() -> None:
    marked = [block for page in pages() for block in blocks(page) if block.not_run is not None]

    assert all(block.kind in ("python", "shell") for block in marked), [block.place for block in marked]
    assert all(len(block.not_run or "") > 10 for block in marked)
    assert len([block for block in marked if block.kind == "python"]) <= NOT_RUN_AT_MOST


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    for page in pages():
        for block in blocks(page):
            for command in block.commands if block.kind == "shell" else ():
                words = shlex.split(command, comments=True)
                if "manage.py" in words and len(words) > words.index("manage.py") + 1:
                    yield f"{block.place} {command}", words[words.index("manage.py") + 1 :]


OURS = {"runworker", "taskq"}


@pytest.mark.parametrize(
    ("place", "words"), list(shown_commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_command_in_the_docs_is_one_that_exists(place: str, words: list[str]) -> None:
    name, *arguments = words
    # What the shell would make of it is not the command's business.
    for at, word in enumerate(arguments):
        if word in ("|", ">", ">>", "&", "&&", "||", "2>"):
            arguments = arguments[:at]
            break
    if name == "demo":
        assert (ROOT / "testproject" / "shop" / "management" / "commands" / "demo.py").exists()
        return
    assert name in get_commands(), place
    if name in OURS:
        command = load_command_class("django_taskq", name)
        try:
            command.create_parser("manage.py", name).parse_args(arguments)
        except (CommandError, SystemExit) as error:
            pytest.fail(f"{place}: {error}")


def test_the_runner_sees_files_marks_and_hidden_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```python\n# shop/tasks.py\na = 1\n```\n\n<!-- not run: needs a server of yours -->\n"
        "```python\nb\n```\n\n<!-- test\nassert a\n-->\n\n```bash\n$ python manage.py x \\\n  --y\n```\n\n"
        "- item\n\n  ```python\n  c = 3\n  ```\n"
    )

    found = blocks(page)

    assert [(block.kind, block.file, block.not_run) for block in found] == [
        ("python", "shop/tasks.py", None),
        ("python", None, "needs a server of yours"),
        ("hidden", None, None),
        ("shell", None, None),
        ("python", None, None),
    ]
    assert found[3].commands == ["python manage.py x    --y"]
    assert found[4].code == "c = 3\n"


def test_every_page_of_the_docs_is_looked_at() -> None:
    assert len(pages()) > 5
    assert {name_of(page) for page in PROJECTS} <= {name_of(page) for page in pages()}
