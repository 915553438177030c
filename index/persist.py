"""Keep a flat index on disk: `index.faiss`, and beside it `index.json`, the record of what it was built from.

Written as `commit` says: an index exists when its record does. FAISS's reader sees no byte that the digest hasn't
vouched for.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from index.build import FlatIndex
from index.commit import (
    FORMAT_VERSION,
    REBUILD,
    FileRecord,
    clear_partials,
    file_record,
    free_bytes,
    parse_record,
    read_fields,
    replace_file,
    verify_file,
    write_record,
)
from index.errors import IndexCorrupt, IndexMismatch, IndexNotWritten
from index.factory import load_faiss, to_device
from index.settings import Device

VECTORS, RECORD = "index.faiss", "index.json"


class IndexRecord(BaseModel):
    """What `index.json` holds.

    Attributes:
        format_version: Of these two files.
        kind: `flat`.
        rows: Vectors in the index.
        dims: D.
        longest: The largest length of a row.
        fingerprint: Of the rows it was built from, as the caller names them.
        faiss: The version that wrote it.
        bytes: Size of `index.faiss`.
        sha256: Digest of `index.faiss`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    kind: Literal["flat"] = "flat"
    rows: int
    dims: int
    longest: float
    fingerprint: str
    faiss: str
    bytes: int
    sha256: str


def save(index: FlatIndex, directory: Path, fingerprint: str) -> IndexRecord:
    """Write an index, replacing the one that stands there.

    Args:
        index: On either device; what is written is the same.
        directory: Made if missing.
        fingerprint: Of the rows it was built from; `load` refuses any other.

    Raises:
        IndexNotWritten: The disk is full or can't be written. Nothing half-written stays.
    """
    faiss = load_faiss(index.device)
    flat = faiss.index_gpu_to_cpu(index.faiss) if index.device == "gpu" else index.faiss
    vectors, record_path = directory / VECTORS, directory / RECORD
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Without its record the old index is no index: a crash between the two renames can't pair old with new.
        record_path.unlink(missing_ok=True)
        replace_file(vectors, lambda partial: faiss.write_index(flat, str(partial)))
        vectors_record = file_record(vectors)
        record = IndexRecord(
            rows=index.rows,
            dims=index.dims,
            longest=index.longest,
            fingerprint=fingerprint,
            faiss=faiss.__version__,
            bytes=vectors_record.bytes,
            sha256=vectors_record.sha256,
        )
        write_record(record_path, record)
        clear_partials(directory)
    except (OSError, RuntimeError) as error:
        raise IndexNotWritten(
            f"{directory}: the index couldn't be written ({error}). It needs about {4 * index.rows * index.dims:,} "
            f"bytes; {free_bytes(directory)}. Free some space or choose another folder, then run the same "
            "command to resume."
        ) from None
    return record


def load(directory: Path, fingerprint: str, device: Device = "cpu") -> FlatIndex:
    """Open an index, or refuse it.

    Args:
        directory: Where `save` put it.
        fingerprint: What the rows of this run are; an index built from others is refused.
        device: Where to search it.

    Raises:
        IndexMismatch: Built from other rows, or written in another version of the format.
        IndexCorrupt: A file is missing, truncated, altered or unreadable.
        FaissMissing: faiss isn't installed.
        GpuMissing: `gpu` without one.
    """
    vectors, record_path = directory / VECTORS, directory / RECORD
    rebuild = REBUILD.format(record=record_path)
    record = _record(record_path)
    if record.fingerprint != fingerprint:
        raise IndexMismatch(
            f"{record_path}: built from rows with the fingerprint {record.fingerprint}, expected {fingerprint}. "
            f"Neighbours from another run would be other documents. {rebuild}"
        )
    faiss = load_faiss(device)
    verify_file(vectors, FileRecord(bytes=record.bytes, sha256=record.sha256), record_path)
    try:
        flat = faiss.read_index(str(vectors))
    except RuntimeError as error:
        raise IndexCorrupt(
            f"{vectors}: faiss {faiss.__version__} can't read what faiss {record.faiss} wrote ({error}). {rebuild}"
        ) from None
    actual = (type(flat).__name__, flat.ntotal, flat.d)
    if actual != ("IndexFlatIP", record.rows, record.dims):
        raise IndexCorrupt(
            f"{vectors}: found {actual[0]} with {actual[1]} rows and {actual[2]} columns, expected IndexFlatIP with "
            f"{record.rows} rows and {record.dims} columns. {rebuild}"
        )
    return FlatIndex(to_device(flat, device), record.rows, record.dims, record.longest, device)


def read_record(directory: Path) -> IndexRecord | None:
    """Return the record of the flat index that stands in a directory, or None; only the record is read.

    Raises:
        IndexCorrupt: There is a record, but it can't be read, or is of an approximate index.
        IndexMismatch: It is of another version of the format.
    """
    path = directory / RECORD
    return _record(path) if path.exists() else None


def _record(path: Path) -> IndexRecord:
    return parse_record(path, read_fields(path), IndexRecord)
