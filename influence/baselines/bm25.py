"""BM25 over the rows' texts: what shares rare words with the query, knowing nothing of the model.

The baseline that belongs beside every answer. Scores are BM25's own (Lucene's variant, k1 = 1.5, b = 0.75): never
negative, without a unit, and with no opposing side. Words are lower case, of two characters or more, English stop
words left out, without stemming.

Source: Robertson & Zaragoza 2009; Lù 2024, "BM25S", for the library.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from influence.errors import DataError

MOST_ROWS = 2_000_000
"""The most texts: their index is made in memory."""
SETTINGS: dict[str, float | str] = {"k1": 1.5, "b": 0.75, "method": "lucene"}
STOP_WORDS = "english"


class BM25:
    """The prepared state: an inverted index over texts. Apply it with `scores` or `top`.

    Attributes:
        rows: How many texts it was prepared over.
        postings: Distinct words of each text, over all texts.
    """

    def __init__(self, retriever: Any) -> None:
        self._retriever = retriever
        self._vocabulary: dict[str, int] = retriever.vocab_dict
        self.rows: int = retriever.scores["num_docs"]
        self.postings = len(retriever.scores["data"])

    def scores(self, query: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the scores of texts `start` up to `stop`, [n], float32; zero where a text shares no word.

        They are those of the library's `get_scores`, read from the stretch of each word's list that holds these texts.
        """
        stop = self.rows if stop is None else stop
        held = self._retriever.scores
        found = np.zeros(stop - start, np.float32)
        for word in _words([query])[0]:
            number = self._vocabulary.get(word)
            if number is None:
                continue
            first, last = held["indptr"][number], held["indptr"][number + 1]
            texts = held["indices"][first:last]
            kept = slice(*np.searchsorted(texts, (start, stop)))
            # A text stands once in a word's list.
            found[texts[kept] - start] += held["data"][first:last][kept]
        return found

    def top(self, query: str, k: int) -> np.ndarray:
        """Return the rows of the k highest scores, highest first, ties by the lower row, none of score 0."""
        scores = self.scores(query)
        best = np.argsort(-scores, kind="stable")[:k]
        return best[scores[best] > 0]

    def save(self, folder: Path) -> None:
        """Write the library's own files into a folder: numpy arrays and JSON, nothing pickled."""
        self._retriever.save(folder, show_progress=False)


def fit(texts: Iterable[str]) -> BM25:
    """Prepare BM25 over texts, read once. The same texts give the same state, to the byte.

    Memory: 8 bytes a word, then some 40 a distinct word of each text; the texts aren't held.

    Raises:
        DataError: No text has a word.
    """
    bm25s = _library()
    ids, vocabulary = bm25s.tokenize(texts, stopwords=STOP_WORDS, return_ids=True, show_progress=False)
    if not vocabulary:
        raise DataError(f"None of the {len(ids)} texts has a word that BM25 could look up.")
    retriever = bm25s.BM25(**SETTINGS)
    # Numbers of words and not the words: the library would number those in the order of a set.
    retriever.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    return BM25(retriever)


def load(folder: Path) -> BM25:
    """Open what `save` wrote; lists of texts are mapped, and read where a query's words need them."""
    return BM25(_library().BM25.load(folder, mmap=True, show_progress=False))


def _library() -> Any:
    """Return bm25s. It loads numba: half a second of processor time, which a query without BM25 doesn't need."""
    import bm25s

    return bm25s


def count_words(texts: Sequence[str]) -> np.ndarray:
    """Return how many words of each text BM25 reads, int64 [n]."""
    return np.array([len(words) for words in _words(texts)], dtype=np.int64)


def _words(texts: Sequence[str]) -> list[list[str]]:
    return _library().tokenize(list(texts), stopwords=STOP_WORDS, return_ids=False, show_progress=False)


__all__ = ["BM25", "MOST_ROWS", "SETTINGS", "STOP_WORDS", "count_words", "fit", "load"]
