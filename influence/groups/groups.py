"""What each group of rows does to each set of queries: summed and mean influence, with bootstrap intervals.

A row's influence on a set is the mean of its scores over the set's queries. A group's sum is what training once more on
all of its rows would do to a query of the set, on average; its mean is what one of its rows would. The two have
different intervals, because different things are left to chance:

    sum    the rows are those that were trained on, so only the queries are resampled: other queries of this kind
    mean   queries and rows are both resampled: other queries, and other rows of this kind of source (the pigeonhole
           bootstrap), which is what a decision to get more rows of a source rests on

Queries are drawn with replacement; a row's number of draws is Poisson with mean 1, the streaming form of the same, so
that memory holds a number for each group, set and replicate, and none a row. The same seed gives the same intervals.

Sources: Efron & Tibshirani 1993 (percentile intervals); Owen 2007, "The pigeonhole bootstrap"; Chamandy et al. 2012,
"Estimating uncertainty for massive data streams", for Poisson draws.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import poisson

from influence.engine.progress import Report
from influence.errors import QueryError
from influence.groups.grouping import groups_of, sets_of
from influence.issues.subject import check_examinable
from influence.query.evaluation import Evaluation
from influence.recipes import RANK_ONLY, Magnitudes, joint_magnitudes, magnitudes, rank_only_queries, sign_rule
from influence.run_dir import RunDir
from influence.scan.table import QueryRecord
from influence.store.columns import NO_CODE, Categories

if TYPE_CHECKING:
    from pandas import DataFrame


CHUNK = 1024
"""Rows whose draws are held at a time."""
MOST_SUMS = 40_000
"""Groups × sets, of each of which every replicate is held."""
DRAWS = np.searchsorted(poisson.cdf(np.arange(12), 1.0), (np.arange(2**16) + 0.5) / 2**16).astype(np.uint8)
"""Poisson draws of mean 1 by 16 random bits; exact to 2⁻¹⁷ in every probability."""
ROW_ALONE = "one row: no interval over rows"
QUERY_ALONE = "one query: no interval over queries"


class GroupSettings(BaseModel):
    """How sure intervals are.

    Attributes:
        replicates: Of the bootstrap; even.
        level: Of confidence, 0 to 1.
        seed: Of the draws.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicates: int = Field(default=1000, ge=100, le=20_000, multiple_of=2)
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True, slots=True)
class GroupInfluence:
    """One group of rows and one set of queries.

    Attributes:
        set: The queries; None where they have no value in the column that parts them.
        group: The rows; None where they have no value in the column that groups them.
        rows: How many; those without a gradient score 0 and count.
        queries: Of the set.
        sum: Of the rows' influences; `sum_low` and `sum_high` bound its interval, None where there is none.
        mean: Of the rows' influences, with its interval.
        note: Why there is no interval, or over what it isn't.
        magnitudes: How sum and mean can be read. `rank_only` where the sum is more than the set's mean log-likelihood
            can rise, or where one row's score for one query of the set is more than that query's can.
    """

    set: str | None
    group: str | None
    rows: int
    queries: int
    sum: float
    sum_low: float | None
    sum_high: float | None
    mean: float
    mean_low: float | None
    mean_high: float | None
    note: str | None
    magnitudes: Magnitudes = "unchecked"


COLUMNS = tuple(GroupInfluence.__dataclass_fields__)


