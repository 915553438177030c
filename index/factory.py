"""From rows, columns, memory and recall to a FAISS factory and what it costs – and the only place that imports faiss.

Every approximate index is a set of inverted lists of codes, of reduced rows: lists can be filled by rows in parallel,
merged on disk and searched there. What reads all rows, such as `rabitq`, has one list. Bytes a row are spent on width
or on bits; measured on clustered rows of 1,024 columns, at equal bytes, two bits on half as many principal directions
find more than one bit on all, and both find more than random directions of either kind (BENCHMARKS.md).
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from index.errors import FaissMissing, GpuMissing, VectorIndexError
from index.settings import FACTORY, Device, IndexSettings

FLAT_BYTES = 2 * 2**30
"""What `auto` gives a flat index where nobody says how much memory there is."""

WIDEST = 4096
"""Columns above which rows are added up to fewer before anything is trained: training takes the square of it."""

LEAST, MOST = 64, 640
"""Bytes a row where memory isn't given: an eighth of a byte a column, but at least and at most so many."""

SMALL = 16 * 2**20
"""What an index may take where memory isn't given, however few its rows."""

ID_BYTES = 8
"""What FAISS's lists keep beside a code."""

SAMPLE_BYTES = 2**30
"""The largest sample to train from, as reduced float32 rows."""

PER_CELL = 64
"""Sampled rows a cell."""

PART_BYTES = 256 * 2**20
"""Codes of one part: what a worker that builds one holds."""


@dataclass(frozen=True)
class IndexPlan:
    """What will be built. A pure function of the settings, the rows and the columns.

    Attributes:
        kind: Of the settings, with `auto` decided.
        factory: FAISS's factory string over the reduced rows; None of `exact` and `flat`.
        dims: D.
        reduced: Columns after rows are added up; `dims` where they aren't.
        cells: Inverted lists.
        sample: Rows to train from.
        part_rows: Rows of one part; the last may be shorter.
        row_bytes: Of one row, its number included.
        disk_bytes: Of the whole index.
        build_bytes: Memory of one process that trains or builds a part, about.
        search_bytes: Memory of a search besides the pages of the lists, which the system lends and takes back.
    """

    kind: str
    factory: str | None
    dims: int
    reduced: int
    cells: int
    sample: int
    part_rows: int
    row_bytes: int
    disk_bytes: int
    build_bytes: int
    search_bytes: int

    @property
    def summary(self) -> str:
        """The plan in words, for `influence plan`."""
        if self.factory is None:
            return f"{self.kind}: every row is compared"
        added = f"rows added up to {self.reduced:,} columns, then " if self.reduced < self.dims else ""
        return f"{self.kind}: {added}FAISS {self.factory}, {self.row_bytes:,} bytes a row; the stored rows decide"


