"""From rows, columns, memory and recall to a FAISS factory and what it costs – and the only place that imports faiss.

Every approximate index is a set of inverted lists of codes, of reduced rows: lists can be filled by rows in parallel,
merged on disk and searched there. What reads all rows, such as `rabitq`, has one list. Bytes a row are spent on width
or on bits; measured on clustered rows of 1,024 columns, at equal bytes, two bits on half as many principal directions
find more than one bit on all, and both find more than random directions of either kind. Rows wider than that have no
matrix of directions: they are turned by `turn`, and one bit on as many columns as fit finds more of nearly white rows
than two bits on half of them (docs/benchmarks.md).

Whether so many bytes find enough nobody knows before they are measured. `auto` therefore has further steps, each of
which takes more bytes: `index.approximate.fallback`.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from index.codes import ID_BYTES, code_bytes, code_word, explicit, fitted, fitted_turned
from index.errors import FaissMissing, GpuMissing, VectorIndexError
from index.settings import Device, IndexSettings

FLAT_BYTES = 2 * 2**30
"""What `auto` gives a flat index where nobody says how much memory there is."""

WIDEST = 4096
"""Columns above which there is no matrix of directions: training it takes the square of them. Rows are turned instead,
or added up to so many for kinds without RaBitQ's codes."""

LEAST, MOST = 64, 640
"""Bytes a row where memory isn't given: an eighth of a byte a column, but at least and at most so many. So few rows
that they stay within `FLAT_BYTES` may take more than the second."""

SMALL = 16 * 2**20
"""What an index may take where memory isn't given, however few its rows."""

TURNED_CELL = 512
"""Turned rows a cell at least: a wide centroid takes as much as 32 codes of one bit."""

SAMPLE_BYTES = 2**30
"""The largest sample to train from, as reduced float32 rows; half of it where they are turned, which are copied more
often than projected."""

STEPS = (("", 1), ("ivf_rabitq2", 2), ("ivf_sq4", 4))
"""What `auto` tries in turn: the kind, and its bytes a row as multiples of the first."""

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
        reduced: Columns after rows are added up; `dims` where they aren't, and a few more where they are turned.
        cells: Inverted lists.
        sample: Rows to train from.
        part_rows: Rows of one part; the last may be shorter.
        row_bytes: Of one row, its number included.
        disk_bytes: Of the whole index.
        build_bytes: Memory of one process that trains or builds a part, about.
        search_bytes: Memory of a search besides the pages of the lists, which the system lends and takes back.
        turned: Whether reduced rows are turned at random, without a matrix.
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
    turned: bool = False

    @property
    def width(self) -> int:
        """Columns of what is coded."""
        return self.reduced if self.factory is None else explicit(self.factory, self.reduced)[2]

    @property
    def has_matrix(self) -> bool:
        """Whether reduced rows are multiplied by a matrix before they are coded."""
        return self.factory is not None and not self.factory.startswith("IVF")

    @property
    def summary(self) -> str:
        """The plan in words, for `influence plan`."""
        if self.factory is None:
            return f"{self.kind}: every row is compared"
        added = f"rows added up to {self.reduced:,} columns, then " if self.reduced < self.dims else ""
        if self.turned:
            added = f"rows rotated in {self.reduced:,} of {self.dims:,} columns, then "
        return (
            f"{self.kind}: {added}FAISS {self.factory}, {self.row_bytes:,} bytes per row; candidates are scored "
            "from the stored rows"
        )


