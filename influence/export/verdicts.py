"""Which rows a user has named to be dropped or relabelled, from tables of issues, in the order of the rows.

A row goes if a table suggests to drop it; or, where checks are named, if one of these flagged it, whatever it suggests.
A row's label is changed, if that was asked, where a table suggests another and the row stays. A condition leaves
everything else in peace: rows that don't meet it are neither dropped nor relabelled.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence.errors import QueryError
from influence.issues.checks.registry import CHECKS
from influence.issues.table import IS, SCORE, IssuesFile, read_about, read_issues
from influence.run_dir import RunDir
from influence.store.filter import RowFilter, metadata_schema

NO_CHECK = "none"
"""In place of a check's name: nothing is dropped, as for labels alone."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to a row, and why.

    Attributes:
        row: Which, counted from 0 over all files.
        id: Its id.
        action: What happens.
        reason: The checks that flagged it, the first table's first; of those named, where some were.
        score: The first one's; NaN where it has none.
        suggestion: In the table's words.
        old_label: Of `relabel`, the label it had.
        new_label: Of `relabel`, the label it gets.
    """

    row: int
    id: str
    action: Literal["drop", "relabel"]
    reason: str
    score: float
    suggestion: str | None
    old_label: str | None = None
    new_label: str | None = None


@dataclass(frozen=True)
class Wish:
    """What a user asks to be done.

    Attributes:
        tables: Of issues, all of one run.
        checks: Drop what these flagged; what the tables suggest to drop, if None. `("none",)` drops nothing.
        where: Touch only rows that meet this condition; see `store.filter`.
        relabel: Change labels where the tables suggest it.
    """

    tables: tuple[Path, ...]
    checks: tuple[str, ...] | None = None
    where: str | None = None
    relabel: bool = False

    def check(self, run: RunDir) -> None:
        """Check that everything that was named is there, and of this run.

        Raises:
            QueryError: A table is of another run, or no table; there is no such check; the condition can't be read.
        """
        if not self.tables:
            raise QueryError("No table of issues is named; only rows that a table flags are dropped: give --drop FILE.")
        if self.checks == ():
            raise QueryError(f"--drop-issues names no check. Name some, or {NO_CHECK} to drop nothing.")
        abouts = [_of_run(run, path) for path in self.tables]
        if self.checks != (NO_CHECK,):
            for name in self.checks or ():
                self._check_made(name, abouts)
        if self.relabel and not any(about.labels or about.labels is None for about in abouts):
            self._check_relabelling(abouts)
        if self.where is not None:
            RowFilter.parse(self.where, metadata_schema(run.store))

    def _check_made(self, name: str, abouts: Sequence[IssuesFile]) -> None:
        """Refuse a check that no table has, and say why it has none."""
        there = list(dict.fromkeys(issue for about in abouts for issue in about.issues))
        if name in there:
            return
        expected = f"The tables have the checks {', '.join(there)}; name some of these, or {NO_CHECK} to drop nothing."
        if name not in CHECKS:
            raise QueryError(f"--drop-issues {name}: there is no such check. {expected}")
        raise QueryError(f"--drop-issues {name}: {self._why(name, abouts)} {expected}")

    def _check_relabelling(self, abouts: Sequence[IssuesFile]) -> None:
        """Refuse to relabel by tables that suggest no label because the check that finds wrong ones was not made."""
        checks = [name for name, check in CHECKS.items() if check.of_labels]
        if not any(name in about.issues for name in checks for about in abouts):
            raise QueryError(f"--relabel: no table suggests a label. {self._why(checks[0], abouts)}")

    def _why(self, name: str, abouts: Sequence[IssuesFile]) -> str:
        """Say why tables don't have a check."""
        files = ", ".join(map(str, self.tables))
        skipped = next((about.skipped[name] for about in abouts if name in about.skipped), None)
        if skipped is not None:
            return f"{name} was skipped when {files} was made: {skipped}"
        return f"{name} was not made for {files}: run `influence issues` with --checks {name}."

    def verdicts(self, run: RunDir) -> Iterator[Verdict]:
        """Yield what happens to which rows, in their order; rows without a verdict stay as they are.

        Raises:
            QueryError: Two tables suggest different labels for one row.
        """
        condition = None if self.where is None else RowFilter.parse(self.where, metadata_schema(run.store))
        checks = [read_about(path).issues for path in self.tables]
        first = 0
        for batches in zip(*(_lines(path) for path in self.tables), strict=True):
            size = len(batches[0])
            assert all(len(batch) == size for batch in batches), "row groups are of one size, see write_issues"
            meets = np.ones(size, bool) if condition is None else condition.passing(run.store, first, first + size)
            touched = np.zeros(size, bool)
            for batch, names in zip(batches, checks, strict=True):
                touched |= self._touched(batch, names)
            chosen = np.flatnonzero(touched & meets)
            parts = [(batch.take(chosen).to_pylist(), names) for batch, names in zip(batches, checks, strict=True)]
            for number in range(len(chosen)):
                verdict = self._verdict([(lines[number], names) for lines, names in parts])
                if verdict is not None:
                    yield verdict
            first += size

    def _touched(self, batch: pa.Table, names: Sequence[str]) -> np.ndarray:
        """Return which lines of a table could get a verdict, bool."""
        found = np.zeros(len(batch), bool)
        for name in self._dropping(names):
            found |= batch.column(f"{IS}{name}").to_numpy()
        actions = batch.column("action").to_pylist()
        wanted = {"drop"} if self.checks is None else set[str]()
        wanted |= {"relabel"} if self.relabel else set[str]()
        return found | np.fromiter((action in wanted for action in actions), bool, len(batch))

    def _dropping(self, names: Sequence[str]) -> list[str]:
        return [name for name in self.checks or () if name in names]

    def _verdict(self, lines: Sequence[tuple[dict, Sequence[str]]]) -> Verdict | None:
        dropped = [(line, self._dropped(line, names)) for line, names in lines]
        made = [(line, reasons) for line, reasons in dropped if reasons]
        first = lines[0][0]
        if made:
            line, reasons = made[0]
            every = dict.fromkeys(reason for _, reasons in made for reason in reasons)
            return Verdict(first["row"], first["id"], "drop", ", ".join(every), _score(line, reasons), _said(made))
        new = [(line, _flagged(line, names)) for line, names in lines if line["action"] == "relabel"]
        labels = {line["suggested_label"] for line, _ in new} - {None}
        if not self.relabel or not labels:
            return None
        if len(labels) > 1:
            raise QueryError(
                f"Row {first['row']} (id {first['id']!r}): the tables suggest different labels for it, "
                f"{' and '.join(repr(label) for label in sorted(labels))}. Give one table that suggests labels."
            )
        line, reasons = new[0]
        every = ", ".join(dict.fromkeys(reason for _, reasons in new for reason in reasons))
        score, said = _score(line, reasons), _said(new)
        return Verdict(first["row"], first["id"], "relabel", every, score, said, first["label"], labels.pop())

    def _dropped(self, line: dict, names: Sequence[str]) -> list[str]:
        """Return the checks for which a row goes by one table; none where it stays."""
        if self.checks is not None:
            return [name for name in self._dropping(names) if line[f"{IS}{name}"]]
        return _flagged(line, names) if line["action"] == "drop" else []


