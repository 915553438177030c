"""The groups' partial sums on disk: how their files are named, and that a finished build leaves none of them.

A partial's name begins with what it is, so that no number of groups makes it the name of what it is merged to.
"""

from pathlib import Path

from influence.artifacts.tensors import remove_tensors
from influence.capture.factor_files import FOLDER

PREFIX = "partial"


def partial_path(folder: Path, kind: str, number: int, groups: int) -> Path:
    """Return the file of one group's sums. Its name holds the number of groups: another cut gives other sums."""
    return folder / f"{PREFIX}-{kind}-{number:03d}-of-{groups:03d}.safetensors"


def remove_partials(run_dir: Path) -> None:
    """Remove every partial sum of a run whose curvature is merged: a build that was killed may have left some."""
    folder = run_dir / FOLDER
    if not folder.is_dir():
        return
    for held in (folder, *(path for path in folder.glob("checkpoint-*") if path.is_dir())):
        for path in list(held.glob(f"{PREFIX}-*")):
            remove_tensors(path)


__all__ = ["FOLDER", "partial_path", "remove_partials"]
