"""A graph of nearest rows: how it is cut into tasks, and where those leave it.

`neighbours/<name>/` in the run's folder has a file for every block of rows, for a graph by way of cells
`about.safetensors`, which says what it is worth, and `graph.json`, which comes last. The cut depends on the rows and
the settings alone, never on who computes. The other files of a graph by way of cells are gone once it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from influence.artifacts.tensors import load_tensors, remove_tensors, saved_for
from influence.scan.plan import batch_of
from influence.store.codec import Codec, Encoded
from influence.store.manifest import fingerprint_of
from influence.store.reader import Store

MEASURED_ROWS = 256
FOLDER = "neighbours"
VERSION = 2
"""Of the files, and of how rows are compared."""
CELL_ROWS, CELLS_READ = 250, 16
"""Rows of a cell, and the fewest cells a row is compared with. Smaller cells make products that are too small, larger
ones are cut too coarsely."""
MOST_CELLS = 8192
"""Above, finding each row's cells would cost more than comparing it with their rows."""
ASKED_ROWS = 8192
"""The most rows that are compared with their cells by one task."""
ASKED_BYTES = 2**28
"""The most that their directions take, as float32."""
CODE_BYTES = 2**25
"""Codes of one file, in the order of cells."""
DECODED = 256
"""Rows that are decoded together."""
ORDERED_ROWS = 2**15
"""Rows of a block that is put in order from what those tasks found; more where there are many, see `ORDERED_BLOCKS`."""
ORDERED_BLOCKS = 64
"""The most such blocks: each reads all of what was found."""


@dataclass(frozen=True)
class GraphPlan:
    """Which graph, and the cut of its work. Small, and sent to workers with their tasks.

    Attributes:
        run_dir: The run.
        folder: Where the graph is kept.
        fingerprint: Of the rows and of everything below.
        rows: N.
        dims: D.
        k: Neighbours of each row at each end, fewer than N.
        compared: How many rows each row is compared with, about; None: with all.
        cells: That rows are sorted into; 0 where all are compared.
        code_bytes: Of a row's codes.
    """

    run_dir: Path
    folder: Path
    fingerprint: str
    rows: int
    dims: int
    k: int
    compared: int | None = None
    cells: int = 0
    code_bytes: int = 1

    @property
    def store(self) -> Store:
        """The run's rows, opened once a process."""
        return _opened(self.run_dir, self.fingerprint)

    @property
    def asked(self) -> int:
        """Rows that a task compares with others."""
        fitting = max(1, ASKED_BYTES // (4 * max(1, self.dims)))
        return batch_of(self.dims) if self.compared is None else min(ASKED_ROWS, fitting)

    @property
    def code_rows(self) -> int:
        """Rows whose codes one file holds, in the order of cells."""
        return max(1, CODE_BYTES // self.code_bytes)

    @property
    def step(self) -> int:
        """Rows of a block, a file each."""
        return self.asked if self.compared is None else max(ORDERED_ROWS, -(-self.rows // ORDERED_BLOCKS))

    @property
    def blocks(self) -> range:
        """The first rows of the blocks; none where there are no neighbours to be had."""
        return range(0, self.rows if self.k else 0, self.step)

    def block(self, number: int) -> tuple[int, int]:
        """Return the rows of a block, [start, stop)."""
        return self.blocks[number], min(self.rows, self.blocks[number] + self.step)

    def block_file(self, number: int) -> Path:
        """Return where a block's neighbours are."""
        return self.folder / f"near-{number:06d}.safetensors"

    @property
    def about(self) -> Path:
        """Where it is said what the graph is worth."""
        return self.folder / "about.safetensors"

    @property
    def mark(self) -> Path:
        """What says that the graph stands, and of which rows it is."""
        return self.folder / "graph.json"

    @property
    def zero_file(self) -> Path:
        """Where it is said which rows have no gradient."""
        return self.folder / "zero.safetensors"

    @property
    def missing(self) -> list[int]:
        """The blocks that don't stand."""
        blocks = range(len(self.blocks))
        return [number for number in blocks if not saved_for(self.block_file(number), self.fingerprint)]

    @property
    def stands(self) -> bool:
        """Whether there is nothing to do."""
        worth = self.compared is None or saved_for(self.about, self.fingerprint)
        return self.mark.exists() and worth and not self.missing

    @property
    def measured(self) -> int:
        """Rows of a graph by way of cells that are compared with all others, to measure what the cells miss."""
        return min(MEASURED_ROWS, self.rows)

    @property
    def recalls(self) -> tuple[float, float]:
        """The shares of the nearest and of the most opposed rows that were found, as measured."""
        if self.compared is None:
            return 1.0, 1.0
        found = load_tensors(self.about, self.fingerprint)["recall"].tolist()
        return found[0], found[1]

    def remove(self, names: Sequence[str]) -> None:
        """Remove files that are no longer needed, by the beginnings of their names."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name.startswith(tuple(names)):
                remove_tensors(path)


def plan_graph(store: Store, k: int, compared: int | None) -> GraphPlan:
    """Return the plan of a graph.

    Args:
        store: Of the run.
        k: Neighbours wanted at each end.
        compared: How many rows to compare each row with; None: all.
    """
    k = min(k, max(0, store.rows - 1))
    compared = compared if k else None
    cells = (
        0 if compared is None else max(1, min(MOST_CELLS, store.rows // max(1, min(CELL_ROWS, compared // CELLS_READ))))
    )
    parts = {"rows": store.manifest.rows_fingerprint, "k": k, "compared": compared, "cells": cells, "version": VERSION}
    fingerprint = fingerprint_of(parts)
    name = f"{'exact' if compared is None else 'cells'}-{fingerprint[:16]}"
    folder = store.run_dir / FOLDER / name
    return GraphPlan(
        store.run_dir, folder, fingerprint, store.rows, store.dims, k, compared, cells, store.codec.row_bytes
    )


@lru_cache(maxsize=1)
def _opened(run_dir: Path, fingerprint: str) -> Store:
    return Store(run_dir)


def directions(store: Store, rows: np.ndarray) -> np.ndarray:
    """Return the stored directions of some rows at length 1, float32 [n, D]; zero rows are zero.

    Args:
        store: Of the run.
        rows: In any order, each once.
    """
    order = np.argsort(rows)
    found = np.empty((len(rows), store.dims), dtype=np.float32)
    for first in range(0, len(rows), DECODED):
        part = order[first : first + DECODED]
        encoded, _ = store.encoded(rows[part], store.arrays(len(part)))
        found[part] = decoded(store.codec, encoded)
    return found


def decoded(codec: Codec, encoded: Encoded) -> np.ndarray:
    """Return the directions of some codes at length 1, whatever length the codec made of them, float32 [n, D]."""
    found, lengths = codec.decode(encoded), codec.lengths(encoded)[:, None]
    return np.divide(found, lengths, out=found, where=lengths > 0)


__all__ = ["FOLDER", "GraphPlan", "decoded", "directions", "plan_graph"]
