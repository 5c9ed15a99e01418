"""The documentation's examples give what they say, and the tests, files and commands that it names exist."""

import doctest
import re
from pathlib import Path

import pytest

from lightning_pspo.cli.help import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_give_what_they_say(page: Path) -> None:
    # A closing fence would be read as expected output.
    text = re.sub(r"^```.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    example = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    report: list[str] = []
    results = doctest.DocTestRunner().run(example, out=report.append)
    assert not results.failed, "".join(report)
    assert results.attempted > 20 or page.name != "objective.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for file, test in re.findall(
        r"`((?:tests|lightning_pspo|callbacks|benchmarks|scripts)/[\w/]+\.py)(?:::(\w+))?`", text
    ):
        assert (ROOT / file).exists(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (page.parent / link).exists(), link
        assert page.parent == ROOT or not link.startswith("../"), f"{link} is not in the site"
    for file in re.findall(r"configs/[\w./-]+\.yaml", text):
        assert (ROOT / file).exists(), file
    for command in re.findall(r"lightning-pspo ([a-z][\w-]+)", text):
        assert command in COMMANDS, command
    for config in re.findall(r"--config ([a-z][a-z0-9_/]*)(?=[\s`])", text):
        assert (ROOT / f"configs/{config}.yaml").exists(), config
