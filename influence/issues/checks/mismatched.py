"""Rows whose answer doesn't go with its prompt: swapped completions, answers to another question.

Two witnesses, and no tuning on known errors:

    prompt        the share of the answer's loss that its prompt leaves: its loss after its own prompt against its mean
                  loss after the prompts of other rows, one nat added to both. A prompt with which the answer goes takes
                  most of the loss away; the pointwise mutual information of the two is what it takes
    neighbours    how few rows ask the same of the model: minus the logarithm of the sum of the squared cosines of the
                  row's gradient and those of its nearest rows. Rows with a like question and a like answer have like
                  gradients; a row with a like question and another answer doesn't have them near it

The loss alone says how hard an answer is, not whether it is one to this question: long and rare answers have a large
loss, and short swapped ones a small one. Both witnesses are taken in standard deviations of the bulk, by median and
MAD; so is their sum, the score. A model that knows the set by heart knows its swapped answers, too: examine an early
checkpoint.

Source: Church & Hanks 1990, "Word association norms, mutual information, and lexicography", for the measure.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from influence.capture.prompts import prompt_losses, remaining
from influence.config import override_config
from influence.issues.cases import gather
from influence.issues.checks.duplicates import data_lacks
from influence.issues.checks.outliers import deviations
from influence.issues.finding import Case, Finding
from influence.issues.subject import Subject
from influence.text_dedup.inputs import is_split

FEWEST = 20
"""Rows below which nothing can be said of what is usual."""
BLOCK = 4096
USUAL = 2.0
"""The threshold in standard deviations of the bulk, which the data give."""
TINY = 1e-6


class MismatchedSettings(BaseModel):
    """From where on an answer doesn't go with its prompt.

    Attributes:
        threshold: Flag rows from this score on, in standard deviations of the bulk; chosen from the data if None.
        evidence: Ids of nearest rows that are given as evidence, at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float | None = Field(default=None, gt=0)
    evidence: int = Field(default=3, ge=1)


@dataclass(frozen=True)
class Helped:
    """What every row's prompt does for its answer.

    Attributes:
        share: Of the answer's loss that the prompt leaves, [rows]; NaN where there is nothing to compare.
        number: Which of the row's answers its prompt helps least, from 1.
        count: How many the row has.
    """

    share: np.ndarray
    number: np.ndarray
    count: np.ndarray


def lacks(subject: Subject) -> str | None:
    """Return what is missing: prompts with completions or conversations, or rows to compare with."""
    if not is_split(subject.run):
        return (
            "the rows are no prompts with completions and no conversations: there is no answer to hold to a question."
        )
    if subject.rows < FEWEST:
        return f"it needs {FEWEST} rows or more to estimate the usual value, and there are {subject.rows}."
    return data_lacks(subject)


def check(subject: Subject, settings: MismatchedSettings) -> Finding:
    """Flag rows whose prompt hardly helps their answer and whose gradient has hardly any like it."""
    helped = _helped(subject)
    prompt = deviations(np.log(helped.share))
    neighbours = deviations(-np.log(np.maximum(_support(subject), TINY)))
    scores = deviations(prompt + neighbours)
    threshold, rule = settings.threshold, "set"
    if threshold is None:
        threshold, rule = USUAL, "of a bulk that is normal one row in forty would pass it"
    with np.errstate(invalid="ignore"):
        flagged = np.flatnonzero((scores >= threshold) & (prompt > 0))
    return Finding(
        "mismatched",
        scores.astype(np.float32),
        gather(_cases(subject, settings, helped, flagged)),
        "How far the share of the answer's loss that its prompt leaves and the lack of rows with like gradients, "
        "together, lie above the usual, in standard deviations of the bulk (MAD, of logarithms).",
        f"Flagged from {threshold:.3g} on, where the prompt leaves more than the usual share: {rule}.",
    )


def _helped(subject: Subject) -> Helped:
    overrides = subject.overrides
    config = override_config(subject.run.config, overrides) if overrides else subject.run.config
    share = np.full(subject.rows, np.nan)
    number, count = np.zeros((2, subject.rows), np.int32)
    for found in prompt_losses(config, subject.run.store, subject.folder, subject.progress):
        here = slice(found.first, found.first + len(found.given))
        share[here] = remaining(found.given, found.without)
        number[here], count[here] = found.number, found.count
    return Helped(share, number, count)


def _support(subject: Subject) -> np.ndarray:
    """Return the sum of the squared cosines of every row's gradient and those of its nearest rows, float64 [rows]."""
    found = np.empty(subject.rows)
    for first, near in subject.graph.blocks(BLOCK):
        cosines = np.where(near.alike >= 0, np.maximum(near.alike_cosines, 0), 0)
        found[first : first + len(cosines)] = np.square(cosines, dtype=np.float64).sum(axis=1)
    found[subject.norms == 0] = np.nan
    return found


def _cases(
    subject: Subject, settings: MismatchedSettings, helped: Helped, rows: np.ndarray
) -> Iterator[tuple[int, Case]]:
    for first in range(0, len(rows), BLOCK):
        part = rows[first : first + BLOCK]
        near = subject.graph.of(part).alike[:, : settings.evidence]
        known = np.unique(near[near >= 0])
        names = dict(zip(known.tolist(), subject.ids(known), strict=True))
        for row, line in zip(part.tolist(), near.tolist(), strict=True):
            told = f"review: the prompt leaves {helped.share[row]:.0%} of its answer's loss"
            if helped.count[row] > 1:
                which = f"most that of answer {helped.number[row]} of {helped.count[row]}"
                told = f"review: the prompts leave {helped.share[row]:.0%} of their answers' loss, {which}"
            yield row, Case(tuple(names[other] for other in line if other >= 0), "review", told)


__all__ = ["Helped", "MismatchedSettings", "check", "lacks"]
