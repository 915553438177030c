"""The rows of a run of `bm25`: texts and metadata in the ordinary shards, without a column, and no model.

A row's norm is its length in words, as BM25 reads them; so is its number of tokens, and a row without a word is a zero
row. No loss is measured: it is NaN. One process reads the data and writes the shards, for BM25 takes two million rows
at most; a shard that stands is left alone.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from influence.baselines.bm25 import MOST_ROWS, count_words
from influence.capture.cut import plan_shards, rows_per_shard
from influence.config import RunConfig
from influence.data.dataset import Rows
from influence.data.tokenise import readable
from influence.engine.progress import Progress
from influence.errors import DataError
from influence.model.load import load_tokeniser
from influence.store.codec import NORM_BYTES
from influence.store.codecs import codec_for
from influence.store.manifest import Manifest, Part, ShardRange, fingerprint_of
from influence.store.shard import RowMeta, ShardRecord
from influence.store.writer import write_shard

log = logging.getLogger(__name__)


def check_rows(rows: int) -> None:
    """Refuse more rows than BM25's index can be made of in memory.

    Raises:
        DataError: There are too many.
    """
    if rows > MOST_ROWS:
        raise DataError(
            f"BM25 over {rows:,} texts doesn't fit into memory (at most {MOST_ROWS:,} rows). Set data.limit, or take "
            "the recipe gradcos or repsim, whose rows are searched on the disk."
        )


def write_manifest(
    config: RunConfig, run_dir: Path, rows: int, settled: Mapping[str, Part], meta: dict[str, Any]
) -> Manifest:
    """Write the manifest of a run of texts and return it as it stands."""
    per_shard = rows_per_shard(rows, NORM_BYTES, config.store)
    parts = {**settled, "store.rows_per_shard": per_shard}
    manifest = Manifest(
        fingerprint=fingerprint_of(parts),
        fingerprint_parts=parts,
        modules=(),
        dims=0,
        rows=rows,
        shards=plan_shards(rows, per_shard),
        meta=meta,
    )
    manifest.save(run_dir)
    log.info("Rows: %d texts, shards: %d. No model is loaded.", rows, len(manifest.shards))
    return Manifest.load(run_dir)


def write_texts(
    config: RunConfig, run_dir: Path, manifest: Manifest, rows: Rows, todo: Sequence[ShardRange], stage: Progress
) -> list[int]:
    """Write the shards that are missing and return their zero rows, ascending.

    Memory: one shard's texts.

    Raises:
        DataError: A row can't be read; it is named.
        StoreError: The disk can't be written to.
        Incomplete: It is full.
    """
    # Rows given as tokens are read by people, and by BM25, as their tokeniser decodes them.
    tokeniser: Any = load_tokeniser(config.model) if rows.shape == "input_ids" else None
    zeros: list[int] = []
    for span in todo:
        record = _write(run_dir, manifest, span, rows, tokeniser)
        zeros += record.zero_rows
        stage.finished(rows=span.rows, tokens=record.tokens)
    return zeros


def _write(run_dir: Path, manifest: Manifest, span: ShardRange, rows: Rows, tokeniser: Any) -> ShardRecord:
    examples = list(rows.examples(span.start, span.stop))
    texts = [readable(example, tokeniser) for example in examples]
    words = count_words(texts)
    meta = RowMeta(
        id=[example.id for example in examples],
        source=[example.source for example in examples],
        uri=[example.uri for example in examples],
        label=[example.label for example in examples],
        tokens=words,
        loss=np.full(len(texts), np.nan, np.float32),
        text=texts,
    )
    codec = codec_for(manifest, manifest.modules)
    norms = words.astype(np.float32)
    return write_shard(run_dir, span, codec, {}, norms, meta, manifest.fingerprint, manifest.fingerprint_parts)
