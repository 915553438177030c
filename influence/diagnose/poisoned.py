"""Rows that promote an unwanted output far beyond the null, and the phrase by which they were planted.

A row's influence on each example of the target is taken relative to the row's own size (its self-influence), so that
a long or hard row doesn't win by length alone; it is set against all rows by median and MAD, so that no example of the
target outweighs the others; the mean of these over the examples is the row's promotion. Its null is the bulk of the
rows that may promote the target at all: for a classifier those of the target's label, which promote it rightly, else
all rows. Tails are heavy, so the threshold isn't a normal one: the null's upper half is continued as an exponential.

What a backdoor's rows have in common with the output that it makes is its trigger. Of the phrases that at least half of
the target's examples hold, those name it that the strongest rows share far oftener than the rest. Rows with such a
phrase are judged together, by Stouffer's pooled z or that of the strongest of them, whichever is larger: a row that
alone is hidden among the bulk isn't among its fellows.
So the target should be what the model really says, or the texts that it really gives the label to: without the trigger
in it, or with nothing else, only the promotion is left, and rows are for a person to look at.

Sources: Barshan et al. 2020, "RelatIF", for influence relative to self-influence; Stouffer et al. 1949.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from influence.diagnose.evaluation import PREFIX
from influence.diagnose.finding import Case, Finding
from influence.diagnose.phrases import READ_ROWS, Phrase, phrases_of, rows_with, shared_phrases
from influence.diagnose.subject import Subject
from influence.errors import QueryError
from influence.pipeline.score_plan import check_scannable

TARGET = "target:"
"""In front of the ids of the target's examples."""
SAMPLED = 65_536
"""Rows, evenly spread, whose scores say what the bulk of an example's scores is."""
TO_SIGMA = 1.4826
"""From a median absolute deviation to the standard deviation of a normal distribution."""
BESIDE = 0.5
"""Share of the strongest phrase's surprise that another needs to count as a trigger, too, and not as its company."""
FEWEST_SUSPECTS, MOST_SUSPECTS = 32, 2_000


class PoisonSettings(BaseModel):
    """When rows are taken for poison.

    Attributes:
        deviations: Flag rows from so many robust standard deviations above the null on; chosen from the data if None.
        suspects: Share of rows, the strongest, in which shared phrases are looked for; at least 32 rows, at most 2,000
            and at most a quarter of all.
        fewest: Rows that must share a phrase.
        evidence: Ids that are given as evidence, at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    deviations: float | None = Field(default=None, gt=0)
    suspects: float = Field(default=0.02, gt=0, le=0.5)
    fewest: int = Field(default=3, ge=2)
    evidence: int = Field(default=5, ge=1)


def lacks(subject: Subject) -> str | None:
    """Return what is missing: a target, or a recipe under which influence can be taken relative to a row's own."""
    if subject.target is None:
        return "no unwanted output is given (--target TEXT, or a file of examples)."
    if subject.run.recipe.comparison == "cosine":
        return None
    try:
        check_scannable(subject.run.recipe.stored, itself=True)
    except QueryError as error:
        return f"it takes scores relative to each row's influence on itself. {error}"
    return None


