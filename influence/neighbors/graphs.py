"""The graphs of nearest rows in a run's folder, one for each settings asked for, and those that nothing can use.

A graph that stands is kept whatever the settings are now: whoever asks with its settings again reads it. One that was
begun with other settings and never finished (of cells, with a copy of all codes in it), and one of other rows or of an
older version of this software, are of no use to anybody once another stands.
"""

import logging
import re
import shutil
from pathlib import Path
from typing import Any

from influence.artifacts.digest import FORMAT_VERSION, seal, unseal
from influence.artifacts.lock import lock_folder
from influence.artifacts.partial import write_whole
from influence.errors import InfluenceError, RunLocked, StoreError
from influence.neighbors.plan import VERSION, GraphPlan
from influence.store.reader import Store

log = logging.getLogger(__name__)

FOLDERS = re.compile(r"(exact|cells)-[0-9a-f]{16}")
FILES = re.compile(
    r"(((near|cells|homes|order|codes|places)-\d+|about|zero)\.(safetensors|json)|graph\.json|\.lock(\.json)?)"
    r"(\.[0-9a-f-]+\.partial)?"
)
"""What a graph's folder and its files are called. A folder with anything else in it is somebody's own."""


def save_mark(plan: GraphPlan, store: Store) -> None:
    """Say that a graph stands, and of which rows."""
    write_whole(plan.mark, seal(_told(store)))


def remove_useless(plan: GraphPlan, store: Store) -> None:
    """Remove the graphs beside one that stands which nothing can use, but those that another process holds.

    What can't be removed stays, without an error: the graph that was asked for is there.
    """
    for folder in sorted(plan.folder.parent.iterdir()):
        if folder == plan.folder or not FOLDERS.fullmatch(folder.name) or not folder.is_dir() or folder.is_symlink():
            continue
        if _usable(folder / plan.mark.name, store) or not all(FILES.fullmatch(path.name) for path in folder.iterdir()):
            continue
        try:
            with lock_folder(folder):
                # It may have been finished while this process was looking.
                if not _usable(folder / plan.mark.name, store):
                    shutil.rmtree(folder, ignore_errors=True)
                    log.info("Removed %s, which nothing can use any more.", folder)
        except RunLocked:
            log.debug("%s is being computed by another process.", folder)
        except StoreError as error:
            log.debug("%s stays: %s", folder, error)


def _usable(mark: Path, store: Store) -> bool:
    """Whether a graph with this mark stands and is of the run's rows and of this version."""
    try:
        return mark.exists() and unseal(mark, "It is computed again.") == _told(store)
    except InfluenceError:
        return False


def _told(store: Store) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, "rows": store.manifest.rows_fingerprint, "version": VERSION}


__all__ = ["remove_useless", "save_mark"]
