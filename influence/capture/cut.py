"""How a data set is cut into shards, and what a run will take: pure functions of row counts and widths.

The cut depends on the rows, their width and the settings, never on the workers, so that any number of workers writes
the same files and an interrupted build finds its shards again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from index.factory import plan_factory
from index.settings import IndexSettings
from influence.axes import ModuleColumns
from influence.curvature.projected_fisher import blocks_of
from influence.errors import DataError
from influence.recipes import Recipe
from influence.store.codec import CodecSettings
from influence.store.codecs import bytes_per_row
from influence.store.manifest import ShardRange, StoreSettings
from influence.vectors.ensemble import of_one, side_by_side

PLAN_VERSION = 1
"""Part of a run's fingerprint: raised when the rule that cuts shards changes, so that no build mixes two cuts."""
SHARD_BYTES = 256 * 2**20
MIN_ROWS, MAX_ROWS = 64, 65_536
SPREAD = 32
"""A small data set is cut into about this many shards, for workers to share and a progress bar to move."""
SPREAD_ROWS = 256
"""But not into shards under this many rows: batches are cut by length within a shard, and few rows pad badly."""
TAPER = 4
"""Towards the end a shard holds this part of the rows that are left, down to 64: workers then finish together."""
GROUPS = 64
FACTOR_GROUPS = 16
FACTOR_ROWS = 256
PARTIAL_BYTES = 4 * 2**30
"""What the curvature's partial sums may take on disk together, unless a single one takes more."""


