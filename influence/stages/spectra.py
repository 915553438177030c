"""The spectra of a run's curvatures, module by module, with the share of each trace that lies under the damping."""

from pathlib import Path

from influence.artifacts.place import run_path
from influence.curvature.kfac import Eigenbasis
from influence.curvature.spectrum import Spectrum, spectrum_of
from influence.curvature.whitening import share_of
from influence.errors import StoreError
from influence.stages.configuration import recorded_configuration
from influence.stages.factors import load_basis, load_kronecker
from influence.stages.fisher import load_curvature
from influence.store.manifest import Manifest


def spectra(path: str | Path) -> dict[str, tuple[Spectrum, ...]]:
    """Return the spectra of a run's curvatures by the name of each: `Fisher`, `K-FAC`, `EK-FAC`.

    Of a projection that K-FAC's factors are folded into also those of the factors, `A (inputs)` and `S (outputs)`, of
    each of the recipe's checkpoints: under the projection's damping where it whitens, under none for eigenvectors.

    Raises:
        StoreError: There is no run, or it has no curvature.
        DigestMismatch: A file of it is missing or damaged.
        CurvatureError: It is singular and the damping is 0.
    """
    run_dir = run_path(path)
    manifest = Manifest.load(run_dir)
    recipe = recorded_configuration(run_dir, manifest).recipe
    found: dict[str, tuple[Spectrum, ...]] = {}
    fisher = load_curvature(run_dir, manifest, recipe.stored)
    if fisher is not None:
        found["Fisher"] = tuple(fisher.spectra())
    decision = recipe.decision
    if decision.kind != "none":
        kind, name = ("kfac", "K-FAC") if decision.kind == "kfac" else ("ekfac", "EK-FAC")
        found[name] = tuple(load_kronecker(run_dir, manifest, recipe, kind, decision.damping).spectra())
    projection = recipe.stored.projection
    if projection.folds:
        for number in range(len(recipe.checkpoints) or 1):
            at = f" at checkpoint {number}" if len(recipe.checkpoints) > 1 else ""
            basis = load_basis(run_dir, manifest, recipe, number)
            damping = share_of(projection, basis, manifest.rows) if projection.rows == "whitened" else 0.0
            sides = factor_spectra(basis, damping)
            found |= {f"{side}{at}": each for side, each in sides.items()}
    if not found:
        raise StoreError(f"{run_dir} has no curvature: {recipe.summary}.")
    return found


def factor_spectra(basis: Eigenbasis, damping: float) -> dict[str, tuple[Spectrum, ...]]:
    """Return the spectra of both factors of each module, with λ_A and λ_S as a share of each one's mean eigenvalue."""
    found = {}
    for name, side in (("A (inputs)", "inputs"), ("S (outputs)", "outputs")):
        values = [getattr(basis[module.name], side).values for module in basis.modules]
        found[name] = tuple(
            spectrum_of(module.name, each, damping * float(each.mean()))
            for module, each in zip(basis.modules, values, strict=True)
        )
    return found
