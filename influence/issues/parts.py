"""Where what takes long to compute waits until a file stands: `OUT.parts/`, held by one process at a time."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from influence.artifacts.lock import HOLDER, LOCK, lock_folder
from influence.artifacts.outfile import MARK, parts_folder, remove_parts
from influence.artifacts.partial import remove_half_written, remove_partials
from influence.errors import Incomplete, InfluenceError, RunLocked


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
        remove_parts(folder)


@contextmanager
def held_parts(folder: Path, out: Path) -> Iterator[None]:
    """Hold a folder of parts; gone again where nothing was computed. What killed writers left half-written is removed.

    Raises:
        RunLocked: Another process is at this file.
        Incomplete: Interrupted; the same call goes on.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(folder))
        except RunLocked as error:
            raise RunLocked(f"{out} is being written already. {error}") from None
        except InfluenceError:
            _remove_empty(folder, out)
            raise
        remove_partials(folder)
        remove_half_written(out)
        try:
            yield
        except KeyboardInterrupt:
            raise Incomplete(
                f"Interrupted. Partial results are in {folder}. Run the same command again to resume."
            ) from None
        finally:
            _remove_empty(folder, out)


def _remove_empty(folder: Path, out: Path) -> None:
    """Remove a folder of parts with nothing in it that took long to compute, and no mark of a file that stands."""
    if not folder.is_dir() or ((folder / MARK).is_file() and out.exists()):
        return
    if not any(path.suffix in (".safetensors", ".parquet") for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def done_anew(folder: Path) -> Iterator[None]:
    """Begin with nothing in a folder of parts that is held, and leave nothing: for what isn't continued but done again.

    Raises:
        Incomplete: Interrupted.
    """

    def clear() -> None:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (LOCK, HOLDER, MARK):
                path.unlink(missing_ok=True)

    clear()
    try:
        yield
    except KeyboardInterrupt:
        raise Incomplete(
            "Interrupted. Nothing was written. Run the same command again; it starts from the beginning."
        ) from None
    finally:
        clear()


__all__ = ["done_anew", "held_parts", "parts_of"]