def rows_per_shard(rows: int, row_bytes: int, settings: StoreSettings) -> int:
    """Return how many rows a shard holds.

    As set; or as many as make about 256 MB of rows (64 to 65,536), fewer where the data set is so small that
    it would make under 32 shards, down to 256.
    """
    if settings.rows_per_shard is not None:
        return settings.rows_per_shard
    by_size = max(MIN_ROWS, min(MAX_ROWS, SHARD_BYTES // row_bytes))
    by_spread = max(SPREAD_ROWS, -(-rows // SPREAD))
    return min(by_size, by_spread)


def held_bytes(codec: CodecSettings, modules: Sequence[ModuleColumns], checkpoints: int) -> int:
    """Return the bytes of a row that a worker holds: as it is encoded; of several checkpoints, in float32 before."""
    encoded = bytes_per_row(codec, modules)
    return encoded if checkpoints < 2 else max(encoded, 4 * modules[-1].stop)


def plan_shards(rows: int, per_shard: int) -> tuple[ShardRange, ...]:
    """Cut rows 0 … rows−1 into consecutive shards of `per_shard` rows, of ever fewer towards the end.

    Raises:
        DataError: There are no rows.
    """
    if rows < 1:
        raise DataError("The data set has no rows: there is nothing to capture.")
    if per_shard < 1:
        raise ValueError(f"rows per shard must be at least 1, found {per_shard}")
    shards: list[ShardRange] = []
    start = 0
    while start < rows:
        left = rows - start
        size = min(left, per_shard, max(MIN_ROWS, -(-left // TAPER)))
        shards.append(ShardRange(shard=len(shards), start=start, stop=start + size))
        start += size
    return tuple(shards)


def most_shards(rows: int, settings: StoreSettings) -> int:
    """Return how many shards the rows make; where their width decides that, the most they can make of any width."""
    if settings.rows_per_shard is None:
        return -(-rows // MIN_ROWS)
    return len(plan_shards(rows, settings.rows_per_shard))


def group_shards(shards: Sequence[ShardRange], modules: Sequence[ModuleColumns]) -> tuple[tuple[ShardRange, ...], ...]:
    """Cut shards into consecutive groups, one partial sum of the curvature each.

    At most 64 groups, and fewer where their partial sums would take more than 4 GiB of disk together; never by the
    workers.
    """
    most = max(1, min(GROUPS, len(shards), PARTIAL_BYTES // max(1, fisher_bytes(modules))))
    size = -(-len(shards) // most)
    return tuple(tuple(shards[start : start + size]) for start in range(0, len(shards), size))


def factor_groups(sample: int, modules: Sequence[ModuleColumns]) -> int:
    """Return into how many groups the sampled rows are cut, one partial sum of the Kronecker factors each.

    Groups of about 256 rows, at most 16, fewer where their sums would take more than 4 GiB of disk together.
    """
    most = PARTIAL_BYTES // max(1, covariance_bytes(modules))
    return max(1, min(FACTOR_GROUPS, -(-sample // FACTOR_ROWS), most))


def fisher_blocks(
    modules: Sequence[ModuleColumns], blocks: Literal["module", "all"], checkpoints: int
) -> tuple[ModuleColumns, ...]:
    """Return the blocks of a run's Fisher: of several checkpoints, whose columns stand side by side, each its own."""
    if blocks == "module":
        return tuple(modules)
    return side_by_side(blocks_of(modules[: len(modules) // checkpoints], blocks), checkpoints)


def capture_bytes(recipe: Recipe, modules: Sequence[ModuleColumns]) -> int:
    """Return the bytes of what a worker holds beside the model: what gradients are divided by, and its projections.

    That is trak's matrix, and the matrices that every one of several checkpoints has of its own factors.
    """
    weights = sum(module.inputs * module.outputs for module in modules) // (len(recipe.checkpoints) or 1)
    divisors = 4 * weights if recipe.gradient.kind == "adam" else 0
    settings = recipe.projection
    dense = settings.kind == "trak" and settings.projector == "basic"
    several = settings.folds and len(recipe.checkpoints) > 1
    sides = sum(module.p * module.inputs + module.q * module.outputs for module in modules) if several else 0
    return divisors + 4 * sides + (4 * weights * min(settings.block, settings.dims or 0) if dense else 0)


def covariance_bytes(modules: Sequence[ModuleColumns]) -> int:
    """Return the bytes of one set of Kronecker factors: two float32 squares a module."""
    return sum(4 * (module.inputs**2 + module.outputs**2) for module in modules)


def fisher_bytes(modules: Sequence[ModuleColumns]) -> int:
    """Return the bytes of one set of Fisher sums: a float64 square a module."""
    return sum(8 * (module.stop - module.start) ** 2 for module in modules)


@dataclass(frozen=True)
class Estimate:
    """What a run will take. Bytes are estimates for the stage's own arrays; the model comes on top where it says so.

    Attributes:
        rows: Rows of the data set.
        dims: D, columns of a row.
        shards: Files of rows.
        rows_per_shard: Rows in the largest, which is the first.
        disk_rows: Bytes of all row vectors and norms (metadata comes on top: about the size of the text).
        disk_factors: Bytes of the Kronecker factors' partial sums and of what is made of them.
        disk_curvature: Bytes of the Fisher's partial sums and of its decomposition.
        disk_index: Bytes of the index.
        memory_capture: Bytes a worker holds while capturing the largest shards, without the model and its activations.
        memory_factors: Bytes a worker holds while fitting Kronecker factors, without the model and its activations, and
            the coordinator while merging and decomposing them.
        memory_curvature: Bytes a worker holds while summing the curvature, and the coordinator while decomposing it.
        memory_index: Bytes held while building the index, and while searching it.
        memory_model: Bytes of the model's weights on each worker.
    """

    rows: int
    dims: int
    shards: int
    rows_per_shard: int
    disk_rows: int
    disk_curvature: int
    disk_index: int
    memory_capture: int
    memory_curvature: int
    memory_index: int
    memory_model: int = 0
    disk_factors: int = 0
    memory_factors: int = 0

    @property
    def disk(self) -> int:
        """All bytes on disk together, metadata apart."""
        return self.disk_rows + self.disk_factors + self.disk_curvature + self.disk_index


def estimate(
    rows: int,
    modules: Sequence[ModuleColumns],
    per_shard: int,
    *,
    curvature: Literal["identity", "fisher"],
    index: IndexSettings,
    codec: CodecSettings = CodecSettings(),
    model_bytes: int = 0,
    recipe: Recipe | None = None,
) -> Estimate:
    """Work out disk and memory from counts alone; see `Estimate` for what each number holds.

    Args:
        rows: Of the data set.
        modules: Their columns.
        per_shard: The most rows of a shard.
        curvature: What is fitted to the stored rows.
        index: Its settings.
        codec: How directions are kept.
        model_bytes: Of the weights.
        recipe: Says whether Kronecker factors are fitted, and to how many rows, over which blocks a Fisher is summed,
            of how many checkpoints, and what a capture holds; None fits no factors and has one checkpoint.
    """
    dims = modules[-1].stop if modules else 0
    row_bytes = bytes_per_row(codec, modules)
    shards = plan_shards(rows, per_shard)
    in_shard = shards[0].rows
    checkpoints = len(recipe.checkpoints) if recipe else 0
    blocks = fisher_blocks(modules, recipe.curvature.blocks, checkpoints or 1) if recipe and modules else modules
    sums = fisher_bytes(blocks) if curvature == "fisher" else 0
    groups = len(group_shards(shards, blocks)) if sums else 0
    widest = max((8 * (block.stop - block.start) ** 2 for block in blocks), default=0) if sums else 0
    indexed = plan_factory(index, rows, dims) if dims else None
    factors = eigenvalues = partials = 0
    if recipe is not None and recipe.needs_factors:
        own = of_one(modules, checkpoints or 1)
        factors = covariance_bytes(own)
        eigenvalues = sum(4 * module.inputs * module.outputs for module in own) * recipe.corrects_eigenvalues
        partials = factor_groups(min(rows, recipe.factors.rows or rows), own)
    return Estimate(
        rows=rows,
        dims=dims,
        shards=len(shards),
        rows_per_shard=in_shard,
        disk_rows=rows * row_bytes,
        disk_curvature=groups * sums + sums // 2,
        disk_index=indexed.disk_bytes if indexed else 0,
        # A shard being captured and the one before it being written; of several checkpoints the former in float32 too.
        memory_capture=(2 * row_bytes + (4 * dims if checkpoints > 1 else 0)) * in_shard
        + (capture_bytes(recipe, modules) if recipe else 0),
        # Both sums of a merge, then one module's matrix, its eigenvectors and the solver's workspace.
        memory_curvature=2 * sums + 3 * widest,
        memory_index=max(indexed.build_bytes, indexed.search_bytes) if indexed else 0,
        # A checkpoint's weights are read beside those that they replace.
        memory_model=model_bytes * (2 if checkpoints else 1),
        # Checkpoints are fitted one after another: partial sums are those of one of them.
        disk_factors=partials * max(factors, eigenvalues) + (checkpoints or 1) * (factors + eigenvalues),
        # Both sums of a merge, and their decomposition in float64.
        memory_factors=4 * factors + 2 * eigenvalues,
    )
