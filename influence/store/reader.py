"""Read the rows of a finished run: in blocks from first to last, or by row number.

Opening lists one directory and reads the manifest. A shard's record and digests are checked the first time the process
touches the shard. What is held in memory is a block (two, while the next one is read), never a shard: 100 million rows
cost the plan of their shards. Rows come back decoded, as gradients or as directions; `scores` needs neither and reads
inner products off the codes.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence.artifacts.access import each, names_in, source
from influence.artifacts.place import run_path
from influence.axes import ModuleColumns
from influence.errors import DigestMismatch, Incomplete, StoreError
from influence.store import scan
from influence.store.codec import Codec, Encoded
from influence.store.codecs import codec_for
from influence.store.commits import Commits
from influence.store.manifest import Manifest, ShardRange
from influence.store.mapped import mapped_rows
from influence.store.shard import METADATA, ROW_GROUP, ROWS, WEIGHT, ShardFiles, read_numbers, read_rows

GATHERED = 256
"""Rows asked for by number that are decoded together."""

LOSS_SHARDS = 32
"""Shards whose losses are read for the mean over all."""


class Store:
    """The rows of a run. Opening it reads no row.

    Attributes:
        run_dir: The run.
        manifest: What the rows are.
        codec: How their directions are kept.
    """

    def __init__(self, run_dir: Path) -> None:
        """Open a finished run.

        Raises:
            StoreError: There is no run, or its manifest can't be used.
            Incomplete: Shards are missing; the message lists them.
        """
        self.run_dir = run_path(run_dir)
        self.manifest = Manifest.load(self.run_dir)
        self.codec: Codec = codec_for(self.manifest, self.manifest.modules)
        missing = missing_shards(self.run_dir, self.manifest)
        if missing:
            numbers = ", ".join(str(shard) for shard in missing[:10]) + (", …" if len(missing) > 10 else "")
            raise Incomplete(
                f"{self.run_dir} lacks {len(missing):,} of {len(self.manifest.shards):,} shards: {numbers}. "
                "Run the same build again: it computes what is missing."
            )
        self._starts = np.array([span.start for span in self.manifest.shards], dtype=np.int64)
        self._commits = Commits(self.run_dir, self.manifest)

    @property
    def rows(self) -> int:
        """Rows of the data set."""
        return self.manifest.rows

    @property
    def dims(self) -> int:
        """D, the columns of a row."""
        return self.manifest.dims

    @property
    def modules(self) -> tuple[ModuleColumns, ...]:
        """The tracked modules and their columns."""
        return self.manifest.modules

    def blocks(
        self, size: int = 4096, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield rows [start, stop) in order, `size` at a time, across shard boundaries; the last block may be shorter.

        Yields:
            The block's first row; directions as the codec gives them back, float32 [b, D]; norms, float32 [b]. The
            arrays are the caller's own.

        Raises:
            StoreError: The range lies outside the store, or a shard can't be used.
            DigestMismatch: A file isn't the one that was committed.
        """
        blocks = self.span(size, start, stop)
        for first in blocks:
            rows = np.arange(first, min(first + size, blocks.stop))
            encoded, norms = self.encoded(rows, self.arrays(len(rows)))
            yield first, self.codec.decode(encoded), norms

    def scores(
        self,
        queries: np.ndarray,
        start: int = 0,
        stop: int | None = None,
        *,
        unit: bool = False,
        many: bool = False,
        passing: np.ndarray | None = None,
        threads: int | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the inner products of queries with rows [start, stop), in order, straight from the codes.

        See `scan.scores` for the arguments, what is held in memory, and what scores depend on.

        Yields:
            The block's first row, and scores float32 [m, b]: with the gradients (direction × norm), unless `unit`. One
            beyond the range of float32 is infinite. Zero rows score 0. With `passing`, the first is a place among the
            rows that pass.

        Raises:
            StoreError: Queries of another width, a range outside the store, or a shard that can't be used.
            DigestMismatch: A file isn't the one that was committed.
        """
        yield from scan.scores(self, queries, start, stop, unit=unit, many=many, passing=passing, threads=threads)

    def chosen_scores(self, queries: np.ndarray, rows: np.ndarray, *, unit: bool = False) -> np.ndarray:
        """Return the inner products of queries with some rows, float32 [m, n], as `scores` yields them.

        Args:
            queries: [m, D].
            rows: Row numbers, in any order, repeats allowed.
            unit: As for `scores`, and so is what it raises.
        """
        unique, back = np.unique(self._check_rows(rows), return_inverse=True)
        return scan.chosen_scores(self, queries, unique, unit=unit)[:, back]

    def vectors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the gradients of some rows: decoded direction times norm, on the scale of the summed loss.

        Args:
            rows: Row numbers, in any order, repeats allowed.

        Returns:
            float32 [len(rows), D], in the order asked.

        Raises:
            StoreError: A row isn't in the store, or a shard can't be used.
            DigestMismatch: A file isn't the one that was committed.
        """
        unique, back = np.unique(self._check_rows(rows), return_inverse=True)
        gradients = np.empty((len(unique), self.dims), dtype=np.float32)
        for start in range(0, len(unique), GATHERED):
            part = unique[start : start + GATHERED]
            encoded, norms = self.encoded(part, self.arrays(len(part)))
            np.multiply(self.codec.decode(encoded), norms[:, None], out=gradients[start : start + len(part)])
        return gradients if np.array_equal(back, np.arange(len(unique))) else gradients[back]

    def meta(
        self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] = tuple(METADATA.names)
    ) -> list[dict[str, Any]]:
        """Return the metadata of some rows, one dictionary each, in the order asked; repeats allowed.

        Raises:
            StoreError: A row or a column isn't in the store, or a shard can't be used.
            DigestMismatch: A file isn't the one that was committed.
        """
        unknown = [name for name in columns if name not in METADATA.names]
        if unknown:
            raise StoreError(f"There is no metadata column {unknown[0]!r}; there are {', '.join(METADATA.names)}.")
        unique, back = np.unique(self._check_rows(rows), return_inverse=True)
        records: list[dict[str, Any]] = []
        for lines in each(lambda at: self._lines(*at, columns), self._by_shard(unique), self.run_dir):
            records += lines
        return [records[place] for place in back]

    def weights(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return what some rows are multiplied by after the curvature, float32; repeats allowed. Raises as `meta`."""
        return self._numbers(rows, WEIGHT.name)

    def lengths(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the lengths of some rows' gradients, float32, as captured: no code is read. Raises as `meta`."""
        return self._numbers(rows, "norm")

    def norms(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each shard's first row and the norms of its rows, float32 [n], from the metadata: no vector is read."""
        for span in self.manifest.shards:
            with pq.ParquetFile(source(self._metadata(span))) as file:
                yield span.start, file.read(columns=["norm"]).column("norm").to_numpy()

    def mean_loss(self) -> float:
        """Return the mean over rows of −log p, in nats, summed over a row's scored tokens whatever its loss is.

        Of up to `LOSS_SHARDS` shards spread over the run: from the metadata, no vector is read.
        """
        total, rows = 0.0, 0
        for span in self.manifest.shards[:: -(-len(self.manifest.shards) // LOSS_SHARDS)]:
            with pq.ParquetFile(source(self._metadata(span))) as file:
                table = file.read(columns=["loss", "tokens"])
            losses = table.column("loss").to_numpy().astype(np.float64)
            if self.manifest.reduction == "mean":
                losses = losses * table.column("tokens").to_numpy()
            total, rows = total + float(losses.sum()), rows + len(losses)
        return total / rows

    def texts(self) -> Iterator[str]:
        """Yield every row's text, in order, a row group in memory at a time."""
        for span in self.manifest.shards:
            with pq.ParquetFile(source(self._metadata(span))) as file:
                for group in range(file.num_row_groups):
                    yield from file.read_row_group(group, columns=["text"]).column("text").to_pylist()

    def zero_rows(self) -> np.ndarray:
        """Return the rows whose gradient is zero, int64, ascending. Reads every commit record."""
        records = (self._commits.record(span).zero_rows for span in self.manifest.shards)
        return np.concatenate([np.empty(0, np.int64), *(np.array(rows, dtype=np.int64) for rows in records)])

    def metadata_files(self, start: int = 0, stop: int | None = None) -> list[Path]:
        """Return the parquet files of the shards that hold rows [start, stop), in row order, each checked."""
        stop = self.rows if stop is None else stop
        return [self._metadata(span) for span in self.manifest.shards if span.start < stop and span.stop > start]

    def verify(self) -> None:
        """Read every file of every shard and check its digest.

        Raises:
            StoreError: A commit record can't be used, or belongs to another run.
            DigestMismatch: Files aren't those that were committed; the message lists them, ten at most.
        """
        damaged: list[str] = []
        for span in self.manifest.shards:
            files = ShardFiles(self.run_dir, span)
            for path in (files.vectors, files.metadata):
                try:
                    self._commits.check(path, span, again=True)
                except DigestMismatch as error:
                    damaged.append(str(error))
        if damaged:
            more = f"\n… and {len(damaged) - 10} more." if len(damaged) > 10 else ""
            raise DigestMismatch("\n".join(damaged[:10]) + more)

    def span(self, size: int, start: int, stop: int | None) -> range:
        """Return the first rows of blocks of rows [start, stop).

        Raises:
            StoreError: The range lies outside the store, or the blocks hold nothing.
        """
        stop = self.rows if stop is None else stop
        if size < 1 or not 0 <= start <= stop <= self.rows:
            raise StoreError(
                f"Rows {start} to {stop} in blocks of {size} were asked of {self.run_dir}, "
                f"which holds rows 0 to {self.rows}, in blocks of 1 or more."
            )
        return range(start, stop, size)

    def encoded(self, rows: np.ndarray, into: tuple[Encoded, np.ndarray]) -> tuple[Encoded, np.ndarray]:
        """Read the codes and norms of some rows, ascending and none twice, into the first rows of arrays."""
        encoded = {name: array[: len(rows)] for name, array in into[0].items()}
        norms = into[1][: len(rows)]

        def fill(part: tuple[ShardRange, slice]) -> None:
            span, places = part
            files = ShardFiles(self.run_dir, span)
            self._commits.check(files.vectors, span)
            into = {name: array[places] for name, array in encoded.items()}
            read_rows(files.vectors, self.codec, span.rows, rows[places] - span.start, into, norms[places])

        for _ in each(fill, self._cut(rows), self.run_dir):
            pass
        return encoded, norms

    def lent(self, rows: np.ndarray, into: tuple[Encoded, np.ndarray]) -> tuple[Encoded, np.ndarray]:
        """Return what `encoded` does, read-only: the codes of consecutive rows of a shard where they lie, if they can.

        Only for as long as they are scored; see `mapped`.

        Raises:
            StoreError: A shard can't be used.
            DigestMismatch: A file isn't the one that was committed.
        """
        cut = self._cut(rows)
        if len(cut) == 1 and int(rows[-1]) - int(rows[0]) == len(rows) - 1:
            span = cut[0][0]
            path = ShardFiles(self.run_dir, span).vectors
            self._commits.check(path, span)
            first = int(rows[0]) - span.start
            mapped = mapped_rows(path, self.codec, span.rows, first, first + len(rows))
            if mapped is not None:
                return mapped
        return self.encoded(rows, into)

    def arrays(self, rows: int) -> tuple[Encoded, np.ndarray]:
        """Return arrays for the codes and norms of so many rows."""
        if not self.dims:
            raise StoreError(f"The rows of {self.run_dir} are texts without vectors: its recipe compares words.")
        return self.codec.zeros(rows), np.empty(rows, dtype=np.float32)

    def _lines(self, span: ShardRange, places: np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return the metadata of ascending places within one shard; only the row groups that hold them are read."""
        lines: list[dict[str, Any]] = []
        with pq.ParquetFile(source(self._metadata(span))) as file:
            for group in np.unique(places // ROW_GROUP):
                inside = places[places // ROW_GROUP == group] - group * ROW_GROUP
                table = file.read_row_group(int(group), columns=list(columns))
                lines += table.take(pa.array(inside)).select(list(columns)).to_pylist()
        return lines

    def _numbers(self, rows: Sequence[int] | np.ndarray, column: str) -> np.ndarray:
        unique, back = np.unique(self._check_rows(rows), return_inverse=True)
        parts = each(
            lambda at: read_numbers(self._metadata(at[0]), at[1], column), self._by_shard(unique), self.run_dir
        )
        return np.concatenate([np.empty(0, np.float32), *parts])[back]

    def _metadata(self, span: ShardRange) -> Path:
        files = ShardFiles(self.run_dir, span)
        self._commits.check(files.metadata, span)
        return files.metadata

    def _by_shard(self, rows: np.ndarray) -> list[tuple[ShardRange, np.ndarray]]:
        """Cut ascending rows by the shards that hold them, counted within each."""
        return [(span, rows[places] - span.start) for span, places in self._cut(rows)]

    def _cut(self, rows: np.ndarray) -> list[tuple[ShardRange, slice]]:
        """Return the shards that hold some ascending rows, and which of the rows each holds."""
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        edges = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(rows)]
        cuts = [slice(first, last) for first, last in pairwise(edges) if last > first]
        return [(self.manifest.shards[int(shards[part.start])], part) for part in cuts]

    def _check_rows(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        numbers = np.asarray(rows)
        if numbers.size == 0:
            return np.empty(0, dtype=np.int64)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise StoreError(f"Rows are selected by number, found {numbers.dtype} {list(numbers.shape)}.")
        outside = numbers[(numbers < 0) | (numbers >= self.rows)]
        if outside.size:
            raise StoreError(f"Row {outside[0]} was asked of {self.run_dir}, which holds rows 0 to {self.rows - 1}.")
        return numbers.astype(np.int64)


def missing_shards(run_dir: Path, manifest: Manifest) -> list[int]:
    """Return the planned shards that aren't committed, by listing one directory; no record is read."""
    present = names_in(run_dir / ROWS)
    return [span.shard for span in manifest.shards if f"{span.name}.json" not in present]
