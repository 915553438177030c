"""A bucket's folder on this machine's disk: indexes are libraries' files, and those want a disk.

What is read is downloaded once a content, into the user's cache, and mapped or read from there; the digests in its
records are checked there, by whoever opens it. What is written is made in the cache, where a build that was killed
finds it again, and uploaded when it is whole, the records last.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from index.errors import VectorIndexError
from influence.artifacts.partial import PartialFile
from influence.artifacts.path import ObjectPath
from influence.errors import StoreError

CACHE = "XDG_CACHE_HOME"
BUILDING = "building"
GIVEN_UP = 86_400
"""Seconds after which a download that hasn't come to an end won't."""
RECORD = ".json"
"""What records end in: they vouch for the other files, so they go first and come last."""
PIECE = 2**24

log = logging.getLogger(__name__)


@contextmanager
def on_disk(folder: Path) -> Iterator[Path]:
    """Yield a folder on this machine that holds what a folder of a run holds; itself unless it is in a bucket.

    Errors name the bucket's files. A copy in which something was wrong is removed: the next look downloads it anew.

    Raises:
        StoreError: It can't be downloaded.
    """
    if not isinstance(folder, ObjectPath):
        yield folder
        return
    copy = _downloaded(folder)
    try:
        yield copy
    except (StoreError, VectorIndexError) as error:
        shutil.rmtree(copy, ignore_errors=True)
        raise type(error)(str(error).replace(str(copy), str(folder))) from None


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """Yield a folder on this machine to put a run's files in; they are uploaded at the end where that is in a bucket.

    Raises:
        StoreError: They can't be uploaded.
    """
    if not isinstance(folder, ObjectPath):
        yield folder
        return
    work = _place(folder) / BUILDING
    work.mkdir(parents=True, exist_ok=True)
    try:
        yield work
    except (StoreError, VectorIndexError) as error:
        raise type(error)(f"{error} ({folder} is made here before it is uploaded; {CACHE} moves it.)") from None
    _upload(work, folder)
    shutil.rmtree(work)


def _place(folder: ObjectPath) -> Path:
    """Return where this machine keeps what it has of a folder."""
    cache = Path(os.environ.get(CACHE) or "~/.cache").expanduser()
    return cache / "influence" / sha256(str(folder).encode()).hexdigest()[:32]


def _downloaded(folder: ObjectPath) -> Path:
    """Return a copy of the folder as it is now, in a folder named after the content."""
    state = folder.states()
    content = sha256(repr(sorted((name, found.st_size, found.tag) for name, found in state.items())).encode())
    place = _place(folder)
    copy = place / content.hexdigest()[:32]
    if copy.is_dir():
        return copy
    log.info("Downloading %s (%.3g MB) into %s.", folder, sum(found.st_size for found in state.values()) / 1e6, copy)
    coming = place / f"{copy.name}.{uuid4().hex[:8]}.partial"
    try:
        for name in state:
            (coming / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("rb", PIECE) as there, (coming / name).open("xb") as here:
                shutil.copyfileobj(there, here, PIECE)
        coming.mkdir(parents=True, exist_ok=True)
        _clear(place, copy)
        coming.rename(copy)
    except OSError as error:
        if copy.is_dir():
            # Another process was quicker.
            return copy
        raise StoreError(
            f"{folder} can't be downloaded into {place}: {error.strerror or error}. Make room there, or name another "
            f"folder with {CACHE}."
        ) from error
    finally:
        shutil.rmtree(coming, ignore_errors=True)
    return copy


def _clear(place: Path, copy: Path) -> None:
    """Remove copies of what the folder held before, and downloads that were given up."""
    for old in place.iterdir():
        coming = old.name.endswith(".partial")
        if old in (copy, place / BUILDING) or (coming and time.time() - old.stat().st_mtime < GIVEN_UP):
            continue
        # A file of it that some process has mapped lives on for that process.
        shutil.rmtree(old, ignore_errors=True)


def _upload(work: Path, folder: ObjectPath) -> None:
    """Make the bucket's folder hold what the local one holds."""
    here = {path.relative_to(work).as_posix(): path for path in work.rglob("*") if path.is_file()}
    there = folder.sizes()
    # Files that are replaced must not be vouched for by an old record.
    for name in [*(name for name in there if _is_record(name)), *(name for name in there if name not in here)]:
        (folder / name).unlink(missing_ok=True)
    for name in sorted(here, key=lambda name: (_is_record(name), name)):
        file = PartialFile(folder / name)  # type: ignore[arg-type]
        try:
            with here[name].open("rb") as content:
                while piece := content.read(PIECE):
                    file.write(piece)
            file.finish()
            file.publish()
        finally:
            file.discard()


def _is_record(name: str) -> bool:
    """Whether a file is a record: JSON at the top; libraries keep JSON of their own in folders below."""
    return name.endswith(RECORD) and "/" not in name
