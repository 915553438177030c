"""The three files of one shard: vectors, metadata, commit record.

    shard-00007.safetensors   "norms" float32 [n], then unit gradients of the summed loss, or zeros, by codec:
                              float16   "vectors" float16 [n, D]
                              int8      "scales" float32 [n, M], "int8" int8 [n, D]
                              int4      "scales" float32 [n, M], "int4" uint8 [n, Σ ⌈QP/2⌉]
                              bits      "scales" float32 [n, M], "bits" uint8 [n, Σ ⌈QP/8⌉]
                              factors   "factors" float16 [n, Σ c(Q + P)]
    shard-00007.parquet       one line a row: row, id, source, uri, label, tokens, loss, norm, text; and weight, where
                              rows are multiplied by one
    shard-00007.json          the commit record, written last: without it there is no shard

The safetensors layout is written and read here rather than through the library, for two measured reasons: the library
maps the whole file, so that a shard becomes resident when a block of it is read; and its writer loses the errno of a
full disk. The library reads these files as any others. Our reader takes only the header it would have written itself,
so nothing in a file decides where we read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from influence.artifacts.access import fill, source
from influence.artifacts.digest import FORMAT_VERSION, seal, unseal
from influence.errors import StoreError
from influence.store.codec import NORM_BYTES, Codec, Encoded
from influence.store.manifest import Part, Quarantined, ShardRange

ROWS = "rows"
"""The folder of a run that holds the shards."""

ROW_GROUP = 1024
"""Rows of a parquet row group: what is read to answer a question about one row."""

METADATA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("label", pa.string()),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
        pa.field("norm", pa.float32(), nullable=False),
        # Large: the texts of a shard may come to more than the 2 GB that 32-bit offsets reach.
        pa.field("text", pa.large_string(), nullable=False),
    ]
)


WEIGHT = pa.field("weight", pa.float32(), nullable=False)
"""A column more, of runs whose rows have weights."""


@dataclass(frozen=True, slots=True)
class RowMeta:
    """What is known of each row of a shard besides its gradient; every column has the shard's length n.

    Attributes:
        id: Given, or a digest of the content.
        source: Where the row comes from, for people.
        uri: A link to it.
        label: A classifier's label; kept as text.
        tokens: Scored tokens, int32 [n]; words, where rows are texts that no model read.
        loss: Summed over the scored tokens, in nats, float32 [n]; NaN where no model read them.
        text: What people read.
        weight: What the row is multiplied by after the curvature, float32 [n]; None where rows have no weights.
    """

    id: Sequence[str]
    source: Sequence[str | None]
    uri: Sequence[str | None]
    label: Sequence[int | str | None]
    tokens: np.ndarray
    loss: np.ndarray
    text: Sequence[str]
    weight: np.ndarray | None = None

    def table(self, span: ShardRange, norms: np.ndarray) -> pa.Table:
        """Return the parquet table of a shard, adding the columns `row` and `norm` (float32 [n])."""
        columns = {
            "row": np.arange(span.start, span.stop, dtype=np.int64),
            "id": self.id,
            "source": self.source,
            "uri": self.uri,
            "label": [None if label is None else str(label) for label in self.label],
            "tokens": np.asarray(self.tokens, dtype=np.int32),
            "loss": np.asarray(self.loss, dtype=np.float32),
            "norm": norms,
            "text": self.text,
        }
        schema = METADATA
        if self.weight is not None:
            columns["weight"], schema = np.asarray(self.weight, dtype=np.float32), METADATA.append(WEIGHT)
        for name, values in columns.items():
            if len(values) != span.rows:
                raise StoreError(f"{span.name} holds {span.rows} rows, column {name!r} has {len(values)} values.")
        return pa.table(columns, schema=schema)


class ShardFiles:
    """The paths of one shard's files."""

    def __init__(self, run_dir: Path, span: ShardRange) -> None:
        stem = run_dir / ROWS / span.name
        self.vectors = stem.with_suffix(".safetensors")
        self.metadata = stem.with_suffix(".parquet")
        self.record = stem.with_suffix(".json")

    @property
    def remedy(self) -> str:
        """What to do when one of them is damaged."""
        return f"Delete {self.record} and run the same build again: only this shard is recomputed."


