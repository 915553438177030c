"""The number of a row's class, from the number or the name that the row gives, and the names that a data set gives.

`datasets` stores a class as a number and its name beside the column (`ClassLabel`), in the features of a saved data set
and in the metadata of a Parquet file. A model has its own names, `label2id`: the same number must be the same class.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from influence.data.example import Example, place_of
from influence.data.records import parquet_schema
from influence.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

HUGGINGFACE = b"huggingface"
"""Where `datasets` keeps, in a schema's metadata, what its columns mean."""
UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls a class that nobody named."""
SHOWN = 20
"""How many classes a message lists."""


def class_number(example: Example, label_names: Mapping[str, int] | None) -> int:
    """Return the number of an example's class.

    Args:
        example: Its label is a number, a name, or a number written as a string, as CSV has it.
        label_names: Class name → number (the model's `label2id`); None accepts any number from 0.

    Raises:
        DataError: There is no label, no such class, or a string that names one class and is the number of another.
    """
    label, names = example.label, dict(label_names or {})
    listed = ", ".join(f"{name!r} ({number})" for name, number in names.items()) or "numbers from 0"
    if label is None:
        raise DataError(f"{place_of(example)} has no label. Expected one of {listed}; fill it or drop the row.")
    if isinstance(label, int):
        number: int | None = label
    else:
        number = int(label) if label.isascii() and label.isdigit() else None
        if label in names:
            if number in names.values() and number != names[label]:
                raise DataError(
                    f"{place_of(example)}: the label {label!r} names class {names[label]} and numbers another. "
                    "Write numbers, not strings (jsonl and parquet tell them apart)."
                )
            number = names[label]
    if number is None or number < 0 or (names and number not in names.values()):
        raise DataError(f"{place_of(example)}: there is no class {label!r}. Expected one of {listed}.")
    return number


def class_names(schema: "pa.Schema", column: str | None) -> tuple[str, ...]:
    """Return the names that a schema gives the classes of a column, from 0; none where it has none."""
    described = json.loads((schema.metadata or {}).get(HUGGINGFACE, b"{}"))
    feature = described.get("info", {}).get("features", {}).get(column, {})
    is_class = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    return tuple(feature["names"]) if is_class else ()


def file_classes(files: Sequence[str], column: str) -> tuple[str, ...]:
    """Return the names that Parquet files give the classes of a column, from 0; none where they have none.

    Raises:
        DataError: Two files have other names.
    """
    first, *rest = ((file, class_names(parquet_schema(file), column)) for file in files)
    for file, names in rest:
        if names != first[1]:
            raise DataError(
                f"{file} names its classes {list(names)} and {first[0]} {list(first[1])}: one number would be two "
                "classes. Write the labels as names."
            )
    return first[1]


def check_class_order(names: Sequence[str], label_names: Mapping[str, int] | None, place: str) -> None:
    """Refuse a data set whose numbers mean other classes than the model's. Upper and lower case are one.

    Args:
        names: The data set's classes, from 0; none where it doesn't name them, and then numbers are the model's.
        label_names: Class name → number (the model's `label2id`); None, or names such as LABEL_0, say nothing.
        place: The data set, for messages.

    Raises:
        DataError: A class that both name has another number in each; both orders are listed.
    """
    model = {name.strip().casefold(): number for name, number in (label_names or {}).items()}
    if not names or all(UNNAMED.fullmatch(name) for name in label_names or {}):
        return
    shared = {name.strip().casefold(): number for number, name in enumerate(names) if name.strip().casefold() in model}
    listed, model_listed = _listed(dict(enumerate(names))), _listed({number: name for name, number in model.items()})
    if any(model[name] != number for name, number in shared.items()):
        raise DataError(
            f"{place} numbers its classes {listed}, and the model's label2id has {model_listed}: a number is another "
            "class in each. Write the labels as names, or number them as the model does (datasets: "
            "align_labels_with_mapping)."
        )
    if not shared:
        log.warning("%s names its classes %s, the model %s: they are matched by number.", place, listed, model_listed)


def _listed(names: Mapping[int, str]) -> str:
    entries = [f"{number} {name!r}" for number, name in sorted(names.items())]
    return ", ".join(entries[:SHOWN]) + (f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else "")
