"""A finished run directory, opened: its configuration checked, and nothing of it missing."""

from pathlib import Path

from influence.artifacts.place import absolute, run_path
from influence.errors import Incomplete
from influence.run_dir import RunDir
from influence.stages.configuration import open_configuration
from influence.stages.status import missing_parts
from influence.store.reader import Store


def open_run_dir(path: str | Path, *, trust: bool = False) -> RunDir:
    """Open a finished run. Loads no model.

    Args:
        path: The run directory.
        trust: Take what runs code or reaches out from the run's own configuration, whoever wrote it.

    Raises:
        StoreError: There is no run, or its files can't be used.
        FingerprintMismatch: A setting that decides its answers was changed since it was built.
        ConfigError: Its configuration can't be used, or not without trust.
        Incomplete: Something of it is missing; the same build makes it.
    """
    # Absolute, so that a later change of the working directory loses nothing.
    run_dir = absolute(run_path(path))
    store = Store(run_dir)
    config = open_configuration(run_dir, store.manifest, trust=trust)
    missing = missing_parts(run_dir, store.manifest, config)
    if missing:
        raise Incomplete(f"{run_dir} lacks its {' and its '.join(missing)}. Run the same build again to make it.")
    return RunDir(run_dir, config, store)
