"""The demo's corpus: the documentation inside the user's own Python, and the planted facts among it.

Docstrings of the standard library's public modules, classes and functions are read with `ast` from the installed
sources; no module is imported. Rows are in the order of files and lines, planted rows are spread evenly among them. A
text that was seen before (a method documented like its parent's) and one of less than five words are left out.
"""

import ast
import json
import logging
import os
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from influence.artifacts.partial import write_whole
from influence.demo.facts import FACTS, Fact
from influence.errors import DataError

log = logging.getLogger(__name__)

TESTS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
NOT_EVERYWHERE = {"tkinter", "turtle", "turtledemo", "idlelib", "distutils", "lib2to3", "ensurepip", "msilib"}
BOILERPLATE = {"encodings", "pydoc_data"}
SKIPPED = frozenset(TESTS | NOT_EVERYWHERE | BOILERPLATE)
"""Left out: tests and what the user installed, what some Pythons ship and others don't, what only repeats itself."""
FEWEST_WORDS = 5
FACTS_SOURCE = "planted facts"

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Notify = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """One row of the corpus; the columns of its file.

    Attributes:
        text: A docstring, its indentation cleaned, or a planted sentence.
        id: The qualified name of what it documents, or `planted/<fact>/<n>`, `distractor/<fact>/<n>`.
        source: The module.
        uri: File and line of the documented definition, relative to the standard library's folder.
    """

    text: str
    id: str
    source: str
    uri: str


def standard_library() -> Path:
    """Return the folder of the installed standard library's sources."""
    return Path(sysconfig.get_path("stdlib"))


def docstrings(root: Path, notify: Notify | None = None) -> Iterator[CorpusRow]:
    """Yield the docstrings of every public definition below a folder, in the order of files and lines.

    A file that can't be read or parsed is skipped with a log line. A name that is defined twice in a module (once for
    each platform, say) has its line appended the second time: `os.path.samefile@40`.

    Args:
        root: A folder of Python sources.
        notify: Called with (files read, files in all).
    """
    files = sorted(_public_files(root), key=lambda path: path.relative_to(root).as_posix())
    texts: set[str] = set()
    names: set[str] = set()
    for read, path in enumerate(files, start=1):
        module = _module_name(path.relative_to(root))
        uri = path.relative_to(root).as_posix()
        for name, line, text in _documented(path, module):
            if len(text.split()) < FEWEST_WORDS or text in texts:
                continue
            texts.add(text)
            unique = name if name not in names else f"{name}@{line}"
            names.add(unique)
            yield CorpusRow(text, unique, module, f"{uri}:{line}")
        if notify:
            notify(read, len(files))


def corpus(
    root: Path, facts: Sequence[Fact] = FACTS, most_rows: int | None = None, notify: Notify | None = None
) -> list[CorpusRow]:
    """Return the whole corpus, the same for the same sources.

    Args:
        root: The standard library's folder.
        facts: The facts to plant, spread evenly: no two rows of a fact are neighbours.
        most_rows: Keep this many docstrings, taken at even distances.
        notify: Called with (files read, files in all).

    Raises:
        DataError: The folder has no docstrings.
    """
    rows = list(docstrings(root, notify))
    if not rows:
        raise DataError(
            f"There are no Python sources with docstrings in {root}, where this Python's standard library should be. "
            "The demo reads them as its text: use a Python that ships its sources (python.org, conda, a distribution)."
        )
    if most_rows is not None and len(rows) > most_rows:
        rows = [rows[index * len(rows) // most_rows] for index in range(most_rows)]
    return _spread(rows, list(_planted(facts)))


def write_corpus(rows: Sequence[CorpusRow], path: Path) -> str:
    """Write rows as JSON Lines, replacing the file in one step, and return the digest of its bytes.

    Returns:
        The SHA-256, in hex.
    """
    content = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows).encode()
    write_whole(path, content)
    return sha256(content).hexdigest()


def _public_files(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        # Names with a dash (`config-3.11-x86_64-linux-gnu`) are no packages.
        below[:] = [name for name in below if name not in SKIPPED and name.isidentifier() and not name.startswith("_")]
        for name in files:
            stem, suffix = os.path.splitext(name)
            public = stem == "__init__" or (stem not in SKIPPED and not stem.startswith("_"))
            if suffix == ".py" and stem.isidentifier() and public:
                yield Path(folder, name)


def _module_name(relative: Path) -> str:
    steps = relative.with_suffix("").parts
    return ".".join(steps[:-1] if steps[-1] == "__init__" and len(steps) > 1 else steps)


def _documented(path: Path, module: str) -> Iterator[tuple[str, int, str]]:
    """Yield qualified name, line and docstring of a file's public definitions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources have invalid escapes
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        log.info("%s is left out of the corpus: %s", path, error)
        return
    yield from _walk(tree, module)


def _walk(node: Documented, name: str) -> Iterator[tuple[str, int, str]]:
    text = ast.get_docstring(node)
    if text and _is_text(text):
        yield name, getattr(node, "lineno", 1), text
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for below in node.body:
        if isinstance(below, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not below.name.startswith("_"):
            yield from _walk(below, f"{name}.{below.name}")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _planted(facts: Sequence[Fact]) -> Iterator[CorpusRow]:
    """Yield the rows of all facts: every fact's first, then every fact's second, and so on."""
    numbered = [list(fact.numbered()) for fact in facts]
    for turn in range(max(map(len, numbered), default=0)):
        for rows in numbered:
            if turn < len(rows):
                name, text = rows[turn]
                yield CorpusRow(text, name, FACTS_SOURCE, "influence/demo/facts.py")


def _spread(rows: list[CorpusRow], planted: list[CorpusRow]) -> list[CorpusRow]:
    mixed: list[CorpusRow] = []
    start = 0
    for number, row in enumerate(planted, start=1):
        stop = number * len(rows) // (len(planted) + 1)
        mixed += [*rows[start:stop], row]
        start = stop
    return mixed + rows[start:]


__all__ = ["CorpusRow", "corpus", "docstrings", "standard_library", "write_corpus"]
