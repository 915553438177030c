"""The curvature stage: sums over the stored rows, one partial a group of shards, merged in order and decomposed.

Groups are cut by the plan. Each partial is a file, so that a build that was interrupted sums only the groups it lacks;
any number of workers gives the same bytes, because additions happen in the same order.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from distributed import Client

from influence.artifacts.tensors import load_tensors, remove_tensors, save_tensors, saved_for
from influence.capture.cut import fisher_blocks, group_shards
from influence.curvature.projected_fisher import FisherSums, ProjectedFisher
from influence.curvature.spectrum import Spectrum
from influence.engine.progress import Progress
from influence.engine.submit import run_tasks
from influence.engine.threads import torch_threads
from influence.errors import InfluenceError
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


@dataclass(frozen=True)
class PartialTask:
    """What a worker is sent: one group of shards to sum over."""

    run_dir: Path
    fingerprint: str
    blocks: Literal["module", "all"]
    number: int
    groups: int
    start: int
    stop: int
    threads: int
    checkpoints: int = 1
    averaged: Measured | None = None
    """What rows are the gradients of, where it is a mean over tokens: their Fisher needs `task.fisher_scale`."""

    @property
    def path(self) -> Path:
        """The partial's file."""
        return partial_path(self.run_dir / FOLDER, "fisher", self.number, self.groups)

    @property
    def name(self) -> str:
        """The group and its rows, for messages."""
        return f"curvature partial {self.number} of {self.groups} (rows {self.start} to {self.stop - 1})"


def plan_partials(run_dir: Path, manifest: Manifest, recipe: Recipe) -> tuple[PartialTask, ...]:
    """Return the partial sums of a run, in the order they are merged."""
    blocks, count = recipe.curvature.blocks, len(recipe.checkpoints) or 1
    groups = group_shards(manifest.shards, fisher_blocks(manifest.modules, blocks, count))
    averaged = recipe.measurement if manifest.reduction == "mean" else None
    fingerprint = fingerprint_of({"rows": manifest.rows_fingerprint, "blocks": blocks, **_scaling(manifest)})
    threads = int(manifest.fingerprint_parts["cluster.threads_per_worker"] or 1)
    return tuple(
        PartialTask(
            *(run_dir, fingerprint, blocks, number, len(groups), group[0].start, group[-1].stop, threads, count),
            averaged=averaged,
        )
        for number, group in enumerate(groups)
    )


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


def missing_partials(run_dir: Path, manifest: Manifest, recipe: Recipe) -> list[PartialTask]:
    """Return the partial sums that are still to be computed."""
    return [task for task in plan_partials(run_dir, manifest, recipe) if not saved_for(task.path, task.fingerprint)]


def sum_missing(client: Client, todo: Sequence[PartialTask], stage: Progress) -> None:
    """Compute partial sums on the cluster."""
    for _ in run_tasks(client, run_partial, todo, lambda task: task.name, stage):
        stage.finished()


def run_partial(task: PartialTask) -> int:
    """Sum over one group and save it; the entry point of a task."""
    try:
        store = Store(task.run_dir)
        sums = FisherSums(fisher_blocks(store.modules, task.blocks, task.checkpoints))
        with torch_threads(task.threads):
            for first, directions, norms in store.blocks(BLOCK_ROWS, task.start, task.stop):
                gradients = at_length(torch.from_numpy(directions), torch.from_numpy(norms))
                if task.averaged is not None:
                    gradients *= _scale(store, first, len(gradients), task.averaged)
                sums.add(gradients)
        save_tensors(task.path, sums.tensors(), task.fingerprint)
    except InfluenceError as error:
        raise type(error)(f"{task.name}: {error}") from error
    return task.number


def _scale(store: Store, first: int, count: int, kind: Measured) -> torch.Tensor:
    """Return `task.fisher_scale` of consecutive rows, [count, 1] float32, from the tokens that are stored with them."""
    tokens = [meta["tokens"] for meta in store.meta(np.arange(first, first + count), ("tokens",))]
    return scale_of(torch.tensor(tokens).clamp(min=1), kind).float().unsqueeze(1)


def gradient_blocks(store: Store, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, gradients float32 [b, D]) of the stored rows, in order."""
    for first, unit, norms in store.blocks(BLOCK_ROWS, start, stop):
        yield first, torch.from_numpy(np.multiply(unit, norms[:, None], out=unit))


def decompose(run_dir: Path, manifest: Manifest, recipe: Recipe) -> None:
    """Merge the partial sums in their order, decompose them, save the decomposition and remove the partial sums.

    Raises:
        CurvatureError: A module's sum isn't finite, or is singular and the damping is 0.
    """
    wanted = curvature_fingerprint(manifest, recipe)
    assert wanted is not None, "a recipe without curvature has nothing to decompose"
    merged: FisherSums | None = None
    blocks = fisher_blocks(manifest.modules, recipe.curvature.blocks, len(recipe.checkpoints) or 1)
    tasks = plan_partials(run_dir, manifest, recipe)
    for task in tasks:
        sums = FisherSums.from_tensors(blocks, load_tensors(task.path, task.fingerprint))
        if merged is None:
            merged = sums
        else:
            merged.merge(sums)
    assert merged is not None, "a run has at least one shard"
    fisher = ProjectedFisher.prepare(merged, recipe.curvature.damping)
    log_spectra("Fisher", fisher.spectra())
    save_tensors(_factors(run_dir), fisher.tensors(), wanted)
    for task in tasks:
        remove_tensors(task.path)


def load_curvature(run_dir: Path, manifest: Manifest, recipe: Recipe) -> ProjectedFisher | None:
    """Return the recipe's decomposed curvature, None where it has none.

    Raises:
        DigestMismatch: It is missing, damaged, or of other rows.
        CurvatureError: It is singular and the damping is 0.
    """
    wanted = curvature_fingerprint(manifest, recipe)
    if wanted is None:
        return None
    blocks = fisher_blocks(manifest.modules, recipe.curvature.blocks, len(recipe.checkpoints) or 1)
    return ProjectedFisher.from_tensors(blocks, load_tensors(_factors(run_dir), wanted), recipe.curvature.damping)


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
    "PartialTask",
    "curvature_fingerprint",
    "curvature_stands",
    "decompose",
    "gradient_blocks",
    "load_curvature",
    "log_spectra",
    "missing_partials",
    "plan_partials",
    "run_partial",
    "sum_missing",
]
