"""Which bound names say nothing: participles and pronouns that stand alone, as `found`, `told` or `ours`.

A name counts once in each scope (module, class or function) that binds it: definitions, parameters, assignments, loop
and `with` targets, attributes that are assigned, import aliases. Leading underscores don't matter.
"""

import ast
from collections.abc import Iterator

IRREGULAR = """
begun born borne bought broken brought built caught chosen done drawn fallen felt found given gone got grown
heard held kept known laid led left lent lost made meant met paid put said seen sent shown sought spent spoken
stood taken thought told won worn written wrote
"""
REGULAR = """
answered asked blamed called concerned decided ended helped judged looked moved named needed noted opened parted
promised reached refused settled touched tried turned unwanted wanted warned asking coming holding saying
standing
"""
PRONOUNS = """
another each every it its mine one ones others ours some such that theirs them these they this those what which
who whom whose
"""
VAGUE = frozenset(f"{IRREGULAR} {REGULAR} {PRONOUNS}".split())
"""Whole names. Participles that are terms of the field, as `stored`, `projected`, `encoded`, are allowed."""


def vague_names(tree: ast.Module) -> tuple[int, list[tuple[int, str]]]:
    """Return how many names a module binds, and the vague ones among them with their lines."""
    names: dict[tuple[int, str], int] = {}
    for scope, line, name in _bound(tree, 0):
        names.setdefault((scope, name), line)
    vague = [
        (line, name)
        for (scope, name), line in names.items()
        # `left` beside `right` is a side.
        if name.lower() in VAGUE and not (name == "left" and (scope, "right") in names)
    ]
    return len(names), sorted(vague)


def _bound(node: ast.AST, scope: int) -> Iterator[tuple[int, int, str]]:
    """Yield (scope, line, name) of every binding below a node."""
    inner = scope
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield scope, node.lineno, node.name.strip("_")
        inner = id(node)
    elif isinstance(node, ast.Lambda):
        inner = id(node)
    elif isinstance(node, ast.arg):
        yield scope, node.lineno, node.arg.strip("_")
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield scope, node.lineno, node.id.strip("_")
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield -scope, node.lineno, node.attr.strip("_")
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield scope, node.lineno, node.name.strip("_")
    elif isinstance(node, ast.alias) and node.asname:
        yield scope, node.lineno if hasattr(node, "lineno") else 0, node.asname.strip("_")
    for child in ast.iter_child_nodes(node):
        yield from _bound(child, inner)
