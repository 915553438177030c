"""A file that is whole or absent, and the record that vouches for it.

Written as `.partial`, flushed, digested, renamed; the record, a JSON file, comes last. What a record doesn't vouch
for is no part of an index, and nothing is ever unpickled.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from index.errors import IndexCorrupt, IndexMismatch
from index.strict_json import read_json

FORMAT_VERSION = 1
REBUILD = "Delete {record} and run the same build: it builds the index again from the stored rows."

Verify = Literal["digest", "size"]
"""How a file is compared with its record. `digest` reads all of it and finds every altered byte. `size` finds missing
and truncated files only, at once; for files of many gigabytes that are opened often and have been checked before."""

Record = TypeVar("Record", bound=BaseModel)


class FileRecord(BaseModel):
    """One committed file.

    Attributes:
        bytes: Its size.
        sha256: Its digest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written under a name of its own, flush it, and give it its name."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb+") as output:
            os.fsync(output.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def clear_partials(directory: Path) -> None:
    """Remove what killed processes left behind. Only for whoever is alone in the directory."""
    for partial in directory.glob("*.partial"):
        partial.unlink(missing_ok=True)


def write_record(path: Path, record: BaseModel) -> None:
    """Commit: the record is the last file to appear."""
    replace_file(path, lambda partial: partial.write_text(record.model_dump_json(indent=2) + "\n", "utf-8"))


def file_record(path: Path) -> FileRecord:
    """Describe a file that has just been written; reads it once."""
    return FileRecord(bytes=path.stat().st_size, sha256=digest(path))


def digest(path: Path) -> str:
    """Return a file's SHA-256, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_fields(path: Path) -> dict[str, Any]:
    """Return a record's fields, before they are looked at more closely.

    Raises:
        IndexCorrupt: It is missing, or no JSON record.
        IndexMismatch: It is of another version of the format.
    """
    rebuild = REBUILD.format(record=path)
    try:
        fields: Any = read_json(path)
        version = fields["format_version"]
    except FileNotFoundError:
        raise IndexCorrupt(
            f"{path}: there is no index here. Run the same build: it builds the index from the rows."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexCorrupt(f"{path}: not a readable index record ({error}). {rebuild}") from None
    if version != FORMAT_VERSION:
        raise IndexMismatch(
            f"{path}: found format version {version}, this software reads version {FORMAT_VERSION}. {rebuild}"
        )
    return fields


def parse_record(path: Path, fields: dict[str, Any], model: type[Record]) -> Record:
    """Return a record's fields as the model that they should be.

    Raises:
        IndexCorrupt: They aren't; the first of them that is wrong is named.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise IndexCorrupt(f"{path}: {where}: {first['msg']}. {REBUILD.format(record=path)}") from None


def verify_file(path: Path, expected: FileRecord, record_path: Path, how: Verify = "digest") -> None:
    """Compare a file with what its record promises.

    Raises:
        IndexCorrupt: It is missing, of another size, or, unless only sizes are asked for, of another digest.
    """
    rebuild = REBUILD.format(record=record_path)
    if not path.is_file():
        raise IndexCorrupt(f"{path}: missing, and {record_path} promises {expected.bytes:,} bytes. {rebuild}")
    size = path.stat().st_size
    if size != expected.bytes:
        raise IndexCorrupt(f"{path}: found {size:,} bytes, expected {expected.bytes:,}. {rebuild}")
    if how == "digest" and (sha256 := digest(path)) != expected.sha256:
        raise IndexCorrupt(f"{path}: found sha256 {sha256}, expected {expected.sha256}. {rebuild}")


def free_bytes(directory: Path) -> str:
    """Say how much room there is, for the message of a file that couldn't be written."""
    existing = next((folder for folder in (directory, *directory.parents) if folder.is_dir()), None)
    return f"{shutil.disk_usage(existing).free:,} bytes are free" if existing else "the folder cannot be created"
