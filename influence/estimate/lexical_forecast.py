"""What a run of `bm25` would take, from the words of some rows; no model is loaded and nothing is written."""

import time
from dataclasses import dataclass
from typing import Any

from influence.baselines import bm25
from influence.baselines.bm25 import count_words
from influence.capture.cut import Estimate, plan_shards, rows_per_shard
from influence.config import RunConfig
from influence.data.dataset import Rows
from influence.data.tokenise import readable
from influence.errors import DataError
from influence.model.load import load_tokeniser
from influence.stages.lexical_index import MAKING_BYTES, POSTING_BYTES
from influence.store.codec import NORM_BYTES

SAMPLE = 1024
"""Rows that are looked at, spread over the data set."""


@dataclass(frozen=True)
class TextForecast:
    """What was found.

    Attributes:
        estimate: Disk and memory.
        rows_read: Rows looked at.
        silent: Those of them without a word.
        words_per_row: Their mean.
        words_per_second: Read, counted and indexed, in one process.
    """

    estimate: Estimate
    rows_read: int
    silent: int
    words_per_row: float
    words_per_second: float


def forecast_texts(config: RunConfig, rows: Rows) -> TextForecast:
    """Look at some rows and reckon the rest.

    Raises:
        DataError: None of them has a word, or a row can't be read.
    """
    tokeniser: Any = load_tokeniser(config.model) if rows.shape == "input_ids" else None
    began = time.perf_counter()
    examples = [rows.example(row) for row in range(0, len(rows), max(1, len(rows) // SAMPLE))][:SAMPLE]
    texts = [readable(example, tokeniser) for example in examples]
    words = count_words(texts)
    if not words.any():
        raise DataError(f"None of {len(texts)} rows spread over {rows.place} has a word that BM25 could look up.")
    postings = bm25.fit(texts).postings / len(texts) * len(rows)
    seconds = time.perf_counter() - began
    per_shard = rows_per_shard(len(rows), NORM_BYTES, config.store)
    shards = plan_shards(len(rows), per_shard)
    estimate = Estimate(
        rows=len(rows),
        dims=0,
        shards=len(shards),
        rows_per_shard=shards[0].rows,
        disk_rows=NORM_BYTES * len(rows),
        disk_curvature=0,
        disk_index=round(POSTING_BYTES * postings),
        # Texts as Python holds them, and the table that is written of them.
        memory_capture=2 * shards[0].rows * sum(map(len, texts)) // len(texts),
        memory_curvature=0,
        memory_index=round(MAKING_BYTES * postings),
    )
    return TextForecast(
        estimate,
        rows_read=len(texts),
        silent=int((words == 0).sum()),
        words_per_row=float(words.mean()),
        words_per_second=int(words.sum()) / seconds,
    )
