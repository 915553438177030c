"""The README and the pages of docs/: short, linked, and about files and commands that exist."""

import re
from pathlib import Path

import pytest

from influence.cli.commands import app
from scripts.docs.cli_reference import reference

ROOT = Path(__file__).parents[2]
GENERATED = {"cli.md", "notebook.md", "security.md", "changelog.md"}
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
NAMED = re.compile(r"`(?!index/index\.)((?:influence|index|scripts|configs|tests|docs)/[\w./-]*)`")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def test_the_readme_has_at_most_700_words():
    assert len((ROOT / "README.md").read_text().split()) <= 700


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_of_a_page_leads_to_a_file(page):
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target and target not in GENERATED]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_file_that_a_page_names_exists(page):
    assert [path for path in NAMED.findall(page.read_text()) if not (ROOT / path).exists()] == []


def test_the_page_on_the_house_has_every_room_and_no_other():
    table = (ROOT / "docs" / "contributing" / "house.md").read_text().split("| Rooms |")[1].split("\n\n")[0]
    rooms = {name for line in table.splitlines() for name in re.findall(r"`([\w.]+/?)`", line.split("|")[1])}
    folders = {f"{folder.parent.name}/" for folder in (ROOT / "influence").glob("*/__init__.py")}
    files = {file.name for file in (ROOT / "influence").glob("*.py")} - {"__init__.py"}
    assert rooms == folders | files


def test_the_readme_names_the_two_commands_that_the_makefile_has():
    targets = (ROOT / "Makefile").read_text()
    for command in ("demo", "test", "docs"):
        assert f"make {command}" in (ROOT / "README.md").read_text()
        assert f"\n{command}: " in targets


def test_the_command_line_reference_has_every_verb_with_its_options():
    page = reference()
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    assert {"build", "query", "issues"} <= verbs
    for verb in {*verbs, "demo", "demo dirty", "demo classifier"}:
        assert f"\n## influence {verb}\n" in page
    assert "`--completion <str>`" in page
