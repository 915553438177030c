"""Texts signed by MinHash and banded, on disk, so that similar ones can be found without comparing all of them.

A part of the rows is a file: every text's shingles, and of the signature of its pairs of words the key of each band
(locality-sensitive hashing). Two texts that have a share s of their pairs in common (Jaccard) have the key of a band of
r slots in common with probability sʳ; texts that have one in common are compared by their shingles themselves, see
`near_pairs`. Signatures are `rensa`'s.

Source: Broder 1997, "On the resemblance and containment of documents"; the bands are those of Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", section 3.4.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from influence.artifacts.tensors import open_tensors, save_tensors, saved_for
from influence.engine.progress import Progress, Report
from influence.store.manifest import fingerprint_of
from influence.text_dedup.shingles import shingled, spread

SLOTS = 256
"""Of a signature."""
SEED = 1
SURE = 0.98
"""At least this share of the texts that are exactly as similar as asked share a band."""
BLOCK = 4096
"""Texts that are held in memory at a time."""
PART_ROWS, MOST_PARTS = 2**15, 256
"""Texts of a file, and of how many files more than that are put into one."""
VERSION = 1
"""Of how texts are shingled and signed: raised when that changes."""

Read = Callable[[int, int], Sequence[str]]
"""Returns the texts [start, stop)."""


@dataclass(frozen=True)
class Bands:
    """How a signature is cut.

    Attributes:
        slots: Of each band.
        count: Bands.
    """

    slots: int
    count: int

    @classmethod
    def for_similarity(cls, jaccard: float) -> "Bands":
        """Return the longest bands of which texts of a similarity share one with probability `SURE`."""
        for slots in range(16, 1, -1):
            if 1 - (1 - jaccard**slots) ** (SLOTS // slots) >= SURE:
                return cls(slots, SLOTS // slots)
        return cls(1, SLOTS)


class SignedTexts:
    """Signed texts, opened; a context manager.

    Attributes:
        rows: How many.
        words: Of each, int32 [rows].
        sizes: Shingles of each, int64 [rows].
        digests: uint64 [rows]; equal where texts have the same words in the same order.
        empty: Which are nothing but white space, bool [rows].
    """

    def __init__(self, paths: Sequence[Path], made_of: str) -> None:
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._parts: list[Any] = [stack.enter_context(open_tensors(path, made_of)) for path in paths]
            self._stack = stack.pop_all()
        ends = [part.get_tensor("ends") for part in self._parts]
        self._starts = np.cumsum([0, *(len(held) for held in ends)])
        self._offsets = [np.concatenate([[0], held]) for held in ends]
        self.rows = int(self._starts[-1])
        self.sizes = np.concatenate([np.empty(0, np.int64), *(np.diff(held) for held in self._offsets)])
        self.words = self._column("words", np.int32)
        self.digests = self._column("digests", np.int64).view(np.uint64)
        self.empty = self._column("empty", np.uint8).astype(bool)

    def keys(self, band: int) -> np.ndarray:
        """Return every text's key of a band, uint64 [rows]."""
        found = [part.get_slice("keys")[band] for part in self._parts]
        return np.concatenate([np.empty(0, np.int64), *found]).view(np.uint64)

    def shingles(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the shingles of some texts, uint32 each."""
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        slices = [part.get_slice("shingles") for part in self._parts]
        found = []
        for row, part in zip((rows - self._starts[parts]).tolist(), parts.tolist(), strict=True):
            start, stop = self._offsets[part][row : row + 2].tolist()
            found.append(slices[part][start:stop].view(np.uint32))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _column(self, name: str, kind: type[np.generic]) -> np.ndarray:
        return np.concatenate([np.empty(0, kind), *(part.get_tensor(name) for part in self._parts)])


def sign_texts(
    read: Read, rows: int, bands: Bands, folder: Path, whose: str, progress: Report | None = None
) -> SignedTexts:
    """Sign texts, part after part; those that stand in the folder already are not signed again.

    Args:
        read: Reads a range of them.
        rows: How many there are.
        bands: How signatures are cut.
        folder: Where the parts go.
        whose: Decides the texts: a digest of them.
        progress: Hears of every part.
    """
    per_part = max(PART_ROWS, -(-rows // MOST_PARTS))
    made_of = fingerprint_of(
        {
            "texts": whose,
            "version": VERSION,
            "rensa": version("rensa"),
            "slots": bands.slots,
            "per part": per_part,
        }
    )
    starts = range(0, rows, per_part)
    paths = [folder / f"texts-{number:05d}.safetensors" for number in range(len(starts))]
    missing = [number for number, path in enumerate(paths) if not saved_for(path, made_of)]
    stage = Progress("texts", len(paths), progress, len(paths) - len(missing))
    for number in missing:
        start, stop = starts[number], min(rows, starts[number] + per_part)
        save_tensors(paths[number], _signed(_blocks(read, start, stop), bands), made_of)
        stage.finished()
    return SignedTexts(paths, made_of)


def _blocks(read: Read, start: int, stop: int) -> Iterator[Sequence[str]]:
    for first in range(start, stop, BLOCK):
        yield read(first, min(stop, first + BLOCK))


def _signed(blocks: Iterator[Sequence[str]], bands: Bands) -> dict[str, torch.Tensor]:
    found = []
    for texts in blocks:
        block = shingled(texts)
        keys = band_keys(block.pairs, block.pair_ends, bands)
        found.append((block.shingles, block.ends, block.words, block.digests, block.empty, keys))
    shingles, ends, words, digests, empty, keys = zip(*found, strict=True)
    before = np.cumsum([0, *(len(held) for held in shingles[:-1])])
    arrays = {
        "shingles": np.concatenate(shingles).view(np.int32),
        "ends": np.concatenate([held + first for held, first in zip(ends, before, strict=True)]),
        "words": np.concatenate(words),
        "digests": np.concatenate(digests).view(np.int64),
        "empty": np.concatenate(empty).astype(np.uint8),
        "keys": np.ascontiguousarray(np.concatenate(keys, axis=1)).view(np.int64),
    }
    return as_tensors(arrays)


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return arrays as tensors to be saved."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def band_keys(shingles: np.ndarray, ends: np.ndarray, bands: Bands) -> np.ndarray:
    """Return the key of every band of every text, uint64 [bands, texts].

    Args:
        shingles: One text's after another, uint32.
        ends: Where each text's end, int64 [texts].
        bands: How signatures are cut.
    """
    import rensa

    library: Any = rensa
    offsets = np.concatenate([[0], ends]).astype(np.uint64)
    # The library takes its tokens for hashes of 64 bits.
    made = library.RMinHash.digest_matrix_from_flat_token_hashes(spread(shingles), offsets, SLOTS, SEED)
    slots = np.fromiter(chain.from_iterable(made.to_rows()), np.uint64, len(ends) * SLOTS).reshape(len(ends), SLOTS)
    cut = slots[:, : bands.slots * bands.count].reshape(len(ends), bands.count, bands.slots)
    keys = np.zeros((len(ends), bands.count), dtype=np.uint64)
    for place in range(bands.slots):
        keys = spread(keys + cut[:, :, place] + np.uint64(0x9E3779B97F4A7C15))
    return np.ascontiguousarray(keys.T)


__all__ = ["Bands", "Read", "SignedTexts", "as_tensors", "band_keys", "sign_texts"]
