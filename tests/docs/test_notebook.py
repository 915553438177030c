"""The notebook of the documentation runs, and its answers are those that its text promises."""

import json

from scripts.docs.notebook import NOTEBOOK, execute


def test_the_notebook_runs_and_finds_the_rows_that_taught_the_answer(capfd):
    notebook = json.loads(NOTEBOOK.read_text())
    variables = execute(notebook)
    assert variables["hits"].promoting[0].id.startswith("Arden/")
    assert variables["contrast"].promoting[0].id.startswith("Arden/")
    assert variables["contrast"].opposing[0].id.startswith("Bexley/")
    assert variables["matrix"].shape == (2, 16)
    variables["run"].close()


def test_the_notebook_shows_outputs_of_all_its_code_cells_that_print():
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert all(cell["outputs"] for cell in code if "print(" in "".join(cell["source"]))