class Verdicts:
    """Hands out verdicts as rows pass, and counts them.

    Attributes:
        passed: Rows so far.
        counts: How many verdicts were handed out, by action and reason.
    """

    def __init__(self, verdicts: Iterator[Verdict]) -> None:
        self._verdicts = verdicts
        self._next = next(verdicts, None)
        self.passed = 0
        self.counts: Counter[tuple[str, str]] = Counter()

    def take(self, rows: int) -> list[Verdict]:
        """Let some rows pass and return the verdicts on them, in order."""
        self.passed += rows
        found = []
        while self._next is not None and self._next.row < self.passed:
            found.append(self._next)
            self.counts[self._next.action, self._next.reason] += 1
            self._next = next(self._verdicts, None)
        return found


def _flagged(line: dict, names: Sequence[str]) -> list[str]:
    return [name for name in names if line[f"{IS}{name}"]]


def _score(line: dict, reasons: Sequence[str]) -> float:
    score = line[f"{reasons[0]}{SCORE}"]
    return float("nan") if score is None else score


def _said(made: Sequence[tuple[dict, Sequence[str]]]) -> str | None:
    return "; ".join(dict.fromkeys(line["suggestion"] for line, _ in made if line["suggestion"])) or None


def _of_run(run: RunDir, path: Path) -> IssuesFile:
    about = read_about(path)
    expected = run.manifest.rows_fingerprint
    if about.run != expected or about.rows != run.rows:
        raise QueryError(
            f"{path} is of another run: it was made of {about.rows:,} rows with the fingerprint {about.run}, and "
            f"{run.path} has {run.rows:,} rows with the fingerprint {expected}. Name the run it was made of, or run "
            f"`influence issues {run.path}` again."
        )
    return about


def _lines(path: Path) -> Iterator[pa.Table]:
    """Yield a table without its evidence, a row group at a time; those of all tables of a run are of one size."""
    names = [name for name in pq.read_schema(path).names if name != "evidence"]
    return read_issues(path, names)


__all__ = ["NO_CHECK", "Verdict", "Verdicts", "Wish"]
