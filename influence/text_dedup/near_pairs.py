"""Pairs of similar texts: proposed by the bands of their signatures, decided by the shingles themselves.

Texts with the same words in the same order are one, whose lowest row stands for it; only these are compared. Texts that
share a band's key are a bucket. Of a large bucket each text is compared with the first and with the few next to it, in
the order of their digests, which is the same in all bands: work and pairs stay linear in the texts, whatever they are,
and the first becomes the centre of a large set of copies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from influence.artifacts.tensors import load_tensors, save_tensors, saved_for
from influence.engine.progress import Progress, Report
from influence.text_dedup.minhash import Bands, SignedTexts, as_tensors

WINDOW = 16
"""Texts of a bucket that each is compared with, beside the first of it."""
HELD = 2**22
"""Shingles that are compared at a time."""
BANDS_A_FILE = 8
NOBODY = -1


@dataclass(frozen=True)
class Pairs:
    """Pairs of similar texts.

    Attributes:
        left: The lowest rows of the one text, int64 [pairs]; within one set of texts, the lower of the two.
        right: Those of the other.
        jaccard: How similar, float32.
    """

    left: np.ndarray
    right: np.ndarray
    jaccard: np.ndarray


@dataclass(frozen=True)
class Similar:
    """From where on two texts are nearly the same.

    Attributes:
        jaccard: The share of their shingles, words and pairs of words, that both have.
        words: Of the longer of the two; shorter ones are the same only word for word.
    """

    jaccard: float
    words: int

    @property
    def bands(self) -> Bands:
        """How signatures of word pairs are cut to find such texts."""
        # Where a share c of the words is as it was, c of the words and c² of the pairs are: c + c² = 4j / (1 + j).
        kept = (np.sqrt(1 + 16 * self.jaccard / (1 + self.jaccard)) - 1) / 2
        return Bands.for_similarity(float(kept**2 / (2 - kept**2)))


def lowest_rows(texts: SignedTexts) -> np.ndarray:
    """Return the lowest row with the same words for each text, int64 [rows]; −1 for an empty one."""
    _, first, inverse = np.unique(texts.digests, return_index=True, return_inverse=True)
    return np.where(texts.empty, NOBODY, first[inverse])


def near_pairs(texts: SignedTexts, similar: Similar, folder: Path, made_of: str, progress: Report | None) -> Pairs:
    """Return the pairs of texts that are nearly the same and not equal, each once.

    Args:
        texts: Signed with the bands of `similar`.
        similar: From where on they are nearly the same.
        folder: Where pairs are kept until the examination is over.
        made_of: Decides texts and bands.
        progress: Hears of every few bands.
    """
    asked = _compared(texts)
    groups = range(0, similar.bands.count, BANDS_A_FILE)
    paths = [folder / f"pairs-{number:02d}.safetensors" for number in range(len(groups))]
    known = f"{made_of}-{similar.jaccard!r}-{similar.words}"
    standing = next((number for number, path in enumerate(paths) if not saved_for(path, known)), len(paths))
    stage = Progress("copies", len(paths), progress, standing)
    found = [_loaded(path, known) for path in paths[:standing]]
    for path, first in zip(paths[standing:], groups[standing:], strict=True):
        new = []
        for band in range(first, min(similar.bands.count, first + BANDS_A_FILE)):
            proposed = _bucketed(texts.keys(band)[asked], texts.digests[asked])
            new.append(_decided(texts, texts, asked[proposed], similar, [*found, *new]))
        found.append(_joined(new))
        _save(path, found[-1], known)
        stage.finished()
    return _joined(found)


def cross_pairs(texts: SignedTexts, others: SignedTexts, similar: Similar, progress: Report | None) -> Pairs:
    """Return the pairs of one of some texts and one of others (`right`) that are nearly the same and not equal.

    Of many others that are as similar to a text as to one another, some are left out.
    """
    asked = _compared(texts)
    theirs = _compared(others)
    stage, found = Progress("leaks", similar.bands.count, progress), list[Pairs]()
    for band in range(similar.bands.count):
        keys, mine = others.keys(band)[theirs], texts.keys(band)[asked]
        order = np.lexsort((others.digests[theirs], keys))
        start = np.searchsorted(keys[order], mine)
        held = [np.empty((0, 2), np.int64)]
        for step in range(WINDOW):
            place = np.minimum(start + step, len(order) - 1)
            met = np.flatnonzero((start + step < len(order)) & (keys[order][place] == mine)) if len(order) else []
            if not len(met):
                break
            held.append(np.stack([asked[met], theirs[order][place[met]]], axis=1))
        found.append(_decided(texts, others, np.concatenate(held), similar, found))
        stage.finished()
    return _joined(found)


def _compared(texts: SignedTexts) -> np.ndarray:
    """Return the lowest row of each text that has words."""
    return np.flatnonzero((lowest_rows(texts) == np.arange(texts.rows)) & (texts.words > 0))


def equal_texts(texts: SignedTexts, others: SignedTexts) -> tuple[np.ndarray, np.ndarray]:
    """Return, of every text, where its equals begin and end among the others in the order of their digests."""
    ordered = np.sort(others.digests)
    return np.searchsorted(ordered, texts.digests), np.searchsorted(ordered, texts.digests, side="right")


def jaccard(texts: SignedTexts, others: SignedTexts, pairs: np.ndarray) -> np.ndarray:
    """Return the Jaccard similarity of the shingles of pairs of texts, float32.

    Args:
        texts: The one side.
        others: The other; may be the same.
        pairs: Rows of either, [pairs, 2].
    """
    found = np.empty(len(pairs), dtype=np.float32)
    for start, stop in _chunks(texts.sizes[pairs[:, 0]] + others.sizes[pairs[:, 1]]):
        sides = []
        for side, signed in enumerate((texts, others)):
            unique, inverse = np.unique(pairs[start:stop, side], return_inverse=True)
            held = signed.shingles(unique)
            sides.append([held[place] for place in inverse])
        found[start:stop] = jaccard_of_sets(*sides)
    return found


def jaccard_of_sets(sets: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """Return the Jaccard similarity of sets, each with the other of its place, float32 [sets]; of empty ones 0."""
    sizes = np.array([[len(found) for found in side] for side in (sets, others)], np.int64).reshape(2, len(sets))
    places = np.repeat(np.tile(np.arange(len(sets), dtype=np.uint64), 2), sizes.ravel())
    shingles = np.concatenate([np.empty(0, np.uint32), *sets, *others])
    keys = np.sort((places << np.uint64(32)) | shingles)
    twice = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(32)
    shared = np.bincount(twice.astype(np.int64), minlength=len(sets))
    return (shared / np.maximum(sizes.sum(axis=0) - shared, 1)).astype(np.float32)


def _chunks(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut pairs so that few enough shingles are held at a time; one pair at least."""
    start, ends = 0, np.cumsum(sizes)
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + HELD, side="right")))
        yield start, stop
        start = stop


