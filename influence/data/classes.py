"""The number of a row's class, from the number or the name that the row gives."""

from collections.abc import Mapping

from influence.data.example import Example, place_of
from influence.errors import DataError


def class_number(example: Example, label_names: Mapping[str, int] | None) -> int:
    """Return the number of an example's class.

    Args:
        example: Its label is a number, a name, or a number written as a string, as CSV has it.
        label_names: Class name → number (the model's `label2id`); None accepts any number from 0.

    Raises:
        DataError: There is no label, no such class, or a string that names one class and is the number of another.
    """
    label, names = example.label, dict(label_names or {})
    known = ", ".join(f"{name!r} ({number})" for name, number in names.items()) or "numbers from 0"
    if label is None:
        raise DataError(f"{place_of(example)} has no label. Expected one of {known}; fill it or drop the row.")
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
        raise DataError(f"{place_of(example)}: there is no class {label!r}. Expected one of {known}.")
    return number
