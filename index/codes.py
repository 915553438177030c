"""The words of FAISS's codes, what one takes, and the widest that fits into so many bytes."""

from collections.abc import Callable

from index.errors import VectorIndexError
from index.rotation import turned_width, widest_turned
from index.settings import FACTORY

ID_BYTES = 8
"""What FAISS's lists keep beside a code."""

WORDS = {"flat": "Flat", "sq8": "SQ8", "sq4": "SQ4", "rabitq": "RaBitQ", "rabitq2": "RaBitQ2"}


def code_bytes(codes: str, width: int) -> int:
    """Return the bytes of one code of FAISS's, for the last word of a factory string."""
    if codes == "Flat":
        return 4 * width
    if codes.startswith("SQ"):
        bits = {"SQ4": 4, "SQ6": 6, "SQ8": 8, "SQfp16": 16, "SQbf16": 16}[codes]
        return -(-width * bits // 8)
    if codes.startswith("RaBitQ"):
        bits = int(codes[6:] or 1)
        # A sign bit a coordinate and two float32 factors; further bits bring three more factors.
        return -(-width // 8) + 8 + ((-(-width * (bits - 1) // 8) + 12) if bits > 1 else 0)
    count, _, bits = codes[2:].removesuffix("np").partition("x")
    return -(-int(count) * int(bits or 8) // 8)


def code_word(kind: str, width: int) -> str:
    """Return the last word of FAISS's factory string for a kind of index over so many columns."""
    name = kind.removeprefix("ivf_")
    return WORDS.get(name, f"PQ{width // 4 if width % 4 == 0 else width}")


def fitted(kind: str, row_bytes: int, free: int, rows: int, reduced: int, cells: int) -> int:
    """Return the widest multiple of 8 columns whose codes, centroids and matrix fit.

    Args:
        kind: With codes, or `ivf_flat`.
        row_bytes: What a row may take.
        free: What the whole index may take, however few its rows; 0 where the user says how much that is.
        rows: How many.
        reduced: Columns at most.
        cells: Inverted lists.

    Raises:
        VectorIndexError: Not even 8 columns fit.
    """

    def takes(width: int) -> int:
        codes = code_bytes(code_word(kind, width), width)
        return rows * (ID_BYTES + codes) + 4 * width * (cells + reduced) + 32 * cells

    if kind == "ivf_flat":
        # Whole rows in cells: as large as they are, unless somebody says how large they may be.
        if free or takes(reduced) <= row_bytes * rows:
            return reduced
        raise VectorIndexError(
            f"index.memory is {row_bytes * rows:,} bytes; kind ivf_flat keeps whole rows, which take "
            f"{takes(reduced):,}. Give as much, or choose a kind with codes."
        )
    # What is trained is small beside many rows; beside few it may be larger than all of them.
    widest = _widest(kind, row_bytes, max(row_bytes * rows, free), reduced, takes)
    if widest:
        return widest
    if reduced < 8:
        return reduced
    raise _too_little(kind, row_bytes, rows, takes(8))


def fitted_turned(kind: str, row_bytes: int, free: int, rows: int, dims: int, cells: int) -> int:
    """Return the widest columns that wide rows can be turned in so that codes and centroids fit; see `fitted`."""

    def takes(width: int) -> int:
        return rows * (ID_BYTES + code_bytes(code_word(kind, width), width)) + (4 * width + 32) * cells

    widest = _widest(kind, row_bytes, max(row_bytes * rows, free), turned_width(dims), takes)
    if not widest:
        raise _too_little(kind, row_bytes, rows, takes(8))
    return widest_turned(widest)


def _widest(kind: str, row_bytes: int, whole: int, most: int, takes: Callable[[int], int]) -> int:
    """Return the widest multiple of 8 up to `most` that fits; 0 if none does."""
    sizes = [(width, ID_BYTES + code_bytes(code_word(kind, width), width)) for width in range(8, most + 1, 8)]
    return max((width for width, size in sizes if size <= row_bytes and takes(width) <= whole), default=0)


def _too_little(kind: str, row_bytes: int, rows: int, least: int) -> VectorIndexError:
    return VectorIndexError(
        f"index.memory leaves {row_bytes:,} bytes a row; an index of kind {kind} over {rows:,} rows needs "
        f"{least // max(1, rows) + 1:,} or more. Give {least + rows:,} bytes or more, or leave memory out."
    )


def explicit(factory: str, reduced: int) -> tuple[str, int, int]:
    """Return FAISS's string with its lists named, their number, and the width of what is coded.

    Args:
        factory: As the settings have it.
        reduced: Columns of what FAISS gets.

    Raises:
        VectorIndexError: The factory doesn't fit so many columns.
    """
    match = FACTORY.fullmatch(factory)
    assert match is not None, factory  # the settings have checked it
    transform, codes = match["transform"] or "", match["codes"]
    numbers = [int(part) for part in transform.lstrip("PCAROQ").split("_") if part]
    width = reduced if not transform or (transform.startswith("OPQ") and len(numbers) == 1) else numbers[-1]
    cells = int(match["lists"] or 1)
    if width > reduced:
        raise VectorIndexError(
            f"index.factory {factory}: {transform} makes {width:,} columns of {reduced:,}; ask for {reduced:,} "
            "or fewer."
        )
    parts = int(codes[2:].removesuffix("np").partition("x")[0]) if codes.startswith("PQ") else 1
    if width % parts or (transform.startswith("OPQ") and width % numbers[0]):
        raise VectorIndexError(
            f"index.factory {factory}: {width:,} columns can't be cut into equal parts as it says. "
            "Choose a number of parts that divides them."
        )
    return ",".join(part for part in (transform, f"IVF{cells}", codes) if part), cells, width
