"""The folder that jobs of a batch queue read their TLS keys from, and what killed builds leave of such folders.

A folder is locked as long as its process lives, and its keys are written under the lock. So a folder that has keys and
no lock is one of a process that was killed.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from influence.engine.credentials import KEY, Credentials, draw_credentials

log = logging.getLogger(__name__)

PREFIX = ".keys-"
LOCK = "lock"


@contextmanager
def key_folder(logs: Path) -> Iterator[Credentials]:
    """Yield new credentials as paths of files that only the user can read, and remove the files afterwards.

    Args:
        logs: The folder of the jobs' logs, on a disk that jobs and this process share.
    """
    remove_abandoned_keys(logs)
    with (
        TemporaryDirectory(prefix=PREFIX, dir=logs, ignore_cleanup_errors=True) as folder,
        FileLock(Path(folder) / LOCK),
    ):
        yield draw_credentials().write(Path(folder))


def remove_abandoned_keys(logs: Path) -> None:
    """Remove the keys of processes that were killed; those of a running one stay."""
    for key in sorted(logs.glob(f"{PREFIX}*/{KEY}")):
        if key.parent.is_symlink():
            continue
        try:
            with FileLock(key.parent / LOCK, timeout=0):
                shutil.rmtree(key.parent)
        except Timeout:
            continue
        except OSError as error:
            log.warning("The TLS keys that a killed build left in %s can't be removed: %s", key.parent, error)
            continue
        log.info("removed the TLS keys that a killed build left in %s", key.parent)


__all__ = ["key_folder", "remove_abandoned_keys"]
