"""Keep a flat index on disk: `index.faiss`, and beside it `index.json`, the record of what it was built from.

Written as `.partial`, flushed, digested, renamed; the record comes last, so an index exists when its record does.
FAISS's reader sees no byte that the digest hasn't vouched for, and nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from index.build import FlatIndex
from index.errors import IndexCorrupt, IndexMismatch, IndexNotWritten
from index.factory import Device, load_faiss, to_device

FORMAT_VERSION = 1
VECTORS, RECORD = "index.faiss", "index.json"
REBUILD = "Delete {record} and run the same build: the index is made again from the stored rows."


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
        _replace(vectors, lambda partial: faiss.write_index(flat, str(partial)))
        record = IndexRecord(
            rows=index.rows,
            dims=index.dims,
            longest=index.longest,
            fingerprint=fingerprint,
            faiss=faiss.__version__,
            bytes=vectors.stat().st_size,
            sha256=_digest(vectors),
        )
        _replace(record_path, lambda partial: partial.write_text(record.model_dump_json(indent=2) + "\n", "utf-8"))
    except (OSError, RuntimeError) as error:
        raise IndexNotWritten(_not_written(directory, index, error)) from None
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
    record = _read_record(record_path)
    if record.fingerprint != fingerprint:
        raise IndexMismatch(
            f"{record_path}: built from rows with the fingerprint {record.fingerprint}, expected {fingerprint}. "
            "Neighbours from another run would be other documents. " + REBUILD.format(record=record_path)
        )
    faiss = load_faiss(device)
    _verify(vectors, record, record_path)
    try:
        flat = faiss.read_index(str(vectors))
    except RuntimeError as error:
        raise IndexCorrupt(
            f"{vectors}: faiss {faiss.__version__} can't read what faiss {record.faiss} wrote ({error}). "
            + REBUILD.format(record=record_path)
        ) from None
    found = (type(flat).__name__, flat.ntotal, flat.d)
    if found != ("IndexFlatIP", record.rows, record.dims):
        raise IndexCorrupt(
            f"{vectors}: found {found[0]} with {found[1]} rows and {found[2]} columns, expected IndexFlatIP with "
            f"{record.rows} rows and {record.dims} columns. " + REBUILD.format(record=record_path)
        )
    return FlatIndex(to_device(flat, device), record.rows, record.dims, record.longest, device)


def read_record(directory: Path) -> IndexRecord | None:
    """Return the record of the index that stands in a directory, or None; only the record is read.

    Raises:
        IndexCorrupt: There is a record, but it can't be read.
        IndexMismatch: It is of another version of the format.
    """
    path = directory / RECORD
    return _read_record(path) if path.exists() else None


def _read_record(path: Path) -> IndexRecord:
    rebuild = REBUILD.format(record=path)
    try:
        found: Any = json.loads(path.read_text("utf-8"))
        version = found["format_version"]
    except FileNotFoundError:
        raise IndexCorrupt(f"{path}: there is no index here. Run the same build: it is made from the rows.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexCorrupt(f"{path}: not a readable index record ({error}). {rebuild}") from None
    if version != FORMAT_VERSION:
        raise IndexMismatch(
            f"{path}: found format version {version}, this software reads version {FORMAT_VERSION}. {rebuild}"
        )
    try:
        return IndexRecord.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise IndexCorrupt(f"{path}: {where}: {first['msg']}. {rebuild}") from None


def _verify(vectors: Path, record: IndexRecord, record_path: Path) -> None:
    rebuild = REBUILD.format(record=record_path)
    if not vectors.is_file():
        raise IndexCorrupt(f"{vectors}: missing, and {record_path} promises {record.bytes:,} bytes. {rebuild}")
    size = vectors.stat().st_size
    if size != record.bytes:
        raise IndexCorrupt(f"{vectors}: found {size:,} bytes, expected {record.bytes:,}. {rebuild}")
    digest = _digest(vectors)
    if digest != record.sha256:
        raise IndexCorrupt(f"{vectors}: found sha256 {digest}, expected {record.sha256}. {rebuild}")


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _not_written(directory: Path, index: FlatIndex, error: Exception) -> str:
    standing = next((folder for folder in (directory, *directory.parents) if folder.is_dir()), None)
    free = f"{shutil.disk_usage(standing).free:,} bytes are free" if standing else "the folder can't be made"
    return (
        f"{directory}: the index couldn't be written ({error}). It needs about {4 * index.rows * index.dims:,} bytes; "
        f"{free}. Make room or choose another folder, then run the same command: it goes on from here."
    )
