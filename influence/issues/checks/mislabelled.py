"""Rows of a classifier whose label is most likely wrong, and the label that their neighbours support.

Three witnesses, and no tuning on known errors:

    loss             how unlikely the model finds the row's label
    self-influence   what a row does to itself: large where the model can get the row right only by heart
    neighbours       the odds against its label among the rows whose gradients are nearest and, where there is an
                     evaluation set, which the model wasn't trained on, the nearest examples of that: both multiplied

Both ends of the neighbour graph are heard. A gradient is the change of the model that a row asks for: rows at the alike
end ask for the same, whatever their label, and speak for it. Rows at the opposed end have like inputs and ask for
another label: to a rightly labelled row these are few and wrong or hard themselves, to a wrongly labelled one they are
the rows of its true class. So a row's voice counts for the square of its cosine times its trust, the probability
exp(−loss) that the model gives the row's own label; otherwise the wrong rows would outvote the right ones they stand
beside. A jury's odds are the voices at the opposed end to those at the alike end, a hundredth of what a row hears on
average added to both: who is hardly heard says little.

An evaluation example's scores are divided by their root mean square over all rows, or a few hard examples would speak
for all. A row is flagged where the neighbours speak against its label and their odds, times the model's own, (1−p)/p
for the probability p = exp(−loss), are five to one or more: an opinion each of a label, held together as if they were
independent. How many these are depends on the data alone. The mean rank of the three witnesses orders the rows, those
that are flagged above the rest.

The squares, the odds of five and the hundredth were chosen on other seeds than those of docs/benchmarks.md, as was the
use of the loss: a model that hasn't learnt wrong labels by heart tells them by it, and self-influence tells what it
has. What didn't help there: self-influence divided by the loss (divided by the length it is the same: a classifier's
row is one scored token), more neighbours than ten, all witnesses' odds in the place of their ranks, and the mean
influence on evaluation examples of the row's own class. It is *higher* of wrongly labelled rows, whose large gradients
push towards that class whatever the input.

Sources: Koh & Liang 2017, section 5.4, and Pruthi et al. 2020 (TracIn), for self-influence; Northcutt et al. 2021,
"Confident Learning", for counting errors by who outvotes whom and ordering them by something finer.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import rankdata

from influence.errors import QueryError
from influence.issues.finding import Case, Finding
from influence.issues.neighbors import NOBODY
from influence.issues.subject import Subject

BLOCK = 4096
EVEN = 0.5
"""The score from which on a row is flagged."""
FIVE_TO_ONE = float(np.log(5))
TINY = float(np.finfo(np.float32).tiny)
CAUTION = 0.01
"""Of what a row hears on average: added to either side."""
MAJORITY = 0.6
"""Of the opposed voices: from it on a label is suggested."""


class MislabelledSettings(BaseModel):
    """When a label is taken for wrong.

    Attributes:
        threshold: Flag rows from this score on, between 0 and 1; those with odds of five to one if None.
        examples: Nearest examples of the evaluation set that are heard at either end.
        evidence: Ids that are given as evidence, at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float | None = Field(default=None, ge=0, le=1)
    examples: int = Field(default=10, ge=1, le=1000)
    evidence: int = Field(default=5, ge=1)


def lacks(subject: Subject) -> str | None:
    """Return what is missing: labels, a model that reads them, or a recipe with self-influence."""
    if not subject.labelled:
        return "the rows have no labels."
    if subject.run.config.model.kind != "sequence_classification":
        return "the model is no classifier: its gradients don't depend on the labels, and can't tell a wrong one."
    try:
        subject.check_self_influence()
    except QueryError as error:
        return f"it takes each row's influence on itself. {error}"
    return None


def check(subject: Subject, settings: MislabelledSettings) -> Finding:
    """Flag rows whose label neither the model has learnt nor the neighbours share."""
    judged = np.flatnonzero((subject.labels.codes >= 0) & (subject.norms > 0))
    neighbours, whom = _rows_against(subject), "nearest rows"
    if subject.evaluation is not None:
        neighbours += _examples_against(subject, settings.examples)
        whom += " and evaluation examples"
    neighbours, losses = neighbours[judged], subject.losses[judged].astype(np.float64)
    model = losses + np.log(-np.expm1(-np.maximum(losses, TINY)))
    flags = (neighbours > 0) & (neighbours + model >= FIVE_TO_ONE)
    scores = np.full(subject.rows, np.nan, dtype=np.float32)
    scores[judged] = ranked([losses, subject.self_influence[judged], neighbours], flags)
    threshold = EVEN if settings.threshold is None else settings.threshold
    with np.errstate(invalid="ignore"):
        flagged = np.flatnonzero(scores >= threshold)
    return Finding(
        "mislabelled",
        scores,
        _cases(subject, settings, flagged),
        f"Half the mean rank, from 0 to 1, of the row's loss, its self-influence and the odds that its {whom} give "
        "against its label; plus a half where these are above even and, times the model's own, five to one or more.",
        f"Flagged from {threshold:g} on: "
        + (f"the {whom} and the model say five to one against." if settings.threshold is None else "as set."),
    )


def ranked(witnesses: Sequence[np.ndarray], flags: np.ndarray) -> np.ndarray:
    """Return the score of each row, float32 [n]: below a half, or above it where the row is flagged.

    Args:
        witnesses: What speaks against each row, larger for more, [n] each.
        flags: Which rows are, bool [n].
    """
    half = np.mean([rankdata(witness) for witness in witnesses], axis=0) / max(1, len(flags)) / 2
    below = np.nextafter(np.float32(EVEN), np.float32(0))
    return np.where(flags, EVEN + half, np.minimum(half, below)).astype(np.float32)


