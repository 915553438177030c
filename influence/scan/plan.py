"""What a scan is: what is asked of which rows, what of it is kept, how it is cut into tasks, and where those leave it.

A scan over N rows for m queries is cut into blocks of rows times batches of queries. Every task leaves one file in
`OUT.parts/`; together they become the answer and the folder goes. The cut depends on the question and the run alone,
never on who computes, so that a scan which was interrupted goes on with whatever workers there are then.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from influence.artifacts.field import RunPath
from influence.artifacts.tensors import load_tensors, save_tensors, saved_for
from influence.data.example import Example
from influence.errors import QueryError
from influence.recipes import Recipe
from influence.stages.index import index_fingerprint
from influence.store.manifest import Manifest, Part
from influence.store.products import GROUP

Keep = Literal["all", "top", "rows"]
"""What is kept of the scores [rows, queries]: all; each query's best rows; each row's mean, extremes and signs."""

VERSION = 3
"""Of the files in `OUT.parts/`, and of the scores in them."""
BATCH_BYTES = 2**27
"""Queries' vectors that a task holds."""
BATCH = 1024
"""The most queries of a batch."""
TASK_SECONDS = 60
"""What a task should take on one core that multiplies as fast as one of 2024."""
TILE_BYTES = 2**26
"""Scores that a task keeps, where all are kept."""
TASKS = 16
"""Blocks that rows are cut into at least, so that workers finish together; blocks of `FEWEST` rows excepted."""
FEWEST = 4096


