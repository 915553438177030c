"""What a query answers: the rows that promote the measured output and those that oppose it, in every form people read.

A score means nothing without its unit and its sign rule, so both travel with the hits: as fields of the JSON, as
columns of the flat forms (`unit`, and `side` for the sign), as text on the page. So does whether the scores can be
numbers of that unit at all: see `influence.recipes.magnitude`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from influence.artifacts.partial import check_replaceable, write_pieces
from influence.control_characters import show_controls
from influence.coverage import Coverage, shares
from influence.errors import QueryError
from influence.query.page import Section, render_fragment, render_page
from influence.recipes import RANK_ONLY, SIGN_RULE, Baseline, Magnitudes, magnitudes, sign_rule
from influence.spreadsheet import write_csv

if TYPE_CHECKING:
    import pandas as pd

SearchKind = Literal["exact", "approximate", "below_recall"]
Format = Literal["json", "jsonl", "csv", "parquet", "html"]
FORMATS: tuple[str, ...] = get_args(Format)

INCOMPLETE = (
    "The index doesn't reach its recall for this query, so rows may be missing: add --where 'row >= 0', which "
    "scans all rows, or set index.kind: exact."
    """What is said where `Hits.search` is `below_recall`."""
)
ROW_GROUP = 256
"""Answers of a row group of Parquet."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One training row of an answer.

    Attributes:
        rank: 1 is the strongest of its side.
        row: Position in the training data.
        id: The row's id, or the digest of its content.
        score: In the unit of its `Hits`. Positive promotes (not for baselines).
        source: The row's source, if the data has one.
        uri: The row's location, if the data has one.
        tokens: Number of scored tokens; in a run of `bm25`, of words.
        snippet: The beginning of the text, not escaped.
        exact: True if the score comes from whole gradients, computed for this query; false if it comes from the stored
            rows.
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
    """The query as it was measured.

    Attributes:
        id: The query's id, or the digest of its content.
        prompt: The text before the completion; empty if a whole text is measured. A classifier's text.
        completion: The output that is measured. A classifier's label.
        log_likelihood: log p(completion | prompt), summed over its tokens, in nats; None for `bm25`,
            which has no model.
        contrast: The other output, or None.
        contrast_log_likelihood: log p(contrast | prompt), in nats, or None.
        turns: For a chat, the number of assistant turns that are measured (the completion is the last); else None.
    """

    id: str
    prompt: str
    completion: str
    log_likelihood: float | None
    contrast: str | None = None
    contrast_log_likelihood: float | None = None
    turns: int | None = None


@dataclass(frozen=True)
class Hits:
    """The answer to one query. A notebook displays it as tables.

    Attributes:
        query: The query and its log-likelihood.
        recipe: The method, as `Recipe.summary` names it.
        unit: The unit of every score here.
        fingerprint: The fingerprint of the run.
        promoting: Strongest first; for a baseline, the most similar rows.
        opposing: Strongest (most negative) first; empty for a baseline.
        baseline: The name of the baseline, whose scores have no sign rule; None for influence.
        coverage: The share of the trained weights that is tracked; None if the build did not measure it.
        search: How the rows, or the candidates of exact scores, were searched. `exact`: every row was compared.
            `approximate`: an index was used. `below_recall`: an index was used and does not reach its recall for this
            query, so rows can be missing.
    """

    query: MeasuredQuery
    recipe: str
    unit: str
    fingerprint: str
    promoting: tuple[Hit, ...]
    opposing: tuple[Hit, ...]
    baseline: Baseline | None = None
    coverage: Coverage | None = None
    search: SearchKind = "exact"

    @property
    def sign(self) -> str:
        """What the sign of a score means."""
        return sign_rule(self.baseline)

    @property
    def magnitudes(self) -> Magnitudes:
        """`nats` if the scores can be numbers of nats, `rank_only` if only their order is meaningful."""
        asked = self.query
        return magnitudes(self.unit, self._best, asked.log_likelihood, contrasted=asked.contrast is not None)

    @property
    def caution(self) -> str | None:
        """A warning if only the order of the scores is meaningful or rows can be missing; else None."""
        return " ".join(text for text in (self._rank_only, self._incomplete) if text) or None

    @property
    def _incomplete(self) -> str | None:
        return INCOMPLETE if self.search == "below_recall" else None

    @property
    def _rank_only(self) -> str | None:
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
            "search": self.search,
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
        """Yield one flat record per hit, promoting first, with the columns of `COLUMNS`."""
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
                    "search": self.search,
                    "recipe": self.recipe,
                    "fingerprint": self.fingerprint,
                    **shares(self.coverage),
                }

    def to_pandas(self) -> "pd.DataFrame":
        """Return `rows()` as a DataFrame, with sign rule, magnitudes and caution in its `attrs`."""
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
_RUN_COLUMNS = ("unit", "magnitudes", "search", "recipe", "fingerprint", "coverage", "body_coverage")
COLUMNS = (*_QUERY_COLUMNS, *(field.name for field in fields(Hit)), *_RUN_COLUMNS)
"""The columns of every flat form, in order."""


