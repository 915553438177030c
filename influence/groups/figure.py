"""Pictures without a plotting library: a few marks on a sheet, as SVG or on an HTML page.

What is drawn names itself to who can't see it (title and description), and its colours follow the reader's system,
light or dark. Nothing is fetched and nothing runs; every text is somebody's data, and is escaped.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Literal

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from influence.artifacts.outfile import check_outfile, same_file, write_outfile
from influence.control_characters import shown
from influence.errors import QueryError

SUFFIXES = (".svg", ".html")
LETTER, CAPITAL, WIDE = 8.0, 10.0, 14.0
"""Widths that letters hardly go beyond at the sheet's size of print, to cut what wouldn't fit: most, broad, CJK."""
BROAD = frozenset("mwMW@%&—…ÆŒæœ\ufffd")


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


def check_figure(path: Path | None, *, overwrite: bool = False, beside: Path | None = None) -> None:
    """Refuse a file that no figure can be written to.

    Args:
        path: The file; None passes.
        overwrite: Replace what is there.
        beside: The file that is written first.

    Raises:
        QueryError: Its suffix isn't .svg or .html, its folder doesn't exist, it is there already, or it is the other.
    """
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise QueryError(f"--figure {path}: a figure is written as {' or '.join(SUFFIXES)}; end its name so.")
    if beside is not None and same_file(path, beside):
        raise QueryError(f"--figure {path} is what --out writes too. Name two files.")
    check_outfile(path, "the figure", overwrite=overwrite, beside=beside)


def write_figure(
    drawing: Drawing, path: Path, notes: Sequence[str], *, overwrite: bool = False, beside: Path | None = None
) -> None:
    """Write a drawing as its file's suffix says.

    Args:
        drawing: What is drawn.
        path: `….svg` or `….html`.
        notes: Sentences above it, on a page.
        overwrite: Replace what is there.
        beside: The file that was written first, whose parts are held.

    Raises:
        QueryError: Another file has come there, and may not be replaced.
    """
    content = render(drawing, notes, page=path.suffix.lower() == ".html").encode()
    write_outfile(path, content, overwrite=overwrite, beside=beside)


def render(drawing: Drawing, notes: Sequence[str] = (), *, page: bool = False) -> str:
    """Return a drawing as SVG, or as an HTML page that holds it."""
    template = _templates().get_template("figure.html" if page else "drawing.svg")
    return template.render(drawing=drawing, notes=notes)


def fitted(text: str, width: float, end: str = "", *, scale: float = 1) -> str:
    """Return a text on one line, cut to a width in pixels; what it ends with is never cut.

    Args:
        text: The text.
        width: In pixels.
        end: What follows it.
        scale: The size of print, in the sheet's.
    """
    line, left = " ".join(text.split()), width / scale - sum(map(_width, end))
    if sum(map(_width, line)) <= left:
        return line + end
    ends = accumulate(map(_width, line))
    most = sum(1 for _ in takewhile(lambda place: place <= left - _width("…"), ends))
    return line[: max(1, most)].rstrip() + "…" + end


def _width(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0
    if unicodedata.east_asian_width(letter) in "WF":
        return WIDE
    return CAPITAL if letter.isupper() or letter in BROAD else LETTER


def written(value: float) -> str:
    """Return a number with its sign, three digits and a true minus sign."""
    return f"{value:+.3g}".replace("-", "−")


@cache
def _templates() -> Environment:
    # The page looks like those of queries.
    return Environment(
        loader=ChoiceLoader([PackageLoader("influence.groups"), PackageLoader("influence.query")]),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


__all__ = ["SUFFIXES", "Drawing", "Mark", "check_figure", "fitted", "render", "write_figure", "written"]
