"""Where what takes long to compute waits until a file stands: `OUT.parts/`, held by one process at a time."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from influence.errors import Incomplete, RunLocked
from influence.store.writer import lock_run


def parts_folder(out: Path) -> Path:
    """Return the folder of parts of a file; after a run that wasn't killed it is gone."""
    return out.with_name(f"{out.name}.parts")


@contextmanager
def parts_of(out: Path | None) -> Iterator[Path]:
    """Hold the folder of parts of a file that is to be written, and remove it when it has been.

    Args:
        out: The file; without one the parts are in a temporary folder, and what is interrupted begins anew.

    Raises:
        RunLocked: Another process is at this file.
        Incomplete: Interrupted; the same call goes on.
    """
    if out is None:
        with TemporaryDirectory(prefix="influence-") as scratch:
            yield Path(scratch)
        return
    folder = parts_folder(out)
    with held_parts(folder, out):
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def held_parts(folder: Path, out: Path) -> Iterator[None]:
    """Hold a folder of parts; gone again where nothing was computed."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_run(folder))
        except RunLocked as error:
            raise RunLocked(f"{out} is being written already. {error}") from None
        try:
            yield
        except KeyboardInterrupt:
            raise Incomplete(
                f"Interrupted. What stands is in {folder}: run the same command again to go on from there."
            ) from None
        finally:
            if folder.is_dir() and not any(path.suffix in (".safetensors", ".parquet") for path in folder.rglob("*")):
                shutil.rmtree(folder, ignore_errors=True)


__all__ = ["held_parts", "parts_folder", "parts_of"]
