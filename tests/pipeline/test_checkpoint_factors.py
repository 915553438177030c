"""Whitened rows of several checkpoints: each checkpoint's gradients folded with the factors fitted to it alone."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from influence import pairwise
from influence.api import open as open_run
from influence.capture import cut as plan
from influence.capture import folding
from influence.capture.cut import estimate
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.data.batch import collate
from influence.data.example import Example
from influence.errors import CaptureError, CurvatureError, DigestMismatch, FingerprintMismatch
from influence.estimate.forecast import _work
from influence.estimate.timing import Timing
from influence.recipes import recipe
from influence.stages import build as build_module
from influence.stages import factor_group
from influence.stages.build import build_run
from influence.stages.factors import load_basis
from influence.store.manifest import Manifest
from influence.task import CausalLM

SMALL = ("data.limit=20", "index.kind=exact")
WHITENED = {"name": "graddot", "projection": {"p": 2, "q": 3, "rows": "whitened"}, "factors": {"rows": 12}}
ASKED = [
    {"prompt": "The river was named after", "completion": " a cartographer"},
    {"prompt": "The list", "completion": " keeps its items in order"},
]


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "runs" / "x"


@pytest.fixture
def steps(model_folder, tmp_path):
    """Two folders of the run's architecture, each with weights of its own, neither those of the run's model."""
    folders = []
    for number in (1, 2):
        folder = shutil.copytree(model_folder("llama"), tmp_path / f"step-{number}")
        weights = load_file(folder / "model.safetensors")
        generator = torch.Generator().manual_seed(number)
        moved = {name: w + 0.05 * number * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
        folders.append(folder)
    return folders


def over(folders, weights=(None, None), **parts):
    named = [{"path": str(folder), "weight": weight} for folder, weight in zip(folders, weights, strict=False)]
    return {**WHITENED, **parts, "checkpoints": named}


def curvature_files(run_dir):
    folder = run_dir / "curvature"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def scored(run_dir):
    with open_run(run_dir, device="cpu") as run:
        return run.score(ASKED)


def test_each_checkpoints_factors_are_to_the_last_bit_those_of_its_own_run(
    configured, in_process, run_dir, tmp_path, steps
):
    both = configured(*SMALL, recipe=over(steps))
    build_run(both, run_dir)
    assert curvature_files(run_dir) == [
        f"checkpoint-0{number}/factors.{kind}" for number in (0, 1) for kind in ("json", "safetensors")
    ]
    for number, folder in enumerate(steps):
        alone = configured(*SMALL, f"model.path={folder}", recipe=WHITENED)
        own_dir = tmp_path / "alone" / folder.name
        build_run(alone, own_dir)
        assert curvature_files(own_dir) == ["factors.json", "factors.safetensors"]
        expected = load_basis(own_dir, Manifest.load(own_dir), alone.recipe).tensors()
        found = load_basis(run_dir, Manifest.load(run_dir), both.recipe, number).tensors()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("rows", "weights", "shares"),
    [
        ("whitened", (None, None), (0.5, 0.5)),
        # Under an inverse weights make a weighted mean; without one they are learning rates.
        ("whitened", (1.0, 3.0), (0.25, 0.75)),
        ("eigenvectors", (0.1, 0.3), (0.1, 0.3)),
    ],
)
def test_scores_over_checkpoints_are_the_weighted_sum_of_those_of_each_run_alone(
    configured, in_process, run_dir, tmp_path, steps, rows, weights, shares
):
    projection = {**WHITENED["projection"], "rows": rows}
    build_run(configured(*SMALL, recipe=over(steps, weights, projection=projection)), run_dir)
    expected = 0
    for folder, share in zip(steps, shares, strict=True):
        alone = configured(*SMALL, f"model.path={folder}", recipe={**WHITENED, "projection": projection})
        build_run(alone, tmp_path / "alone" / folder.name)
        expected = expected + share * scored(tmp_path / "alone" / folder.name).astype(np.float64)
    found = scored(run_dir)
    assert found.shape == (2, 20)
    # Directions are kept at float16: of each run's rows on their own, and of both runs' columns together.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 * np.abs(expected).max())


def test_a_build_scores_as_pairwise_does_in_float64(configured, in_process, run_dir, steps):
    fitted = {"rows": None, "labels": "empirical"}
    config = configured(*SMALL, recipe=over(steps, factors=fitted))
    build_run(config, run_dir)
    session = Session(CaptureSpec.of(config))
    session.close()
    train = [collate([part], session.pad) for part in session.tokenise(list(session.rows.examples(0, 20)))]
    asked = [Example.query(**question) for question in ASKED]
    wanted = [collate([part], session.pad) for part in session.tokenise(asked, whole=True)]
    states = [
        {name: state.get(name, weight).double() for name, weight in session.model.state_dict().items()}
        for state in (load_file(folder / "model.safetensors") for folder in steps)
    ]
    expected = pairwise(session.model.double(), CausalLM(), train, wanted, config.recipe, checkpoints=states).numpy()
    np.testing.assert_allclose(scored(run_dir), expected, rtol=0, atol=2e-3 * np.abs(expected).max())


def test_an_interrupted_build_fits_only_what_is_missing_and_ends_with_the_same_bytes(
    configured, in_process, run_dir, tmp_path, steps, monkeypatch, contents
):
    monkeypatch.setattr(plan, "FACTOR_ROWS", 4)
    config = configured(*SMALL, recipe=over(steps))
    build_run(config, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    summed, sum_group, stops = [], factor_group._summed, [(1, 2)]

    def interrupted(session, task, parts, names):
        summed.append((task.stage.factors.checkpoint, task.number))
        if summed[-1] in stops:
            stops.clear()
            raise CurvatureError("stopped")
        return sum_group(session, task, parts, names)

    monkeypatch.setattr(factor_group, "_summed", interrupted)
    with pytest.raises(CurvatureError, match=r"covariance 2 of 3 .* at checkpoint 1: stopped"):
        build_run(config, run_dir)
    first, standing = summed.copy(), curvature_files(run_dir)
    summed.clear()
    build_run(config, run_dir)
    assert {number for number, _ in first} == {0, 1}
    assert all(number == 1 for number, _ in summed)
    assert not {f"checkpoint-01/partial-covariance-{group:03d}-of-003.safetensors" for _, group in summed} & set(
        standing
    )
    assert contents(run_dir) == expected

    summed.clear()
    (run_dir / "rows" / "shard-00001.json").unlink()
    (run_dir / "curvature" / "checkpoint-00" / "factors.json").unlink()
    build_run(config, run_dir)
    assert {number for number, _ in summed} == {0}
    assert contents(run_dir) == expected


def test_one_checkpoint_has_its_factors_where_a_run_of_the_model_alone_has_them(
    configured, in_process, run_dir, tmp_path, steps, monkeypatch
):
    build_run(configured(*SMALL, recipe=over(steps[1:])), run_dir)
    build_run(configured(*SMALL, f"model.path={steps[1]}", recipe=WHITENED), tmp_path / "alone")
    assert curvature_files(run_dir) == curvature_files(tmp_path / "alone") == ["factors.json", "factors.safetensors"]
    for name in ("curvature/factors.safetensors", "rows/shard-00000.safetensors"):
        assert (run_dir / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    monkeypatch.setattr(build_module, "connect", None)
    with pytest.raises(FingerprintMismatch, match=r"recipe\.checkpoints\.0 is '\w+' there and '\w+' in this run"):
        build_run(configured(*SMALL, recipe=over(steps[:1])), run_dir)


def test_a_change_of_checkpoint_reads_no_factors_twice_and_damaged_ones_are_refused(
    configured, in_process, run_dir, steps, monkeypatch
):
    build_run(configured(*SMALL, recipe=over(steps)), run_dir)
    read, load_all = [], folding.load_all

    def noted(paths, fingerprint):
        read.extend(path.parent.name for path in paths)
        return load_all(paths, fingerprint)

    monkeypatch.setattr(folding, "load_all", noted)
    with open_run(run_dir, device="cpu") as run:
        assert np.array_equal(run.score(ASKED), run.score(ASKED))
    assert read == ["checkpoint-00", "checkpoint-01"]
    path = run_dir / "curvature" / "checkpoint-01" / "factors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with open_run(run_dir, device="cpu") as run, pytest.raises(DigestMismatch, match=r"checkpoint-01/factors"):
        run.score(ASKED)


def test_a_checkpoint_whose_gradients_are_not_finite_is_named(configured, in_process, run_dir, steps, monkeypatch):
    sum_over = factor_group.sum_over

    def overflowing(session, make, *rest):
        sums = sum_over(session, make, *rest)
        if session._loaded == 1:
            next(iter(sums.inputs.values()))[0].fill_(float("nan"))
        return sums

    monkeypatch.setattr(factor_group, "sum_over", overflowing)
    with pytest.raises(CaptureError, match=r"at checkpoint 1: The covariance sums of .* are not finite"):
        build_run(configured(*SMALL, recipe=over(steps)), run_dir)


def test_a_plan_counts_the_factors_of_every_checkpoint_and_the_sums_of_one(configured, steps):
    modules, side_by_side = (
        Session(CaptureSpec.of(configured(recipe=chosen))).modules for chosen in (WHITENED, over(steps))
    )
    sizes = {"curvature": "identity", "index": configured(*SMALL).index, "model_bytes": 1000}
    parts = {part: WHITENED[part] for part in ("projection", "factors")}
    alone, both = recipe("graddot", **parts), recipe("graddot", **parts, checkpoints=[{"path": "a"}, {"path": "b"}])
    plain = estimate(5000, modules, 100, recipe=alone, **sizes)
    twice = estimate(5000, side_by_side, 100, recipe=both, **sizes)
    factors = sum(4 * (module.inputs**2 + module.outputs**2) for module in modules)
    assert plain.disk_factors == 1 * factors + factors
    assert twice.disk_factors == 1 * factors + 2 * factors
    assert twice.memory_factors == plain.memory_factors
    matrices = sum(4 * (module.p * module.inputs + module.q * module.outputs) for module in modules)
    assert twice.memory_capture == 100 * (2 * twice.disk_rows // 5000 + 4 * twice.dims) + 2 * matrices

    timing = Timing(tokens_per_row=10.0, capture=0.1, covariance=0.2, decomposition=7.0)
    work, tasks = _work(alone, modules, 5000, timing, 50)
    doubled, shared = _work(both, side_by_side, 5000, timing, 50)
    assert (doubled["factors"], doubled["decomposition"]) == (2 * work["factors"], 2 * work["decomposition"])
    # One checkpoint after another: workers have one checkpoint's tasks to share.
    assert shared == tasks
