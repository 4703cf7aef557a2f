"""
Things that happen in exactly one place of the package.

Each rule reads the source as a tree. Each is also shown a line that breaks it,
so that a rule which finds nothing is known to be able to.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "django_taskq"
Rule = Callable[[ast.Module], Iterator[ast.AST]]

SQL = re.compile(
    r"\s*(SELECT\s|INSERT\s+INTO\s|UPDATE\s+\S+\s+SET\s|DELETE\s+FROM\s|WITH\s+\w+\s+AS\s|LISTEN\s|NOTIFY\s"
    r"|(CREATE|ALTER|DROP)\s+(UNIQUE\s+)?(TABLE|INDEX)\s)"
)
QUERYSET = {
    "objects", "_default_manager", "_base_manager", "filter", "exclude", "all", "order_by", "using",
    "select_for_update", "get_queryset", "queryset",
}  # fmt: skip
ALWAYS_WRITES = {
    "save", "bulk_create", "bulk_update", "get_or_create", "update_or_create",
    "asave", "abulk_create", "abulk_update", "aget_or_create", "aupdate_or_create",
}  # fmt: skip
QUERYSET_WRITES = {"create", "update", "delete", "acreate", "aupdate", "adelete"}
CLOCKS = {
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
    "timezone": {"now", "localdate", "localtime"},
    "time": {"time", "time_ns"},
}


def _docstrings(tree: ast.Module) -> set[int]:
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }


def _names(node: ast.AST) -> Iterator[str]:
    """Walk a receiver such as ``Task.objects.filter(…)`` and name what it passes through."""
    while True:
        match node:
            case ast.Call(func=func):
                node = func
            case ast.Attribute(value=value, attr=attr):
                yield attr
                node = value
            case ast.Name(id=name):
                yield name
                return
            case _:
                return


def raw_sql(tree: ast.Module) -> Iterator[ast.AST]:
    docstrings = _docstrings(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="cursor" | "raw" | "extra")) | ast.Name(id="RawSQL"):
                yield node
            case ast.Constant(value=str(text)) if id(node) not in docstrings and SQL.match(text):
                yield node


def settings_read(tree: ast.Module) -> Iterator[ast.AST]:
    # The user model is named by settings in every reusable app; it is no option of ours.
    allowed = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "AUTH_USER_MODEL"
    }
    local = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "django.conf"
        for alias in node.names
        if alias.name == "settings"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in local and id(node) not in allowed:
            yield node


def django_version(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="django"), attr="VERSION" | "get_version" | "__version__"):
                yield node
            case ast.ImportFrom(module="django", names=names) if {"VERSION", "get_version"} & {n.name for n in names}:
                yield node


def wall_clock(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=module) | ast.Attribute(attr=module), attr=attr) if attr in CLOCKS.get(
                module, ()
            ):
                yield node
            case ast.ImportFrom(module="time" | "django.utils.timezone", names=names) if {"time", "time_ns", "now"} & {
                n.name for n in names
            }:
                yield node


def rows_written(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=attr)) if attr in ALWAYS_WRITES:
                yield node
            # dict.update() and the like are innocent: only a queryset's verbs count.
            case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in QUERYSET_WRITES and QUERYSET & set(
                _names(value)
            ):
                yield node


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    rule: Rule
    only_in: tuple[str, ...]
    breaks_it: str


# A migration is a frozen copy of another time; it may speak SQL and write rows.
# schema.py holds the operations that migrations are made of.
PLACES = [
    Place(
        rule=raw_sql,
        only_in=("store/vendors/", "migrations/", "schema.py"),
        breaks_it="rows = run('SELECT 1 FROM task')",
    ),
    Place(rule=raw_sql, only_in=("store/vendors/", "migrations/", "schema.py"), breaks_it="connection.cursor()"),
    Place(
        rule=settings_read,
        only_in=("conf.py", "migrations/"),
        breaks_it="from django.conf import settings\nsettings.TASKQ",
    ),
    Place(rule=django_version, only_in=("compat.py",), breaks_it="django.VERSION >= (6, 1)"),
    Place(rule=wall_clock, only_in=("clock.py",), breaks_it="timezone.now()"),
    Place(rule=wall_clock, only_in=("clock.py",), breaks_it="from time import time"),
    Place(rule=rows_written, only_in=("store/", "migrations/"), breaks_it="task.save()"),
    Place(rule=rows_written, only_in=("store/", "migrations/"), breaks_it="Task.objects.filter(pk=1).update(a=1)"),
]


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.rule.__name__}-{place.breaks_it[:20]}")
def test_a_rule_finds_the_line_that_breaks_it(place: Place) -> None:
    assert list(place.rule(ast.parse(place.breaks_it)))


@pytest.mark.parametrize(
    "innocent",
    ["options.update(a=1)", "settings.AUTH_USER_MODEL", "time.monotonic()", '"""SELECT a task by hand."""', "now()"],
)
def test_no_rule_finds_an_innocent_line(innocent: str) -> None:
    tree = ast.parse(f"{innocent}\nfrom django.conf import settings")

    assert not [place.rule.__name__ for place in PLACES if list(place.rule(tree))]


def test_each_thing_happens_in_one_place_only() -> None:
    places = {place.rule: place for place in PLACES}
    # Together, since reading the trees is what takes the time.
    sources = list(_sources())

    found = [
        f"django_taskq/{name}:{node.lineno} {rule.__name__} belongs in {' or '.join(place.only_in)} only"
        for name, tree in sources
        for rule, place in places.items()
        if not name.startswith(place.only_in)
        for node in rule(tree)
    ]

    assert sources
    assert not found, "\n".join(found)
