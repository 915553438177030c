"""A run directory while a build holds it: vacant or a run before, and without a trace of an attempt that made none."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from influence.artifacts.lock import HOLDER, LOCK, lock_folder
from influence.artifacts.partial import SUFFIX
from influence.artifacts.place import is_remote
from influence.engine.jobs import JOBS
from influence.engine.key_folder import remove_abandoned_keys
from influence.engine.note import NOTE
from influence.errors import StoreError
from influence.store.manifest import MANIFEST
from influence.store.shard import ROWS


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold the run directory; if nothing of a run came to be in it, leave no trace of the attempt."""
    _check_vacant(run_dir)
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    with ExitStack() as stack:
        stack.callback(_clear, run_dir, made)
        stack.enter_context(lock_folder(run_dir))
        if not is_remote(run_dir):
            remove_abandoned_keys(run_dir / JOBS)
        yield


def _check_vacant(run_dir: Path) -> None:
    """Refuse a directory that holds something, and no run."""
    if not run_dir.is_dir() or (run_dir / MANIFEST).exists():
        return
    names = {path.name for path in run_dir.iterdir() if path.suffix != SUFFIX} - {LOCK, HOLDER, JOBS, NOTE}
    # A run whose damaged manifest was deleted, as its error message says, keeps its rows.
    strange = [] if ROWS in names else sorted(names)
    if strange:
        shown = ", ".join(strange[:5]) + (", …" if len(strange) > 5 else "")
        raise StoreError(f"{run_dir} holds {shown} and no run. Name a directory that is empty or doesn't exist yet.")


def _clear(run_dir: Path, made: list[Path]) -> None:
    """Remove the folders that this build made, if they hold nothing but its lock."""
    if not made or not run_dir.is_dir() or {path.name for path in run_dir.iterdir()} - {LOCK, HOLDER}:
        return
    for name in (LOCK, HOLDER):
        (run_dir / name).unlink(missing_ok=True)
    for folder in made:
        folder.rmdir()
