"""What a selection is compared with: as many rows at random, as many by BM25, and the rows' lengths alone."""

import logging
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from influence.baselines import bm25
from influence.capture.texts import readable_texts
from influence.errors import DataError
from influence.query.evaluation import Evaluation
from influence.run_dir import RunDir
from influence.store.columns import NO_CODE, Categories, numbers

log = logging.getLogger(__name__)

RANDOM_SEED = 0
RANKED = 1_000_000
"""Rows, evenly spread, that the rank correlation of score and length is taken over."""


def lengths_of(run: RunDir) -> tuple[np.ndarray, str]:
    """Return every row's length, int32 [rows], and of what it is: a classifier's rows have one scored token each."""
    if run.config.model.kind == "causal_lm":
        return numbers(run.store, "tokens"), "scored tokens"
    return np.fromiter(map(len, run.store.texts()), np.int32, run.rows), "characters"


def random_overlap(rows: int, chosen: np.ndarray) -> float:
    """Return the share of a random choice of the same size that was chosen."""
    drawn = np.random.Generator(np.random.Philox(RANDOM_SEED)).choice(rows, len(chosen), replace=False)
    return float(np.isin(drawn, chosen).mean())


def word_overlap(run: RunDir, target: Evaluation, sets: Categories, chosen: np.ndarray) -> float | None:
    """Return the share of BM25's choice of the same size that was chosen; None where there is none."""
    if run.rows > bm25.MOST_ROWS:
        log.warning("No comparison with BM25: it holds at most %d rows, the run has %d.", bm25.MOST_ROWS, run.rows)
        return None
    log.info("Choosing as many rows by BM25, to compare.")
    try:
        words = bm25.fit(run.store.texts())
    except DataError as error:
        log.warning("No comparison with BM25: %s", error)
        return None
    texts = readable_texts(run, target.examples)
    codes = np.where(sets.codes == NO_CODE, len(sets.names), sets.codes)
    best = np.zeros(run.rows, dtype=np.float32)
    for code in np.unique(codes):
        held = [text for text, own in zip(texts, codes, strict=True) if own == code]
        # BM25 adds up over a query's words, so the sum over queries is the score for all of their words.
        np.maximum(best, words.scores("\n".join(held)) / len(held), out=best)
    return float(np.isin(np.argsort(-best, kind="stable")[: len(chosen)], chosen).mean())


def rank_correlation(scores: np.ndarray, lengths: np.ndarray) -> float | None:
    """Return Spearman's correlation; None where either is the same for all."""
    step = max(1, len(scores) // RANKED)
    one, other = scores[::step], lengths[::step]
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    found: Any = spearmanr(one, other)
    return float(found.statistic)


__all__ = ["lengths_of", "random_overlap", "rank_correlation", "word_overlap"]