def odds_against(opposed: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """Return the logarithm of each row's odds, those against to those for, float64 [n]; 0 where nobody is heard.

    Args:
        opposed: What all voices at the opposed end count for, [n], none negative.
        alike: The same at the alike end.
    """
    con, pro = opposed.astype(np.float64), alike.astype(np.float64)
    little = max(CAUTION * float(np.mean(con + pro)), TINY) if len(con) else TINY
    return np.log((con + little) / (pro + little))


def _rows_against(subject: Subject) -> np.ndarray:
    """Return the log odds that each row's nearest rows give against it, [rows]."""
    con, pro = np.empty((2, subject.rows), dtype=np.float32)
    trust = np.exp(-subject.losses)
    for first, near in subject.graph.blocks(BLOCK):
        here = slice(first, first + len(near.alike))
        con[here] = _voices(near.opposed, -near.opposed_cosines, trust).sum(axis=1)
        pro[here] = _voices(near.alike, near.alike_cosines, trust).sum(axis=1)
    return odds_against(con, pro)


def _voices(rows: np.ndarray, cosines: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """Return what neighbours count for: the square of the cosine that has the sign of its end, times their trust."""
    return np.where(rows == NOBODY, 0, np.maximum(cosines, 0) ** 2 * trust[rows])


def _examples_against(subject: Subject, most: int) -> np.ndarray:
    """Return the log odds that each row's nearest evaluation examples give against it, [rows]."""
    con, pro = np.empty((2, subject.rows), dtype=np.float32)
    for first, scores in _scaled(subject):
        here, k = slice(first, first + len(scores)), min(most, scores.shape[1])
        ends = np.partition(scores, (k - 1, scores.shape[1] - k), axis=1)
        con[here] = np.maximum(-ends[:, :k], 0).sum(axis=1)
        pro[here] = np.maximum(ends[:, -k:], 0).sum(axis=1)
    return odds_against(con, pro)


def _scaled(subject: Subject) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, scores [b, examples]), each example's as multiples of their root mean square."""
    scales = subject.evaluation_scales
    for first, scores in subject.evaluation_scores():
        for start in range(0, len(scores), BLOCK):
            yield first + start, scores[start : start + BLOCK] / scales


def _cases(subject: Subject, settings: MislabelledSettings, flagged: np.ndarray) -> dict[int, Case]:
    """Return the cases against the flagged rows: what label the opposed voices have, and who they are."""
    votes = _row_votes(subject, flagged)
    if subject.evaluation is not None:
        for row, heard in _example_votes(subject, settings.examples, flagged).items():
            votes[row] += heard
    names, cases = subject.labels.names, {}
    for row in flagged.tolist():
        own = names[subject.labels.codes[row]]
        counts: dict[str, float] = {}
        for label, voice, _ in votes[row]:
            if label != own:
                counts[label] = counts.get(label, 0.0) + voice
        if not counts:
            cases[row] = Case((), "review", "review: the label is memorised, and no neighbour has another")
            continue
        label = max(counts, key=lambda name: (counts[name], name))
        heard = sorted((vote for vote in votes[row] if vote[0] == label), key=lambda vote: -vote[1])
        evidence = tuple(dict.fromkeys(who for _, _, who in heard))[: settings.evidence]
        if counts[label] >= MAJORITY * sum(voice for _, voice, _ in votes[row]):
            cases[row] = Case(evidence, "relabel", f"relabel to {label!r}", label)
        else:
            cases[row] = Case(
                evidence, "review", f"review: the label may be {label!r}, of several that neighbours have"
            )
    return cases


Vote = tuple[str, float, str]
"""A label, what the voice for it counts for (all voices of a jury: 1), and whose it is."""


def _row_votes(subject: Subject, flagged: np.ndarray) -> dict[int, list[Vote]]:
    """Return what the opposed rows of each flagged row say."""
    found: dict[int, list[Vote]] = {}
    for start in range(0, len(flagged), BLOCK):
        rows = flagged[start : start + BLOCK]
        near = subject.graph.of(rows)
        voices = _voices(near.opposed, -near.opposed_cosines, np.exp(-subject.losses))
        shares = voices / np.maximum(voices.sum(axis=1, keepdims=True), TINY)
        who = np.unique(near.opposed[shares > 0])
        ids = dict(zip(who.tolist(), subject.ids(who), strict=True))
        for place, row in enumerate(rows.tolist()):
            others = zip(near.opposed[place].tolist(), shares[place].tolist(), strict=True)
            told = [(subject.labels.name(other), share, ids.get(other, "")) for other, share in others if share > 0]
            found[row] = [(label, share, name) for label, share, name in told if label is not None]
    return found


def _example_votes(subject: Subject, most: int, flagged: np.ndarray) -> dict[int, list[Vote]]:
    """Return what the opposed evaluation examples of each flagged row say."""
    assert subject.evaluation is not None
    labels, ids = subject.evaluation.labels, subject.evaluation.ids
    found: dict[int, list[Vote]] = {row: [] for row in flagged.tolist()}
    for first, scores in _scaled(subject):
        inside = flagged[(flagged >= first) & (flagged < first + len(scores))]
        for row in inside.tolist():
            line = scores[row - first]
            opposed = np.argsort(line, kind="stable")[:most]
            voices = np.maximum(-line[opposed], 0)
            total = max(float(voices.sum()), TINY)
            for place, voice in zip(opposed.tolist(), voices.tolist(), strict=True):
                label = labels[place]
                if voice > 0 and label is not None:
                    found[row].append((label, voice / total, ids[place]))
    return found


__all__ = ["MislabelledSettings", "check", "lacks", "odds_against"]
