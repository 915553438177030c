"""Rows that teach nothing: without text, or without a gradient."""

import numpy as np
from pydantic import BaseModel, ConfigDict

from influence.issues.cases import gather
from influence.issues.finding import Case, Finding
from influence.issues.subject import Subject


class EmptySettings(BaseModel):
    """Nothing can be chosen: a row has text or it hasn't."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ZeroGradientSettings(BaseModel):
    """Nothing can be chosen: a gradient is zero or it isn't."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def lacks(subject: Subject) -> str | None:
    """Both apply to every run."""
    return None


def check_empty(subject: Subject, settings: EmptySettings) -> Finding:
    """Flag rows whose text is empty or nothing but white space."""
    scores = np.fromiter((not text.strip() for text in subject.run.store.texts()), np.float32, subject.rows)
    return _finding(
        "empty", scores, "drop: no text", "1 where the text is empty or white space, else 0.", "Flagged at 1."
    )


def check_zero_gradient(subject: Subject, settings: ZeroGradientSettings) -> Finding:
    """Flag rows whose gradient is zero: nothing of them is scored, or they could not be captured."""
    scores = (subject.norms == 0).astype(np.float32)
    told = "1 where the stored gradient is zero, so that training on the row changes nothing measured here, else 0."
    return _finding("zero_gradient", scores, "drop: nothing in it is learnt from", told, "Flagged at 1.")


def _finding(issue: str, scores: np.ndarray, suggestion: str, meaning: str, rule: str) -> Finding:
    case = Case((), "drop", suggestion)
    return Finding(issue, scores, gather((row, case) for row in np.flatnonzero(scores).tolist()), meaning, rule)


__all__ = ["EmptySettings", "ZeroGradientSettings", "check_empty", "check_zero_gradient", "lacks"]
