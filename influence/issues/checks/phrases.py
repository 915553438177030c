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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy.stats import chi2

BREAK = "\x1e"
"""Between the parts of a text, such as the messages of a conversation: no phrase runs over it."""
WORD = re.compile(rf"\w+|{BREAK}")
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
OFTENER = 5
"""A phrase is shared if flagged rows have it so many times as often as the rest: common words surprise, too."""
GROUPS = 20
LEVEL = 0.01
"""Chance, over all phrases looked at, of calling one shared where none is."""
FEWEST_WORDS = 3
"""Words of a saying: fewer are said by chance."""
MOST_WORDS = 20
"""Words of a phrase as it is shown."""


@dataclass(frozen=True)
class Texts:
    """One text of every row: all of it, its prompt or its completion.

    Attributes:
        rows: How many there are.
        of: Yields the texts of some rows, int64 ascending, a block in memory at a time.
        every: Yields every row's text in order.
    """

    rows: int
    of: Callable[[np.ndarray], Iterable[str]]
    every: Callable[[], Iterable[str]]


@dataclass(frozen=True)
class Phrase:
    """A phrase that flagged rows share.

    Attributes:
        words: The phrase.
        whole: The words around it too, as far as all flagged rows that have it share them.
        flagged: Rows that have it, of the flagged ones that were read.
        share: Of all rows that have it, the estimated share that is flagged.
        surprise: G², the log-likelihood ratio.
    """

    words: str
    whole: str
    flagged: int
    share: float
    surprise: float


def shared_phrases(texts: Texts, flagged: np.ndarray, fewest: int, among: set[str] | None = None) -> tuple[Phrase, ...]:
    """Return the phrases that flagged rows share, the strongest first.

    Args:
        texts: Of every row.
        flagged: Rows, int64, the strongest case first.
        fewest: Rows that must have a phrase.
        among: The only phrases that are looked at; any if None. The fewer, the less each has to stand out by.
    """
    read = np.sort(flagged[:READ_ROWS])
    counts = _counted(texts.of(read), among)
    known = {phrase for phrase, count in counts.items() if count >= fewest}
    if not known:
        return ()
    rest = np.setdiff1d(np.arange(texts.rows), flagged, assume_unique=True)
    others = rest[np.unique(np.linspace(0, len(rest) - 1, min(len(rest), REST_ROWS)).astype(np.int64))]
    elsewhere = Counter[str]()
    for text in texts.of(others):
        elsewhere.update(known & phrases_of(text))
    limit = float(chi2.isf(LEVEL / len(known if among is None else among), df=1))
    ranked = sorted(
        ((surprise(counts[phrase], len(read), elsewhere[phrase], len(others)), phrase) for phrase in known),
        key=lambda pair: (-pair[0], -len(pair[1].split()), pair[1]),
    )
    oftener = (
        phrase
        for value, phrase in ranked
        if value > 0 and counts[phrase] * len(others) >= OFTENER * elsewhere[phrase] * len(read)
    )
    candidates = list(islice(oftener, CANDIDATES))
    members = {phrase: set[int]() for phrase in candidates}
    for place, text in enumerate(texts.of(read)):
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
        within = [phrase for phrase in candidates if f" {best} " in f" {phrase} "]
        near = [phrase for phrase in within if values[phrase] >= CLOSE * values[best]]
        best = max(near, key=lambda phrase: (len(phrase.split()), values[phrase], phrase))
        covered = members[best] & left
        if len(covered) < fewest:
            break
        everywhere = len(members[best]) + scale * elsewhere[best]
        whole = _whole(best, texts.of(read[sorted(members[best])]))
        found.append(Phrase(best, whole, len(covered), len(members[best]) / everywhere, values[best]))
        left -= covered
        # Other rows with a word of the trigger have that word and not the trigger.
        candidates = [phrase for phrase in candidates if f" {phrase} " not in f" {best} "]
    return tuple(found)


def rows_with(texts: Texts, phrases: Sequence[Phrase]) -> Iterator[tuple[int, int]]:
    """Yield (row, number of the first phrase that it has) of the rows that have one. Reads every text once."""
    patterns = [f" {phrase.words} " for phrase in phrases]
    for row, text in enumerate(texts.every()):
        line = f" {' '.join(_words(text))} "
        for number, pattern in enumerate(patterns):
            if pattern in line:
                yield row, number
                break


def rows_saying(texts: Texts, sayings: Iterable[str], most: int) -> list[int]:
    """Return the first rows whose text has all the words of one of some sayings, in their order; at most so many."""
    patterns = {f" {' '.join(_words(saying))} " for saying in sayings if len(_words(saying)) >= FEWEST_WORDS}
    if not patterns:
        return []
    lines = (f" {' '.join(_words(text))} " for text in texts.every())
    rows = (row for row, line in enumerate(lines) if any(pattern in line for pattern in patterns))
    return list(islice(rows, most))


def phrases_of(text: str) -> set[str]:
    """Return every phrase of a text, its words divided by single spaces."""
    return {
        " ".join(words[start : start + length])
        for words in _parts(_words(text))
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


def _whole(phrase: str, texts: Iterable[str]) -> str:
    """Return a phrase with the words before and after it that all texts share, where each has it first."""
    own = phrase.split()
    before, after = list[list[str]](), list[list[str]]()
    for text in texts:
        words = _words(text)
        start = next(place for place in range(len(words)) if words[place : place + len(own)] == own)
        before.append(_parts(words[:start])[-1][::-1])
        after.append(_parts(words[start + len(own) :])[0])
    most = MOST_WORDS - len(own)
    left = _common(before)[:most]
    right = _common(after)[: most - len(left)]
    return " ".join([*reversed(left), *own, *right])


def _common(lists: Sequence[Sequence[str]]) -> list[str]:
    """Return the longest beginning that all lists have."""
    found = []
    for words in zip(*lists, strict=False):
        if len(set(words)) > 1:
            break
        found.append(words[0])
    return found


def _parts(words: list[str]) -> list[list[str]]:
    """Return the runs of words between breaks, one at least."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == BREAK:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())[:READ_WORDS]


__all__ = ["BREAK", "Phrase", "Texts", "phrases_of", "rows_saying", "rows_with", "shared_phrases", "surprise"]