def snippet(text: str, width: int = 240) -> str:
    """Return the beginning of a text on one line, cut between words with an ellipsis.

    Runs of white space become one space and control characters become symbols, so that a snippet can't move a
    terminal's cursor. Nothing is escaped: a page or a table does that for itself.
    """
    line = show_controls(" ".join(text.split()))
    if len(line) <= width:
        return line
    cut = line[:width]
    # A language without spaces, or one endless word, is cut where the width ends.
    between_words = cut.rfind(" ")
    return (cut[:between_words] if between_words > width // 2 else cut[:-1]).rstrip() + "…"


def encode(answers: Sequence[Hits], form: Format, *, raw_csv: bool = False) -> bytes:
    """Return the answers as a file's bytes.

    `json` is an object for one answer and a list for several; `jsonl` a line an answer; `csv` and `parquet` a flat
    record a hit; `html` a self-contained page. Text is UTF-8; half a surrogate pair, which UTF-8 can't hold, becomes
    its escape.

    A CSV cell that a spreadsheet might run as a formula has an apostrophe in front, unless `raw_csv` is set: see
    `influence.spreadsheet`.

    Raises:
        QueryError: Another format, or a number that isn't finite.
    """
    return b"".join(encoded(answers, form, raw_csv=raw_csv))


def encoded(answers: Iterable[Hits], form: Format, *, raw_csv: bool = False) -> Iterator[bytes]:
    """Yield the bytes of `encode` as answers come; none is held once it is encoded, but of a page, which holds all."""
    if form == "parquet":
        yield from _parquet(answers)
    elif form == "json":
        yield from map(_utf8, _document(answers))
    elif form == "jsonl":
        yield from (_utf8(answer.to_json(indent=None) + "\n") for answer in answers)
    elif form == "csv":
        yield _utf8(write_csv(COLUMNS, ()))
        for answer in answers:
            yield _utf8(write_csv(COLUMNS, answer.rows(), raw=raw_csv, header=False))
    elif form == "html":
        sections = [Section(answer) for answer in answers]
        yield _utf8(render_page("Which training rows made the model say this?", "", sections))
    else:
        raise QueryError(f"There is no output format {form!r}. The formats are {', '.join(FORMATS)}.")


def write(answers: Iterable[Hits], form: Format, path: Path, *, raw_csv: bool = False) -> None:
    """Write the answers to a file as they come: the whole of it, or nothing.

    Raises:
        QueryError: Another format, a folder that doesn't exist, or a folder where a file should be.
        Incomplete: The disk is full.
        StoreError: The folder can't be written to.
    """
    if path.is_dir():
        raise QueryError(f"{path} is a folder; name a file to write the answers to, such as {path / f'hits.{form}'}.")
    if not path.parent.is_dir():
        raise QueryError(f"The folder {path.parent} doesn't exist; make it, or write the answers somewhere else.")
    check_replaceable(path)
    write_pieces(path, encoded(answers, form, raw_csv=raw_csv))


def _document(answers: Iterable[Hits]) -> Iterator[str]:
    """Yield the pieces of one JSON document: an object for one answer, a list for several or none."""
    count = 0
    first = ""
    for count, answer in enumerate(answers, start=1):
        text = answer.to_json(indent=2)
        if count == 1:
            first = text
            continue
        if count == 2:
            yield "[\n" + _indented(first)
        yield ",\n" + _indented(text)
    yield {0: "[]\n", 1: f"{first}\n"}.get(count, "\n]\n")


def _indented(document: str) -> str:
    # Not `textwrap.indent`, which takes U+2028 in a string for the end of a line.
    return "  " + document.replace("\n", "\n  ")


def _json(document: Any, indent: int | None) -> str:
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        raise QueryError(
            "A score or a log-likelihood is NaN or infinite, which JSON can't hold. Run `influence doctor` on this "
            "model: it finds the overflow."
        ) from None


class _Pieces:
    """A stream that keeps what is written to it until it is taken."""

    closed = False

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def write(self, data: bytes | memoryview) -> int:
        self._written.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing: part of what pyarrow asks of a stream."""

    def take(self) -> bytes:
        content = b"".join(self._written)
        self._written.clear()
        return content


def _parquet(answers: Iterable[Hits]) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    answers = answers if isinstance(answers, Sequence) else iter(answers)
    # Of answers that are still to come, the first says it: those of one run have one sign rule.
    first = list(islice(answers, None if isinstance(answers, Sequence) else 1))
    kinds = {
        "log_likelihood": pa.float64(),
        "contrast_log_likelihood": pa.float64(),
        "coverage": pa.float64(),
        "body_coverage": pa.float64(),
        "score": pa.float64(),
        "exact": pa.bool_(),
    }
    kinds |= {"rank": pa.int64(), "row": pa.int64(), "tokens": pa.int64()}
    sign = "\n".join(dict.fromkeys(answer.sign for answer in first)) or SIGN_RULE
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS], metadata={"sign": sign})
    pieces = _Pieces()
    answers = iter(first) if isinstance(answers, Sequence) else chain(first, answers)
    with pq.ParquetWriter(pieces, schema) as writer:
        while batch := list(islice(answers, ROW_GROUP)):
            records = [
                {name: _utf8(value).decode() if isinstance(value, str) else value for name, value in record.items()}
                for answer in batch
                for record in answer.rows()
            ]
            writer.write_table(pa.Table.from_pylist(records, schema=schema))
            yield pieces.take()
    yield pieces.take()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", errors="backslashreplace")