class ShardRecord(BaseModel):
    """The commit record. It holds nothing that differs between two computations of the same rows, such as a duration.

    Attributes:
        format_version: The version of the files.
        shard: The shard's number.
        start: Its first row.
        stop: One past its last row.
        fingerprint: The run's.
        fingerprint_parts: The run's, where the writer knew them.
        dims: D, the columns of a row.
        digests: Hex SHA-256 by file name.
        sizes: Bytes by file name.
        zero_rows: Rows, counted over the data set, whose gradient is zero.
        tokens: Scored tokens of the shard.
        quarantined: Rows that could not be captured; they are zero rows too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    shard: int
    start: int
    stop: int
    fingerprint: str
    fingerprint_parts: dict[str, Part] = {}
    dims: int
    digests: dict[str, str]
    sizes: dict[str, int]
    zero_rows: tuple[int, ...]
    tokens: int
    quarantined: tuple[Quarantined, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the shard on the disk, without this record."""
        return sum(self.sizes.values())

    def dump(self) -> bytes:
        """Return the bytes of the record's file."""
        return seal(self.model_dump(mode="json"))

    @classmethod
    def load(cls, files: ShardFiles) -> Self:
        """Read a commit record.

        Raises:
            StoreError: There is none, or it can't be used.
            FormatVersionMismatch: Another version of the format wrote it.
            DigestMismatch: A byte of it changed.
        """
        document = unseal(files.record, files.remedy)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"])
            raise StoreError(f"{files.record} can't be used: {where}: {first['msg']}. {files.remedy}") from None


def rows_header(codec: Codec, rows: int) -> bytes:
    """Return the safetensors header of a shard: its length, JSON padded to eight bytes; norms, then codes."""
    end = NORM_BYTES * rows
    layout = {"norms": {"dtype": "F32", "shape": [rows], "data_offsets": [0, end]}}
    for plane in codec.layout:
        start, end = end, end + plane.row_bytes * rows
        layout[plane.name] = {"dtype": plane.code, "shape": [rows, plane.width], "data_offsets": [start, end]}
    text = json.dumps(layout, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_rows(path: Path, codec: Codec, rows: int, places: np.ndarray, encoded: Encoded, norms: np.ndarray) -> None:
    """Read some rows of one shard into arrays; only their bytes are read.

    Args:
        path: The shard's vectors.
        codec: How they are kept.
        rows: How many rows the shard holds.
        places: Which are wanted, counted within the shard, ascending, none twice.
        encoded: Filled with codes; arrays as `codec.layout` has them, [b, …], C-contiguous.
        norms: Filled with norms; float32 [b], contiguous.

    Raises:
        StoreError: The file isn't laid out as this version of the format lays it out, or ends too soon.
    """
    header = rows_header(codec, rows)
    actual = bytearray(len(header))
    pieces, at = [(0, memoryview(actual))], len(header)
    edges = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
    runs = [(first, last, int(places[first])) for first, last in pairwise(edges) if last > first]
    for array, row_bytes in [(norms, NORM_BYTES), *((encoded[plane.name], plane.row_bytes) for plane in codec.layout)]:
        into = array.data.cast("B")
        pieces += [(at + place * row_bytes, into[first * row_bytes : last * row_bytes]) for first, last, place in runs]
        at += rows * row_bytes
    missing = fill(path, pieces)
    if actual != header:
        raise StoreError(
            f"{path} isn't laid out as the norms of {rows} rows and their {codec.dims} columns in codec "
            f"{codec.summary}."
        )
    if missing:
        raise StoreError(f"{path} ends {missing:,} bytes too soon.")


def read_numbers(path: Path, places: np.ndarray, column: str) -> np.ndarray:
    """Return a column of numbers for some rows of one shard, float32, from the row groups that hold them.

    Args:
        path: The shard's metadata.
        places: Counted within the shard, ascending, at least one.
        column: `norm`, or `weight` of rows that have one.

    Raises:
        StoreError: These rows have no such column.
    """
    with pq.ParquetFile(source(path)) as file:
        if column not in file.schema_arrow.names:
            raise StoreError(
                f"{path} has no column {column}: this run was built without row weights (recipe.measurement isn't "
                "log_odds)."
            )
        first, last = int(places[0]) // ROW_GROUP, int(places[-1]) // ROW_GROUP
        groups = file.read_row_groups(list(range(first, last + 1)), columns=[column])
    return groups.column(column).to_numpy()[places - first * ROW_GROUP]
