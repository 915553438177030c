"""Files of a run directory are regular files: whatever else has the name of one is refused before it is opened.

To open a FIFO waits for somebody to write to it, to open a device can do anything. A run directory may have been
crafted by somebody else.
"""

import errno
import os
import stat
from pathlib import Path

from index.strict_json import MAX_BYTES, read_bounded
from influence.artifacts.path import ObjectPath
from influence.errors import StoreError

KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a directory"),
)


BROKEN_LINK = "a link that leads nowhere"


def irregular(path: str | Path) -> str | None:
    """Return what stands at a path where that is no regular file; None where it is one, or nothing is there.

    A link counts as what it leads to; one that leads nowhere, or in a circle, is named as that.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return BROKEN_LINK if os.path.islink(path) else None
    except NotADirectoryError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a circle of symbolic links"
        raise
    return None if stat.S_ISREG(mode) else _kind(mode)


def check_regular(path: Path | ObjectPath) -> None:
    """Refuse what is no regular file. An object in a bucket is one.

    Raises:
        StoreError: It is something else; or it can't be looked at, for example because links lead in a circle.
        FileNotFoundError: There is nothing of that name.
    """
    if isinstance(path, os.PathLike):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            raise
        except OSError as error:
            raise unreadable(path, error) from None
        _check_mode(path, mode)


def read_regular(path: Path | ObjectPath) -> bytes:
    """Return the bytes of a regular file that is read whole.

    Raises:
        StoreError: It is something else, or it can't be read (the message says what was met), or has more than 256 MiB.
        FileNotFoundError: There is nothing of that name.
    """
    check_regular(path)
    if not isinstance(path, os.PathLike):
        return read_bounded(path)
    try:
        # A FIFO that took the file's place since is opened without waiting, and refused then.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            _check_mode(path, found.st_mode)
            if found.st_size > MAX_BYTES:
                raise StoreError(f"{path} has {found.st_size:,} bytes, and no such file has more than {MAX_BYTES:,}.")
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> StoreError:
    """Return the error of a file that is there and can't be read: whose it is, who may read it, and what to do."""
    try:
        found = os.stat(path)
        whose = f" It is owned by uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}."
    except OSError:
        whose = ""
    do = "Ask its owner to let you read it" if isinstance(error, PermissionError) else "Look at the disk or the links"
    return StoreError(f"{path} can't be read: {error.strerror or error}.{whose} {do}; nothing of the run was changed.")


def _kind(mode: int) -> str:
    return next((name for test, name in KINDS if test(mode)), "something else")


def _check_mode(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _kind(mode)
        raise StoreError(
            f"{path} is {kind}; expected a regular file. It was not opened: no build writes one. Remove it if "
            "you know its origin; do not use a run from somebody else that has one."
        )


__all__ = ["BROKEN_LINK", "check_regular", "irregular", "read_regular", "unreadable"]
