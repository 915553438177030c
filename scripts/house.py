"""Measure how the product code is laid out: sizes, import circles, rooms, names, and what exists more than once.

    python scripts/house.py              # a table: what, now, wanted
    python scripts/house.py --trace      # with a row's way, a query's way and processor times, on a tiny model
    python scripts/house.py --check      # rules alone; exit code 1 with the names that break one
    python scripts/house.py --names      # every vague name with its line

The rules: no import circle of more than two files, no room of more than 25 files, no file of more than 300 lines but
those in scripts/house.toml, and no larger share of vague names than stated there. Both limits may only go down:
`--lower` rewrites that file where the code has become better.
"""

import argparse
import ast
import json
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from house_names import vague_names

ROOT = Path(__file__).resolve().parent.parent
LIMITS = Path(__file__).with_name("house.toml")
LONGEST, FULLEST, CIRCLE = 300, 25, 2
MOST_VAGUE = 0.5
"""Per cent of bound names: the aim, where the limit in house.toml ends."""


class House:
    """The product code below a folder, parsed once.

    Args:
        root: The folder with `influence/` and `index/`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = sorted(path for name in ("influence", "index") for path in (root / name).rglob("*.py"))
        self.trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in self.files}
        self.lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in self.files}

    def name(self, path: Path) -> str:
        """Return a path as messages show it."""
        return path.relative_to(self.root).as_posix()

    @cached_property
    def rooms(self) -> Counter[str]:
        """Files of each folder, without `__init__.py`."""
        return Counter(self.name(path.parent) for path in self.files if path.name != "__init__.py")

    @cached_property
    def long_files(self) -> list[str]:
        """Files of more than 300 lines."""
        return [self.name(path) for path in self.files if self.lines[path] > LONGEST]

    @cached_property
    def vague(self) -> tuple[int, list[str]]:
        """How many names are bound, and the vague ones with file and line."""
        count, names = 0, []
        for path in self.files:
            bound, vague = vague_names(self.trees[path])
            count += bound
            names += [f"{self.name(path)}:{line}: {name}" for line, name in vague]
        return count, names

    @property
    def vague_share(self) -> float:
        """Vague names among bound names, in per cent."""
        return 100 * len(self.vague[1]) / max(self.vague[0], 1)

    @cached_property
    def circles(self) -> list[list[str]]:
        """Files that import one another, in circles of more than two; the largest first."""
        modules = {self._module(path): path for path in self.files}
        graph = {name: set(_imports(self.trees[path], name, path, modules)) for name, path in modules.items()}
        return sorted((sorted(circle) for circle in components(graph) if len(circle) > CIRCLE), key=len, reverse=True)

    def _module(self, path: Path) -> str:
        return self.name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def definitions(self) -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
        """Yield every function and class with its file."""
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    yield path, node


def _imports(tree: ast.AST, name: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of ours that a file imports anywhere in it, but for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            inner = [f"{source}.{alias.name}" for alias in node.names]
            targets = [target if target in modules else source for target in inner]
        yield from (target for target in targets if target in modules and target != name)
        yield from _imports(node, name, path, modules)


def components(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of a graph (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    result: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in graph[node]:
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            cut = stack.index(node)
            result.append(stack[cut:])
            del stack[cut:]

    sys.setrecursionlimit(10_000)
    for node in graph:
        if node not in order:
            visit(node)
    return result


def broken_rules(house: House, limits: dict[str, object]) -> list[str]:
    """Return a line for every rule that the code breaks."""
    lines = [f"{len(circle)} files import one another in a circle: {', '.join(circle)}" for circle in house.circles]
    lines += [
        f"{room}/ has {count} files, expected at most {FULLEST}: cut it into rooms"
        for room, count in house.rooms.items()
        if count > FULLEST
    ]
    allowed = limits["long_files"]
    assert isinstance(allowed, list)
    lines += [
        f"{name} has {house.lines[house.root / name]} lines, expected at most {LONGEST}"
        for name in house.long_files
        if name not in allowed
    ]
    limit = float(str(limits["vague_names"]))
    if house.vague_share > limit:
        lines.append(
            f"{house.vague_share:.2f} % of bound names are participles or pronouns that stand alone, expected at most "
            f"{limit:.2f} %: rename the new ones of `python scripts/house.py --names`, as found → hits, asked → queries"
        )
    return lines


def lower(house: House, limits: dict[str, object]) -> None:
    """Write the limits where the code is better than they are; never the other way."""
    allowed = limits["long_files"]
    assert isinstance(allowed, list)
    names = [name for name in allowed if name in house.long_files]
    # Two decimals, rounded up: the code as it is has to pass.
    share = min(float(str(limits["vague_names"])), int(100 * house.vague_share + 1) / 100)
    head = "".join(line for line in LIMITS.read_text().splitlines(keepends=True) if line.startswith("#"))
    listed = "".join(f'    "{name}",\n' for name in names)
    LIMITS.write_text(f"{head}vague_names = {share:.2f}\nlong_files = [\n{listed}]\n")


def main() -> None:
    """Print the table, or check the rules."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="check the rules; exit code 1 where one is broken")
    parser.add_argument("--trace", action="store_true", help="trace a row and a query on a tiny model, too")
    parser.add_argument("--names", action="store_true", help="list the vague names")
    parser.add_argument("--lower", action="store_true", help="lower the limits to what the code is")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout; default: this")
    args = parser.parse_args()
    house, limits = House(args.tree.resolve()), tomllib.loads(LIMITS.read_text())
    if args.lower:
        lower(house, limits)
    elif args.names:
        print("\n".join(house.vague[1]))
    elif args.check:
        lines = broken_rules(house, limits)
        print(
            "\n".join(lines) or f"{len(house.files)} files, {house.vague_share:.2f} % vague names: no rule is broken."
        )
        sys.exit(bool(lines))
    else:
        from house_copies import copies

        more = copies(house)
        lines = [*sizes(house), *((what, str(len(names)), "1") for what, names in more.items())]
        if args.trace:
            script = args.tree.resolve() / "scripts" / "house_trace.py"
            traced = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE)
            lines += traces(json.loads(traced.stdout))
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        for line in [("what", "now", "wanted"), *lines]:
            print(f"{line[0]:{widths[0]}}  {line[1]:{widths[1]}}  {line[2]}".rstrip())
        print(*(f"\n{what}: {', '.join(names)}" for what, names in more.items() if len(names) > 1), sep="")


