import json
import sys
from itertools import pairwise

import pytest

from influence.data.dataset import DataSettings, open_rows
from influence.demo.corpus import corpus, docstrings, standard_library, write_corpus
from influence.demo.facts import FACTS
from influence.errors import DataError

MODULE = '''"""What this module is about, in a few words."""

class Shown:
    """A class that everybody may use freely."""

    def method(self):
        """Do something with the shown object, then return."""

        def inner():
            """Nobody sees what is inside of a function."""

    def _hidden(self):
        """A private method that nobody should read about."""

class _Hidden:
    """A private class with docstrings all the way down."""

    def method(self):
        """Belongs to a private class and stays there."""

async def later():
    """Do it later,

        but indented.
    """

def brief():
    """Too few words."""

def copy():
    """Do something with the shown object, then return."""
'''


@pytest.fixture
def library(tmp_path):
    """A small library: one public module, and everything that has to be left out."""
    root = tmp_path / "lib"
    for folder in ("pkg/test", "_private", "site-packages", "config-3.11"):
        (root / folder).mkdir(parents=True)
    (root / "shown.py").write_text(MODULE)
    (root / "pkg" / "__init__.py").write_text('"""A package with a documented beginning of its own."""\n')
    for left_out in ("pkg/test/case.py", "_private/secret.py", "_hidden.py", "site-packages/user.py", "turtle.py"):
        (root / left_out).write_text('"""A docstring in a file that must be left out."""\n')
    (root / "config-3.11" / "python_config.py").write_text('"""A docstring in a folder that is no package."""\n')
    return root


def test_public_docstrings_are_read_with_their_qualified_name_module_and_line(library):
    found = {row.id: (row.source, row.uri) for row in docstrings(library)}
    assert found == {
        "pkg": ("pkg", "pkg/__init__.py:1"),
        "shown": ("shown", "shown.py:1"),
        "shown.Shown": ("shown", "shown.py:3"),
        "shown.Shown.method": ("shown", "shown.py:6"),
        "shown.later": ("shown", "shown.py:21"),
    }


def test_a_docstring_loses_its_indentation(library):
    assert next(row.text for row in docstrings(library) if row.id == "shown.later") == "Do it later,\n\nbut indented."


@pytest.mark.parametrize("content", [b"def broken(:\n", b'"""\xff\xfe is no UTF-8, says this file."""\n', b"\0\0"])
def test_a_file_that_cannot_be_parsed_is_skipped_and_logged(library, content, caplog):
    before = list(docstrings(library))
    (library / "bad.py").write_bytes(content)
    with caplog.at_level("INFO", logger="influence.demo.corpus"):
        assert list(docstrings(library)) == before
    assert "bad.py is left out" in caplog.text


def test_a_name_defined_twice_gets_its_line(library):
    twice = "".join(f'def f():\n    """Say {what} in so many words."""\n\n' for what in ("one thing", "another"))
    (library / "twice.py").write_text(twice)
    assert [row.id for row in docstrings(library) if row.source == "twice"] == ["twice.f", "twice.f@4"]


def test_the_installed_library_gives_several_thousand_rows_and_imports_nothing():
    before = set(sys.modules)
    rows = corpus(standard_library())
    assert set(sys.modules) == before
    assert 2500 < len(rows) < 6000
    assert len({row.id for row in rows}) == len(rows)
    assert all(not step.startswith("_") for row in rows for step in row.source.split("."))


def test_every_planted_row_is_there_and_no_two_of_a_fact_are_neighbours(library):
    rows = corpus(library)
    planted = [row.id for row in rows if row.id.startswith("planted/")]
    assert sorted(planted) == sorted(name for fact in FACTS for name in fact.ids)
    facts = [row.id.rpartition("/")[0] for row in rows]
    assert all(one != other for one, other in pairwise(facts) if one.startswith("planted/"))


def test_fewer_rows_keep_all_planted_ones(library):
    rows = corpus(library, most_rows=2)
    assert [row.id for row in rows if row.source != "planted facts"] == ["pkg", "shown.Shown"]
    assert {name for fact in FACTS for name in fact.ids} <= {row.id for row in rows}


def test_a_library_without_sources_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"no Python sources with docstrings in .*ships its sources"):
        corpus(tmp_path)


def test_the_written_corpus_opens_as_a_data_set_and_its_digest_is_that_of_its_content(library, tmp_path):
    rows, path = corpus(library), tmp_path / "corpus.jsonl"
    digest = write_corpus(rows, path)
    assert digest == write_corpus(corpus(library), path)
    assert digest != write_corpus(rows[1:], tmp_path / "other.jsonl")
    opened = open_rows(DataSettings(path=str(path)))
    assert [example.id for example in opened.examples(0, len(opened))] == [row.id for row in rows]
    assert json.loads(path.read_text().splitlines()[0]).keys() == {"text", "id", "source", "uri"}
