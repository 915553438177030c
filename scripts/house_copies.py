"""What exists more than once in the product code: definitions that do one kind of thing, found in the syntax tree."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from house import House

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def copies(house: "House") -> dict[str, list[str]]:
    """Return what should exist once, with the names of the definitions that do it."""
    return {
        what: [f"{path.stem}.{node.name}" for path, node in house.definitions() if rule(path, node)]
        for what, rule in RULES.items()
    }


def _calls(node: ast.AST) -> list[ast.Call]:
    """Return the calls of a function's own body, without those of functions inside it."""
    calls, rest = [], list(ast.iter_child_nodes(node))
    while rest:
        child = rest.pop()
        if isinstance(child, Definition):
            continue
        if isinstance(child, ast.Call):
            calls.append(child)
        rest += ast.iter_child_nodes(child)
    return calls


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def is_task(path: Path, node: Definition) -> bool:
    """A frozen value that is sent to a worker."""
    decorated = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return isinstance(node, ast.ClassDef) and decorated and node.name.endswith("Task")


def names_its_task(path: Path, node: Definition) -> bool:
    """An error that is raised again with its task's name."""
    return not isinstance(node, ast.ClassDef) and any(
        isinstance(inner, ast.Raise) and "type(error)(f" in ast.unparse(inner) and ".name}" in ast.unparse(inner)
        for inner in ast.walk(node)
    )


def is_stands(path: Path, node: Definition) -> bool:
    """A question whether an artifact is there and is that of this run."""
    return not isinstance(node, ast.ClassDef) and re.search(r"(^|_)stands?$", node.name) is not None


def puts_in_place(path: Path, node: Definition) -> bool:
    """A rename of a finished file or folder to its final name."""
    return not isinstance(node, ast.ClassDef) and any(
        ast.unparse(call.func) in ("os.replace", "os.rename", "os.link")
        or (_called(call) in ("rename", "replace") and len(call.args) == 1 and not call.keywords and _is_path(call))
        for call in _calls(node)
    )


def _is_path(call: ast.Call) -> bool:
    """Whether a call of `.replace(x)` or `.rename(x)` is a path's: texts take two arguments, tables keywords."""
    return isinstance(call.func, ast.Attribute)


def keeps_best(path: Path, node: Definition) -> bool:
    """The best k of numbers: a partition, or a sort that is cut at k."""
    if isinstance(node, ast.ClassDef):
        return False
    if any(_called(call) in ("argpartition", "topk", "nlargest") for call in _calls(node)):
        return True
    return any(
        isinstance(inner, ast.Subscript)
        and isinstance(inner.value, ast.Call)
        and _called(inner.value) in ("lexsort", "argsort")
        and ":k" in ast.unparse(inner.slice).replace(" ", "")
        for inner in ast.walk(node)
    )


def multiplies_rows(path: Path, node: Definition) -> bool:
    """Products of queries and stored rows, in the store and the index."""
    return (
        not isinstance(node, ast.ClassDef)
        and bool({"store", "index"} & set(path.parts))
        and re.search(r"(^|_)(products?|gemm)$", node.name) is not None
    )


def renders_settings_errors(path: Path, node: Definition) -> bool:
    """A message made of pydantic's errors."""
    return not isinstance(node, ast.ClassDef) and any(
        _called(call) == "errors" and not call.args and isinstance(call.func, ast.Attribute) for call in _calls(node)
    )


RULES: dict[str, Callable[[Path, Definition], bool]] = {
    "task dataclasses": is_task,
    'copies of `raise type(error)(f"{task.name}: …")`': names_its_task,
    'predicates "…stands"': is_stands,
    "mechanisms that write a file whole": puts_in_place,
    "top-k keepers": keeps_best,
    "row-product functions": multiplies_rows,
    "settings-error renderers": renders_settings_errors,
}
