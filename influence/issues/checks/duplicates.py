"""Rows whose text is another row's: to the word, or with a few words changed.

A row is a copy if its words are those of another in the same order, or if the two have at least `jaccard` of their
words and pairs of words in common and the longer one has `words` words or more; see `shingles` for what of a text is
ignored. A tenth of the words replaced leaves 0.74 of them in common, one in seven 0.65; a tenth of less than ten words
is none. In a classifier's data only rows with the same label are copies of each other, and of prompts with completions
those with like completions: others are in conflict.

Gradients decide where texts can't. Where two texts differ in a word that matters ("a in b", "a not in b") the gradients
may oppose each other; those of edited copies hardly ever do (docs/benchmarks.md), so such a pair is none of copies.
Alike gradients alone say nothing: in a classifier's data those of all rows of a class can be alike.

Copies form sets (`star_sets`), each with one row that stands for it: the one with the most copies; of several the
longest; of two that are equally long, and of rows with the same words, the lowest. The others are flagged, and what is
left has no two copies.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from influence.errors import DataError
from influence.issues.cases import gather
from influence.issues.checks.pair_cosines import pair_cosines
from influence.issues.finding import Case, Finding
from influence.issues.subject import Subject
from influence.text_dedup.inputs import is_split, same_answers
from influence.text_dedup.minhash import Read, SignedTexts, sign_texts
from influence.text_dedup.near_pairs import NOBODY, Pairs, Similar, lowest_rows, near_pairs
from influence.text_dedup.star_sets import star_sets

NEAREST = 5
"""Rows that are named as evidence, the representative among them."""
BLOCK = 4096
"""Flagged rows whose evidence is read together."""
IGNORED = "Case, white space, punctuation and Unicode's compatible forms are ignored."


class CopySettings(BaseModel):
    """From where on two texts are copies.

    Attributes:
        jaccard: The share of their words and pairs of adjacent words that both have.
        words: Of the longer of the two. Shorter ones are copies only word for word.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    jaccard: float = Field(default=0.65, ge=0.4, le=1)
    words: int = Field(default=10, ge=1)

    @property
    def similar(self) -> Similar:
        """The same for the search."""
        return Similar(self.jaccard, self.words)

    @property
    def told(self) -> str:
        """The same in words."""
        return (
            f"the same words in the same order or, at {self.words:,} words or more, at least {self.jaccard:.2f} of the "
            "words and word pairs of both in common (Jaccard; by default what is left with one word in seven replaced)"
        )


class NearDuplicateSettings(CopySettings):
    """From where on two rows are copies.

    Attributes:
        cosine: Texts that differ in a few words are copies only if the cosine of their gradients is at least this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cosine: float = Field(default=0, ge=-1, le=1)


Agree = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Says of which pairs of rows with nearly the same text the rows are copies: (rows, others) to bool [pairs]."""


@dataclass(frozen=True)
class CopySets:
    """Every row's place among its copies.

    Attributes:
        representative: The row that stands for each row, int64 [rows]: itself, where it is to be kept.
        similarity: To the representative, Jaccard, float32 [rows]; 1 for a row itself.
        lowest: The lowest row with the same words, int64 [rows]; −1 where the text is empty.
        pairs: Of texts that are nearly the same, by their lowest rows.
    """

    representative: np.ndarray
    similarity: np.ndarray
    lowest: np.ndarray
    pairs: Pairs


def near_duplicate_sets(
    texts: Sequence[str],
    settings: CopySettings | None = None,
    *,
    labels: np.ndarray | None = None,
    preferred: np.ndarray | None = None,
) -> CopySets:
    """Find the sets of near-duplicates among some texts: keep `representative == arange`, and no two copies are left.

    Args:
        texts: In any order; the sets don't depend on it.
        settings: From where on two are copies.
        labels: Codes, int [texts]: texts with different ones are no copies of each other.
        preferred: float [texts]: the highest stands for its set, ties to the lower place. Without it, the one with the
            most copies does, of several the longest.
    """
    settings = settings or CopySettings()
    with TemporaryDirectory() as scratch:
        folder, similar = Path(scratch), settings.similar
        with sign_texts(lambda start, stop: texts[start:stop], len(texts), similar.bands, folder, "") as signed:
            return copy_sets(signed, near_pairs(signed, similar, folder, "", None), labels, preferred)