def plan_factory(settings: IndexSettings, rows: int, dims: int, step: int = 0) -> IndexPlan:
    """Choose a factory, and say what it will cost.

    Args:
        settings: kind, factory, memory, recall and reduce are read.
        rows: How many.
        dims: D.
        step: Of `STEPS`, for kind `auto`.

    Raises:
        VectorIndexError: The memory that is given can't hold so many rows, or the factory doesn't fit the columns.
    """
    kind = _kind(settings, rows, dims, step)
    if kind in ("exact", "flat"):
        return _compared(settings, kind, rows, dims)
    rotate = _rotates(settings, kind, dims)
    reduced = min(dims, settings.reduce or (dims if rotate else WIDEST))
    budget = _budget(settings, rows, dims, step, rotate)
    if rotate:
        reduced = fitted_turned(kind, *budget, rows, reduced, 1)
    sampled = max(1, SAMPLE_BYTES // ((8 if rotate else 4) * reduced))
    cells = 1
    if kind.startswith("ivf_"):
        fewest = TURNED_CELL if rotate else 40
        cells = max(1, min(2 ** round((rows or 1).bit_length() / 2), rows // fewest, sampled // PER_CELL))
    if settings.factory is not None:
        factory, cells, width = explicit(settings.factory, reduced)
    elif rotate:
        reduced = width = fitted_turned(kind, *budget, rows, reduced, cells)
        factory = f"IVF{cells},{code_word(kind, width)}"
    else:
        width = fitted(kind, *budget, rows, reduced, cells)
        factory = f"{_transform(kind, reduced, width)}IVF{cells},{code_word(kind, width)}"
    return _costed(kind, factory, rows, dims, (reduced, width, cells, sampled), rotate=rotate)


def _costed(
    kind: str, factory: str, rows: int, dims: int, sizes: tuple[int, int, int, int], *, rotate: bool
) -> IndexPlan:
    """Reckon what an approximate index takes; `sizes` are columns, coded columns, cells, and the largest sample."""
    reduced, width, cells, sampled = sizes
    sample = min(rows, sampled, max(PER_CELL * cells, 20_000))
    codes = factory.rsplit(",", 1)[-1]
    row_bytes = ID_BYTES + code_bytes(codes, width)
    matrix = not rotate and (width != reduced or "RaBitQ" in codes)
    fixed = 4 * width * cells + (4 * width * reduced if matrix else 0)
    # Lists are allocated by doubling while a part is filled; training holds the sample twice and a square matrix.
    part_rows = max(1, min(rows, PART_BYTES // row_bytes))
    training = 4 * sample * (reduced + 2 * width) + (0 if rotate else 16 * reduced**2)
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
        rotate,
    )


def _compared(settings: IndexSettings, kind: str, rows: int, dims: int) -> IndexPlan:
    """Return the plan of a search that compares every row."""
    size = 4 * rows * dims if kind == "flat" else 0
    if settings.memory is not None and size > settings.memory:
        raise VectorIndexError(
            f"index.memory is {settings.memory:,} bytes; a flat index of {rows:,} rows and {dims:,} columns takes "
            f"{size:,}. Give as much, or set index.kind: auto or exact."
        )
    return IndexPlan(kind, None, dims, dims, 1, 0, rows, 4 * dims, size, size, size)


def bytes_needed(settings: IndexSettings, rows: int, dims: int) -> int:
    """Return the bytes on disk that the index takes, and of a flat one in memory: 4 · rows · dims; none for `exact`.

    With `device: gpu` the same number is needed once in main memory, while building or loading, and once on the GPU.
    """
    return plan_factory(settings, rows, dims).disk_bytes


def _kind(settings: IndexSettings, rows: int, dims: int, step: int) -> str:
    if settings.kind != "auto":
        return settings.kind
    fits = 4 * rows * dims <= (settings.memory or FLAT_BYTES)
    if not fits and settings.recall == 1:
        return "exact"
    if fits:
        return "flat"
    return STEPS[step][0] or ("ivf_rabitq" if (settings.reduce or dims) > WIDEST else "ivf_rabitq2")


def _rotates(settings: IndexSettings, kind: str, dims: int) -> bool:
    """Whether codes want a rotation, those of RaBitQ and of `auto`, and rows are too wide for its matrix."""
    coded = settings.factory is None and ("rabitq" in kind or settings.kind == "auto")
    return coded and (settings.reduce or dims) > WIDEST


def _budget(settings: IndexSettings, rows: int, dims: int, step: int, rotate: bool) -> tuple[int, int]:
    """Return bytes a row, and bytes that the whole index may take whatever its rows."""
    if settings.memory is not None:
        return settings.memory // max(1, rows), 0
    most = max(MOST, FLAT_BYTES // max(1, rows))
    # Turned rows have nothing trained but centroids, which are small beside their codes unless there is only one.
    free = 0 if rotate and rows >= TURNED_CELL else SMALL
    return STEPS[step][1] * min(most, max(LEAST, dims // 8)), free


def _transform(kind: str, reduced: int, width: int) -> str:
    if width < reduced:
        return f"PCAR{width},"
    return f"RR{width}," if "rabitq" in kind else ""


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
