"""The spectra of a run's curvatures, module by module, with the share of each trace that lies under the damping."""

from pathlib import Path

from influence.config import load_config
from influence.curvature.spectrum import Spectrum
from influence.errors import StoreError
from influence.pipeline.build import CONFIG
from influence.pipeline.curvature_stage import load_curvature
from influence.pipeline.factor_stage import load_kronecker
from influence.remote.place import run_path
from influence.store.manifest import Manifest


def spectra(path: str | Path) -> dict[str, tuple[Spectrum, ...]]:
    """Return the spectra of a run's curvatures by the name of each: `Fisher`, `K-FAC`, `EK-FAC`.

    Raises:
        StoreError: There is no run, or it has no curvature.
        DigestMismatch: A file of it is missing or damaged.
        CurvatureError: It is singular and the damping is 0.
    """
    run_dir = run_path(path)
    manifest = Manifest.load(run_dir)
    recipe = load_config(run_dir / CONFIG).recipe
    found: dict[str, tuple[Spectrum, ...]] = {}
    fisher = load_curvature(run_dir, manifest, recipe.stored)
    if fisher is not None:
        found["Fisher"] = tuple(fisher.spectra())
    decision = recipe.decision
    if decision.kind != "none":
        kind, name = ("kfac", "K-FAC") if decision.kind == "kfac" else ("ekfac", "EK-FAC")
        found[name] = tuple(load_kronecker(run_dir, manifest, recipe, kind, decision.damping).spectra())
    if not found:
        raise StoreError(f"{run_dir} has no curvature: {recipe.summary}.")
    return found
