"""What trak's projector drew, which no seed settles: its numbers depend on the device that they were drawn on.

A run keeps it in its fingerprint as one line of JSON a checkpoint, and every process that would add rows to the run or
ask it something holds its own draw against that.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from influence.errors import FingerprintMismatch
from influence.store.manifest import Part

PART = "recipe.projection.drawn."
"""What a checkpoint's number follows among the parts of a fingerprint."""


def drawn(record: Mapping[str, Any]) -> str:
    """Return a projector's record as one line."""
    return json.dumps(dict(record), sort_keys=True, separators=(",", ":"))


def drawn_of(parts: Mapping[str, Part]) -> tuple[str, ...]:
    """Return what a run's parts say was drawn, checkpoint by checkpoint; nothing where no projector of trak was."""
    count = sum(name.startswith(PART) for name in parts)
    return tuple(str(parts[f"{PART}{number}"]) for number in range(count))


def drawn_parts(found: Sequence[str]) -> dict[str, Part]:
    """Return the parts that `drawn_of` reads."""
    return {f"{PART}{number}": line for number, line in enumerate(found)}


def check_drawn(record: Mapping[str, Any] | None, expected: Sequence[str], checkpoint: int) -> None:
    """Refuse a projector that drew other numbers than the run's.

    Args:
        record: This process's; None where it projects in another way.
        expected: The run's; nothing is compared where it is empty.
        checkpoint: Which of them it is.

    Raises:
        FingerprintMismatch: They differ; both are shown where they do.
    """
    if record is None or not expected or drawn(record) == expected[checkpoint]:
        return
    there = json.loads(expected[checkpoint])
    told = "; ".join(
        f"{key} is {there.get(key)!r} in the run and {value!r} here"
        for key, value in record.items()
        if there.get(key) != value
    )
    raise FingerprintMismatch(
        f"trak's projector draws other numbers in this process than it drew for the run: {told}. Their rows can't be "
        "compared: use the kind of device and the versions that the run was begun with, or build another run."
    )
