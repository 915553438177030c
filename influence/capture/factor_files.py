"""Where the Kronecker factors of a run's checkpoints are, and into which files their modules are cut."""

from collections.abc import Sequence
from pathlib import Path

from influence.axes import ModuleColumns
from influence.capture.spec import FactorFiles
from influence.curvature.covariance import ModuleWidths
from influence.recipes import Recipe
from influence.store.manifest import Manifest, fingerprint_of
from influence.vectors.ensemble import of_one

FOLDER = "curvature"
"""The folder of a run directory that holds factors, sums and decompositions."""
WORK = 2 * 2048**3
"""Σ (I³ + O³) of the modules that one task decomposes, unless one module alone takes more."""


def factor_files(run_dir: Path, manifest: Manifest, recipe: Recipe) -> tuple[FactorFiles, ...]:
    """Return where the factors of each checkpoint are or will be; none for a recipe that needs none."""
    if not recipe.needs_factors:
        return ()
    count = len(recipe.checkpoints) or 1
    return tuple(_files_of(run_dir, manifest, recipe, number, count) for number in range(count))


def _files_of(run_dir: Path, manifest: Manifest, recipe: Recipe, number: int, count: int) -> FactorFiles:
    """Return where one checkpoint's factors are, out of `count`; their fingerprint holds its digest and no other's."""
    shared, own = ("model", "tokeniser", "data", "task.", "cluster."), f"recipe.checkpoints.{number}"
    parts = manifest.fingerprint_parts
    made_of = {key: value for key, value in parts.items() if key.startswith(shared) or key == own}
    made_of |= {f"factors.{key}": value for key, value in recipe.factors.model_dump(mode="json").items()}
    if manifest.reduction == "mean":
        made_of["factors.scale"] = "root of the tokens"
    return FactorFiles(
        checkpoint=number,
        folder=run_dir / FOLDER if count == 1 else run_dir / FOLDER / f"checkpoint-{number:02d}",
        parts=len(cut_modules(module_widths(manifest.modules, recipe))),
        rows=manifest.rows,
        fingerprint=fingerprint_of(made_of),
        settings=recipe.factors,
    )


def cut_modules(modules: Sequence[ModuleWidths]) -> list[tuple[ModuleWidths, ...]]:
    """Cut modules into the parts that are decomposed together; a pure function of their widths."""
    parts: list[list[ModuleWidths]] = [[]]
    work = 0
    for module in modules:
        cost = module.inputs**3 + module.outputs**3
        if parts[-1] and work + cost > WORK:
            parts.append([])
            work = 0
        parts[-1].append(module)
        work += cost
    return [tuple(part) for part in parts]


def module_widths(modules: Sequence[ModuleColumns], recipe: Recipe) -> tuple[ModuleWidths, ...]:
    """Return the sides of the model's modules, from the columns of a run's rows, of all checkpoints side by side."""
    own = of_one(modules, len(recipe.checkpoints) or 1)
    return tuple(ModuleWidths(module.name, module.inputs, module.outputs) for module in own)
