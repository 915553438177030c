"""The rows of a run of `bm25`: texts and metadata in the ordinary shards, without a column, and no model.

A row's norm is its length in words, as BM25 reads them; so is its number of tokens, and a row without a word is a zero
row. No loss is measured: it is NaN. One process reads the data and writes the shards, for BM25 takes two million rows
at most; a shard that stands is left alone.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from influence.baselines.bm25 import MOST_ROWS, count_words
from influence.capture.cut import plan_shards, rows_per_shard
from influence.capture.rows import RowShards, ShardDone
from influence.config import RunConfig
from influence.data.dataset import Rows, open_rows
from influence.data.tokenise import readable
from influence.engine.stage import Stage, Task
from influence.errors import DataError
from influence.model.load import load_tokeniser
from influence.stages.index import FOLDER
from influence.stages.lexical_index import build_lexical, lexical_stands
from influence.stages.mirror import filled
from influence.store.codec import NORM_BYTES
from influence.store.codecs import codec_for
from influence.store.manifest import Manifest, Part, ShardRange, fingerprint_of
from influence.store.shard import RowMeta
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


def write_text_manifest(
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


class Texts(RowShards):
    """The texts of a run, a shard a task, written by the coordinator. Memory: one shard's texts."""

    here = True

    def __init__(self, config: RunConfig, run_dir: Path, manifest: Manifest, rows: Rows | None) -> None:
        super().__init__(run_dir, manifest)
        self._config, self._open = config, rows

    @cached_property
    def _rows(self) -> Rows:
        return self._open or open_rows(self._config.data)

    @cached_property
    def _tokeniser(self) -> Any:
        """Rows given as tokens are read by people, and by BM25, as their tokeniser decodes them."""
        return load_tokeniser(self._config.model) if self._rows.shape == "input_ids" else None

    def run(self, task: Task, session: Any) -> ShardDone:
        """Write one shard.

        Raises:
            DataError: A row can't be read; it is named.
            StoreError: The disk can't be written to.
            Incomplete: It is full.
        """
        span: ShardRange = task.span
        examples = list(self._rows.examples(span.start, span.stop))
        texts = [readable(example, self._tokeniser) for example in examples]
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
        codec = codec_for(self.manifest, self.manifest.modules)
        norms = words.astype(np.float32)
        record = write_shard(self.run_dir, span, codec, {}, norms, meta, task.key, self.parts)
        return ShardDone(span.rows, record.tokens, record.zero_rows)


@dataclass
class LexicalIndex(Stage):
    """BM25's index of a run's texts, made by the coordinator."""

    run_dir: Path
    manifest: Manifest

    name = "index"
    here = True
    single = True

    def cut(self) -> list[Task]:
        """Return the one task."""
        return [Task(self, 0, "BM25's index")]

    def stands(self) -> bool:
        """Whether it is there."""
        return lexical_stands(self.run_dir / FOLDER, self.manifest)

    def run(self, task: Task, session: Any) -> None:
        """Make the index of the stored texts; see `build_lexical`."""
        with filled(self.run_dir / FOLDER) as folder:
            build_lexical(self.run_dir, folder, self.manifest)
