"""The page that answers are read on: one self-contained HTML file, or the part of it that a notebook shows.

No script, no font, no image, nothing fetched; light or dark as the reader's system is. Every text on it came from
somebody's training data, so autoescaping is on for all of it and only http(s) addresses become links.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from influence.control_characters import shown

if TYPE_CHECKING:
    from influence.query.hits import Hits

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Section:
    """One answer on a page.

    Attributes:
        hits: The answer.
        heading: What the question is about; without it the sections are numbered only.
        note: A sentence of comment under the question.
        marks: Row to a word or two shown beside it, such as `planted`.
    """

    hits: "Hits"
    heading: str | None = None
    note: str | None = None
    marks: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """How the scores of one answer are drawn and written: both sides against the same largest score.

    Attributes:
        largest: The largest |score| of the answer, in its unit.
    """

    largest: float

    @classmethod
    def of(cls, hits: "Hits") -> "Scale":
        """Return the scale of one answer."""
        return cls(max((abs(hit.score) for hit in (*hits.promoting, *hits.opposing)), default=0.0))

    @property
    def scientific(self) -> bool:
        """Whether scores are written with a power of ten."""
        return not (self.largest == 0 or 1e-3 <= self.largest < 1e6)

    def percent(self, score: float) -> float:
        """Return the length of a score's bar, 0…100, where 100 is the largest of the answer."""
        return round(100 * abs(score) / self.largest, 2) if self.largest else 0.0

    def written(self, score: float) -> str:
        """Return a score with its sign, to the fourth digit of the largest, so that a column can be compared."""
        exponent = math.floor(math.log10(self.largest)) if self.largest else 0
        if self.scientific:
            power = str(exponent).translate(_SUPERSCRIPT)
            text = f"{score / 10.0**exponent:+.3f} × 10{power}"
        else:
            text = f"{score:+.{max(0, 3 - exponent)}f}"
        return text.replace("-", "−")


def render_page(
    title: str,
    intro: str,
    sections: Sequence[Section],
    *,
    figures: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
) -> str:
    """Return a whole HTML document; every argument is plain text and is escaped.

    Args:
        title: The heading, and the window's title.
        intro: What the page is about; an empty line starts a new paragraph. May be empty.
        sections: The answers, in the order they are read.
        figures: A few results shown large under the title: label to value, such as `recall@10` to `0.93`.
        facts: What the answers rest on, for the foot of the page: label to value.
    """
    return (
        _templates()
        .get_template("page.html")
        .render(
            title=title,
            paragraphs=[paragraph for paragraph in intro.split("\n\n") if paragraph.strip()],
            sections=sections,
            figures=figures or {},
            facts=facts or {},
            methods=list(
                dict.fromkeys((s.hits.recipe, s.hits.unit, s.hits.fingerprint, _covered(s.hits)) for s in sections)
            ),
            signs=list(dict.fromkeys(s.hits.sign for s in sections)),
        )
    )


def render_fragment(hits: "Hits") -> str:
    """Return one answer as an HTML fragment with its own style, for a notebook's output cell."""
    return _templates().get_template("fragment.html").render(section=Section(hits))


def _covered(hits: "Hits") -> str:
    return f" · {hits.coverage.brief}" if hits.coverage else ""


def link(uri: str | None) -> str | None:
    """Return the address if a reader may safely follow it: http or https, nothing that runs."""
    if uri is None:
        return None
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    return uri if parts.scheme in {"http", "https"} and parts.netloc else None


def nats(value: float) -> str:
    """Return a log-likelihood with two decimals and a true minus sign."""
    return f"{value:.2f}".replace("-", "−")


def probability(log_likelihood: float) -> str:
    """Return exp of a log-likelihood as people read it, or nothing where it is too small to picture."""
    p = math.exp(min(log_likelihood, 0.0))
    return f"{100 * p:.3g} %" if p >= 1e-4 else ""


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("influence.query"),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"link": link, "nats": nats, "probability": probability}
    environment.globals |= {"scale_of": Scale.of, "covered": _covered}
    return environment
