"""mypy and pyright refuse the calls that would fail, and know what a task returns."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXPECTED = re.compile(r"# E: ([a-z-]+)$")

needs_mypy = pytest.mark.skipif(
    find_spec("mypy") is None or find_spec("mypy_django_plugin") is None,
    reason="needs mypy and django-stubs (tox env typing)",
)
needs_pyright = pytest.mark.skipif(
    find_spec("basedpyright") is None or find_spec("mypy_django_plugin") is None,
    reason="needs basedpyright and django-stubs (tox env typing)",
)


def expected(text: str) -> set[tuple[int, str]]:
    lines = enumerate(text.splitlines(), 1)
    return {(number, found[1]) for number, line in lines if (found := EXPECTED.search(line))}


@pytest.mark.slow
@needs_mypy
@pytest.mark.timeout(170)
def test_mypy_refuses_exactly_the_lines_that_are_marked(tmp_path: Path) -> None:
    from mypy import api

    text = (HERE / "calls.py").read_text()
    # Outside of "tests", whose errors the configuration passes over.
    program = tmp_path / "calls.py"
    program.write_text(text)

    out, err, _ = api.run(
        [str(program), "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache")]
    )

    found = {
        (int(match[1]), match[2])
        for match in re.finditer(rf"^{re.escape(str(program))}:(\d+): error: .*\[([a-z-]+)\]$", out, flags=re.MULTILINE)
    }
    assert found == expected(text), out + err
    assert len(found) > 10


@needs_pyright
@pytest.mark.timeout(170)
def test_pyright_refuses_the_same_lines(tmp_path: Path) -> None:
    text = (HERE / "calls.py").read_text()
    program = tmp_path / "calls.py"
    program.write_text(text)
    # Its own rules beyond those of pyright are a matter of taste.
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))

    found = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    told = json.loads(found.stdout)["generalDiagnostics"]
    lines = {one["range"]["start"]["line"] + 1 for one in told if one["severity"] == "error"}
    assert lines == {number for number, _ in expected(text)}, found.stdout
    assert len(lines) > 10
