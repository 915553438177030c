"""Rows that are more than a raw gradient: divided by Adam's moments, weighed, densely projected, of checkpoints."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from index.settings import IndexSettings
from influence.api import open as open_run
from influence.capture.cut import estimate
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.data.batch import collate
from influence.errors import FingerprintMismatch, ModelError, OptimiserMismatch, StoreError
from influence.gradients.optimiser import PREFIX
from influence.recipes import recipe
from influence.stages import build as build_module
from influence.stages.build import build_run
from influence.store.reader import Store
from influence.task import CausalLM

LESS = {"name": "less", "projection": {"p": 2, "q": 3}}
TRAK = {"name": "trak", "projection": {"dims": 6, "block": 3}}
TRACIN = {"name": "tracin", "projection": {"p": 2, "q": 3}}
SMALL = ("data.limit=20", "index.kind=exact")


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "runs" / "x"


@pytest.fixture
def checkpoints(model_folder, tmp_path):
    """Two folders of one architecture, each with second moments as safetensors."""
    folders = []
    for number in (0, 1):
        folder = shutil.copytree(model_folder("llama"), tmp_path / f"step-{number}")
        weights = load_file(folder / "model.safetensors")
        moved = {name: weight + 0.02 * number * weight.sign() for name, weight in weights.items()}
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
        save_moments(folder, number)
        folders.append(folder)
    return folders


def save_moments(folder, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    moments = {PREFIX + name: torch.rand(w.shape, generator=generator) + 0.1 for name, w in weights.items()}
    save_file(moments, folder / "moments.safetensors")


def adam(folder):
    return {**LESS, "gradient": {"state": str(folder / "moments.safetensors")}}


def over(base, folders, **parts):
    return {**base, "checkpoints": [{"path": str(folder), **parts} for folder in folders]}


def test_a_build_of_checkpoints_resumes_to_the_same_bytes(
    configured, in_process, run_dir, tmp_path, checkpoints, contents
):
    config = configured(*SMALL, "recipe.curvature.damping.value=0.1", recipe=over(TRAK, checkpoints))
    build_run(config, run_dir)
    before = contents(run_dir)
    (run_dir / "rows" / "shard-00001.json").unlink()
    (run_dir / "curvature" / "fisher.json").unlink()
    build_run(config, run_dir)
    assert contents(run_dir) == before
    with open_run(run_dir, device="cpu") as run:
        assert run.store.dims == 12
        assert [module.name for module in run.store.modules] == [f"all modules (checkpoint {n})" for n in (0, 1)]
        asked = [{"prompt": "The river was named after", "completion": " a cartographer"}]
        found, again = run.score(asked), run.score(asked)
        assert np.array_equal(found, again)
        assert run.query_many(asked, k=1)[0].unit == run.recipe.unit


def test_rows_that_adam_divides_are_built_to_the_same_bytes_and_belong_to_their_state(
    configured, in_process, run_dir, tmp_path, checkpoints, contents, monkeypatch
):
    folder = checkpoints[0]
    config = configured(*SMALL, recipe=adam(folder))
    build_run(config, run_dir)
    build_run(config, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(run_dir)
    monkeypatch.setattr(build_module, "connect", None)
    with pytest.raises(FingerprintMismatch, match=r"recipe\.gradient\.state is '\w+' there and '\w+' in this run"):
        build_run(configured(*SMALL, recipe=adam(checkpoints[1])), run_dir)
    with pytest.raises(FingerprintMismatch, match=r"recipe\.gradient\.epsilon is 1e-08 there and 0\.001"):
        build_run(configured(*SMALL, "recipe.gradient.epsilon=1e-3", recipe=adam(folder)), run_dir)
    save_moments(folder, 7)
    with (
        open_run(run_dir, device="cpu") as run,
        pytest.raises(FingerprintMismatch, match=r"optimiser's state .* has changed"),
    ):
        run.query(completion="The river was", k=1)


@pytest.mark.parametrize("family", ["llama", "lora"])
def test_the_columns_of_a_checkpoint_are_the_rows_of_its_own_model(configured, model_folder, tmp_path, family):
    later = shutil.copytree(model_folder(family), tmp_path / "later")
    (weights,) = later.glob("*model.safetensors")
    save_file({name: 1.1 * weight for name, weight in load_file(weights).items()}, weights, metadata={"format": "pt"})
    both = configured(family=family, recipe=over(TRACIN, [model_folder(family), later]))
    alone = configured(f"model.path={later}", family=family, recipe=TRACIN)
    rows = []
    for config in (both, alone):
        session = Session(CaptureSpec.of(config))
        parts = session.tokenise(list(session.rows.examples(0, 4)))
        session.load(session.checkpoints - 1)
        rows.append(torch.cat([piece.rows for piece in session.losses(parts, "abcd")]))
        session.close()
    assert torch.equal(*rows)
    assert session.rows_capture.dims == rows[0].shape[1]


def test_second_moments_of_another_model_are_refused_before_any_row(configured, in_process, run_dir, checkpoints):
    path = checkpoints[0] / "moments.safetensors"
    save_file({PREFIX + "lm_head.weight": torch.rand(3, 3)}, path)
    with pytest.raises(OptimiserMismatch, match=r"lm_head\.weight \(3, 3\)"):
        build_run(configured(*SMALL, recipe=adam(checkpoints[0])), run_dir)
    path.unlink()
    with pytest.raises(OptimiserMismatch, match="no such file or folder"):
        build_run(configured(*SMALL, recipe=adam(checkpoints[0])), run_dir)
    assert not run_dir.exists()


def test_checkpoints_of_another_architecture_are_refused_before_any_row(
    configured, in_process, run_dir, checkpoints, model_folder
):
    gpt2 = configured(*SMALL, recipe=over(TRACIN, [checkpoints[0], model_folder("gpt2")]))
    with pytest.raises(
        ModelError, match=r"gpt2.* isn't of this LlamaForCausalLM: it lacks .*, for which the model has"
    ):
        build_run(gpt2, run_dir)
    path = checkpoints[1] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 0.5}))
    with pytest.raises(ModelError, match=r"rms_norm_eps is 0\.5, the model's is 1e-06"):
        build_run(configured(*SMALL, recipe=over(TRACIN, checkpoints)), run_dir)
    assert not run_dir.exists()


def test_another_learning_rate_keeps_the_rows_and_another_checkpoint_is_refused(
    configured, in_process, run_dir, checkpoints, monkeypatch, contents
):
    build_run(configured("data.limit=20", recipe=over(TRACIN, checkpoints, weight=0.1)), run_dir)
    index, rows = (run_dir / "index" / "index.json").read_text(), (run_dir / "rows" / "shard-00000.json").read_text()
    monkeypatch.setattr(build_module, "connect", None)
    build_run(configured("data.limit=20", recipe=over(TRACIN, checkpoints, weight=0.2)), run_dir)
    assert (run_dir / "index" / "index.json").read_text() != index
    assert (run_dir / "rows" / "shard-00000.json").read_text() == rows
    with pytest.raises(FingerprintMismatch, match=r"recipe\.checkpoints\.1 is '\w+' there and absent in this run"):
        build_run(configured("data.limit=20", recipe=over(TRACIN, checkpoints[:1], weight=0.2)), run_dir)


def test_the_weight_of_a_row_is_the_mean_residual_of_its_scored_tokens(configured, in_process, run_dir, written):
    long = "The river was named after a cartographer who never saw it. " * 3
    data = written({"text": "The list keeps its items."}, {"text": ""}, {"text": long})
    config = configured(
        "data.long_rows=split", "data.max_tokens=16", "recipe.measurement=log_odds", "index.kind=exact", data=data
    )
    build_run(config, run_dir)
    store = Store(run_dir)
    session = Session(CaptureSpec.of(config))
    session.close()
    wanted, tokens = np.zeros(3), np.zeros(3)
    for part in session.tokenise(list(session.rows.examples())):
        if part.scored:
            residual = CausalLM().residual(session.model, collate([part], session.pad))
            wanted[part.position] += part.scored * float(residual)
            tokens[part.position] += part.scored
    assert store.weights([2, 0, 1, 0]) == pytest.approx((wanted / np.maximum(tokens, 1))[[2, 0, 1, 0]], rel=1e-4)
    losses = [-meta["loss"] for meta in store.meta([0, 1, 2])]
    with open_run(run_dir, device="cpu") as run:
        asked = run.query_many([{"text": "The list keeps its items."}], k=1)[0].query
    assert losses[0] == pytest.approx(asked.log_likelihood, rel=1e-4)
    assert losses[1] == 0


def test_rows_of_a_loss_have_no_weights(configured, in_process, run_dir):
    build_run(configured(*SMALL), run_dir)
    assert "weight" not in pq.read_schema(next((run_dir / "rows").glob("*.parquet"))).names
    with pytest.raises(StoreError, match="has no column weight"):
        Store(run_dir).weights([3])


def test_a_projector_that_draws_other_numbers_than_the_runs_is_refused(configured, in_process, run_dir):
    config = configured(*SMALL, "recipe.curvature.damping.value=0.1", recipe=TRAK)
    build_run(config, run_dir)
    (line,) = [value for name, value in Store(run_dir).manifest.fingerprint_parts.items() if "drawn" in name]
    other = json.dumps({**json.loads(line), "drawn_on": "H200, 132 multiprocessors"})
    with pytest.raises(FingerprintMismatch, match="drawn_on is 'H200, 132 multiprocessors' in the run and 'cpu' here"):
        Session(CaptureSpec.of(config, drawn=(other,)))


def test_the_plan_counts_checkpoints_divisors_and_traks_matrix(configured):
    modules = Session(CaptureSpec.of(configured())).modules
    sizes = {"curvature": "fisher", "index": IndexSettings(), "model_bytes": 1000}
    plain = estimate(500, modules, 100, recipe=recipe("logra"), **sizes)
    weights = sum(module.inputs * module.outputs for module in modules)
    divided = estimate(500, modules, 100, recipe=recipe("logra", gradient="adam"), **sizes)
    assert divided.memory_capture - plain.memory_capture == 4 * weights
    both = recipe("logra", curvature={"blocks": "all"}, checkpoints=[{"path": "a"}, {"path": "b"}])
    two = estimate(500, modules, 100, recipe=both, **sizes)
    assert two.memory_model == 2 * plain.memory_model
    assert two.memory_capture - plain.memory_capture == 100 * 4 * two.dims