def _bucketed(keys: np.ndarray, digests: np.ndarray) -> np.ndarray:
    """Return pairs of places with the same key, [pairs, 2]."""
    order = np.lexsort((digests, keys))
    ordered = keys[order]
    held = [np.empty((0, 2), np.int64)]
    for step in range(1, WINDOW + 1):
        place = np.flatnonzero(ordered[step:] == ordered[:-step])
        if not len(place):
            break
        held.append(np.stack([order[place], order[place + step]], axis=1))
    first = np.searchsorted(ordered, ordered)
    far = np.flatnonzero(np.arange(len(order)) - first > WINDOW)
    held.append(np.stack([order[first[far]], order[far]], axis=1))
    return np.concatenate(held)


def _decided(
    texts: SignedTexts, others: SignedTexts, proposed: np.ndarray, similar: Similar, known: list[Pairs]
) -> Pairs:
    """Return those of the proposed pairs that are similar enough and not known yet."""
    if texts is others:
        proposed = np.sort(proposed, axis=1)
    sizes = np.stack([texts.sizes[proposed[:, 0]], others.sizes[proposed[:, 1]]], axis=1)
    longer = np.maximum(texts.words[proposed[:, 0]], others.words[proposed[:, 1]])
    equal = texts.digests[proposed[:, 0]] == others.digests[proposed[:, 1]]
    # Two sets can't be more similar than their sizes are.
    worth = (sizes.min(axis=1) >= similar.jaccard * sizes.max(axis=1)) & (longer >= similar.words) & ~equal
    keys = np.unique(proposed[worth, 0] * others.rows + proposed[worth, 1])
    for pairs in known:
        keys = keys[~np.isin(keys, pairs.left * others.rows + pairs.right)]
    asked = np.stack([keys // max(others.rows, 1), keys % max(others.rows, 1)], axis=1)
    found = jaccard(texts, others, asked)
    kept = found >= similar.jaccard
    return Pairs(asked[kept, 0], asked[kept, 1], found[kept])


def _joined(found: list[Pairs]) -> Pairs:
    nothing = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    left, right, similarity = (
        np.concatenate([getattr(pairs, name) for pairs in (nothing, *found)]) for name in ("left", "right", "jaccard")
    )
    order = np.lexsort((right, left))
    return Pairs(left[order], right[order], similarity[order])


def _save(path: Path, pairs: Pairs, made_of: str) -> None:
    save_tensors(path, as_tensors(vars(pairs)), made_of)


def _loaded(path: Path, made_of: str) -> Pairs:
    return Pairs(**{name: tensor.numpy() for name, tensor in load_tensors(path, made_of).items()})


__all__ = ["Pairs", "Similar", "cross_pairs", "equal_texts", "jaccard", "jaccard_of_sets", "lowest_rows", "near_pairs"]