def copy_sets(
    texts: SignedTexts,
    pairs: Pairs,
    labels: np.ndarray | None = None,
    preferred: np.ndarray | None = None,
    agree: Agree | None = None,
) -> CopySets:
    """Cut texts into sets of copies; see `near_duplicate_sets`. Those that are nearly the same must `agree`, too."""
    lowest = lowest_rows(texts)
    rows = np.arange(texts.rows)
    codes = np.zeros(texts.rows, np.int64) if labels is None else labels.astype(np.int64)
    asked = np.flatnonzero(lowest != NOBODY)
    # A node is all rows with the same words and label.
    low, high = (int(codes.min(initial=0)), int(codes.max(initial=0)))
    unique, node_of = np.unique(lowest[asked] * (high - low + 1) + codes[asked] - low, return_inverse=True)
    heads, counts = _heads(node_of, len(unique), asked, preferred)
    edges = _labelled(pairs, lowest[heads], codes[heads])
    if agree is not None:
        kept = agree(heads[edges.left], heads[edges.right])
        edges = Pairs(edges.left[kept], edges.right[kept], edges.jaccard[kept])
    ranks = _ranks(texts, heads, counts, edges, preferred)
    centres, similarity = star_sets(len(heads), edges.left, edges.right, edges.jaccard, ranks)
    found, alike = rows.copy(), np.ones(texts.rows, np.float32)
    found[asked], alike[asked] = heads[centres[node_of]], similarity[node_of]
    return CopySets(found, alike, lowest, pairs)