@dataclass(frozen=True)
class GroupInfluences:
    """Every group and set: sets in the order of their first query, groups by their sum, the most promoting first.

    Attributes:
        by: The column that groups rows.
        sets: The column that parts queries; None where they are one set.
        unit: Of sums and means.
        sign: What a sign means.
        recipe: In words.
        run: The run's fingerprint.
        settings: Of the intervals.
        lines: One a group and set.
        queries: How each query's scores can be read.
    """

    by: str
    sets: str | None
    unit: str
    sign: str
    recipe: str
    run: str
    settings: GroupSettings
    lines: tuple[GroupInfluence, ...]
    queries: tuple[Magnitudes, ...] = ()

    @property
    def caution(self) -> str | None:
        """What to say beside sums and means where some are a rank only."""
        beyond = sum(line.magnitudes == "rank_only" for line in self.lines)
        if not beyond:
            return None
        return rank_only_queries(self.queries) or (
            f"{beyond:,} of {len(self.lines):,} sums are more than the mean log-likelihood of their queries can rise "
            f"at all: these are {RANK_ONLY}"
        )

    @property
    def intervals(self) -> str:
        """What the intervals are, in a sentence."""
        return (
            f"{self.settings.level:.0%} bootstrap intervals ({self.settings.replicates:,} replicates, seed "
            f"{self.settings.seed}): of a sum over queries, of a mean over queries and rows."
        )

    def of_set(self, name: str | None) -> list[GroupInfluence]:
        """Return the lines of one set."""
        return [line for line in self.lines if line.set == name]

    @property
    def set_names(self) -> list[str | None]:
        """The sets, in order."""
        return list(dict.fromkeys(line.set for line in self.lines))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        found = asdict(self)
        told = {"settings": self.settings.model_dump(), "intervals": self.intervals, "caution": self.caution}
        return {**found, **told}

    def to_pandas(self) -> "DataFrame":
        """Return a line a group and set; unit, sign, caution and what intervals are stand in `attrs`."""
        from pandas import DataFrame

        frame = DataFrame([asdict(line) for line in self.lines], columns=list(COLUMNS))
        frame.attrs = {"unit": self.unit, "sign": self.sign, "run": self.run, "intervals": self.intervals}
        frame.attrs["caution"] = self.caution
        return frame


class GroupSums:
    """Sums over rows by group and set, with their replicates, filled block by block in row order."""

    def __init__(self, groups: Categories, sets: Categories, settings: GroupSettings) -> None:
        """Prepare.

        Args:
            groups: Of every row.
            sets: Of every query.
            settings: Of the intervals.

        Raises:
            QueryError: There are too many groups and sets to hold.
        """
        self.settings = settings
        self.group_names, self._groups = _with_rest(groups)
        self.set_names, self._sets = _with_rest(sets)
        size = (len(self.group_names), len(self.set_names))
        if size[0] * size[1] > MOST_SUMS:
            raise QueryError(
                f"{size[0]:,} groups on {size[1]:,} sets of queries are {size[0] * size[1]:,} sums, at most "
                f"{MOST_SUMS:,} are held: group by a column with fewer values, or leave the sets out."
            )
        self.rows = np.bincount(self._groups, minlength=size[0])
        self.queries = np.bincount(self._sets, minlength=size[1])
        self.sums = np.zeros(size)
        replicates = settings.replicates
        self._summed = np.zeros((*size, replicates))
        self._drawn = np.zeros((*size, replicates))
        self._counted = np.zeros((size[0], replicates))
        queries = np.random.Generator(np.random.Philox(key=[settings.seed, 1]))
        self._weights = [
            (queries.multinomial(count, np.full(count, 1 / count), replicates) / count).astype(np.float32)
            for count in self.queries
        ]
        self._rows = np.random.Generator(np.random.Philox(key=[settings.seed, 2]))

    def add(self, first: int, scores: np.ndarray) -> None:
        """Add the scores of consecutive rows, float32 [b, queries], which begin where the last ended."""
        for start in range(0, len(scores), CHUNK):
            self._add(first + start, scores[start : start + CHUNK])

    def _add(self, first: int, scores: np.ndarray) -> None:
        groups = self._groups[first : first + len(scores)]
        order = np.argsort(groups, kind="stable")
        present, starts = np.unique(groups[order], return_index=True)
        draws = DRAWS[np.frombuffer(self._rows.bytes(2 * len(scores) * self.settings.replicates), np.uint16)]
        draws = draws.reshape(len(scores), -1)[order].astype(np.float32)
        self._counted[present] += np.add.reduceat(draws, starts, dtype=np.float64)
        for number in range(len(self.set_names)):
            asked = scores[order][:, self._sets == number]
            self.sums[present, number] += np.add.reduceat(asked.mean(1, dtype=np.float64), starts)
            replicated = asked @ self._weights[number].T
            self._summed[present, number] += np.add.reduceat(replicated, starts, dtype=np.float64)
            self._drawn[present, number] += np.add.reduceat(replicated * draws, starts, dtype=np.float64)

    def lines(self) -> Iterator[GroupInfluence]:
        """Yield every group and set; see `GroupInfluences` for the order."""
        for number, name in enumerate(self.set_names):
            for group in np.argsort(-self.sums[:, number], kind="stable"):
                yield self._line(int(group), number, name)

    def _line(self, group: int, number: int, name: str | None) -> GroupInfluence:
        rows, queries = int(self.rows[group]), int(self.queries[number])
        summed = self._interval(self._summed[group, number]) if queries > 1 else (None, None)
        mean: tuple[float | None, float | None] = (None, None)
        if rows > 1:
            counted = self._counted[group]
            mean = self._interval(self._drawn[group, number][counted > 0] / counted[counted > 0])
        notes = ([ROW_ALONE] if rows == 1 else []) + ([QUERY_ALONE] if queries == 1 else [])
        total = float(self.sums[group, number])
        return GroupInfluence(
            name, self.group_names[group], rows, queries, total, *summed, total / rows, *mean, "; ".join(notes) or None
        )

    def _interval(self, replicates: np.ndarray) -> tuple[float | None, float | None]:
        beyond = (1 - self.settings.level) / 2
        low, high = np.quantile(replicates, (beyond, 1 - beyond))
        return float(low), float(high)


