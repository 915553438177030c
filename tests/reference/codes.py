"""The codes of a shard read one coordinate at a time, as the layout describes them, in Python's own numbers."""

import struct
from collections.abc import Sequence

from influence.axes import ModuleColumns


def decoded(
    codec: str, row: dict[str, bytes], modules: Sequence[ModuleColumns], rank: int | None = None
) -> list[float]:
    """Return the direction of one row from the bytes of its arrays, by codec."""
    if codec == "float16":
        return list(struct.unpack(f"<{modules[-1].stop}e", row["vectors"]))
    if codec == "factors":
        return _products(row["factors"], modules, rank)
    scales = struct.unpack(f"<{len(modules)}f", row["scales"])
    values: list[float] = []
    at = 0
    for module, scale in zip(modules, scales, strict=True):
        width = module.stop - module.start
        size = {"int8": width, "int4": -(-width // 2), "bits": -(-width // 8)}[codec]
        block = row[codec][at : at + size]
        at += size
        values += [scale * CODES[codec](block, column) for column in range(width)]
    assert at == len(row[codec]), "no byte is left over"
    return values


def _int8(block: bytes, column: int) -> int:
    return block[column] - 256 * (block[column] > 127)


def _int4(block: bytes, column: int) -> int:
    half = len(block)
    nibble = block[column] & 15 if column < half else block[column - half] >> 4
    return 16 * (nibble - 16 * (nibble > 7))


def _bit(block: bytes, column: int) -> int:
    return -1 if block[column // 8] >> column % 8 & 1 else 1


CODES = {"int8": _int8, "int4": _int4, "bits": _bit}


def _products(factors: bytes, modules: Sequence[ModuleColumns], rank: int) -> list[float]:
    numbers = iter(struct.unpack(f"<{len(factors) // 2}e", factors))
    values: list[float] = []
    for module in modules:
        terms = range(min(rank, module.q, module.p))
        left = [[next(numbers) for _ in range(module.q)] for _ in terms]
        right = [[next(numbers) for _ in range(module.p)] for _ in terms]
        values += [
            sum(left[term][q] * right[term][p] for term in terms) for q in range(module.q) for p in range(module.p)
        ]
    assert next(numbers, None) is None, "no number is left over"
    return values
