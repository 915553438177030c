"""The file that a verb writes: where it may stand, and how it appears beside the parts that it was made of.

A file appears whole, and its folder of parts goes afterwards. Whoever is killed in between leaves both: a mark among
the parts says which file was about to appear, so that the same call clears away and ends as if nothing had happened,
while a file that someone else put there is left alone.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from influence.errors import QueryError
from influence.remote.place import check_local
from influence.store.digest import sha256
from influence.store.partial import PartialFile

MARK = "appearing"
"""Among the parts: the SHA-256 of the file that is next to appear."""


def parts_folder(out: Path) -> Path:
    """Return the folder of parts of a file; after a run that wasn't killed it is gone."""
    return out.with_name(f"{out.name}.parts")


def check_outfile(out: Path, what: str, *, overwrite: bool, read: Iterable[str | Path] = ()) -> None:
    """Refuse a file that can't be written, or must not be.

    Args:
        out: The file.
        what: What would be written, for messages.
        overwrite: Whether what is there may be replaced.
        read: Files that are only read.

    Raises:
        QueryError: It is in a bucket or in no folder, is a folder, is one of the files that are read (by whatever
            links), or is there already.
    """
    check_local(out, what)
    if not out.parent.is_dir():
        raise QueryError(f"The folder {out.parent} doesn't exist; make it, or write {what} somewhere else.")
    own = next((path for path in map(Path, read) if same_file(out, path)), None)
    if own is not None:
        raise QueryError(f"{out} is what is read here ({own}), and nothing is written over that. Name another file.")
    if out.is_dir():
        raise QueryError(f"{out} is a folder. Name a file.")
    if not overwrite and not is_vacant(out):
        raise QueryError(already(out))


def already(out: Path) -> str:
    """Say that a file is there."""
    return f"{out} exists already. Overwrite (--overwrite), or name another file."


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, by whatever links; neither needs to be there."""
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


def is_vacant(out: Path) -> bool:
    """Whether a file isn't there, or is what a call wrote that was killed before its parts were gone."""
    if not out.exists():
        return True
    mark = parts_folder(out) / MARK
    return mark.is_file() and out.is_file() and mark.read_text() == sha256(out)


def publish(file: PartialFile, *, overwrite: bool) -> None:
    """Give a finished file its name; its folder of parts is held.

    Raises:
        QueryError: Another file is there and may not be replaced.
    """
    if file.path.exists() and not overwrite:
        if sha256(file.path) != file.digest:
            raise QueryError(already(file.path))
        return
    (parts_folder(file.path) / MARK).write_text(file.digest)
    file.publish()


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
]
