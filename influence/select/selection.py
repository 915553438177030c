"""Choose the rows to train on for a target: those that promote it most, as LESS does.

A row's score on a set of the target's examples (a task) is the mean of its scores for them; where the target has
several sets, the row counts by the one that it promotes most. Under the recipe `less` this is the paper's method: the
cosine of Adam's update for the row with the gradient of each validation example, the mean within a subtask, the
maximum over subtasks.

Chosen rows are the best by that score, at most a share of them from one group, and with `dedup` none a near-copy of a
better one. Nothing is chosen silently short: where groups or copies leave too few rows it is an error that says so.

Source: Xia et al. 2024, "LESS: Selecting Influential Data for Targeted Instruction Tuning", section 4.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from influence.errors import QueryError
from influence.issues.checks.duplicates import near_duplicate_sets
from influence.run_dir import RunDir
from influence.store.columns import NO_CODE, Categories
from influence.store.reader import Store

log = logging.getLogger(__name__)

AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


class SelectSettings(BaseModel):
    """What is chosen.

    Attributes:
        top: How many rows: a share of all as `5%`, or a count as `500`.
        per_group_cap: The most of the chosen rows that one group may have, as `40%` or a count; no limit if None.
        by: The column whose values are the groups.
        dedup: Leave out near-copies of better rows.
        sets: A column of the target's file that parts it into sets; it is one if None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    top: str
    per_group_cap: str | None = None
    by: str = Field(default="source", min_length=1)
    dedup: bool = False
    sets: str | None = None


@dataclass(frozen=True)
class Scores:
    """Every row's score for a target.

    Attributes:
        best: float32 [rows], the largest of the sets' means.
        sets: int16 [rows], which set that is of.
    """

    best: np.ndarray
    sets: np.ndarray


def amount(text: str, of: int, option: str, most: int | None = None) -> int:
    """Return how many of some rows are meant by `5%` or `500`: of a share the nearest whole number, at least 1.

    Args:
        text: What was written.
        of: What a share is of.
        option: Where it was written, for messages.
        most: The largest count; what a share is of, if None.

    Raises:
        QueryError: It is neither, none, or more than there are.
    """
    share = AMOUNT.fullmatch(text.strip())
    if share is not None:
        percent = float(share[1])
        if not 0 < percent <= 100:
            raise QueryError(f"{option} {text}: expected a share above 0% and up to 100%, or a number of rows.")
        return max(1, round(of * percent / 100))
    if not text.strip().isascii() or not text.strip().isdigit():
        raise QueryError(f"{option} {text!r}: expected a share, as 5%, or a number of rows, as 500.")
    count, most = int(text), of if most is None else most
    if not 1 <= count <= most:
        raise QueryError(f"{option} {text}: expected 1 to {most:,} rows, or a share, as 5%.")
    return count


def scored(blocks: Iterator[tuple[int, np.ndarray]], rows: int, sets: Categories) -> Scores:
    """Return every row's score, from (first row, scores float32 [b, examples]) in row order; see `Scores`."""
    codes = np.where(sets.codes == NO_CODE, len(sets.names), sets.codes)
    present = np.unique(codes)
    best, of = np.full(rows, -np.inf, dtype=np.float32), np.zeros(rows, dtype=np.int16)
    for first, block in blocks:
        held = slice(first, first + len(block))
        for code in present:
            mean = block[:, codes == code].mean(1, dtype=np.float64).astype(np.float32)
            better = mean > best[held]
            best[held][better] = mean[better]
            of[held][better] = code
    return Scores(best, of)


def check_cap(groups: Categories, cap: int, wanted: int) -> None:
    """Refuse a cap under which the groups can't give enough rows, before anything is computed.

    Raises:
        QueryError: They can't.
    """
    _, counts = np.unique(groups.codes, return_counts=True)
    _check_enough(int(np.minimum(counts, cap).sum()), wanted, groups, cap, copies=0)


def chosen_rows(
    run: RunDir, scores: np.ndarray, wanted: int, groups: Categories | None, cap: int | None, *, dedup: bool
) -> np.ndarray:
    """Return the rows that are chosen, int64 [wanted], the best first, ties by the lower row.

    Args:
        run: The run.
        scores: Of every row, [rows].
        wanted: How many.
        groups: Of every row; needed for a cap.
        cap: The most rows of a group; rows without a value are a group.
        dedup: Leave out near-copies of better rows.

    Raises:
        QueryError: Cap and copies leave fewer than are wanted.
    """
    order = np.argsort(-scores, kind="stable")
    kept = order if groups is None or cap is None else order[_within(groups.codes[order], cap)]
    if not dedup:
        _check_enough(len(kept), wanted, groups, cap, copies=0)
        return kept[:wanted]
    labels = run_labels(run)
    looked = min(len(order), wanted)
    while True:
        # A copy that is left out makes room in its group, so copies go first, and the cap is applied to what is left.
        pool = order[:looked]
        texts = StoredTexts(run.store, np.sort(pool))
        place = np.searchsorted(np.sort(pool), pool)
        ranks = np.empty(looked, dtype=np.float64)
        ranks[place] = -np.arange(looked)
        found = near_duplicate_sets(
            texts, labels=None if labels is None else labels[np.sort(pool)], preferred=ranks
        ).representative
        single = pool[found[place] == place]
        kept = single if groups is None or cap is None else single[_within(groups.codes[single], cap)]
        if len(kept) >= wanted:
            return kept[:wanted]
        if looked == len(order):
            _check_enough(len(kept), wanted, groups, cap, copies=looked - len(single))
        missing = wanted - len(kept)
        log.info(
            "%d of the %d best rows are left without copies and beyond no cap: looking further.", len(kept), looked
        )
        looked = min(len(order), looked + max(2 * missing, looked // 2))


def run_labels(run: RunDir) -> np.ndarray | None:
    """Return the rows' labels as codes where the run is of a classifier: rows with two labels are no copies there."""
    from influence.store.columns import categories

    return categories(run.store, "label").codes if run.config.model.kind == "sequence_classification" else None


class StoredTexts(Sequence[str]):
    """The texts of some rows, ascending, read when they are asked for."""

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        self._store, self._rows = store, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, int):
            return self._store.meta(self._rows[index : index + 1], ("text",))[0]["text"]
        return [line["text"] for line in self._store.meta(self._rows[index], ("text",))]


def _within(codes: np.ndarray, cap: int) -> np.ndarray:
    """Return which rows are among the first `cap` of their group, bool; rows in the order of their rank."""
    order = np.argsort(codes, kind="stable")
    _, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
    place = np.empty(len(codes), dtype=np.int64)
    place[order] = np.arange(len(codes)) - np.repeat(starts, counts)
    return place < cap


def _check_enough(found: int, wanted: int, groups: Categories | None, cap: int | None, *, copies: int) -> None:
    if found >= wanted:
        return
    reasons, ways = [], ["lower --top"]
    if cap is not None and groups is not None:
        count = len(groups.names) + bool((groups.codes == NO_CODE).any())
        reasons.append(f"at most {cap:,} rows of each of the {count:,} groups")
        ways.append("raise --per-group-cap")
    if copies:
        reasons.append(f"no copies ({copies:,} are left out)")
        ways.append("leave --dedup out")
    raise QueryError(f"With {' and '.join(reasons)} there are {found:,} rows, not {wanted:,}: {', or '.join(ways)}.")


__all__ = ["Scores", "SelectSettings", "StoredTexts", "amount", "check_cap", "chosen_rows", "run_labels", "scored"]
