"""A selection from first to last: score, choose, write the chosen rows, and say how they differ from simpler choices.

    row, rank, score, set      where the row stands in the training data (from 0); 1 is the best; of several sets the
                               one that counted
    id, source, uri, label     as the training data have them
    text; prompt, completion; messages; input_ids, labels      the content, under these names whatever theirs were

Lines are in the order of the training data, whose texts are read once, a few hundred at a time.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from influence.artifacts.outfile import check_outfile, publish
from influence.artifacts.partial import PartialFile, disk_errors, sync_folder
from influence.data.dataset import Rows
from influence.data.example import Example, columns_of_content
from influence.engine.progress import Report
from influence.errors import QueryError
from influence.groups.grouping import groups_of, sets_of
from influence.issues.checks import leak
from influence.issues.checks.leak import LeakSettings
from influence.issues.neighbors import NeighbourSettings
from influence.issues.subject import Subject, check_examinable
from influence.query.evaluation import Evaluation
from influence.recipes import Magnitudes, joint_magnitudes, rank_only_queries, sign_rule
from influence.run_dir import RunDir
from influence.select.other_choices import lengths_of, random_overlap, rank_correlation, word_overlap
from influence.select.selection import Scores, SelectSettings, amount, check_cap, chosen_rows, scored
from influence.store.columns import NO_CODE, Categories, ids
from influence.text_dedup.inputs import data_files, open_data

BLOCK = 2**14
"""Chosen rows whose ids are in memory at a time."""
TEST = re.compile(r"(^|[^a-z])(test|holdout|held[-_ ]?out)([^a-z]|$)")


@dataclass(frozen=True)
class Selected:
    """What was chosen.

    Attributes:
        out: The JSONL.
        rows: Rows of the run.
        chosen: Their numbers, int64, the best first.
        scores: Of every row, float32 [rows].
        unit: Of the scores; `sign` says what their sign means, `recipe` what made them, `run` the fingerprint.
        groups: By group of `by`: rows chosen and rows there are; None is for rows without a value.
        sets: By set of the target: rows that it brought; empty where it is one set.
        random: The share of a random choice (seed 0) of the same size that was chosen; `expected` is what it would be
            on average.
        words: The share of BM25's choice of the same size that was chosen; None where it wasn't asked.
        length: Spearman's correlation of score and length over all rows; None where either is the same for all.
        lengths: Of every row, int32 [rows]; `length_of` says of what.
        queries: How the scores for each example of the target can be read; a row's score is a mean of them.
        leaked: Rows of the run that are near-copies of target examples, and how many of them were chosen.
        warnings: What should be looked at before training on it.
    """

    out: Path
    rows: int
    chosen: np.ndarray
    scores: np.ndarray
    unit: str
    sign: str
    recipe: str
    run: str
    by: str
    groups: dict[str | None, tuple[int, int]]
    sets: dict[str, int]
    random: float
    expected: float
    words: float | None
    length: float | None
    lengths: np.ndarray
    length_of: str
    leaked: tuple[int, int]
    warnings: tuple[str, ...]
    queries: tuple[Magnitudes, ...] = ("unchecked",)

    @property
    def magnitudes(self) -> Magnitudes:
        """How the scores can be read, the most doubtful of the target's examples deciding."""
        return joint_magnitudes(self.queries)

    @property
    def caution(self) -> str | None:
        """What to say beside the scores where some are a rank only."""
        return rank_only_queries(self.queries)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values, without the rows."""
        groups = [{"group": name, "chosen": held[0], "rows": held[1]} for name, held in self.groups.items()]
        names = (
            "rows",
            "unit",
            "sign",
            "magnitudes",
            "caution",
            "recipe",
            "run",
            "by",
            "sets",
            "random",
            "expected",
            "words",
            "length",
            "length_of",
        )
        lowest = float(self.scores[self.chosen[-1]])
        rest = {"out": str(self.out), "chosen": len(self.chosen), "lowest_score": lowest, "groups": groups}
        told = {"leaked": self.leaked[0], "leaked_chosen": self.leaked[1], "warnings": list(self.warnings)}
        return {**rest, **{name: getattr(self, name) for name in names}, **told}


def select(
    run: RunDir,
    target: Evaluation,
    out: Path,
    settings: SelectSettings,
    folder: Path,
    *,
    words: bool = True,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    progress: Report | None = None,
) -> Selected:
    """Choose rows for a target and write them.

    Args:
        run: The run.
        target: What the model should get good at.
        out: Where the rows go, `….jsonl`; see `check_selection`.
        settings: How many, and which not.
        folder: Where the scan's file is kept; it is used again if it is there.
        words: Compare with BM25's choice, which reads all texts into memory as words.
        overwrite: Replace what is at `out`.
        overrides: `key=value` each, of the cluster section.
        progress: Hears of everything that takes long.

    Raises:
        QueryError: An amount or a column that can't be, or fewer rows are left than are wanted.
        DataError: The training data aren't those that the run was built from.
        Incomplete: Interrupted, or the disk is full; the same call goes on.
    """
    check_examinable(run)
    wanted = amount(settings.top, run.rows, "--top")
    cap = (
        None if settings.per_group_cap is None else amount(settings.per_group_cap, wanted, "--per-group-cap", run.rows)
    )
    data = open_data(run)
    groups, sets = groups_of(run, settings.by), sets_of(run, target, settings.sets)
    if cap is not None:
        check_cap(groups, cap, wanted)
    scores = scored(target.scores(folder, overrides, progress), run.rows, sets)
    chosen = chosen_rows(run, scores.best, wanted, groups, cap, dedup=settings.dedup)
    leaked = _leaked(run, target, folder, chosen, progress)
    lengths, length_of = lengths_of(run)
    of = [sets.names[code] if code < len(sets.names) else None for code in scores.sets[chosen]]
    appear = partial(publish, overwrite=overwrite)
    write_chosen(data, chosen, scores.best[chosen], of if settings.sets else None, out, appear)
    recipe = run.recipe.stored
    return Selected(
        out=out,
        rows=run.rows,
        chosen=chosen,
        scores=scores.best,
        unit=recipe.unit_under(run.manifest.reduction),
        sign=sign_rule(None),
        recipe=recipe.summary,
        run=run.manifest.fingerprint,
        by=settings.by,
        groups=_counted(groups, chosen),
        sets=_brought(sets, scores, chosen) if settings.sets else {},
        random=random_overlap(run.rows, chosen),
        expected=len(chosen) / run.rows,
        words=word_overlap(run, target, sets, chosen) if words else None,
        length=rank_correlation(scores.best, lengths),
        lengths=lengths,
        length_of=length_of,
        leaked=leaked,
        warnings=tuple(_warnings(run, target, leaked, chosen, data)),
        queries=tuple(record.magnitudes for record in target.records(folder)),
    )


def check_selection(run: RunDir, out: Path, target: str | Path | None, *, overwrite: bool) -> None:
    """Refuse a file that the chosen rows can't be written to.

    Raises:
        QueryError: It isn't .jsonl, is there already, lies in no folder, or is what rows or target are read from.
    """
    if out.suffix.lower() != ".jsonl":
        raise QueryError(f"{out} can't be written: rows are chosen into JSON Lines, so its name must end in .jsonl.")
    read = (*data_files(run), *(() if target is None else (target,)))
    check_outfile(out, "the chosen rows", overwrite=overwrite, read=read)


def write_chosen(
    data: Rows,
    chosen: np.ndarray,
    scores: np.ndarray,
    sets: Sequence[str | None] | None,
    out: Path,
    publish: Callable[[PartialFile], None] = PartialFile.publish,
) -> None:
    """Write the chosen rows, the whole file or nothing.

    Args:
        data: The training data.
        chosen: Row numbers, the best first.
        scores: Of them.
        sets: Of them; None where the target is one set.
        out: The file.
        publish: Gives the finished file its name, replacing what is there unless told otherwise.
    """
    order = np.argsort(chosen)
    with disk_errors(out.parent, out.name, 0):
        file = PartialFile(out)
        try:
            for place in order.tolist():
                record: dict[str, Any] = {"row": int(chosen[place]), "rank": place + 1, "score": float(scores[place])}
                if sets is not None:
                    record["set"] = sets[place]
                record |= _record(data.example(int(chosen[place])))
                file.write((json.dumps(record, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
            file.finish()
            publish(file)
            sync_folder(out.parent)
        finally:
            file.discard()


def _record(example: Example) -> dict[str, Any]:
    told: dict[str, Any] = {"id": example.id, "source": example.source}
    told |= {name: getattr(example, name) for name in ("uri", "label") if getattr(example, name) is not None}
    return told | columns_of_content(example.content)


def _counted(groups: Categories, chosen: np.ndarray) -> dict[str | None, tuple[int, int]]:
    """Return the rows chosen and the rows there are of each group, the most chosen first."""
    codes = np.where(groups.codes == NO_CODE, len(groups.names), groups.codes)
    names: Mapping[int, str | None] = dict(enumerate((*groups.names, None)))
    there, taken = (np.bincount(held, minlength=len(names)) for held in (codes, codes[chosen]))
    return {names[code]: (int(taken[code]), int(there[code])) for code in np.argsort(-taken) if there[code]}


def _brought(sets: Categories, scores: Scores, chosen: np.ndarray) -> dict[str, int]:
    names = (*sets.names, "no value")
    taken = np.bincount(scores.sets[chosen], minlength=len(names))
    return {name: int(count) for name, count in zip(names, taken, strict=True) if name in sets.names or count}


def _leaked(
    run: RunDir, target: Evaluation, folder: Path, chosen: np.ndarray, progress: Report | None
) -> tuple[int, int]:
    """Return how many rows are near-copies of target examples, and how many of those were chosen."""
    subject = Subject(run, folder, NeighbourSettings(), evaluation=target, progress=progress)
    rows = leak.check(subject, LeakSettings()).flagged
    return len(rows), int(np.isin(rows, chosen).sum())


def _warnings(
    run: RunDir, target: Evaluation, leaked: tuple[int, int], chosen: np.ndarray, data: Rows
) -> Iterator[str]:
    if TEST.search(Path(target.place).stem.lower()):
        yield (
            f"{target.place} looks like a test set by its name. Rows chosen for it can't be judged on it afterwards: "
            "choose for a development set."
        )
    if leaked[0]:
        yield (
            f"{leaked[0]:,} rows of the training data are near-copies of target examples, and {leaked[1]:,} of them "
            "were chosen: they promote what they are copies of. influence issues --eval names them (leak)."
        )
    repeated = _repeated(run, np.sort(chosen))
    if repeated:
        yield (
            f"{repeated:,} chosen rows have the id of another, since {data.place} gives none and their content is the "
            "same: a build of the chosen rows needs data.columns.id: null, or choose with --dedup."
        )


def _repeated(run: RunDir, rows: np.ndarray) -> int:
    """Return how many of some rows have the id of another one; held are eight bytes a row."""
    digests = np.empty(len(rows), dtype=np.int64)
    for first in range(0, len(rows), BLOCK):
        held = ids(run.store, rows[first : first + BLOCK])
        digests[first : first + len(held)] = [hash(given) for given in held]
    return len(digests) - len(np.unique(digests))


__all__ = ["Selected", "check_selection", "select", "write_chosen"]
