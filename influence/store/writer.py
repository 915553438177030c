"""Write shards, each whole or not at all.

A task owns a whole shard. The order is: both data files as `.partial`, flushed; both renamed; the commit record, last.
Kill the writer between any two steps and there is no shard, only files that the next attempt replaces.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence.artifacts.partial import PartialFile, disk_errors, sync_folder, write_whole
from influence.errors import DigestMismatch, StoreError
from influence.store.codec import Codec, Encoded, finite_rows
from influence.store.manifest import Manifest, Part, Quarantined, ShardRange, check_fingerprint
from influence.store.shard import ROW_GROUP, RowMeta, ShardFiles, ShardRecord, rows_header

log = logging.getLogger(__name__)


def write_shard(
    run_dir: Path,
    span: ShardRange,
    codec: Codec,
    encoded: Encoded,
    norms: np.ndarray,
    meta: RowMeta,
    fingerprint: str,
    parts: Mapping[str, Part] | None = None,
    quarantined: Sequence[Quarantined] = (),
) -> ShardRecord:
    """Write one shard and commit it. The same rows give the same bytes, in all three files.

    Args:
        run_dir: The run.
        span: Which rows these are.
        codec: The run's.
        encoded: What `codec.encode` made of the unit gradients of the summed loss, n rows; zeros where the gradient is.
        norms: The gradients' lengths, float32 [n]; zero where the gradient is zero.
        meta: The rows' metadata.
        fingerprint: The run's fingerprint.
        parts: The run's fingerprint parts; a later mismatch can then say which part differs.
        quarantined: Rows that could not be captured, zeros here.

    Returns:
        The commit record.

    Raises:
        StoreError: Shapes, types or values that can't be stored, or a directory that can't be written to.
        Incomplete: The disk is full; nothing half-written is left.
    """
    _check_rows(span, codec, encoded, norms)
    files = ShardFiles(run_dir, span)
    pieces = [rows_header(codec, span.rows), norms.data, *(encoded[plane.name].data for plane in codec.layout)]
    files_written = _write_data(files, span, [memoryview(piece).cast("B") for piece in pieces], meta.table(span, norms))
    record = ShardRecord(
        shard=span.shard,
        start=span.start,
        stop=span.stop,
        fingerprint=fingerprint,
        fingerprint_parts=dict(parts or {}),
        dims=codec.dims,
        digests={file.path.name: file.digest for file in files_written},
        sizes={file.path.name: file.size for file in files_written},
        zero_rows=tuple(int(row) for row in span.start + np.flatnonzero(norms == 0)),
        tokens=int(np.asarray(meta.tokens, dtype=np.int64).sum()),
        quarantined=tuple(quarantined),
    )
    write_whole(files.record, record.dump())
    return record


def committed(
    run_dir: Path,
    span: ShardRange,
    fingerprint: str,
    parts: Mapping[str, Part] | None = None,
    present: Mapping[str, int] | None = None,
) -> ShardRecord | None:
    """Return the commit record of a shard that needn't be computed again, or None.

    A damaged record, and a file that is missing or has another length, count as no shard: they are logged, and the
    build computes the shard again. Digests aren't read here, so ten thousand shards are asked about in seconds.

    Args:
        run_dir: The run.
        span: Which rows the shard is to hold.
        fingerprint: The run's fingerprint.
        parts: Its parts; read from the manifest where they are needed if None.
        present: The files of the folder of shards and their bytes, where they have been listed; None asks for each.

    Raises:
        FingerprintMismatch: The shard belongs to another run; the message names the parts that differ.
        FormatVersionMismatch: Another version of the format wrote the record.
        StoreError: The shard holds other rows than the plan says.
    """
    files = ShardFiles(run_dir, span)
    if not (files.record.exists() if present is None else files.record.name in present):
        return None
    try:
        record = ShardRecord.load(files)
    except DigestMismatch as error:
        log.warning("%s is computed again: %s", span.name, error)
        return None
    if record.fingerprint != fingerprint:
        # Only now, because reading the manifest once a shard would make resuming a large run quadratic.
        own_parts = Manifest.load(run_dir).fingerprint_parts if parts is None else parts
        check_fingerprint(str(files.record), record.fingerprint, record.fingerprint_parts, fingerprint, own_parts)
    if (record.start, record.stop) != (span.start, span.stop):
        raise StoreError(
            f"{files.record} commits rows {record.start} to {record.stop}, the plan says {span.start} to {span.stop}. "
            "Build into another directory, or delete this one."
        )
    for name, size in record.sizes.items():
        path = files.record.with_name(name)
        actual = present.get(name) if present is not None else path.stat().st_size if path.exists() else None
        if actual != size:
            log.warning("%s is computed again: %s has %s bytes, its record expects %d", span.name, path, actual, size)
            return None
    return record


def _write_data(
    files: ShardFiles, span: ShardRange, pieces: Sequence[memoryview], table: pa.Table
) -> list[PartialFile]:
    """Write and publish the two data files; return them for their names, digests and sizes."""
    folder = files.record.parent
    partials: list[PartialFile] = []
    with disk_errors(folder, span.name, sum(map(len, pieces)) + table.nbytes):
        folder.mkdir(parents=True, exist_ok=True)
        # A shard that is written again must not be vouched for by its old record while its files are replaced.
        files.record.unlink(missing_ok=True)
        try:
            for path in (files.vectors, files.metadata):
                partials.append(PartialFile(path))
            for piece in pieces:
                partials[0].write(piece)
            # The row group's size and the codec are part of the format: they decide the bytes.
            pq.write_table(table, partials[1], row_group_size=ROW_GROUP, compression="zstd")
            for file in partials:
                file.finish()
            for file in partials:
                file.publish()
            sync_folder(folder)
        finally:
            for file in partials:
                file.discard()
    return partials


def _check_rows(span: ShardRange, codec: Codec, encoded: Encoded, norms: np.ndarray) -> None:
    """Refuse rows that the shard's files can't hold, and rows that aren't finite."""
    planes = [(plane.name, plane.dtype, (span.rows, plane.width)) for plane in codec.layout]
    names = [name for name, _, _ in planes]
    if set(encoded) != set(names):
        raise StoreError(
            f"{span.name} takes {', '.join(names)} of codec {codec.summary}, found {', '.join(encoded) or 'nothing'}."
        )
    for name, dtype, shape in [("norms", np.float32, (span.rows,)), *planes]:
        array = norms if name == "norms" else encoded[name]
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            layout = "" if array.flags.c_contiguous else ", not contiguous"
            raise StoreError(
                f"{span.name} takes contiguous {np.dtype(dtype)} {list(shape)} {name}, "
                f"found {array.dtype} {list(array.shape)}{layout}."
            )
    finite = np.isfinite(norms) & (norms >= 0)
    for start in range(0, span.rows, ROW_GROUP):
        for name, _, _ in planes:
            finite[start : start + ROW_GROUP] &= finite_rows(encoded[name][start : start + ROW_GROUP])
    if not finite.all():
        rows = span.start + np.flatnonzero(~finite)
        raise StoreError(
            f"{span.name} was given {len(rows)} rows with non-finite entries or a negative norm, the first is row "
            f"{rows[0]}. A row of the store is finite: check the model's weights and the loss of that row."
        )
