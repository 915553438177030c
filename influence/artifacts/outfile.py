"""The files that a verb writes: where they may stand, and how they appear beside the parts that they were made of.

A file appears whole, and its folder of parts goes afterwards. Whoever is killed in between leaves both: a mark among
the parts says which file was about to appear, so that the same call clears away and ends as if nothing had happened,
while a file that someone else put there is left alone. A verb that writes a second file (a graph, a figure) writes it
while the first one's parts stand, and has it marked there: killed between the two, the same call goes on.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from influence.artifacts.digest import sha256
from influence.artifacts.partial import PartialFile, check_replaceable, disk_errors, remove_half_written, sync_folder
from influence.artifacts.place import check_local
from influence.errors import QueryError

MARK = "appearing"
"""Among the parts: the SHA-256 of every file that has appeared or is next to appear, one a line."""


def parts_folder(out: Path) -> Path:
    """Return the folder of parts of a file; after a run that wasn't killed it is gone."""
    return out.with_name(f"{out.name}.parts")


def check_outfile(
    out: Path, what: str, *, overwrite: bool, read: Iterable[str | Path] = (), beside: Path | None = None
) -> None:
    """Refuse a file that can't be written, or must not be.

    Args:
        out: The file.
        what: What would be written, for messages.
        overwrite: Whether what is there may be replaced.
        read: Files that are only read.
        beside: The file with whose parts this one is written; its own if None.

    Raises:
        QueryError: It is in a bucket or in no folder, is a folder, is one of the files that are read (by whatever
            links), or is there already.
        StoreError: It is a device, a FIFO or a socket.
    """
    check_local(out, what)
    if not out.parent.is_dir():
        raise QueryError(f"The folder {out.parent} doesn't exist; make it, or write {what} somewhere else.")
    own = next((path for path in map(Path, read) if same_file(out, path)), None)
    if own is not None:
        raise QueryError(f"{out} is what is read here ({own}), and nothing is written over that. Name another file.")
    if out.is_dir():
        raise QueryError(f"{out} is a folder. Name a file.")
    check_replaceable(out)
    if not overwrite and not is_vacant(out, beside):
        raise QueryError(already(out))


def already(out: Path) -> str:
    """Say that a file is there."""
    return f"{out} exists already. Overwrite (--overwrite), or name another file."


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, by whatever links; neither needs to be there."""
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


def is_vacant(out: Path, beside: Path | None = None) -> bool:
    """Whether a file isn't there, or is what a call wrote that was killed before its parts were gone."""
    if not out.exists():
        return True
    mark = parts_folder(beside or out) / MARK
    return mark.is_file() and out.is_file() and sha256(out) in mark.read_text().split()


def publish(file: PartialFile, *, overwrite: bool, beside: Path | None = None) -> None:
    """Give a finished file its name.

    Args:
        file: The file.
        overwrite: Whether what is there may be replaced.
        beside: The file whose parts are held; this one's own if None. Where there are no parts, there is no mark.

    Raises:
        QueryError: Another file is there and may not be replaced.
    """
    if file.path.exists() and not overwrite:
        if sha256(file.path) != file.digest:
            raise QueryError(already(file.path))
        return
    folder = parts_folder(beside or file.path)
    if folder.is_dir():
        with (folder / MARK).open("a") as mark:
            mark.write(f"{file.digest}\n")
            mark.flush()
            os.fsync(mark.fileno())
    file.publish()


def write_outfile(path: Path, content: bytes, *, overwrite: bool, beside: Path | None = None) -> None:
    """Write a small file, whole or not at all; see `publish`.

    Raises:
        QueryError: Another file is there and may not be replaced.
        Incomplete: The disk is full.
    """
    remove_half_written(path)
    with disk_errors(path.parent, path.name, len(content)):
        file = PartialFile(path)
        try:
            file.write(content)
            file.finish()
            publish(file, overwrite=overwrite, beside=beside)
            sync_folder(path.parent)
        finally:
            file.discard()


def remove_parts(folder: Path) -> None:
    """Remove a folder of parts, the mark last."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != MARK:
            path.unlink(missing_ok=True)
    (folder / MARK).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


__all__ = [
    "MARK",
    "already",
    "check_outfile",
    "is_vacant",
    "parts_folder",
    "publish",
    "remove_parts",
    "same_file",
    "write_outfile",
]
