"""Data sets that the library datasets keeps as Arrow files: folders that it saved, and those of the hub, in its cache.

They are memory-mapped as they are, with all their columns; `dataset` reads the columns that have a role.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from index.strict_json import read_json
from influence.data.cache import no_progress_bars
from influence.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from influence.data.dataset import DataSettings

DICT = "dataset_dict.json"
INFO = "dataset_info.json"
STATE = "state.json"


@dataclass(frozen=True)
class ArrowSet:
    """A data set as `datasets` loads it.

    Attributes:
        dataset: Its rows.
        place: The folder or name, for messages.
        folder: Of a saved data set its folder, of a dictionary of splits the dictionary's; None of the hub.
        files: Its Arrow files, in the order of their rows.
    """

    dataset: "Dataset"
    place: str
    folder: Path | None
    files: tuple[Path, ...]


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote a folder."""
    return (folder / DICT).is_file() or (folder / STATE).is_file()


def load_saved(settings: "DataSettings") -> ArrowSet:
    """Load a saved folder, or a split of one.

    Raises:
        DataError: There is no such split, no rows, or it can't be opened.
    """
    from datasets import Dataset

    whole = folder = Path(os.path.abspath(os.path.expanduser(settings.path)))
    try:
        if (folder / DICT).is_file():
            splits = read_json(folder / DICT)["splits"]
            if settings.split not in splits:
                names = ", ".join(splits) or "none"
                raise DataError(f"{folder} has no split {settings.split!r}. Splits found: {names}. Set data.split.")
            folder = folder / settings.split
        state = read_json(folder / STATE)
        files = tuple(folder / entry["filename"] for entry in state["_data_files"])
        if not files:
            raise DataError(f"{folder} has no rows. Expected at least one row.")
        with no_progress_bars():
            dataset = Dataset.load_from_disk(str(folder))
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{folder} looks like a saved data set but can't be opened: {error}") from error
    return ArrowSet(dataset, str(folder), whole, files)


def load_hub(settings: "DataSettings") -> ArrowSet:
    """Load a data set of the hub, from the cache of `datasets` where it is there.

    Raises:
        DataError: It can't be loaded, or isn't one split.
    """
    import datasets

    source = f"data set {settings.path!r}" + (f", configuration {settings.name!r}" if settings.name else "")
    try:
        with no_progress_bars():
            dataset = datasets.load_dataset(settings.path, settings.name, split=settings.split)
    except Exception as error:
        raise DataError(
            f"Looked for the {source}, split {settings.split!r}, on the hub, because no file or folder has that name "
            f"here, and could not load it: {str(error) or type(error).__name__}. "
            "Check the name and the connection, or give a file."
        ) from error
    if not isinstance(dataset, datasets.Dataset):
        raise DataError(f"The {source} on the hub gave a {type(dataset).__name__}, not one split; set data.split.")
    return ArrowSet(dataset, settings.path, None, tuple(Path(file["filename"]) for file in dataset.cache_files))


__all__ = ["DICT", "INFO", "STATE", "ArrowSet", "is_saved", "load_hub", "load_saved"]
