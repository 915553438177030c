"""Rows that hurt: whose influence on the evaluation set is negative, consistently and more than by chance.

A row's harm is minus its mean influence over the evaluation examples, each example's scores taken as multiples of their
root mean square over all rows. Influence on an example grows with the example's own gradient, and without this a few
examples that the model gets badly wrong decide every mean: in trials no row's mean was then told from zero.

What is exchangeable are the evaluation examples, so they are what the bootstrap draws; an evaluation set with copies
of one example, or many examples of one origin, has fewer than it seems, and its intervals are too narrow. A p-value is
that of the mean being zero or more: Student's t of the mean over its bootstrap standard error, because what a bootstrap
counts can't be smaller than one in its replicates, and among many rows only small ones survive. Benjamini and
Hochberg's procedure over all rows then bounds the share of false discoveries. Their dependence (rows see the same
examples) is mostly positive, under which the bound holds.

A mean that is certain can still be too small to matter. So a row must also oppose the evaluation set more than the
typical row influences it either way, the median of |mean| over all rows.

Sources: Benjamini & Hochberg 1995; Benjamini & Yekutieli 2001 for positive dependence; Efron & Tibshirani 1993.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import false_discovery_control, t

from influence.errors import QueryError
from influence.issues.checks.bootstrap import bootstrap_mean, replicate_weights
from influence.issues.finding import Case, Finding
from influence.issues.subject import Subject

FEWEST = 10
"""Evaluation examples below which consistent and by chance can't be told apart."""
BLOCK_BYTES = 2**26
"""Replicates of a block of rows."""
WEIGHTS_BYTES = 2**30
"""What the weights of the replicates may take: all are held, and used for every block."""


class HarmfulSettings(BaseModel):
    """When a row is taken for harmful.

    Attributes:
        false_discoveries: The expected share of rows among those flagged whose mean influence isn't negative.
        effect: Flag only rows whose harm is at least this; chosen from the data if None.
        replicates: Of the bootstrap over evaluation examples.
        level: Of the bootstrap's intervals; a flagged row's is below zero.
        seed: Of its draws.
        evidence: Ids that are given as evidence, at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    false_discoveries: float = Field(default=0.05, gt=0, lt=1)
    effect: float | None = Field(default=None, ge=0)
    replicates: int = Field(default=1000, ge=100, le=100_000)
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    evidence: int = Field(default=5, ge=1)


def lacks(subject: Subject) -> str | None:
    """Return what is missing: an evaluation set, or enough of it."""
    if subject.evaluation is None:
        return "no evaluation set is given (--eval FILE)."
    found = len(subject.evaluation.examples)
    if found < FEWEST:
        held = "1 example" if found == 1 else f"{found} examples"
        return f"{subject.evaluation.place} holds {held}, and it takes {FEWEST} to tell harm from chance."
    return None


def check(subject: Subject, settings: HarmfulSettings) -> Finding:
    """Flag rows whose mean influence on the evaluation examples is negative, not by chance, and not negligibly.

    Raises:
        QueryError: So many replicates of so many examples would take too much memory.
    """
    assert subject.evaluation is not None, "a check that lacks something isn't made"
    examples = len(subject.evaluation.examples)
    if 4 * examples * settings.replicates > WEIGHTS_BYTES:
        raise QueryError(
            f"{settings.replicates:,} replicates of {examples:,} evaluation examples would take "
            f"{4 * examples * settings.replicates / 2**30:,.1f} GiB, and 1 GiB is the most. Set harmful.replicates to "
            f"{WEIGHTS_BYTES // (4 * examples):,} or less, or evaluate on a sample."
        )
    weights = replicate_weights(examples, settings.replicates, settings.seed)
    size = max(1, BLOCK_BYTES // (4 * max(settings.replicates, examples)))
    means, errors, low, high = (np.zeros(subject.rows) for _ in range(4))
    for first, scores in subject.evaluation_scores():
        for start in range(0, len(scores), size):
            part = scores[start : start + size] / subject.evaluation_scales
            place = slice(first + start, first + start + len(part))
            means[place], errors[place], low[place], high[place] = bootstrap_mean(part, weights, settings.level)
    judged = np.flatnonzero((subject.norms > 0) & (errors > 0))
    found = np.full(subject.rows, np.nan, dtype=np.float32)
    found[judged] = -means[judged]
    if not len(judged):
        return Finding("harmful", found, {}, _meaning(), "Nothing is flagged: no row has any influence on the set.")
    chances = false_discovery_control(t.cdf(means[judged] / errors[judged], examples - 1))
    typical = float(np.median(np.abs(means[judged])))
    effect = typical if settings.effect is None else settings.effect
    flagged = judged[(chances <= settings.false_discoveries) & (high[judged] < 0) & (-means[judged] >= effect)]
    worth = "as set" if settings.effect is not None else "the typical row's influence either way"
    return Finding(
        "harmful",
        found,
        _cases(subject, settings, flagged, (low, high), effect),
        _meaning(),
        f"Flagged where a false-discovery rate of {settings.false_discoveries:g} holds (Benjamini–Hochberg over "
        f"{len(judged):,} rows), the {settings.level:.0%} bootstrap interval over {examples:,} evaluation examples is "
        f"below zero, and harm is at least {effect:.3g}, {worth}; to drop where the whole interval is, else to review.",
    )


def _meaning() -> str:
    return (
        "Minus the mean influence on the evaluation examples, each example's as multiples of its root mean square over "
        "all rows; positive where training on the row lowers what the model gives them."
    )


def _cases(
    subject: Subject,
    settings: HarmfulSettings,
    flagged: np.ndarray,
    interval: tuple[np.ndarray, np.ndarray],
    effect: float,
) -> dict[int, Case]:
    """Return the cases against the flagged rows, with the evaluation examples that each opposes most."""
    assert subject.evaluation is not None
    ids, (low, high), cases = subject.evaluation.ids, interval, {}
    for first, scores in subject.evaluation_scores():
        inside = flagged[(flagged >= first) & (flagged < first + len(scores))]
        for row in inside.tolist():
            line = scores[row - first] / subject.evaluation_scales
            opposed = np.argsort(line, kind="stable")[: settings.evidence]
            evidence = tuple(ids[place] for place in opposed.tolist() if line[place] < 0)
            told = f"opposes the evaluation set (harm {-high[row]:.3g} to {-low[row]:.3g})"
            action = "drop" if -high[row] >= effect else "review"
            cases[row] = Case(evidence, action, f"{action}: {told}")
    return cases


__all__ = ["FEWEST", "HarmfulSettings", "check", "lacks"]
