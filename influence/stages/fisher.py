"""The projected Fisher: sums over the stored rows, a partial a group of shards, merged in order and decomposed.

Groups are cut by the plan. Each partial is a file, so that a build that was interrupted sums only the groups it lacks;
any number of workers gives the same bytes, because additions happen in the same order.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from influence.artifacts.tensors import load_tensors, saved_for
from influence.axes import ModuleColumns
from influence.capture.cut import fisher_blocks, group_shards
from influence.curvature.projected_fisher import FisherSums, ProjectedFisher
from influence.curvature.spectrum import Spectrum
from influence.engine.stage import Series, Stage, Task
from influence.recipes import Recipe
from influence.stages.partial_sums import FOLDER, partial_path
from influence.store.manifest import Manifest, Part, fingerprint_of
from influence.store.reader import Store
from influence.task import Measured, scale_of
from influence.vectors.unit_norm import at_length

log = logging.getLogger(__name__)

BLOCK_ROWS = 1024
VERSION = 2
"""Of the sums. In version 1 rows were summed as the codec gives them back, which is longer than they are."""


@dataclass
class FisherPartials(Stage):
    """Sums over groups of shards, as the rows' gradients are made of their directions and lengths."""

    run_dir: Path
    manifest: Manifest
    recipe: Recipe

    name = "curvature"
    local = ("manifest",)

    def __post_init__(self) -> None:
        """Note what a worker needs of the manifest."""
        self.checkpoints = len(self.recipe.checkpoints) or 1
        self.threads = int(self.manifest.fingerprint_parts["cluster.threads_per_worker"] or 1)
        # Rows that are the gradients of a mean over tokens: their Fisher needs `task.fisher_scale`.
        self.averaged: Measured | None = self.recipe.measurement if self.manifest.reduction == "mean" else None

    @property
    def key(self) -> str:
        """Of the rows, the blocks and how rows are scaled."""
        rows, blocks = self.manifest.rows_fingerprint, self.recipe.curvature.blocks
        return fingerprint_of({"rows": rows, "blocks": blocks, **_scaling(self.manifest)})

    def cut(self) -> list[Task]:
        """Return the partial sums, in the order they are merged; a task covers rows [start, stop)."""
        groups, key = group_shards(self.manifest.shards, _blocks(self.manifest, self.recipe)), self.key
        tasks = []
        for number, group in enumerate(groups):
            first, last = group[0].start, group[-1].stop - 1
            name = f"curvature partial {number} of {len(groups)} (rows {first} to {last})"
            path = partial_path(self.run_dir / FOLDER, "fisher", number, len(groups))
            tasks.append(Task(self, number, name, (first, last + 1), path, key))
        return tasks

    def stands(self) -> bool:
        """Whether the decomposition is there, or nothing is to be decomposed."""
        return curvature_stands(self.run_dir, self.manifest, self.recipe)

    def run(self, task: Task, session: Any) -> None:
        """Sum over one group and save it."""
        store = Store(self.run_dir)
        sums = FisherSums(fisher_blocks(store.modules, self.recipe.curvature.blocks, self.checkpoints))
        for first, directions, norms in store.blocks(BLOCK_ROWS, *task.span):
            gradients = at_length(torch.from_numpy(directions), torch.from_numpy(norms))
            if self.averaged is not None:
                gradients *= _scale(store, first, len(gradients), self.averaged)
            sums.add(gradients)
        task.save(sums.tensors())


@dataclass
class FisherDecomposition(Stage):
    """The partial sums merged in their order and decomposed, by the coordinator."""

    partials: FisherPartials
    threads: int

    name = "curvature"
    here = True
    single = True

    @property
    def key(self) -> str:
        """Of the decomposition, under any damping."""
        key = curvature_fingerprint(self.partials.manifest, self.partials.recipe)
        assert key is not None, "a recipe without curvature has nothing to decompose"
        return key

    def cut(self) -> list[Task]:
        """Return the one task."""
        return [Task(self, 0, "the curvature's decomposition", None, _factors(self.partials.run_dir), self.key)]

    def run(self, task: Task, session: Any) -> None:
        """Merge, decompose and save.

        Raises:
            CurvatureError: A module's sum isn't finite, or is singular and the damping is 0.
        """
        manifest, recipe = self.partials.manifest, self.partials.recipe
        blocks, (first, *others) = _blocks(manifest, recipe), self.partials.cut()
        merged = FisherSums.from_tensors(blocks, first.load())
        for partial in others:
            merged.merge(FisherSums.from_tensors(blocks, partial.load()))
        fisher = ProjectedFisher.prepare(merged, recipe.curvature.damping)
        log_spectra("Fisher", fisher.spectra())
        task.save(fisher.tensors())

    def merge(self) -> None:
        """Remove the partial sums."""
        for partial in self.partials.cut():
            partial.remove()


