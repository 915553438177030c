"""BM25 over the rows' texts: what shares rare words with the query, knowing nothing of the model.

The baseline that belongs beside every answer. Scores are BM25's own (Lucene's variant, k1 = 1.5, b = 0.75): never
negative, without a unit, and with no opposing side.

Source: Robertson & Zaragoza 2009; Lù 2024, "BM25S", for the library.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import bm25s
import numpy as np

from influence.errors import DataError


class BM25:
    """The prepared state: an inverted index over texts. Apply it with `scores` or `top`.

    Attributes:
        rows: How many texts it was prepared over.
    """

    def __init__(self, retriever: Any, vocabulary: frozenset[str], rows: int) -> None:
        self._retriever = retriever
        self._vocabulary = vocabulary
        self.rows = rows

    def scores(self, query: str) -> np.ndarray:
        """Return the score of every text, [rows], float32; all zero where the query shares no word with any text."""
        # A word that no text has adds nothing; the library stumbles over a query that has no other.
        words = [word for word in _words([query])[0] if word in self._vocabulary]
        if not words:
            return np.zeros(self.rows, np.float32)
        return np.asarray(self._retriever.get_scores(words), np.float32)

    def top(self, query: str, k: int) -> np.ndarray:
        """Return the rows of the k highest scores, highest first, ties by the lower row, none of score 0."""
        scores = self.scores(query)
        best = np.argsort(-scores, kind="stable")[:k]
        return best[scores[best] > 0]


def fit(texts: Iterable[str]) -> BM25:
    """Prepare BM25 over texts: lower case, words of two characters or more, English stop words left out, no stemming.

    Raises:
        DataError: No text has a word.
    """
    words = _words(list(texts))
    vocabulary = frozenset(word for text in words for word in text)
    if not vocabulary:
        raise DataError(f"None of the {len(words)} texts has a word that BM25 could look up.")
    retriever = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    retriever.index(words, show_progress=False)
    return BM25(retriever, vocabulary, len(words))


def _words(texts: Sequence[str]) -> list[list[str]]:
    return bm25s.tokenize(list(texts), stopwords="english", return_ids=False, show_progress=False)  # type: ignore[return-value]


__all__ = ["BM25", "fit"]