def plan_factory(settings: IndexSettings, rows: int, dims: int) -> IndexPlan:
    """Choose a factory, and say what it will cost.

    Args:
        settings: kind, factory, memory, recall and reduce are read.
        rows: How many.
        dims: D.

    Raises:
        VectorIndexError: The memory that is given can't hold so many rows, or the factory doesn't fit the columns.
    """
    kind = _decided(settings, rows, dims)
    if kind in ("exact", "flat"):
        size = 4 * rows * dims if kind == "flat" else 0
        if settings.memory is not None and size > settings.memory:
            raise VectorIndexError(
                f"index.memory is {settings.memory:,} bytes; a flat index of {rows:,} rows and {dims:,} columns takes "
                f"{size:,}. Give as much, or set index.kind: auto or exact."
            )
        return IndexPlan(kind, None, dims, dims, 1, 0, rows, 4 * dims, size, size, size)
    reduced = min(dims, settings.reduce or WIDEST)
    most_sampled = max(1, SAMPLE_BYTES // (4 * reduced))
    cells = 1
    if kind.startswith("ivf_"):
        cells = max(1, min(2 ** round((rows or 1).bit_length() / 2), rows // 40, most_sampled // PER_CELL))
    if settings.factory is not None:
        factory, cells, width = _explicit(settings.factory, reduced)
    else:
        codes, width = _fitted(kind, *_budget(settings, rows, dims), rows, reduced, cells)
        factory = f"{_transform(kind, reduced, width)}IVF{cells},{codes}"
    sample = min(rows, most_sampled, max(PER_CELL * cells, 20_000))
    codes = factory.rsplit(",", 1)[-1]
    row_bytes = ID_BYTES + code_bytes(codes, width)
    fixed = 4 * width * cells + (4 * width * reduced if width != reduced or "RaBitQ" in codes else 0)
    # Lists are allocated by doubling while a part is filled; training holds the sample twice and a square matrix.
    part_rows = max(1, min(rows, PART_BYTES // row_bytes))
    training = 4 * sample * (reduced + 2 * width) + 16 * reduced**2
    building = max(training, 2 * part_rows * row_bytes + 2 * fixed + 12 * 2**20)
    return IndexPlan(
        kind,
        factory,
        dims,
        reduced,
        cells,
        sample,
        part_rows,
        row_bytes,
        rows * row_bytes + fixed + 32 * cells,
        building,
        2 * fixed + 64 * 2**20,
    )


def bytes_needed(settings: IndexSettings, rows: int, dims: int) -> int:
    """Return the bytes on disk that the index takes, and of a flat one in memory: 4 · rows · dims; none for `exact`.

    With `device: gpu` the same number is needed once in main memory, while building or loading, and once on the GPU.
    """
    return plan_factory(settings, rows, dims).disk_bytes


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


def _decided(settings: IndexSettings, rows: int, dims: int) -> str:
    if settings.kind != "auto":
        return settings.kind
    fits = 4 * rows * dims <= (settings.memory or FLAT_BYTES)
    if not fits and settings.recall == 1:
        return "exact"
    return "flat" if fits else "ivf_rabitq2"


def _budget(settings: IndexSettings, rows: int, dims: int) -> tuple[int, int]:
    """Return bytes a row, and bytes that the whole index may take whatever its rows."""
    if settings.memory is not None:
        return settings.memory // max(1, rows), 0
    return min(MOST, max(LEAST, dims // 8)), SMALL


def _fitted(kind: str, row_bytes: int, free: int, rows: int, reduced: int, cells: int) -> tuple[str, int]:
    """Return the codes' word, and the widest multiple of 8 columns whose codes, centroids and matrix fit."""
    name = kind.removeprefix("ivf_")

    def word(width: int) -> str:
        words = {"flat": "Flat", "sq8": "SQ8", "sq4": "SQ4", "rabitq": "RaBitQ", "rabitq2": "RaBitQ2"}
        return words.get(name, f"PQ{width // 4 if width % 4 == 0 else width}")

    def takes(width: int) -> int:
        return rows * (ID_BYTES + code_bytes(word(width), width)) + 4 * width * (cells + reduced) + 32 * cells

    if name == "flat":
        # Whole rows in cells: as large as they are, unless somebody says how large they may be.
        if free or takes(reduced) <= row_bytes * rows:
            return word(reduced), reduced
        raise VectorIndexError(
            f"index.memory is {row_bytes * rows:,} bytes; kind ivf_flat keeps whole rows, which take "
            f"{takes(reduced):,}. Give as much, or choose a kind with codes."
        )
    # What is trained is small beside many rows; beside few it may be larger than all of them.
    whole = max(row_bytes * rows, free)
    sizes = [(width, ID_BYTES + code_bytes(word(width), width)) for width in range(8, reduced + 1, 8)]
    fitting = [width for width, size in sizes if size <= row_bytes and takes(width) <= whole]
    if fitting:
        return word(fitting[-1]), fitting[-1]
    if reduced < 8:
        return word(reduced), reduced
    raise VectorIndexError(
        f"index.memory leaves {row_bytes:,} bytes a row; an index of kind {kind} over {rows:,} rows needs "
        f"{takes(8) // max(1, rows) + 1:,} or more. Give {takes(8) + rows:,} bytes or more, or leave memory out."
    )


def _transform(kind: str, reduced: int, width: int) -> str:
    if width < reduced:
        return f"PCAR{width},"
    return f"RR{width}," if "rabitq" in kind else ""


def _explicit(factory: str, reduced: int) -> tuple[str, int, int]:
    """Return FAISS's string with its lists named, their number, and the width of what is coded."""
    found = FACTORY.fullmatch(factory)
    assert found is not None, factory  # the settings have checked it
    transform, codes = found["transform"] or "", found["codes"]
    numbers = [int(part) for part in transform.lstrip("PCAROQ").split("_") if part]
    width = reduced if not transform or (transform.startswith("OPQ") and len(numbers) == 1) else numbers[-1]
    cells = int(found["lists"] or 1)
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


def load_faiss(device: Device = "cpu") -> Any:
    """Import faiss, able to serve the device.

    Raises:
        FaissMissing: It isn't installed, or doesn't load; the message names the extra to install.
        GpuMissing: `gpu` was asked for, and this faiss or this machine has none.
    """
    try:
        faiss = import_module("faiss")
    except ImportError as error:
        extra = "gpu" if device == "gpu" else "cpu"
        raise FaissMissing(
            f"The module faiss can't be imported ({error}); a FAISS index on the {device} needs it. "
            f"Install it with: pip install 'influence[{extra}]' – or set index.kind: exact, which needs none."
        ) from None
    if device == "gpu":
        if not hasattr(faiss, "StandardGpuResources"):
            raise GpuMissing(
                f"index.device is gpu, but the installed faiss {faiss.__version__} was built for the CPU only. "
                "Run: pip uninstall faiss-cpu && pip install 'influence[gpu]' – or set index.device: cpu."
            )
        if faiss.get_num_gpus() == 0:
            raise GpuMissing("index.device is gpu, but faiss finds no GPU on this machine. Set index.device: cpu.")
    return faiss


def to_device(flat: Any, device: Device) -> Any:
    """Copy a flat FAISS index from main memory to the first GPU; `cpu` returns it as it is.

    Raises:
        GpuMissing: There is no GPU to copy to.
    """
    if device == "cpu":
        return flat
    faiss = load_faiss("gpu")
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, flat)
