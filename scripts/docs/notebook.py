"""The notebook of the documentation: read as cells, executed, and shown as a page.

`python -m scripts.docs.notebook` executes docs/notebook.ipynb and writes the outputs of its cells into it.
"""

import ast
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


def sources(notebook: dict[str, Any], kind: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the cells of a kind (`code` or `markdown`) with their text."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == kind:
            yield cell, "".join(cell["source"])


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
    """Execute the code cells in order and return the variables; outputs are what a cell prints, and its last value."""
    variables: dict[str, Any] = {"__name__": "__main__"}
    for number, (cell, source) in enumerate(sources(notebook, "code"), start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = _run(source, f"cell {number}", variables)
        if value is not None:
            print(value, file=printed)
        cell["execution_count"] = number
        cell["outputs"] = [_stream(printed.getvalue())] if printed.getvalue() else []
    return variables


def page(notebook: dict[str, Any]) -> str:
    """Return the notebook as Markdown: texts as they are, code and its output in fences."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        parts.extend(f"```text\n{''.join(output['text']).rstrip()}\n```" for output in cell["outputs"])
    return "\n\n".join(parts) + "\n"


def _run(source: str, name: str, variables: dict[str, Any]) -> Any:
    """Execute a cell; return the value of its last line where that is an expression, as a notebook shows it."""
    tree = ast.parse(source, name)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, name, "exec"), variables)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), name, "exec"), variables)
    return eval(compile(ast.Expression(last.value), name, "eval"), variables)


def _stream(text: str) -> dict[str, Any]:
    return {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}


def main() -> None:
    """Execute the notebook and write its outputs into it."""
    notebook = json.loads(NOTEBOOK.read_text())
    execute(notebook)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