class Scan(BaseModel):
    """A question over the rows of a run, and the cut of its work. Small, and sent to workers with their tasks.

    Attributes:
        run_dir: The run.
        folder: Where tasks leave their files.
        fingerprint: Of run, question and what is kept.
        recipe: Of the stored rows.
        keep: What is kept; `self` is each row's influence on itself.
        k: Rows of each side, of `top`.
        queries: m; 0 of `self`.
        batch: Queries of a batch.
        rows: N.
        step: Rows of a block.
        filtered: Whether only some rows are asked of; `folder` then says which.
        cut: Whether long queries are cut as rows are.
        threads: What a worker scores with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_dir: RunPath
    folder: Path
    fingerprint: str
    recipe: Recipe
    keep: Literal["all", "top", "rows", "self"]
    k: int = 0
    queries: int = 0
    batch: int = 1
    rows: int
    step: int
    filtered: bool = False
    cut: bool = False
    threads: int = 1

    @property
    def blocks(self) -> range:
        """The first rows of the blocks."""
        return range(0, self.rows, self.step)

    @property
    def batches(self) -> range:
        """The first queries of the batches; one batch of none for `self`."""
        return range(0, self.queries, self.batch) if self.queries else range(1)

    def block(self, number: int) -> tuple[int, int]:
        """Return the rows of a block, [start, stop)."""
        return self.blocks[number], min(self.rows, self.blocks[number] + self.step)

    def batch_size(self, number: int) -> int:
        """Return the queries of a batch."""
        return min(self.queries, self.batches[number] + self.batch) - self.batches[number]

    def asked_file(self, batch: int) -> Path:
        """Return where the vectors of a batch of queries are."""
        return self.folder / f"queries-{batch:05d}.safetensors"

    def scored_file(self, block: int, batch: int) -> Path:
        """Return where what is kept of a block and a batch is."""
        return self.folder / f"scores-{block:06d}-{batch:05d}.safetensors"

    def save_passing(self, mask: np.ndarray) -> None:
        """Keep which rows are asked of, bool [N], for every task."""
        path = self.folder / "passing.safetensors"
        if not saved_for(path, self.fingerprint):
            save_tensors(path, {"bits": torch.from_numpy(np.packbits(mask))}, self.fingerprint)

    def passing(self, start: int, stop: int) -> np.ndarray | None:
        """Return which of the rows [start, stop) are asked of, bool; None where all are."""
        if not self.filtered:
            return None
        bits = load_tensors(self.folder / "passing.safetensors", self.fingerprint)["bits"].numpy()
        first = start // 8
        found = np.unpackbits(bits[first : -(-stop // 8)])
        return found[start - 8 * first : stop - 8 * first].astype(bool)

    def chosen(self, block: int) -> np.ndarray:
        """Return the rows of a block that are asked of, int64."""
        start, stop = self.block(block)
        mask = self.passing(start, stop)
        return np.arange(start, stop) if mask is None else start + np.flatnonzero(mask)


def question_parts(
    manifest: Manifest,
    recipe: Recipe,
    keep: str,
    k: int,
    where: str | None,
    queries: Sequence[Example],
    cut: bool = False,
) -> dict[str, Part]:
    """Return what decides the answer to a question, as flat named parts."""
    told = hashlib.sha256()
    for query in queries:
        told.update(json.dumps(_content(query), sort_keys=True, ensure_ascii=False).encode())
    stored = recipe.stored.model_dump_json(exclude={"name", "exact"})
    parts: dict[str, Part] = {
        "run": manifest.rows_fingerprint,
        "compared": index_fingerprint(manifest, recipe.stored),
        "recipe": hashlib.sha256(stored.encode()).hexdigest()[:32],
        "keep": keep,
        "k": k if keep == "top" else None,
        "where": where,
        "queries": f"{len(queries)} of digest {told.hexdigest()[:32]}" if queries else None,
        "version": VERSION,
    }
    return {**parts, "cut": True} if cut else parts


def batch_of(dims: int) -> int:
    """Return the queries of a batch: whole groups of a matrix product where they fit into `BATCH_BYTES`."""
    fitting = max(1, min(BATCH, BATCH_BYTES // (4 * max(1, dims))))
    return fitting // GROUP * GROUP or fitting


def rows_of_block(rows: int, dims: int, queries: int, keep: str, curved: int = 0) -> int:
    """Return the rows of a block, by what its scores cost and take.

    Args:
        rows: N.
        dims: D.
        queries: Of a batch.
        keep: What is kept.
        curved: Columns of the widest block of a curvature that is applied to every row; 0 where none is.
    """
    step = int(TASK_SECONDS * 1e9 / (max(1, dims) * coordinate_cost(queries, curved)))
    step = min(step, max(FEWEST, -(-rows // TASKS)))
    if keep == "all":
        step = min(step, TILE_BYTES // (4 * queries))
    return max(1, step)


def coordinate_cost(queries: int, curved: int = 0) -> float:
    """Return what a coordinate of a row takes to be scored, in ns of such a core; see `rows_of_block`."""
    # One query is read for with every row's codes, each further one multiplied; and curvature.
    return 0.03 + 0.025 * queries + 0.04 * curved


def check_scannable(recipe: Recipe, *, itself: bool) -> None:
    """Refuse a recipe whose scores aren't those of stored rows.

    Raises:
        QueryError: With the nearest that works.
    """
    if recipe.baseline == "bm25":
        raise QueryError(
            "bm25 keeps words and no rows to scan: influence query ranks them. A scan takes a recipe with rows, such "
            "as whitened, or the baseline repsim."
        )
    if recipe.curvature.whole:
        raise QueryError(
            f"{recipe.name} scores from whole gradients, which no store keeps: influence query and Run.score compute "
            "them again. A scan takes a recipe of stored rows; the nearest is whitened (K-FAC folded into the "
            "projection)."
        )
    if not itself:
        return
    if recipe.comparison == "cosine" or recipe.baseline is not None:
        raise QueryError(
            f"Under {recipe.name} a row's score with itself is 1 by definition: the comparison is a cosine. Ask a run "
            "with recipe.comparison dot; the nearest is whitened, or logra."
        )
    if recipe.gradient.sides == "rows":
        raise QueryError(
            f"Under {recipe.name} rows are divided by Adam's second moments and queries aren't, and the rows' raw "
            "gradients aren't kept. The nearest that works is recipe.gradient.sides both."
        )


def _content(query: Example) -> list[object]:
    against = None if query.contrast is None else _content(query.contrast)
    return [query.id, query.text, repr(query.content), query.label, against]
