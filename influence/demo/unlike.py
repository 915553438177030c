"""Texts that are nearly another's are left out, so that the only copies in a set are those that were planted."""

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
from scipy import sparse

from influence.demo.corpus import CorpusRow

ALIKE = 0.5
"""Jaccard similarity of two texts' runs of two words from which on one of them is left out as the other's copy."""


def unlike(rows: Sequence[CorpusRow]) -> list[CorpusRow]:
    """Return the rows whose text isn't nearly that of an earlier one."""
    runs = [_runs(row.text) for row in rows]
    places: dict[tuple[str, ...], int] = {}
    columns = [[places.setdefault(run, len(places)) for run in sorted(found)] for found in runs]
    sizes = np.array([len(found) for found in columns])
    ends = np.concatenate(([0], np.cumsum(sizes)))
    flat = np.fromiter(chain.from_iterable(columns), np.int64, int(ends[-1]))
    members = sparse.csr_array((np.ones(len(flat), np.int32), flat, ends), (len(rows), len(places)))
    shared = sparse.coo_array(sparse.triu(members @ members.T, k=1))
    first, second = shared.coords
    alike = shared.data / (sizes[first] + sizes[second] - shared.data) >= ALIKE
    left_out = set(second[alike].tolist())
    return [row for number, row in enumerate(rows) if number not in left_out]


def _runs(text: str) -> set[tuple[str, ...]]:
    words = "".join(sign if sign.isalnum() else " " for sign in text.lower()).split()
    return set(pairwise(words)) or {tuple(words)}


__all__ = ["unlike"]