@dataclass
class ProjectedFisherStage(Series):
    """A run's projected Fisher: partial sums, then their decomposition.

    Attributes:
        run_dir: The run, in reach of every worker.
        manifest: Of the run.
        recipe: Of the stored rows, with a curvature.
        threads: That the coordinator decomposes with.
    """

    run_dir: Path
    manifest: Manifest
    recipe: Recipe
    threads: int

    name = "curvature"

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The sums and the decomposition."""
        partials = FisherPartials(self.run_dir, self.manifest, self.recipe)
        return partials, FisherDecomposition(partials, self.threads)

    def stands(self) -> bool:
        """Whether the decomposition is there."""
        return curvature_stands(self.run_dir, self.manifest, self.recipe)


def _blocks(manifest: Manifest, recipe: Recipe) -> tuple[ModuleColumns, ...]:
    return fisher_blocks(manifest.modules, recipe.curvature.blocks, len(recipe.checkpoints) or 1)


def curvature_fingerprint(manifest: Manifest, recipe: Recipe) -> str | None:
    """Return the fingerprint of a run's decomposed curvature, of any damping; None for a recipe without one."""
    if recipe.curvature.kind == "identity":
        return None
    made_of = {"rows": manifest.rows_fingerprint, "kind": "fisher", "blocks": recipe.curvature.blocks}
    return fingerprint_of({**made_of, **_scaling(manifest)})


def _scaling(manifest: Manifest) -> dict[str, Part]:
    """Return the parts of a fingerprint that say how rows are scaled in the sums."""
    scale: dict[str, Part] = {"scale": "root of the tokens"} if manifest.reduction == "mean" else {}
    return {"version": VERSION, **scale}


def curvature_stands(run_dir: Path, manifest: Manifest, recipe: Recipe) -> bool:
    """Whether the recipe's curvature is there to be loaded."""
    wanted = curvature_fingerprint(manifest, recipe)
    return wanted is None or saved_for(_factors(run_dir), wanted)


def _scale(store: Store, first: int, count: int, kind: Measured) -> torch.Tensor:
    """Return `task.fisher_scale` of consecutive rows, [count, 1] float32, from the tokens that are stored with them."""
    tokens = [meta["tokens"] for meta in store.meta(np.arange(first, first + count), ("tokens",))]
    return scale_of(torch.tensor(tokens).clamp(min=1), kind).float().unsqueeze(1)


def gradient_blocks(store: Store, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, gradients float32 [b, D]) of the stored rows, in order."""
    for first, unit, norms in store.blocks(BLOCK_ROWS, start, stop):
        yield first, torch.from_numpy(np.multiply(unit, norms[:, None], out=unit))


def load_curvature(run_dir: Path, manifest: Manifest, recipe: Recipe) -> ProjectedFisher | None:
    """Return the recipe's decomposed curvature, None where it has none.

    Raises:
        DigestMismatch: It is missing, damaged, or of other rows.
        CurvatureError: It is singular and the damping is 0.
    """
    wanted = curvature_fingerprint(manifest, recipe)
    if wanted is None:
        return None
    tensors = load_tensors(_factors(run_dir), wanted)
    return ProjectedFisher.from_tensors(_blocks(manifest, recipe), tensors, recipe.curvature.damping)


def log_spectra(what: str, spectra: Iterable[Spectrum]) -> None:
    """Log a curvature's spectrum, module by module at debug level, and what damping decides in one line."""
    shares, directions = [], []
    for spectrum in spectra:
        shares.append(spectrum.trace_share_under_damping)
        directions.append(spectrum.directions_under_damping)
        log.debug(
            "%s of %s: largest eigenvalue %.3g, mean %.3g, damping %.3g; %.0f %% of the trace lies under the damping, "
            "in %.0f %% of the directions.",
            what,
            spectrum.module,
            spectrum.largest,
            spectrum.mean,
            spectrum.damping,
            100 * spectrum.trace_share_under_damping,
            100 * spectrum.directions_under_damping,
        )
    log.info(
        "%s of %d blocks: %.0f to %.0f %% of the trace lies under the damping, in %.0f to %.0f %% of the directions.",
        what,
        len(shares),
        100 * min(shares),
        100 * max(shares),
        100 * min(directions),
        100 * max(directions),
    )


def _factors(run_dir: Path) -> Path:
    return run_dir / FOLDER / "fisher.safetensors"


__all__ = [
    "FisherDecomposition",
    "FisherPartials",
    "ProjectedFisherStage",
    "curvature_fingerprint",
    "curvature_stands",
    "gradient_blocks",
    "load_curvature",
    "log_spectra",
]
