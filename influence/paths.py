"""Which settings of a run file are paths, and what relative ones are relative to."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst")

PATH_KEYS = (
    *(("model", "path"), ("model", "tokeniser"), ("data", "path"), ("recipe", "gradient", "state")),
    *(("recipe", "checkpoints", "*", "path"), ("recipe", "checkpoints", "*", "state")),
)
"""Settings that are paths or names on a hub; `*` stands for every item of a list."""
FILE_KEYS = (("cluster", "tls", "ca_file"), ("cluster", "tls", "cert"), ("cluster", "tls", "key"))
"""Settings that are local files and nothing else."""


def absolute_paths(merged: dict[str, Any], folder: Path, only: set[tuple[str, ...]] | None = None) -> dict[str, Any]:
    """Make local paths absolute; a name that may belong to a hub is left alone unless the folder holds such a path."""
    for steps in (*PATH_KEYS, *FILE_KEYS):
        if only is None or any(change == steps[: len(change)] for change in only):
            merged = _moved(merged, steps, folder, local=steps in FILE_KEYS)
    return merged


def _moved(found: Any, steps: tuple[str, ...], folder: Path, *, local: bool) -> Any:
    """Return settings with the local path that lies at some steps made absolute; `local` if it can be nothing else."""
    if not steps:
        if not isinstance(found, str) or not found:
            return found
        path = Path(found).expanduser()
        by_name = found.startswith((".", "~")) or path.suffix.lower() in DATA_SUFFIXES
        return os.path.abspath(folder / path) if local or by_name or (folder / path).exists() else found
    if steps[0] == "*" and isinstance(found, list):
        return [_moved(item, steps[1:], folder, local=local) for item in found]
    if isinstance(found, Mapping) and steps[0] in found:
        return {**found, steps[0]: _moved(found[steps[0]], steps[1:], folder, local=local)}
    return found
