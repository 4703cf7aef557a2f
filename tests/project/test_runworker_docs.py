"""The reference of the worker's options says what the parser and the settings say."""

import argparse
import re
from pathlib import Path

from django_taskq import conf
from django_taskq.worker import command

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "runworker.md"


def _documented() -> dict[str, tuple[str, str, str]]:
    """Return flags and metavar by setting, with default and words, from the page's table."""
    rows = re.findall(r"^\| `(--[^`]+)` \| `([A-Z_]+)` \| (.*?) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return {setting: (flag, default, words) for flag, setting, default, words in rows}


def test_the_table_of_options_is_the_parser_and_the_settings() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    defaults = conf.WorkerOptions()

    expected = {}
    for action in parser._actions:
        if action.dest in ("help", "backend"):
            continue
        option = next(option for option in command.OPTIONS if option.name == action.dest)
        flag = ", ".join(action.option_strings) + (f" {action.metavar}" if action.metavar else "")
        default = command._shown(getattr(defaults, option.name)) or "none"
        expected[option.name.upper()] = (flag, default, option.help)

    assert _documented() == expected


def test_every_exit_code_of_the_help_is_on_the_page() -> None:
    codes = re.findall(r"^  (\d)  ", command.EPILOG, re.MULTILINE)

    assert codes
    assert (
        re.findall(r"^\| (\d) \| ", PAGE.read_text().split("## Exit codes")[1].split("## ")[0], re.MULTILINE) == codes
    )
