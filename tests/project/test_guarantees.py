"""docs/guarantees.md says nothing that no test proves, and no guarantee test goes unmentioned."""

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

from tests.capabilities import CAPABILITIES

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "guarantees.md"
COLUMNS = ("postgresql", "mysql", "sqlite")
PROOF = re.compile(r"`((?:guarantees|chaos)/test_\w+\.py)::(test_\w+)`")


def _rows() -> list[list[str]]:
    """Return the cells of each row that names a proof."""
    lines = PAGE.read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "::test_" in line]


@lru_cache
def _tests(path: str) -> dict[str, frozenset[str]]:
    """Return the tests of a file, each with the capabilities it requires."""
    file = TESTS / path
    if not file.exists():
        return {}
    found = ast.parse(file.read_text()).body
    return {
        node.name: frozenset(
            argument.value
            for decorator in node.decorator_list
            if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name)
            if decorator.func.id == "requires"
            for argument in decorator.args
            if isinstance(argument, ast.Constant)
        )
        for node in found
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def _vendors(path: str, name: str) -> set[str]:
    return {vendor for vendor in COLUMNS if all(vendor in CAPABILITIES[needed] for needed in _tests(path)[name])}


def test_the_page_has_promises() -> None:
    assert len(_rows()) > 50
    assert all(PROOF.search(row[-1]) for row in _rows())


def test_every_named_test_exists() -> None:
    named = {(path, name) for row in _rows() for path, name in PROOF.findall(row[-1])}

    missing = sorted(f"{path}::{name}" for path, name in named if name not in _tests(path))

    assert not missing


@pytest.mark.parametrize("folder", ["guarantees", "chaos"])
def test_every_module_of_guarantee_tests_is_mentioned(folder: str) -> None:
    modules = {f"{folder}/{path.name}" for path in (TESTS / folder).glob("test_*.py")}

    mentioned = {path for row in _rows() for path, _ in PROOF.findall(row[-1])}

    assert modules
    assert sorted(modules - mentioned) == []


def test_a_promise_is_made_only_where_its_tests_run() -> None:
    wrong = []
    for row in _rows():
        if len(row) != 5:
            continue
        proofs = [_vendors(path, name) for path, name in PROOF.findall(row[-1]) if name in _tests(path)]
        for vendor, cell in zip(COLUMNS, row[1:4], strict=True):
            runs = any(vendor in vendors for vendors in proofs)
            if (cell == "yes") != runs:
                wrong.append(f"{row[0]} ({vendor}: {cell!r}, but its tests {'run' if runs else 'do not run'} there)")

    assert not wrong


def test_the_capabilities_are_those_of_the_tests() -> None:
    lines = [re.match(r"\| `(\w+)` \| (\w+) \| (\w+) \| (\w+) \|", line) for line in PAGE.read_text().splitlines()]
    told = {
        found[1]: {vendor for vendor, cell in zip(COLUMNS, found.groups()[1:], strict=True) if cell == "yes"}
        for found in lines
        if found
    }

    assert told == {name: set(vendors) for name, vendors in CAPABILITIES.items()}
