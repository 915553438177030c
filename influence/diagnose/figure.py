"""Pictures without a plotting library: a few marks on a sheet, as SVG or on an HTML page.

What is drawn names itself to who can't see it (title and description), and its colours follow the reader's system,
light or dark. Nothing is fetched and nothing runs; every text is somebody's data, and is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from influence.errors import QueryError
from influence.remote.place import check_local
from influence.store.partial import write_whole

SUFFIXES = (".svg", ".html")
LETTER = 7.0
"""About the width of a letter at the sheet's size of print, to cut what wouldn't fit."""
# What XML can't hold, not even escaped.
FORBIDDEN = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "\ufffd")


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing drawn, at x, y in pixels from the upper left corner.

    Attributes:
        kind: What.
        look: Its classes; see the template's style.
        width: Of a bar; a dot's radius.
        height: Of a bar.
        to_x: Where a line ends.
        to_y: Where a line ends.
        text: Of a text.
        anchor: Which end of a text is at x.
        full: Shown where a reader points at the mark: a whole name, the numbers.
    """

    kind: Literal["text", "bar", "line", "dot"]
    x: float
    y: float
    look: str = ""
    width: float = 0
    height: float = 0
    to_x: float = 0
    to_y: float = 0
    text: str = ""
    anchor: Literal["start", "middle", "end"] = "start"
    full: str = ""


@dataclass(frozen=True)
class Drawing:
    """A sheet with marks on it.

    Attributes:
        title: What it shows.
        about: The same for who can't see it, with what is to be seen.
        width: In pixels.
        height: In pixels.
        marks: In the order they are drawn.
    """

    title: str
    about: str
    width: int
    height: int
    marks: Sequence[Mark]


def check_figure(path: Path | None, *, overwrite: bool = False) -> None:
    """Refuse a file that no figure can be written to.

    Raises:
        QueryError: Its suffix isn't .svg or .html, its folder doesn't exist, or it is there already.
    """
    if path is None:
        return
    check_local(path, "a figure")
    if path.suffix.lower() not in SUFFIXES:
        raise QueryError(f"--figure {path}: a figure is written as {' or '.join(SUFFIXES)}; end its name so.")
    if not path.parent.is_dir():
        raise QueryError(f"The folder {path.parent} doesn't exist; make it, or write the figure somewhere else.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise QueryError(f"{path} exists already. Overwrite (--overwrite), or name another file.")


def write_figure(drawing: Drawing, path: Path, notes: Sequence[str]) -> None:
    """Write a drawing as its file's suffix says.

    Args:
        drawing: What is drawn.
        path: `….svg` or `….html`.
        notes: Sentences above it, on a page.
    """
    write_whole(path, render(drawing, notes, page=path.suffix.lower() == ".html").encode())


def render(drawing: Drawing, notes: Sequence[str] = (), *, page: bool = False) -> str:
    """Return a drawing as SVG, or as an HTML page that holds it."""
    template = _templates().get_template("figure.html" if page else "drawing.svg")
    return template.render(drawing=drawing, notes=notes).translate(FORBIDDEN)


def fitted(text: str, width: float) -> str:
    """Return a text on one line, cut to about a width in pixels."""
    line = " ".join(text.split())
    most = max(2, int(width / LETTER))
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def written(value: float) -> str:
    """Return a number with its sign, three digits and a true minus sign."""
    return f"{value:+.3g}".replace("-", "−")


@cache
def _templates() -> Environment:
    # The page looks like those of queries.
    return Environment(
        loader=ChoiceLoader([PackageLoader("influence.diagnose"), PackageLoader("influence.query")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


__all__ = ["SUFFIXES", "Drawing", "Mark", "check_figure", "fitted", "render", "write_figure", "written"]
