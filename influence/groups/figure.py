"""Charts as SVG files or HTML pages, drawn by matplotlib, which the extra `plots` installs.

A chart has a title and a description for screen readers. Its colours follow the reader's system, light or dark. It
loads nothing and runs no script. Texts come from the user's data: they are escaped, and never read as mathematics. The
same numbers give the same bytes, whatever the reader's matplotlibrc says.
"""

import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from itertools import accumulate, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from influence.artifacts.outfile import check_outfile, same_file, write_outfile
from influence.control_characters import show_controls, shown
from influence.errors import ConfigError, MissingExtra, QueryError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".html")
PROMOTES, OPPOSES, OTHER, INK, SOFT = "#1c6c86", "#a84b22", "#9aa0a2", "#22272b", "#5e656b"
"""Blue, orange and grey differ for every kind of colour vision. templates/drawing.svg has the colours of dark mode."""
TEXT, SMALL, HEADING = 13, 12, 15
"""Font sizes in pixels."""
UNITS_PER_INCH = 72
"""Of matplotlib's SVG; one unit is a pixel here."""
STYLE: dict[Any, Any] = {
    # Text stays text, an equal salt gives equal ids, and a dollar sign in a name is a dollar sign.
    **{"svg.fonttype": "none", "svg.hashsalt": "influence", "text.parse_math": False},
    **{"figure.facecolor": "#faf8f4", "axes.facecolor": "none", "grid.color": "#d8d2c6", "grid.linewidth": 1},
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    **{"xtick.bottom": False, "ytick.left": False, "xtick.labelcolor": SOFT, "ytick.labelcolor": SOFT},
    **{"font.size": SMALL, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "axes.labelsize": SMALL},
    **{"text.color": SOFT, "axes.labelcolor": SOFT, "axes.titlecolor": INK},
    **{"axes.titlelocation": "left", "axes.titlesize": HEADING, "axes.titleweight": "bold"},
    **{"lines.linewidth": 1.5, "lines.solid_capstyle": "butt", "lines.markeredgewidth": 0},
}
LETTER, CAPITAL, WIDE = 8.0, 10.0, 14.0
"""Widths in pixels that few letters exceed at the size `TEXT`: most letters, broad ones, CJK."""
BROAD = frozenset("mwMW@%&—…ÆŒæœ\ufffd")


@dataclass(frozen=True)
class Chart:
    """A chart that is not yet written.

    Attributes:
        title: What it shows.
        description: What can be seen, in words, for screen readers.
        figure: Its drawing.
        tooltips: What a mark shows where a reader points at it, by the mark's id.
    """

    title: str
    description: str
    figure: "Figure"
    tooltips: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = self.figure.get_size_inches() * UNITS_PER_INCH
        return round(width), round(height)

    def tooltip(self, mark: "Artist", text: str) -> None:
        """Show a text where a reader points at a mark: a whole name, the numbers."""
        gid = f"mark-{len(self.tooltips)}"
        mark.set_gid(gid)
        self.tooltips[gid] = text


def new_figure(width: int, height: int, left: int, right: int, top: int, bottom: int) -> "Figure":
    """Return an empty figure whose axes keep these margins, in pixels. Call it, and draw, within `chart_style`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / UNITS_PER_INCH, height / UNITS_PER_INCH))
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    return figure


@contextmanager
def chart_style() -> Iterator[None]:
    """Use the charts' settings in the place of the reader's matplotlibrc.

    Raises:
        MissingExtra: matplotlib isn't installed.
    """
    check_matplotlib()
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        # Browsers draw the letters; matplotlib only measures them, and its own font lacks many scripts.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def check_matplotlib(purpose: str = "A figure") -> None:
    """Refuse a figure where matplotlib can't be imported.

    Raises:
        MissingExtra: It isn't installed.
        ConfigError: MPLBACKEND names no backend, which matplotlib refuses at its import.
    """
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"{purpose} needs matplotlib, which can't be imported ({error}). "
            "Install it: pip install 'influence[plots]'."
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{purpose} needs matplotlib, which refuses MPLBACKEND={os.environ.get('MPLBACKEND')}: {error}. Unset it."
        ) from None


def check_figure(path: Path | None, *, overwrite: bool = False, beside: Path | None = None) -> None:
    """Refuse a file that no figure can be written to.

    Args:
        path: The file; None passes.
        overwrite: Replace what is there.
        beside: The file that is written first.

    Raises:
        QueryError: Its suffix isn't .svg or .html, its folder doesn't exist, it is there already, or it is the other.
        MissingExtra: matplotlib isn't installed.
    """
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise QueryError(f"--figure {path}: a figure is written as {' or '.join(SUFFIXES)}; end its name so.")
    if beside is not None and same_file(path, beside):
        raise QueryError(f"--figure {path} is what --out writes too. Name two files.")
    check_outfile(path, "the figure", overwrite=overwrite, beside=beside)
    check_matplotlib(f"--figure {path}")


def write_figure(
    chart: Chart, path: Path, notes: Sequence[str], *, overwrite: bool = False, beside: Path | None = None
) -> None:
    """Write a chart in the format of its file's suffix.

    Args:
        chart: What is drawn.
        path: `….svg` or `….html`.
        notes: Sentences above it, on a page.
        overwrite: Replace what is there.
        beside: The file that was written first, whose parts still exist.

    Raises:
        QueryError: Another file is there and may not be replaced.
    """
    content = render(chart, notes, page=path.suffix.lower() == ".html").encode()
    write_outfile(path, content, overwrite=overwrite, beside=beside)


@chart_style()
def render(chart: Chart, notes: Sequence[str] = (), *, page: bool = False) -> str:
    """Return a chart as SVG, or as an HTML page that holds it."""
    buffer = StringIO()
    # No date and no version: the bytes depend on the chart alone.
    chart.figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = show_controls(buffer.getvalue())
    inside = drawing[drawing.index(">", drawing.index("<svg")) + 1 : drawing.rindex("</svg>")]
    # matplotlib escapes `<` in texts, so only its own groups match.
    inside = re.sub(r'<g id="(mark-\d+)">', lambda group: group[0] + _title(chart.tooltips[group[1]]), inside)
    template = _templates().get_template("figure.html" if page else "drawing.svg")
    return template.render(chart=chart, inside=Markup(inside), notes=notes)  # noqa: S704


def _title(text: str) -> str:
    return f"<title>{escape(show_controls(text))}</title>"


def shorten(text: str, width: float, end: str = "", *, scale: float = 1) -> str:
    """Return a text on one line, cut to a width in pixels; its end is never cut.

    Args:
        text: The text.
        width: In pixels.
        end: What follows it.
        scale: The font's size, in units of `TEXT`.
    """
    line, left = show_controls(" ".join(text.split())), width / scale - sum(map(_width, end))
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


def signed_number(value: float) -> str:
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


__all__ = ["SUFFIXES", "Chart", "chart_style", "check_figure", "new_figure", "render", "shorten", "write_figure"]
