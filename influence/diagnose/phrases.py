"""Phrases that some rows share far oftener than the rest: what flagged rows have in common.

A phrase is a run of up to five words, in lower case, without punctuation. Its case is the log-likelihood ratio G² of
the rows that have it among those flagged and among the rest, with Bonferroni's correction for the phrases looked at.
Phrases are taken greedily: the strongest first, as long as it may be, then the strongest among the flagged rows that
have none yet.

Counting is bounded: of the flagged rows the strongest are read, of the rest an even sample, and phrases seen once are
dropped whenever there are too many (lossy counting: Manku & Motwani 2002).

Source: Dunning 1993, "Accurate Methods for the Statistics of Surprise and Coincidence".
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from influence.store.reader import Store

WORD = re.compile(r"\w+")
LONGEST = 5
"""Words of a phrase."""
READ_WORDS = 512
"""Words of a text that are looked at."""
READ_ROWS = 2_000
"""Flagged rows, the strongest, in which phrases are looked for."""
REST_ROWS = 100_000
"""Other rows that are counted, evenly spread."""
HELD = 1_000_000
"""Phrases counted at a time."""
CANDIDATES = 1_000
CLOSE = 0.6
"""A longer phrase is taken instead of one within it if its surprise is this share: it names fewer rows by chance."""
GROUPS = 20
LEVEL = 0.01
"""Chance, over all phrases looked at, of calling one shared where none is."""
BLOCK = 4096


@dataclass(frozen=True)
class Phrase:
    """A phrase that flagged rows share.

    Attributes:
        words: The phrase.
        flagged: Rows that have it, of the flagged ones that were read.
        share: Of all rows that have it, the estimated share that is flagged.
        surprise: G², the log-likelihood ratio.
    """

    words: str
    flagged: int
    share: float
    surprise: float


def shared_phrases(store: Store, flagged: np.ndarray, fewest: int, among: set[str] | None = None) -> tuple[Phrase, ...]:
    """Return the phrases that flagged rows share, the strongest first.

    Args:
        store: The rows.
        flagged: Rows, int64, the strongest case first.
        fewest: Rows that must have a phrase.
        among: The only phrases that are looked at; any if None. The fewer, the less each has to stand out by.
    """
    read = np.sort(flagged[:READ_ROWS])
    counts = _counted(_texts(store, read), among)
    known = {phrase for phrase, count in counts.items() if count >= fewest}
    if not known:
        return ()
    rest = np.setdiff1d(np.arange(store.rows), flagged, assume_unique=True)
    others = rest[np.unique(np.linspace(0, len(rest) - 1, min(len(rest), REST_ROWS)).astype(np.int64))]
    elsewhere = Counter[str]()
    for text in _texts(store, others):
        elsewhere.update(known & phrases_of(text))
    limit = float(chi2.isf(LEVEL / len(known if among is None else among), df=1))
    ranked = sorted(
        ((surprise(counts[phrase], len(read), elsewhere[phrase], len(others)), phrase) for phrase in known),
        key=lambda pair: (-pair[0], -len(pair[1].split()), pair[1]),
    )
    candidates = [phrase for value, phrase in ranked[:CANDIDATES] if value > 0]
    members = {phrase: set[int]() for phrase in candidates}
    for place, text in enumerate(_texts(store, read)):
        for phrase in members.keys() & phrases_of(text):
            members[phrase].add(place)
    scale = len(rest) / max(1, len(others))
    found = []
    left = set(range(len(read)))
    while candidates and len(found) < GROUPS:
        values = {
            phrase: surprise(len(members[phrase] & left), len(left), elsewhere[phrase], len(others))
            for phrase in candidates
        }
        best = max(candidates, key=lambda phrase: (values[phrase], phrase))
        if values[best] <= limit:
            break
        whole = [phrase for phrase in candidates if f" {best} " in f" {phrase} "]
        near = [phrase for phrase in whole if values[phrase] >= CLOSE * values[best]]
        best = max(near, key=lambda phrase: (len(phrase.split()), values[phrase], phrase))
        covered = members[best] & left
        if len(covered) < fewest:
            break
        everywhere = len(members[best]) + scale * elsewhere[best]
        found.append(Phrase(best, len(covered), len(members[best]) / everywhere, values[best]))
        left -= covered
        # Other rows with a word of the trigger have that word and not the trigger.
        candidates = [phrase for phrase in candidates if f" {phrase} " not in f" {best} "]
    return tuple(found)


def rows_with(store: Store, phrases: Sequence[Phrase]) -> Iterator[tuple[int, int]]:
    """Yield (row, number of the first phrase that it has) of the rows that have one. Reads every text once."""
    patterns = [f" {phrase.words} " for phrase in phrases]
    for row, text in enumerate(store.texts()):
        line = f" {' '.join(_words(text))} "
        for number, pattern in enumerate(patterns):
            if pattern in line:
                yield row, number
                break


def phrases_of(text: str) -> set[str]:
    """Return every phrase of a text, its words divided by single spaces."""
    words = _words(text)
    return {
        " ".join(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    }


def surprise(inside: int, of_inside: int, outside: int, of_outside: int) -> float:
    """Return G² of a phrase, 0 where it isn't more frequent inside than outside."""
    if not of_inside or not of_outside or inside * of_outside <= outside * of_inside:
        return 0.0
    share = (inside + outside) / (of_inside + of_outside)
    table = [
        (inside, of_inside * share),
        (of_inside - inside, of_inside * (1 - share)),
        (outside, of_outside * share),
        (of_outside - outside, of_outside * (1 - share)),
    ]
    return 2 * float(sum(found * np.log(found / expected) for found, expected in table if found))


def _counted(texts: Iterable[str], among: set[str] | None) -> Counter[str]:
    counts = Counter[str]()
    for text in texts:
        found = phrases_of(text)
        counts.update(found if among is None else found & among)
        if len(counts) > HELD:
            counts = Counter({phrase: count for phrase, count in counts.items() if count > 1})
    return counts


def _texts(store: Store, rows: np.ndarray) -> Iterator[str]:
    for start in range(0, len(rows), BLOCK):
        yield from (line["text"] for line in store.meta(rows[start : start + BLOCK], ("text",)))


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())[:READ_WORDS]


__all__ = ["Phrase", "phrases_of", "rows_with", "shared_phrases", "surprise"]