def _heads(
    node_of: np.ndarray, nodes: int, rows: np.ndarray, preferred: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the row that stands for those with the same words and label, and how many they are."""
    order = np.arange(len(rows)) if preferred is None else np.lexsort((rows, -preferred[rows]))
    heads = np.empty(nodes, dtype=np.int64)
    heads[node_of[order[::-1]]] = rows[order[::-1]]
    return heads, np.bincount(node_of, minlength=nodes)


def _labelled(pairs: Pairs, lowest: np.ndarray, codes: np.ndarray) -> Pairs:
    """Return the pairs of texts as pairs of nodes with the same label."""
    met = np.flatnonzero(np.isin(lowest, pairs.left) | np.isin(lowest, pairs.right))
    nodes: Any = pd.DataFrame({"lowest": lowest[met], "code": codes[met], "node": met})
    frame: Any = pd.DataFrame({"left": pairs.left, "right": pairs.right, "jaccard": pairs.jaccard})
    frame = frame.merge(nodes, left_on="left", right_on="lowest")
    frame = frame.merge(nodes, left_on=["right", "code"], right_on=["lowest", "code"], suffixes=("_left", "_right"))
    return Pairs(*(frame[name].to_numpy() for name in ("node_left", "node_right", "jaccard")))


def _ranks(
    texts: SignedTexts, heads: np.ndarray, counts: np.ndarray, edges: Pairs, preferred: np.ndarray | None
) -> np.ndarray:
    """Return the order in which rows are chosen to stand for others. Which rows are a set doesn't depend on theirs."""
    if preferred is not None:
        order = np.lexsort((heads, -preferred[heads]))
    else:
        copies, near = counts.astype(np.int64), np.zeros(len(heads), dtype=np.int64)
        for one, other in ((edges.left, edges.right), (edges.right, edges.left)):
            np.add.at(copies, one, counts[other])
            np.add.at(near, one, 1)
        last = texts.digests[heads]
        # Two that are near no others are a set whichever of them stands for it: the lower row, for people.
        alone = (near[edges.left] == 1) & (near[edges.right] == 1)
        for side in (edges.left[alone], edges.right[alone]):
            last[side] = heads[side]
        order = np.lexsort((heads, last, -texts.words[heads], -counts, -copies))
    ranks = np.empty(len(heads), dtype=np.int64)
    ranks[order] = np.arange(len(heads))
    return ranks


def row_texts(subject: Subject) -> Read:
    """Return what reads the stored texts of a range of rows."""
    store = subject.run.store
    return lambda start, stop: [meta["text"] for meta in store.meta(np.arange(start, stop), ("text",))]


def signed_rows(subject: Subject, similar: Similar) -> SignedTexts:
    """Sign the stored texts of all rows, or open them where they stand."""
    bands = similar.bands
    folder = subject.folder / f"texts-{bands.slots}"
    whose = subject.run.manifest.rows_fingerprint
    return sign_texts(row_texts(subject), subject.rows, bands, folder, whose, subject.progress)


def pairs_of_rows(subject: Subject, texts: SignedTexts, similar: Similar) -> Pairs:
    """Return the pairs of rows' texts that are nearly the same."""
    folder = subject.folder / f"pairs-{similar.jaccard}-{similar.words}"
    return near_pairs(texts, similar, folder, subject.run.manifest.rows_fingerprint, subject.progress)


def lacks(subject: Subject) -> str | None:
    """It applies to every run; of prompts with completions it reads the data set, to tell a copy from a conflict."""
    return data_lacks(subject) if is_split(subject.run) else None


def data_lacks(subject: Subject) -> str | None:
    """Say what is wrong with the data set that the run was built from, if anything is."""
    try:
        assert subject.data
    except DataError as error:
        return f"prompts are told from completions by the data set, which can't be read as it was. {error}"
    return None


def check(subject: Subject, settings: NearDuplicateSettings) -> Finding:
    """Flag all rows of a set of copies but one."""
    classified = subject.run.config.model.kind == "sequence_classification"
    with signed_rows(subject, settings.similar) as texts:
        pairs = pairs_of_rows(subject, texts, settings.similar)
        labels = subject.labels.codes if classified else None
        sets = copy_sets(texts, pairs, labels, agree=lambda rows, others: _agree(subject, settings, rows, others))
    flagged = np.flatnonzero(sets.representative != np.arange(subject.rows))
    scores = np.zeros(subject.rows, dtype=np.float32)
    scores[flagged] = sets.similarity[flagged]
    scores[sets.lowest == NOBODY] = np.nan
    same = " of the same label" if classified else " with a like completion" if is_split(subject.run) else ""
    return Finding(
        "near_duplicate",
        scores,
        gather(_cases(subject, sets, flagged)),
        "Jaccard similarity, 0 to 1, of a row's text and that of the row it is a copy of (1: word for word); 0 where "
        "it is a copy of no row that is kept.",
        f"Flagged are rows that have, with another row{same}, {settings.told}, and then gradients with a cosine of "
        f"{settings.cosine:g} or more; all but one of each set: the one with the most copies, of several the longest, "
        f"then the lowest row. {IGNORED}",
    )


def _agree(subject: Subject, settings: NearDuplicateSettings, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which pairs of rows with nearly the same text teach the model much the same."""
    kept = np.ones(len(rows), dtype=bool)
    if is_split(subject.run):
        kept = same_answers(subject.data, rows, others, settings.similar)
    # Of a row without a gradient nothing is known that would speak against it.
    kept[kept] = ~(pair_cosines(subject.run.store, rows[kept], others[kept]) < settings.cosine)
    return kept


def _cases(subject: Subject, sets: CopySets, flagged: np.ndarray) -> Iterator[tuple[int, Case]]:
    """Yield a case for each flagged row: its representative, then others of its set, those most like it first."""
    heads = sets.representative[flagged]
    order = np.lexsort((flagged, -sets.similarity[flagged], heads))
    starts, stops = (np.searchsorted(heads[order], heads, side=side) for side in ("left", "right"))
    for first in range(0, len(flagged), BLOCK):
        part = slice(first, first + BLOCK)
        named: list[np.ndarray] = []
        for row, head, start, stop in zip(flagged[part], heads[part], starts[part], stops[part], strict=True):
            others = flagged[order[start : min(stop, start + NEAREST)]]
            named.append(np.concatenate([[head], others[others != row]])[:NEAREST])
        ids = iter(subject.ids(np.concatenate(named)))
        for row, rows in zip(flagged[part].tolist(), named, strict=True):
            evidence = tuple(next(ids) for _ in rows)
            same = sets.lowest[row] == sets.lowest[rows[0]]
            nearly = "a copy" if same else f"nearly a copy ({sets.similarity[row]:.2f})"
            yield row, Case(evidence, "drop", f"drop: {nearly} of {evidence[0]} (row {rows[0]})")


__all__ = [
    "CopySets",
    "CopySettings",
    "NearDuplicateSettings",
    "check",
    "copy_sets",
    "data_lacks",
    "lacks",
    "near_duplicate_sets",
    "pairs_of_rows",
    "row_texts",
    "signed_rows",
]
