"""README's tables, and the file of the others, are those of the committed results, and what it names exists."""

import re
from pathlib import Path

from benchmarks.readme import outdated, pages
from export.maskrcnn import _parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_tables_come_from_the_results():
    assert outdated(pages()) == [], "run `python -m benchmarks.readme`"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_every_option_of_export_is_in_the_table():
    options = {
        option for action in _parser()._actions for option in action.option_strings if option.startswith("--")
    }
    undocumented = {option for option in options if option not in README} - {"--help", "--output"}
    assert not undocumented
