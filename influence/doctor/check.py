"""One finding of the doctor, and the errors that rounding may cause."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from influence.data.example import Example, place_of

TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "float16": 0.05, "bfloat16": 0.15}
"""The relative error that rounding may cause, by dtype. A mask that isn't honoured errs by about 1."""

Verdict = Literal["pass", "fail", "note"]


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was checked.
        verdict: `pass`, `fail`, or `note` for what isn't a gate or doesn't apply.
        found: The measured number, or what was found, in words.
        expected: The tolerance, or what was expected, in words.
        remedy: What to do about it.
        value: The measured number, where there is one.
        limit: The number it is held to.
        shown: A text to look at, over several lines.
    """

    name: str
    verdict: Verdict
    found: str
    expected: str = ""
    remedy: str = ""
    value: float | None = None
    limit: float | None = None
    shown: str | None = None


def compared(
    name: str, found: Tensor, expected: Tensor, tolerance: float, examples: Sequence[Example], remedy: str
) -> Check:
    """Hold the relative error of each row, [n, D] against [n, D], to a tolerance; the worst row is named."""
    errors = [relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True)]
    worst = max(range(len(errors)), key=errors.__getitem__)
    told = f"error {errors[worst]:.2g}"
    fine = errors[worst] <= tolerance
    return Check(
        name,
        "pass" if fine else "fail",
        told if fine else f"{told} at {place_of(examples[worst])}",
        f"at most {tolerance:g}",
        remedy,
        value=errors[worst],
        limit=tolerance,
    )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return |found − expected| / |expected|; infinite where it isn't a number."""
    difference = float(torch.linalg.vector_norm(found.double() - expected.double()))
    length = float(torch.linalg.vector_norm(expected.double()))
    error = difference / length if length else float(difference > 0)
    return error if error == error else float("inf")