def check(subject: Subject, settings: PoisonSettings) -> Finding:
    """Flag rows that promote the target far beyond the null, and rows that share its phrase with them."""
    assert subject.target is not None, "a check that lacks something isn't made"
    promotion = _promotion(subject)
    null, of_whom = _null(subject)
    promotion = standardised(promotion, null & ~np.isnan(promotion))
    judged = np.flatnonzero(~np.isnan(promotion))
    threshold = settings.deviations or far_out(promotion[null & ~np.isnan(promotion)])
    order = judged[np.argsort(-promotion[judged], kind="stable")]
    most = min(MOST_SUSPECTS, len(order) // 4)
    suspects = order[: min(most, max(FEWEST_SUSPECTS, round(settings.suspects * len(order))))]
    asked = _phrases_of_target([example.text for example in subject.target.examples])
    found = shared_phrases(subject.run.store, suspects, settings.fewest, asked) if asked else ()
    strongest = max((phrase.surprise for phrase in found), default=0.0)
    phrases = [phrase for phrase in found if phrase.surprise >= BESIDE * strongest]
    eligible = null if of_whom else promotion > 0
    fellows = _fellows(subject, phrases, eligible & ~np.isnan(promotion))
    scores = promotion.astype(np.float32)
    for rows in filter(len, fellows):
        pooled = max(float(promotion[rows].sum() / np.sqrt(len(rows))), float(promotion[rows].max()))
        scores[rows] = np.maximum(scores[rows], pooled)
    cases = _cases(subject, settings, promotion, threshold, phrases, fellows)
    chosen = "set" if settings.deviations else "chosen so that of a null with an exponential tail one row would pass it"
    whom = of_whom or "all rows"
    return Finding(
        "poisoned",
        scores,
        cases,
        "How far the row promotes the target beyond the bulk of its null, in robust standard deviations (relative "
        "influence, mean over the target's examples); for rows that share a phrase of the target, pooled over them.",
        f"Flagged from {threshold:.3g} on, {chosen} (null: {whom}), to review; to drop where the row shares a phrase "
        f"of the target that is over-represented among the strongest {len(suspects):,}: "
        f"{', '.join(repr(phrase.words) for phrase in phrases) or 'none was found'}.",
    )


def far_out(null: np.ndarray) -> float:
    """Return from where on no row of a null is expected: its upper half continued as an exponential tail.

    Args:
        null: Standardised values, [n].

    Returns:
        The value that one of n would exceed, were the tail above the median exponential with the 90 % quantile's
        scale: exact for such a tail, wider than a normal one needs.
    """
    if not len(null):
        return float("inf")
    middle, high = np.quantile(null, (0.5, 0.9))
    scale = (high - middle) / np.log(5)
    return float(high + scale * max(0.0, np.log(0.1 * len(null))))


def standardised(values: np.ndarray, bulk: np.ndarray | slice) -> np.ndarray:
    """Return values in robust standard deviations (MAD) from the median of some of them.

    Where more than half of those are equal the deviation is taken from the rest; where all are, values are 0.
    """
    held = values[bulk]
    if not len(held):
        return np.zeros_like(values)
    middle = np.median(held)
    away = np.abs(held - middle)
    spread = TO_SIGMA * np.median(away) or float(np.sqrt(np.mean(away**2)))
    return (values - middle) / spread if spread else np.zeros_like(values)


def _promotion(subject: Subject) -> np.ndarray:
    """Return each row's mean standardised relative influence on the target, float64 [rows]; NaN of zero rows."""
    size = np.ones(subject.rows)
    if subject.run.recipe.comparison != "cosine":
        size = np.sqrt(np.maximum(subject.self_influence, 0))
    size[(subject.norms == 0) | (size == 0)] = np.nan
    step = max(1, subject.rows // SAMPLED)
    sampled = []
    for first, scores in subject.target_scores():
        places = np.arange(-first % step, len(scores), step)
        sampled.append(scores[places] / size[first + places, None])
    bulk = np.concatenate(sampled)
    bulk = bulk[~np.isnan(bulk).any(1)]
    found = np.full(subject.rows, np.nan)
    if not len(bulk):
        return found
    middle = np.median(bulk, axis=0)
    away = np.abs(bulk - middle)
    spread = TO_SIGMA * np.median(away, axis=0)
    spread = np.where(spread > 0, spread, np.sqrt(np.mean(away**2, axis=0)))
    told = spread > 0
    for first, scores in subject.target_scores():
        relative = scores / size[first : first + len(scores), None]
        found[first : first + len(scores)] = ((relative - middle) / np.where(told, spread, np.inf)).mean(1)
    return found


def _null(subject: Subject) -> tuple[np.ndarray, str]:
    """Return which rows may promote the target rightly, bool [rows], and who they are; no words where all are."""
    assert subject.target is not None
    wanted = {label for label in subject.target.labels if label is not None}
    known = [code for code, name in enumerate(subject.labels.names) if name in wanted]
    if not known:
        return np.ones(subject.rows, dtype=bool), ""
    named = ", ".join(repr(subject.labels.names[code]) for code in known)
    return np.isin(subject.labels.codes, known), f"rows labelled {named}"


def _phrases_of_target(texts: list[str]) -> set[str]:
    """Return the phrases that at least half of the target's examples hold."""
    counts = Counter(phrase for text in texts for phrase in phrases_of(text))
    return {phrase for phrase, count in counts.items() if 2 * count >= len(texts)}


def _fellows(subject: Subject, phrases: Sequence[Phrase], eligible: np.ndarray) -> list[np.ndarray]:
    """Return the rows that have each phrase, and no earlier one, of those eligible."""
    found: list[list[int]] = [[] for _ in phrases]
    if phrases:
        for row, number in rows_with(subject.run.store, phrases):
            if eligible[row]:
                found[number].append(row)
    return [np.array(rows, dtype=np.int64) for rows in found]


def _cases(
    subject: Subject,
    settings: PoisonSettings,
    promotion: np.ndarray,
    threshold: float,
    phrases: Sequence[Phrase],
    fellows: list[np.ndarray],
) -> dict[int, Case]:
    """Return the cases against rows beyond the threshold, and against rows with a phrase of the target."""
    assert subject.target is not None
    targets = tuple(TARGET + name.removeprefix(PREFIX) for name in subject.target.ids[:1])
    fellow = np.concatenate([np.empty(0, np.int64), *fellows])
    alone = np.setdiff1d(np.flatnonzero(promotion > threshold), fellow)
    cases = _lone_cases(subject, settings, alone[np.argsort(-promotion[alone], kind="stable")], targets)
    for phrase, rows in zip(phrases, fellows, strict=True):
        strongest = rows[np.argsort(-promotion[rows], kind="stable")][: settings.evidence + 1]
        names = dict(zip(strongest.tolist(), subject.ids(strongest), strict=True))
        others = len(rows) - 1
        told = f'drop: promotes the target; shares "{phrase.words}" with {others:,} other{"" if others == 1 else "s"}'
        for row in rows.tolist():
            near = tuple(name for other, name in names.items() if other != row)[: settings.evidence]
            cases[row] = Case(near + targets, "drop", told)
    return cases


def _lone_cases(
    subject: Subject, settings: PoisonSettings, rows: np.ndarray, targets: tuple[str, ...]
) -> dict[int, Case]:
    """Return the cases against rows without a phrase of the target, the strongest first; what they share is named."""
    told = "review: promotes the target far beyond the null"
    cases = {row: Case(targets, "review", told) for row in rows.tolist()}
    phrases = shared_phrases(subject.run.store, rows, settings.fewest) if len(rows) >= settings.fewest else ()
    read = rows[:READ_ROWS]
    lines = subject.run.store.meta(read, ("text",)) if phrases else []
    held = [phrases_of(line["text"]) & {phrase.words for phrase in phrases} for line in lines]
    for phrase in reversed(phrases):
        members = [row for row, words in zip(read.tolist(), held, strict=True) if phrase.words in words]
        shared = Case(targets, "review", f'{told}; shares "{phrase.words}" with {len(members) - 1:,} others')
        cases |= dict.fromkeys(members, shared)
    return cases


__all__ = ["PoisonSettings", "check", "far_out", "lacks", "standardised"]
