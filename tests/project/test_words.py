"""Words that no file of the repository may contain."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Put together here, so that this file does not contain what it forbids.
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("pypi", "python", "org"),
        ("registry", "npmjs", "org"),
        ("registry", "yarnpkg", "com"),
        ("deb", "debian", "org"),
        ("proxy", "golang", "org"),
        ("crates", "io"),
        ("rubygems", "org"),
    ]
]
MACHINE_PATHS = ["/" + "root/", "/" + "home/" + "[a-z]", "/" + "Users/" + "[A-Za-z]", "/" + "work/" + "[a-z]"]
# The same folders also appear inside longer paths, such as a URL's; only a path that starts with one is a machine's.
FORBIDDEN = re.compile("|".join([*map(re.escape, REGISTRY_HOSTS), rf"(?<![\w./}}\]-])(?:{'|'.join(MACHINE_PATHS)})"]))


def _tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("text", [f"https://{REGISTRY_HOSTS[0]}/simple", "cd " + MACHINE_PATHS[0] + "project"])
def test_a_forbidden_word_is_found(text: str) -> None:
    assert FORBIDDEN.search(text)


def test_no_tracked_file_names_a_registry_or_a_machine() -> None:
    found = []
    for path in _tracked_files():
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        found += [
            f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, hit.start()) + 1}: {hit[0]}"
            for hit in FORBIDDEN.finditer(text)
        ]

    assert not found


def test_no_lock_file_is_tracked() -> None:
    assert not [path for path in _tracked_files() if path.name in {"uv.lock", "package-lock.json", "yarn.lock"}]
