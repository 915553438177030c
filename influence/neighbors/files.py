"""The files of a graph of nearest rows: written a block at a time, mapped to be read, and never held whole."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from influence.artifacts.place import is_remote
from influence.artifacts.tensors import load_tensors, open_tensors, save_tensors, saved_for
from influence.neighbors.nearest import NOBODY
from influence.neighbors.plan import GraphPlan
from influence.store.reader import Store

NAMES = ("alike", "alike_cosines", "opposed", "opposed_cosines")
TYPES: dict[str, type[np.generic]] = {
    **{"F16": np.float16, "F32": np.float32},
    **{"I8": np.int8, "U8": np.uint8, "I32": np.int32, "I64": np.int64},
}
MAPPED = 64
"""Blocks that stay mapped."""


def save_zero_rows(plan: GraphPlan, store: Store) -> None:
    """Keep which rows have no gradient, for every task."""
    if not saved_for(plan.zero_file, plan.fingerprint):
        zero = np.zeros(plan.rows, dtype=bool)
        for first, norms in store.norms():
            zero[first : first + len(norms)] = norms == 0
        save_tensors(plan.zero_file, {"bits": torch.from_numpy(np.packbits(zero))}, plan.fingerprint)


def zero_rows(plan: GraphPlan) -> np.ndarray:
    """Return which rows have no gradient, bool [N]: they have no neighbours and are nobody's."""
    bits = load_tensors(plan.zero_file, plan.fingerprint)["bits"].numpy()
    return np.unpackbits(bits, count=plan.rows).astype(bool)


def save_near(path: Path, found: Mapping[str, np.ndarray], plan: GraphPlan) -> None:
    """Save neighbours, row numbers in four bytes where that is enough."""
    whole = np.int32 if plan.rows <= np.iinfo(np.int32).max else np.int64
    kinds = {name: np.float32 if name.endswith("cosines") else whole for name in found}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(found[name], kind)) for name, kind in kinds.items()}
    save_tensors(path, tensors, plan.fingerprint)


def read_near(plan: GraphPlan, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the neighbours of some rows by `NAMES`, [n, k] each: rows int64, −1 where there are fewer.

    Args:
        plan: Of a graph that stands.
        rows: In any order, repeats allowed.

    Raises:
        DigestMismatch: A file isn't the one that was saved.
    """
    kinds = {name: np.float32 if name.endswith("cosines") else np.int64 for name in NAMES}
    found = {name: np.full((len(rows), plan.k), 0 if "_" in name else NOBODY, kinds[name]) for name in NAMES}
    if plan.k:
        numbers = rows // plan.step
        for number in np.unique(numbers).tolist():
            lines = np.flatnonzero(numbers == number)
            for name, held in _block(plan, number).items():
                found[name][lines] = held[rows[lines] - plan.blocks[number]]
    return found


@lru_cache(maxsize=MAPPED)
def _block(plan: GraphPlan, number: int) -> dict[str, np.ndarray]:
    """Return a block's arrays, mapped; those of a bucket in memory. What they were saved as is checked once."""
    path = plan.block_file(number)
    if is_remote(path):
        return {name: tensor.numpy() for name, tensor in load_tensors(path, plan.fingerprint).items()}
    with open_tensors(path, plan.fingerprint):
        return mapped(path)


def mapped(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a safetensors file; their bytes aren't checked."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {
        name: np.memmap(path, TYPES[about["dtype"]], "r", 8 + size + about["data_offsets"][0], tuple(about["shape"]))
        for name, about in header.items()
        if name != "__metadata__"
    }


__all__ = ["NAMES", "mapped", "read_near", "save_near", "save_zero_rows", "zero_rows"]
