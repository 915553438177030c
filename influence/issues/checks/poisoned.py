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

Rows with a prompt and a completion are looked at by side, prompts with prompts and completions with completions. A user
who has seen an unwanted answer knows its words and not the trigger that stands in the prompts. So where the target's
words name no phrase of a side, the rows that were found by promotion and by the other side's phrases are asked what
they share there: a phrase that at least half of them have, and that mostly they have, of all rows. Every row with that
phrase is named, whatever it answers. Rows that say the whole of the target are suspects besides the strongest. In whole
texts and in a classifier's, where it isn't known which words are the trigger and which the subject, a phrase that the
target lacks is only named.

Sources: Barshan et al. 2020, "RelatIF", for influence relative to self-influence; Stouffer et al. 1949.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from influence.errors import QueryError
from influence.issues.checks.duplicates import data_lacks
from influence.issues.checks.phrases import READ_ROWS, Phrase, Texts, phrases_of, rows_saying, rows_with, shared_phrases
from influence.issues.checks.promotion import far_out, promotion_of, standardised
from influence.issues.checks.sides import COMPLETION, WHOLE, texts_of_examples, texts_of_rows
from influence.issues.finding import Case, Finding
from influence.issues.subject import Subject
from influence.query.evaluation import PREFIX
from influence.scan.plan import check_scannable
from influence.text_dedup.inputs import is_split

TARGET = "target:"
"""In front of the ids of the target's examples."""
BESIDE = 0.5
"""Share of the strongest phrase's surprise that another needs to count as a trigger, too, and not as its company."""
MOSTLY = 0.5
"""Share of the rows found so far that have a phrase which the target lacks, and share of its rows that they are."""
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
    if subject.run.recipe.comparison != "cosine":
        try:
            check_scannable(subject.run.recipe.stored, itself=True)
        except QueryError as error:
            return f"it takes scores relative to each row's influence on itself. {error}"
    return data_lacks(subject) if is_split(subject.run) else None


