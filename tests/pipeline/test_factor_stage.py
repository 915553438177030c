"""Factors are fitted once, to a fixed sample, whoever does it; rows folded with them belong to them."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from influence.capture import cut as plan
from influence.capture import factor_files
from influence.curvature.covariance import CovarianceFit, FactorSettings
from influence.curvature.whitening import bounded_share
from influence.errors import CurvatureError, FingerprintMismatch, Incomplete
from influence.stages import build as build_module
from influence.stages import factor_group
from influence.stages import factors as factor_stage
from influence.stages.build import build_run
from influence.stages.decomposition import FactorDecomposition
from influence.stages.factors import load_basis, load_kronecker, sampled_rows
from influence.stages.fisher import FisherDecomposition
from influence.stages.spectra import spectra
from influence.store.manifest import Manifest
from influence.store.reader import Store

WHITENED = ("recipe.name=whitened", "recipe.factors.rows=12")
DECIDED = ("recipe.name=graddot", "recipe.exact.kind=ekfac", "recipe.factors.rows=12")


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "runs" / "x"


def test_the_sample_is_the_same_every_time_and_holds_no_row_twice():
    settings = FactorSettings(rows=50, seed=3)
    sample = sampled_rows(1000, settings)
    assert sample.tolist() == sampled_rows(1000, settings).tolist() == sorted(set(sample.tolist()))
    assert len(sample) == 50
    assert sample.tolist() != sampled_rows(1000, FactorSettings(rows=50, seed=4)).tolist()
    assert sampled_rows(30, settings).tolist() == list(range(30))


def test_only_the_merged_factors_stay_on_disk(configured, in_process, run_dir):
    build_run(configured(*DECIDED), run_dir)
    assert sorted(path.name for path in (run_dir / "curvature").iterdir()) == [
        "eigenvalues.json",
        "eigenvalues.safetensors",
        "factors.json",
        "factors.safetensors",
    ]


def test_modules_decomposed_apart_are_those_decomposed_together_and_a_lost_part_is_made_again(
    configured, in_process, run_dir, tmp_path, monkeypatch, contents
):
    config = configured(*DECIDED)
    build_run(config, tmp_path / "together")
    together = load_basis(tmp_path / "together", Manifest.load(tmp_path / "together"), config.recipe).tensors()
    monkeypatch.setattr(factor_files, "WORK", 40_000)
    build_run(config, run_dir)
    parts = sorted(path.name for path in (run_dir / "curvature").glob("*.safetensors"))
    count = len(parts) // 2
    assert 2 < count < 14
    assert parts == [
        f"{kind}-{n:03d}-of-{count:03d}.safetensors" for kind in ("eigenvalues", "factors") for n in range(count)
    ]
    apart = load_basis(run_dir, Manifest.load(run_dir), config.recipe).tensors()
    assert apart.keys() == together.keys()
    assert all(torch.equal(apart[name], tensor) for name, tensor in together.items())
    expected = contents(run_dir)
    (run_dir / "curvature" / parts[1]).unlink()
    build_run(config, run_dir)
    assert contents(run_dir) == expected


def test_as_many_groups_as_parts_are_still_two_things(configured, in_process, run_dir, tmp_path, monkeypatch):
    config = configured(*DECIDED)
    monkeypatch.setattr(plan, "FACTOR_ROWS", 4)
    build_run(config, tmp_path / "one-part")
    one = ekfac_of(tmp_path / "one-part", config.recipe)
    monkeypatch.setattr(factor_files, "cut_modules", lambda modules: cut(modules, 3))
    monkeypatch.setattr(factor_stage, "cut_modules", lambda modules: cut(modules, 3))
    build_run(config, run_dir)
    assert len(list((run_dir / "curvature").glob("eigenvalues-*-of-003.safetensors"))) == 3
    three = ekfac_of(run_dir, config.recipe)
    assert all(torch.equal(a, b) for a, b in zip(one.eigenvalues, three.eigenvalues, strict=True))


def ekfac_of(run_dir, recipe):
    return load_kronecker(run_dir, Manifest.load(run_dir), recipe, "ekfac", recipe.exact.damping)


def cut(modules, parts):
    """Cut modules into so many parts."""
    bounds = [len(modules) * number // parts for number in range(parts + 1)]
    return [tuple(modules[start:stop]) for start, stop in pairwise(bounds)]


@pytest.mark.parametrize("stage", [FactorDecomposition, FisherDecomposition])
def test_a_build_stopped_before_it_cleaned_up_is_cleaned_up_by_the_next(
    configured, in_process, run_dir, tmp_path, monkeypatch, contents, stage
):
    config = configured("recipe.exact.kind=ekfac", "recipe.factors.rows=12")
    build_run(config, tmp_path / "undisturbed")

    def stopped(stage):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "merge", stopped)
        with pytest.raises(Incomplete):
            build_run(config, run_dir)
    assert list((run_dir / "curvature").glob("partial-*"))
    build_run(config, run_dir)
    assert contents(run_dir) == contents(tmp_path / "undisturbed")


def test_factors_are_fitted_to_the_sample_alone(configured, in_process, run_dir):
    config = configured(*DECIDED, "recipe.factors.labels=empirical")
    build_run(config, run_dir)
    whole = load_kronecker(run_dir, Manifest.load(run_dir), config.recipe, "kfac", config.recipe.exact.damping)
    build_run(configured(*DECIDED, "recipe.factors.labels=empirical", "recipe.factors.rows=null"), run_dir)
    every = configured(*DECIDED, "recipe.factors.labels=empirical", "recipe.factors.rows=null").recipe
    other = load_kronecker(run_dir, Manifest.load(run_dir), every, "kfac", every.exact.damping)
    assert not torch.allclose(whole.eigenvalues[0], other.eigenvalues[0], rtol=1e-3)


def test_asking_for_exact_scores_later_keeps_the_rows(configured, in_process, run_dir, contents):
    build_run(configured("recipe.name=graddot"), run_dir)
    rows = {name: data for name, data in contents(run_dir).items() if name.startswith("rows")}
    build_run(configured(*DECIDED), run_dir)
    after = contents(run_dir)
    assert {name: data for name, data in after.items() if name.startswith("rows")} == rows
    assert "curvature/eigenvalues.safetensors" in after


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("recipe.factors.rows=13", "recipe.factors.rows is 12 there and 13 in this run"),
        ("recipe.factors.labels=empirical", "recipe.factors.labels is 'sampled' there and 'empirical' in this run"),
        ("recipe.projection.damping=0.5", "recipe.projection.damping is 'bounded' there and 0.5 in this run"),
        ("recipe.projection.rows=random", "recipe.projection.rows is 'whitened' there and 'random' in this run"),
    ],
)
def test_whitened_rows_of_other_factors_are_refused(configured, in_process, run_dir, override, told, contents):
    build_run(configured(*WHITENED), run_dir)
    before = contents(run_dir)
    with pytest.raises(FingerprintMismatch, match=told):
        build_run(configured(*WHITENED, override), run_dir)
    assert contents(run_dir) == before


def test_only_groups_that_are_missing_are_summed_again(configured, in_process, run_dir, monkeypatch, contents):
    monkeypatch.setattr(plan, "FACTOR_ROWS", 4)
    config = configured(*DECIDED)
    build_run(config, run_dir)
    expected = contents(run_dir)
    (run_dir / "curvature" / "factors.json").unlink()
    summed, sum_group, stops = [], factor_group._summed, [("covariance", 2)]

    def interrupted(session, task, parts, names):
        summed.append((task.stage.kind, task.number))
        if summed[-1] in stops:
            stops.clear()
            raise CurvatureError("stopped")
        return sum_group(session, task, parts, names)

    monkeypatch.setattr(factor_group, "_summed", interrupted)
    with pytest.raises(CurvatureError, match="stopped"):
        build_run(config, run_dir)
    standing = {path.name for path in (run_dir / "curvature").glob("partial-covariance-*.safetensors")}
    summed.clear()
    build_run(config, run_dir)
    again = {f"partial-covariance-{number:03d}-of-003.safetensors" for kind, number in summed if kind == "covariance"}
    assert again.isdisjoint(standing)
    assert contents(run_dir) == expected


def test_a_lack_of_memory_halves_the_budget_and_counts_no_row_twice(configured, in_process, run_dir, monkeypatch):
    config = configured(*DECIDED, "recipe.factors.labels=empirical")
    build_run(config, run_dir)
    expected = load_basis(run_dir, Manifest.load(run_dir), config.recipe)
    (run_dir / "curvature" / "factors.json").unlink()
    add, failed = CovarianceFit.add, []

    def short_of_memory(fit, measure, batch, mask=None, scale=None):
        add(fit, measure, batch, mask, scale)
        if len(failed) < 2 and batch.padded > 64:
            failed.append(batch.padded)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(CovarianceFit, "add", short_of_memory)
    build_run(config, run_dir)
    found = load_basis(run_dir, Manifest.load(run_dir), config.recipe)
    assert failed
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    for one, other in zip(found.modules, expected.modules, strict=True):
        torch.testing.assert_close(one.inputs.values, other.inputs.values, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(one.outputs.values, other.outputs.values, rtol=1e-4, atol=1e-7)


def test_rows_are_whitened_with_the_damping_that_their_losses_allow(
    configured, in_process, run_dir, tmp_path, contents
):
    every = ("data.limit=2", "recipe.factors.rows=null", "recipe.factors.labels=empirical")
    config = configured(*WHITENED, *every)
    build_run(config, run_dir)
    manifest = Manifest.load(run_dir)
    basis = load_basis(run_dir, manifest, config.recipe)
    assert basis.loss == pytest.approx(Store(run_dir).mean_loss(), rel=1e-5)
    share = bounded_share(basis, manifest.rows)
    assert share > 0.01
    inputs = basis.modules[0].inputs.values.mean()
    assert spectra(run_dir)["A (inputs)"][0].damping == pytest.approx(share * float(inputs))
    explicit = tmp_path / "explicit"
    build_run(configured(*WHITENED, *every, f"recipe.projection.damping={share!r}"), explicit)
    rows = [
        {name: data for name, data in contents(path).items() if name.endswith("00000.safetensors")}
        for path in (run_dir, explicit)
    ]
    assert rows[0]
    assert rows[0] == rows[1]


def test_a_run_of_kfac_keeps_a_whitened_sketch_to_propose_with(configured, in_process, run_dir, monkeypatch):
    build_run(configured("recipe.name=kfac"), run_dir)
    manifest = Manifest.load(run_dir)
    assert manifest.fingerprint_parts["recipe.projection.rows"] == "whitened"
    assert manifest.dims < sum(module.inputs * module.outputs for module in manifest.modules)
    monkeypatch.setattr(build_module, "connect", None)
    build_run(configured("recipe.name=kfac", "recipe.curvature.damping.value=0.5"), run_dir)


def test_a_side_that_is_too_wide_is_refused_by_name(configured, in_process, run_dir):
    with pytest.raises(
        CurvatureError, match=r"layers\.0.* has \d+ (in|out)puts; its factor would hold .*factors\.blocks"
    ):
        build_run(configured(*WHITENED, "recipe.factors.width_limit=8"), run_dir)
    build_run(configured(*WHITENED, "recipe.factors.width_limit=32", "recipe.factors.blocks=8"), run_dir)
    assert np.isfinite(
        load_basis(
            run_dir,
            Manifest.load(run_dir),
            configured(*WHITENED, "recipe.factors.width_limit=32", "recipe.factors.blocks=8").recipe,
        )
        .modules[0]
        .inputs.values
    ).all()


def test_drawn_labels_belong_to_their_rows_however_these_are_batched(configured, in_process, tmp_path):
    found = []
    for number, budget in enumerate((32, 512)):
        config = configured(*DECIDED, f"cluster.token_budget={budget}")
        build_run(config, tmp_path / str(number))
        found.append(load_basis(tmp_path / str(number), Manifest.load(tmp_path / str(number)), config.recipe))
    for one, other in zip(found[0].modules, found[1].modules, strict=True):
        torch.testing.assert_close(one.outputs.values, other.outputs.values, rtol=1e-3, atol=1e-7)
