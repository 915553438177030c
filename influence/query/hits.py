"""What a query answers: the rows that promote the measured output and those that oppose it, in every form people read.

A score means nothing without its unit and its sign rule, so both travel with the hits: as fields of the JSON, as
columns of the flat forms (`unit`, and `side` for the sign), as text on the page. So does whether the scores can be
numbers of that unit at all: see `influence.recipe.magnitude`.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from influence.coverage import Coverage, shares
from influence.errors import QueryError
from influence.query.page import Section, render_fragment, render_page
from influence.recipe import RANK_ONLY, SIGN_RULE, Baseline, Magnitudes, magnitudes, sign_rule
from influence.store.partial import write_whole

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["json", "jsonl", "csv", "parquet", "html"]
FORMATS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True, slots=True)
class Hit:
    """One training row among the answers.

    Attributes:
        rank: 1 is the strongest of its side.
        row: Position in the training data.
        id: Its given id, or the digest of its content.
        score: In the unit of the hits it belongs to; positive promotes, but for a baseline.
        source: Where the row came from, if the data says so.
        uri: Where to read it in full, if the data says so.
        tokens: Scored tokens of the row; its words, in a run of `bm25`.
        snippet: The beginning of its text, as it is: whoever shows it escapes it.
        exact: Whether the score comes from whole gradients, recomputed for this query; false where it comes from the
            stored, projected rows.
    """

    rank: int
    row: int
    id: str
    score: float
    source: str | None
    uri: str | None
    tokens: int
    snippet: str
    exact: bool


@dataclass(frozen=True, slots=True)
class MeasuredQuery:
    """What was asked.

    Attributes:
        id: Given, or the digest of the content.
        prompt: What the model was given; empty where a whole text is measured. A classifier's text.
        completion: What the model said, and what is measured. A classifier's label.
        log_likelihood: log p(completion | prompt), summed over its tokens, in nats; None where no model is asked, by
            `bm25`.
        contrast: What it is asked against; None where the completion is asked about by itself.
        contrast_log_likelihood: log p(contrast | prompt), likewise.
    """

    id: str
    prompt: str
    completion: str
    log_likelihood: float | None
    contrast: str | None = None
    contrast_log_likelihood: float | None = None


@dataclass(frozen=True)
class Hits:
    """The answer to one query. In a notebook it shows itself.

    Attributes:
        query: What was asked.
        recipe: The method, as `Recipe.summary` names it.
        unit: The unit of every score here.
        fingerprint: Of the run that answered.
        promoting: Strongest first; of a baseline the most alike.
        opposing: Strongest (most negative) first; none of a baseline.
        baseline: Which baseline answered, whose scores have no sign rule; None where influence did.
        coverage: Which share of the trained weights the run's rows hold; None where its build didn't measure it.
    """

    query: MeasuredQuery
    recipe: str
    unit: str
    fingerprint: str
    promoting: tuple[Hit, ...]
    opposing: tuple[Hit, ...]
    baseline: Baseline | None = None
    coverage: Coverage | None = None

    @property
    def sign(self) -> str:
        """What the sign of a score means."""
        return sign_rule(self.baseline)

    @property
    def magnitudes(self) -> Magnitudes:
        """Whether the scores can be numbers of nats, or are a rank only; see `influence.recipe.magnitude`."""
        asked = self.query
        return magnitudes(self.unit, self._best, asked.log_likelihood, contrasted=asked.contrast is not None)

    @property
    def caution(self) -> str | None:
        """What to say beside the scores where they are a rank only."""
        if self.magnitudes != "rank_only" or self.query.log_likelihood is None:
            return None
        text = (
            f"The best score is {self._best:+,.4g}, and this output's log-likelihood of "
            f"{self.query.log_likelihood:,.3g} can rise by {-self.query.log_likelihood:,.3g} nats at most. These "
            "scores are "
        )
        return text.replace("-", "−") + RANK_ONLY

    @property
    def _best(self) -> float:
        return max((hit.score for hit in self.promoting), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object: query, recipe, unit, sign, …, both sides; `coverage` counts all trained weights."""
        return {
            "query": asdict(self.query),
            "recipe": self.recipe,
            "unit": self.unit,
            "sign": self.sign,
            "magnitudes": self.magnitudes,
            "caution": self.caution,
            "fingerprint": self.fingerprint,
            **shares(self.coverage),
            "promoting": [asdict(hit) for hit in self.promoting],
            "opposing": [asdict(hit) for hit in self.opposing],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """Return `to_dict` as strict JSON.

        Raises:
            QueryError: A number isn't finite, which JSON can't say.
        """
        return _json(self.to_dict(), indent)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one flat record a hit, the promoting ones first, with the columns of `COLUMNS`."""
        magnitudes = self.magnitudes
        for side, hits in (("promoting", self.promoting), ("opposing", self.opposing)):
            for hit in hits:
                yield {
                    "query_id": self.query.id,
                    "prompt": self.query.prompt,
                    "completion": self.query.completion,
                    "log_likelihood": self.query.log_likelihood,
                    "contrast": self.query.contrast,
                    "contrast_log_likelihood": self.query.contrast_log_likelihood,
                    "side": side,
                    **asdict(hit),
                    "unit": self.unit,
                    "magnitudes": magnitudes,
                    "recipe": self.recipe,
                    "fingerprint": self.fingerprint,
                    **shares(self.coverage),
                }

    def to_pandas(self) -> "pd.DataFrame":
        """Return `rows()` as a DataFrame; what the sign means and how to read magnitudes is in its `attrs`."""
        import pandas as pd

        frame = pd.DataFrame(list(self.rows()), columns=list(COLUMNS))
        frame.attrs |= {"sign": self.sign, "magnitudes": self.magnitudes, "caution": self.caution}
        return frame

    def _repr_html_(self) -> str:
        return render_fragment(self)


_QUERY_COLUMNS = (
    *("query_id", "prompt", "completion", "log_likelihood", "contrast", "contrast_log_likelihood"),
    "side",
)
_RUN_COLUMNS = ("unit", "magnitudes", "recipe", "fingerprint", "coverage", "body_coverage")
COLUMNS = (*_QUERY_COLUMNS, *(field.name for field in fields(Hit)), *_RUN_COLUMNS)
"""The columns of every flat form, in order."""


def snippet(text: str, width: int = 240) -> str:
    """Return the beginning of a text on one line, cut between words with an ellipsis.

    Runs of white space become one space and control characters become U+FFFD, so that a snippet can't move a terminal's
    cursor. Nothing is escaped: a page or a table does that for itself.
    """
    line = "".join("\ufffd" if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in " ".join(text.split()))
    if len(line) <= width:
        return line
    cut = line[:width]
    # A language without spaces, or one endless word, is cut where the width ends.
    between_words = cut.rfind(" ")
    return (cut[:between_words] if between_words > width // 2 else cut[:-1]).rstrip() + "…"


def encode(answers: Sequence[Hits], form: Format) -> bytes:
    """Return the answers as a file's bytes.

    `json` is an object for one answer and a list for several; `jsonl` a line an answer; `csv` and `parquet` a flat
    record a hit; `html` a self-contained page. Text is UTF-8; half a surrogate pair, which UTF-8 can't hold, becomes
    its escape.

    A CSV cell holds the training data as it is, also where it begins with = + - or @. Spreadsheets may run such a cell
    as a formula: import untrusted data as text there, or take Parquet.

    Raises:
        QueryError: Another format, or a number that isn't finite.
    """
    if form == "json":
        documents = [answer.to_dict() for answer in answers]
        text = _json(documents[0] if len(documents) == 1 else documents, indent=2) + "\n"
    elif form == "jsonl":
        text = "".join(answer.to_json(indent=None) + "\n" for answer in answers)
    elif form == "csv":
        text = _csv(answers)
    elif form == "parquet":
        return _parquet(answers)
    elif form == "html":
        text = render_page("Which training rows made the model say this?", "", [Section(answer) for answer in answers])
    else:
        raise QueryError(f"There is no output format {form!r}. The formats are {', '.join(FORMATS)}.")
    return _utf8(text)


def write(answers: Sequence[Hits], form: Format, path: Path) -> None:
    """Write the answers to a file: the whole of it, or nothing.

    Raises:
        QueryError: Another format, a folder that doesn't exist, or a folder where a file should be.
        Incomplete: The disk is full.
        StoreError: The folder can't be written to.
    """
    if path.is_dir():
        raise QueryError(f"{path} is a folder; name a file to write the answers to, such as {path / f'hits.{form}'}.")
    if not path.parent.is_dir():
        raise QueryError(f"The folder {path.parent} doesn't exist; make it, or write the answers somewhere else.")
    write_whole(path, encode(answers, form))


def _json(document: Any, indent: int | None) -> str:
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        raise QueryError(
            "A score or a log-likelihood is NaN or infinite, which JSON can't hold. Run `influence doctor` on this "
            "model: it finds the overflow."
        ) from None


def _csv(answers: Sequence[Hits]) -> str:
    written = io.StringIO()
    table = csv.DictWriter(written, COLUMNS, lineterminator="\n")
    table.writeheader()
    for answer in answers:
        table.writerows(answer.rows())
    return written.getvalue()


def _parquet(answers: Sequence[Hits]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sign = "\n".join(dict.fromkeys(answer.sign for answer in answers)) or SIGN_RULE
    kinds = {
        "log_likelihood": pa.float64(),
        "contrast_log_likelihood": pa.float64(),
        "coverage": pa.float64(),
        "body_coverage": pa.float64(),
        "score": pa.float64(),
        "exact": pa.bool_(),
    }
    kinds |= {"rank": pa.int64(), "row": pa.int64(), "tokens": pa.int64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS], metadata={"sign": sign})
    records = [
        {name: _utf8(value).decode() if isinstance(value, str) else value for name, value in record.items()}
        for answer in answers
        for record in answer.rows()
    ]
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=schema), written)
    return written.getvalue()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", errors="backslashreplace")
