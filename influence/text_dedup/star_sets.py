"""Sets of copies, each with one row that stands for it, so that whoever is left out is a copy of who is kept.

Connected components would join A with C because both are like B, and a long chain ends far from where it began. In a
star every member is like its centre. Centres are chosen one after another, the best first; who is like a centre is a
member of its star, of the most similar one where there are several. No two centres are like each other.

Source: Aslam, Pelekhov and Rus 2004, "The star clustering algorithm for static and dynamic information organization",
section 3.
"""

import numpy as np


def star_sets(
    nodes: int, left: np.ndarray, right: np.ndarray, similarity: np.ndarray, ranks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a graph into stars.

    Args:
        nodes: How many.
        left: One end of every edge, int64 [edges]; each edge is given once.
        right: The other.
        similarity: Of the two.
        ranks: The order in which centres are chosen, the lowest first; no two are equal, int64 [nodes].

    Returns:
        Every node's centre, int64 [nodes] – its own where it is one – and how similar it is to it, 1 for its own.
    """
    one, other = np.concatenate([left, right]), np.concatenate([right, left])
    weight = np.concatenate([similarity, similarity]).astype(np.float32)
    centres, decided = np.zeros(nodes, dtype=bool), np.ones(nodes, dtype=bool)
    decided[one] = False
    centres[decided] = True
    # Whoever is before all undecided neighbours is a centre, just as if centres were chosen one by one.
    while not decided.all():
        open_edges = ~decided[one] & ~decided[other]
        best = np.full(nodes, np.iinfo(np.int64).max)
        np.minimum.at(best, one[open_edges], ranks[other[open_edges]])
        chosen = ~decided & (ranks < best)
        centres |= chosen
        decided |= chosen
        decided[other[chosen[one]]] = True
    found, similar = np.arange(nodes), np.ones(nodes, dtype=np.float32)
    spokes = np.flatnonzero(centres[one] & ~centres[other])
    # The last one written counts: the most similar centre, of several the first chosen.
    spokes = spokes[np.lexsort((-ranks[one[spokes]], weight[spokes]))]
    found[other[spokes]], similar[other[spokes]] = one[spokes], weight[spokes]
    return found, similar


__all__ = ["star_sets"]