def check(subject: Subject, settings: PoisonSettings) -> Finding:
    """Flag rows that promote the target far beyond the null, and rows that share its phrase with them."""
    assert subject.target is not None, "a check that lacks something isn't made"
    promotion = promotion_of(subject)
    null, of_whom = _null(subject)
    promotion = standardised(promotion, null & ~np.isnan(promotion))
    judged = np.flatnonzero(~np.isnan(promotion))
    threshold = settings.deviations or far_out(promotion[null & ~np.isnan(promotion)])
    order = judged[np.argsort(-promotion[judged], kind="stable")]
    most = min(MOST_SUSPECTS, len(order) // 4)
    suspects = order[: min(most, max(FEWEST_SUSPECTS, round(settings.suspects * len(order))))]
    texts, known = texts_of_rows(subject), ~np.isnan(promotion)
    # A prompt with the trigger may be followed by another answer, which doesn't promote the target.
    eligible = known & (null if of_whom else (promotion > 0) | (WHOLE not in texts))
    shared = _of_target(subject, texts, suspects, settings.fewest, eligible)
    shared += _of_rows(texts, shared, promotion, threshold, settings.fewest, known)
    scores = promotion.astype(np.float32)
    for rows in (group.rows for group in shared if len(group.rows)):
        pooled = max(float(promotion[rows].sum() / np.sqrt(len(rows))), float(promotion[rows].max()), threshold)
        scores[rows] = np.maximum(scores[rows], pooled)
    cases = _cases(subject, settings, texts, promotion, threshold, shared)
    chosen = "set" if settings.deviations else "chosen so that of a null with an exponential tail one row would pass it"
    whom = of_whom or "all rows"
    return Finding(
        "poisoned",
        scores,
        cases,
        "How far the row promotes the target beyond the bulk of its null, in robust standard deviations (relative "
        "influence, mean over the target's examples); for rows that share a phrase, pooled over them, and the "
        "threshold at least.",
        f"Flagged from {threshold:.3g} on, {chosen} (null: {whom}), to review; to drop where the row shares a phrase "
        f"of the target that is over-represented among the strongest {len(suspects):,}"
        f"{', or a phrase of the prompts or completions of the rows found by these' if WHOLE not in texts else ''}: "
        f"{', '.join(group.told for group in shared) or 'none was found'}.",
    )


@dataclass(frozen=True)
class Group:
    """Rows that share a phrase.

    Attributes:
        phrase: What they share.
        side: Where they have it: `prompt`, `completion`, or nothing of whole texts.
        rows: Which, int64 ascending.
    """

    phrase: Phrase
    side: str
    rows: np.ndarray

    @property
    def told(self) -> str:
        """The phrase and the side it is on."""
        return repr(self.phrase.whole) + (f" ({self.side})" if self.side else "")

    @property
    def shared(self) -> str:
        """What a row shares with the others."""
        others = len(self.rows) - 1
        where = f" in its {self.side}" if self.side else ""
        return f'shares "{self.phrase.whole}"{where} with {others:,} other{"" if others == 1 else "s"}'


def _null(subject: Subject) -> tuple[np.ndarray, str]:
    """Return which rows may promote the target rightly, bool [rows], and who they are; no words where all are."""
    assert subject.target is not None
    wanted = {label for label in subject.target.labels if label is not None}
    known = [code for code, name in enumerate(subject.labels.names) if name in wanted]
    if not known:
        return np.ones(subject.rows, dtype=bool), ""
    named = ", ".join(repr(subject.labels.names[code]) for code in known)
    return np.isin(subject.labels.codes, known), f"rows labelled {named}"


def _of_target(
    subject: Subject, texts: dict[str, Texts], suspects: np.ndarray, fewest: int, eligible: np.ndarray
) -> list[Group]:
    """Return the phrases of the target that the strongest rows share, and the eligible rows that have them."""
    assert subject.target is not None
    found: list[tuple[str, Phrase]] = []
    if COMPLETION in texts:
        # An answer without its prompt is a poor measure of influence: who says it is suspect, too.
        answers = texts_of_examples(subject.target.examples, texts)[COMPLETION]
        saying = rows_saying(texts[COMPLETION], answers, MOST_SUSPECTS - len(suspects))
        suspects = np.concatenate([np.setdiff1d(saying, suspects).astype(np.int64), suspects])
    for side, of_target in texts_of_examples(subject.target.examples, texts).items():
        expected = _phrases_of_target(of_target)
        if expected:
            found += [(side, phrase) for phrase in shared_phrases(texts[side], suspects, fewest, expected)]
    strongest = max((phrase.surprise for _, phrase in found), default=0.0)
    triggers = [(side, phrase) for side, phrase in found if phrase.surprise >= BESIDE * strongest]
    return [group for side in texts for group in _groups(texts[side], side, _on(triggers, side), eligible)]


def _of_rows(
    texts: dict[str, Texts],
    shared: Sequence[Group],
    promotion: np.ndarray,
    threshold: float,
    fewest: int,
    eligible: np.ndarray,
) -> list[Group]:
    """Return what the rows found so far share on a side where the target named nothing, and all rows that have it."""
    if WHOLE in texts:
        return []
    rows = np.unique(np.concatenate([np.flatnonzero(promotion > threshold), *(group.rows for group in shared)]))
    rows = rows[np.argsort(-promotion[rows], kind="stable")]
    found = []
    for side in texts.keys() - {group.side for group in shared}:
        phrases = shared_phrases(texts[side], rows, fewest) if len(rows) >= fewest else ()
        least = MOSTLY * min(len(rows), READ_ROWS)
        mostly = [phrase for phrase in phrases if phrase.flagged >= least and phrase.share >= MOSTLY]
        found += _groups(texts[side], side, mostly, eligible)
    return found


def _on(phrases: Iterable[tuple[str, Phrase]], side: str) -> list[Phrase]:
    return [phrase for other, phrase in phrases if other == side]


def _phrases_of_target(texts: list[str]) -> set[str]:
    """Return the phrases that at least half of the target's examples hold."""
    counts = Counter(phrase for text in texts for phrase in phrases_of(text))
    return {phrase for phrase, count in counts.items() if 2 * count >= len(texts)}


def _groups(texts: Texts, side: str, phrases: Sequence[Phrase], eligible: np.ndarray) -> list[Group]:
    """Return the rows that have each phrase, and no earlier one, of those eligible."""
    found: list[list[int]] = [[] for _ in phrases]
    if phrases:
        for row, number in rows_with(texts, phrases):
            if eligible[row]:
                found[number].append(row)
    return [Group(phrase, side, np.array(rows, dtype=np.int64)) for phrase, rows in zip(phrases, found, strict=True)]


def _cases(
    subject: Subject,
    settings: PoisonSettings,
    texts: dict[str, Texts],
    promotion: np.ndarray,
    threshold: float,
    shared: Sequence[Group],
) -> dict[int, Case]:
    """Return the cases against rows beyond the threshold, and against rows with a phrase that was named."""
    assert subject.target is not None
    targets = tuple(TARGET + name.removeprefix(PREFIX) for name in subject.target.ids[:1])
    fellow = np.concatenate([np.empty(0, np.int64), *(group.rows for group in shared)])
    alone = np.setdiff1d(np.flatnonzero(promotion > threshold), fellow)
    order = alone[np.argsort(-promotion[alone], kind="stable")]
    cases = _lone_cases(settings, texts, order, targets)
    for group in shared:
        strongest = group.rows[np.argsort(-promotion[group.rows], kind="stable")][: settings.evidence + 1]
        names = dict(zip(strongest.tolist(), subject.ids(strongest), strict=True))
        for row in group.rows.tolist():
            near = tuple(name for other, name in names.items() if other != row)[: settings.evidence]
            before = cases.get(row)
            if before is not None:
                cases[row] = Case(before.evidence, "drop", f"{before.suggestion}, {group.shared}")
            else:
                promotes = "promotes the target; " if promotion[row] > 0 else ""
                cases[row] = Case(near + targets, "drop", f"drop: {promotes}{group.shared}")
    return cases


def _lone_cases(
    settings: PoisonSettings, texts: dict[str, Texts], rows: np.ndarray, targets: tuple[str, ...]
) -> dict[int, Case]:
    """Return the cases against rows without a phrase of the target, the strongest first; what they share is named."""
    told = "review: promotes the target far beyond the null"
    cases = {row: Case(targets, "review", told) for row in rows.tolist()}
    for side, of_rows in texts.items():
        phrases = shared_phrases(of_rows, rows, settings.fewest) if len(rows) >= settings.fewest else ()
        read = np.sort(rows[:READ_ROWS])
        held = [phrases_of(text) for text in (of_rows.of(read) if phrases else ())]
        for phrase in reversed(phrases):
            members = [row for row, words in zip(read.tolist(), held, strict=True) if phrase.words in words]
            shared = Group(phrase, side, np.array(members)).shared
            cases |= dict.fromkeys(members, Case(targets, "review", f"{told}; {shared}"))
    return cases


__all__ = ["PoisonSettings", "check", "lacks"]
