"""The code of the documentation runs, and its answers are those that the text promises."""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from influence.engine.dispatch import Workers, complete
from scripts.docs.notebook import NOTEBOOK, execute

EXTENDING = Path(__file__).parents[2] / "docs" / "contributing" / "extending.md"


@pytest.fixture(scope="module")
def variables():
    """The variables of the notebook, executed."""
    variables = execute(json.loads(NOTEBOOK.read_text()))
    yield variables
    variables["run"].close()


def test_the_notebook_runs_and_finds_the_rows_that_taught_the_answer(variables):
    assert variables["hits"].promoting[0].id.startswith("Arden/")
    assert variables["contrast"].promoting[0].id.startswith("Arden/")
    assert variables["contrast"].opposing[0].id.startswith("Bexley/")
    assert variables["matrix"].shape == (2, 16)


def test_the_notebook_shows_outputs_of_all_its_code_cells_that_print():
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert all(cell["outputs"] for cell in code if "print(" in "".join(cell["source"]))


def test_the_stage_of_the_contributors_page_runs_and_needs_no_second_time(variables, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", EXTENDING.read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, str(EXTENDING), "exec"), names)
    stage = names["Words"](Path(str(variables["run"].path)), tmp_path)
    with Workers(nullcontext) as workers:
        complete([stage], workers)
    words = sum(len(row["text"].split()) for row in variables["rows"])
    assert (tmp_path / "words.txt").read_text() == f"{words}\n"
    assert stage.missing() == []
