"""mypy refuses the calls that would fail, and knows what a task returns."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXPECTED = re.compile(r"# E: ([a-z-]+)$")

pytestmark = pytest.mark.skipif(
    find_spec("mypy") is None or find_spec("mypy_django_plugin") is None,
    reason="needs mypy and django-stubs (tox env typing)",
)


def expected(text: str) -> set[tuple[int, str]]:
    lines = enumerate(text.splitlines(), 1)
    return {(number, found[1]) for number, line in lines if (found := EXPECTED.search(line))}


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