def influence_of_groups(
    run: RunDir,
    queries: Evaluation,
    by: str,
    folder: Path,
    *,
    sets: str | None = None,
    settings: GroupSettings | None = None,
    overrides: Sequence[str] = (),
    progress: Report | None = None,
) -> GroupInfluences:
    """Say what each group of a run's rows does to each set of queries.

    Args:
        run: The run.
        queries: What influence is on.
        by: The column that groups rows; see `grouping.groups_of`.
        folder: Where the scan's file is kept; it is used again if it is there.
        sets: The column of the queries' file that parts them into sets; they are one set if None.
        settings: Of the intervals.
        overrides: `key=value` each, of the cluster section.
        progress: Hears of the scan.

    Raises:
        QueryError: There is no such column, there are too many groups, or the run's recipe has no stored scores.
        Incomplete: Interrupted; the same call with the same folder goes on.
    """
    check_examinable(run)
    settings = settings or GroupSettings()
    parted, grouped = sets_of(run, queries, sets), groups_of(run, by)
    lines = summed(queries.scores(folder, overrides, progress), grouped, parted, settings)
    recipe, records = run.recipe.stored, queries.records(folder)
    unit = recipe.unit_under(run.manifest.reduction)
    each: tuple[Magnitudes, ...] = tuple(record.magnitudes for record in records)
    return GroupInfluences(
        *(by, sets, unit, sign_rule(None), recipe.summary, run.manifest.fingerprint, settings),
        *(with_magnitudes(lines, parted, records, unit), each),
    )


def summed(
    scores: Iterator[tuple[int, np.ndarray]], groups: Categories, sets: Categories, settings: GroupSettings
) -> tuple[GroupInfluence, ...]:
    """Return every group's influence on every set, from (first row, scores float32 [b, queries]) in row order."""
    sums = GroupSums(groups, sets, settings)
    for first, block in scores:
        sums.add(first, block)
    return tuple(sums.lines())


def with_magnitudes(
    lines: Sequence[GroupInfluence], sets: Categories, records: Sequence[QueryRecord], unit: str
) -> tuple[GroupInfluence, ...]:
    """Return the lines with how their sums and means can be read.

    Args:
        lines: Of all groups and sets.
        sets: Of every query.
        records: What the model makes of every query.
        unit: Of the scores.
    """
    names, codes = _with_rest(sets)
    said = np.array([record.log_likelihood for record in records])
    of_set: dict[str | None, tuple[float, Magnitudes]] = {}
    for number, name in enumerate(names):
        members = np.flatnonzero(codes == number).tolist()
        joint = joint_magnitudes([records[member].magnitudes for member in members])
        of_set[name] = float(said[members].mean()), joint

    def read(line: GroupInfluence) -> GroupInfluence:
        mean, joint = of_set[line.set]
        summed = magnitudes(unit, line.sum, mean, contrasted=joint == "unchecked")
        return replace(line, magnitudes=joint_magnitudes([joint, summed]))

    return tuple(map(read, lines))


def _with_rest(categories: Categories) -> tuple[list[str | None], np.ndarray]:
    """Return names and codes of categories that have members, those without a value as a category of their own."""
    codes = categories.codes.astype(np.int64)
    names: list[str | None] = [*categories.names]
    if (codes == NO_CODE).any():
        codes = np.where(codes == NO_CODE, len(names), codes)
        names.append(None)
    return names, codes


__all__ = [
    "COLUMNS",
    "GroupInfluence",
    "GroupInfluences",
    "GroupSettings",
    "GroupSums",
    "influence_of_groups",
    "summed",
    "with_magnitudes",
]