def sizes(house: House) -> list[tuple[str, str, str]]:
    """Return the lines of the table about sizes, circles and names."""
    largest = max(map(len, house.circles), default=0)
    rooms = ", ".join(f"{room} {count}" for room, count in house.rooms.most_common(3))
    words = len((house.root / "README.md").read_text(encoding="utf-8").split())
    return [
        ("product code", f"{sum(house.lines.values()):,} lines, {len(house.files)} files", "≤ 33,000 lines"),
        ("import circles over 2 files", f"{len(house.circles)}, the largest {largest} files", "none"),
        ("largest rooms, files", rooms, f"≤ {FULLEST}"),
        (f"files over {LONGEST} lines", str(len(house.long_files)), "0"),
        ("vague among bound names", f"{house.vague_share:.2f} % of {house.vague[0]:,}", f"≤ {MOST_VAGUE} %"),
        ("README, words", f"{words:,}", "≤ 700"),
    ]


def traces(figures: dict[str, float]) -> list[tuple[str, str, str]]:
    """Return the lines of the table that a trace gives."""
    row = f"{figures['row_functions']} functions, {figures['row_frames']} frames"
    query = f"{figures['query_files']} files, {figures['query_functions']} functions"
    cold = f"{figures['index_seconds']:.1f} s, exact {figures['exact_seconds']:.1f} s"
    return [
        ("one shard: functions, deepest frame", row, "≤ 90, ≤ 14"),
        ("one query, command to table", query, "≤ 60 files, ≤ 300 functions"),
        ("processor time of --help", f"{figures['help_seconds']:.2f} s", "≤ 0.5 s"),
        ("processor time of a cold query, tiny model", cold, "≤ 3 s, exact ≤ 4 s"),
    ]


if __name__ == "__main__":
    main()
