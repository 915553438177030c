"""The dense projection of TRAK: trak's own numbers over the whole gradient, recorded, and refused where they repeat."""

import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from trak import projectors

from influence.axes import ModuleColumns
from influence.errors import ProjectionError
from influence.gradients import trak_projection
from influence.gradients.capture import Capture
from influence.gradients.projection import Projection, ProjectionSettings
from influence.gradients.trak_projection import TrakProjection
from influence.model.layers import LayerSettings, tracked_layers
from influence.task import CausalLM
from tests.gradients.conftest import examples
from tests.reference.microbatch import one_backward_per_example


def settings(**parts):
    return ProjectionSettings(**{"kind": "trak", "dims": 10, "block": 4, "seed": 7, **parts})


def columns(*widths):
    modules, start = [], 0
    for number, width in enumerate(widths):
        shape = {"outputs": 1, "inputs": width, "q": 1, "p": width}
        modules.append(ModuleColumns(name=f"layer{number}", **shape, start=start, stop=start + width))
        start += width
    return modules


def drawn(rows, dims, block, seed, checkpoint, entries, dtype):
    """Π, as trak says it draws it: block after block, each from a seed of its own, the last one cut."""
    blocks = []
    for number in range(-(-dims // block)):
        generator = torch.Generator().manual_seed(seed + 1_000 * number + 100_000 * checkpoint)
        empty = torch.empty(rows, block, dtype=dtype)
        if entries == "normal":
            blocks.append(empty.normal_(generator=generator))
        else:
            blocks.append(2 * empty.bernoulli_(0.5, generator=generator) - 1)
    return torch.cat(blocks, dim=1)[:, :dims]


@pytest.mark.parametrize("entries", ["rademacher", "normal"])
@pytest.mark.parametrize("checkpoint", [0, 2])
def test_captured_rows_are_whole_gradients_times_the_blocks_that_trak_draws(
    tiny_model, ragged_batch, entries, checkpoint
):
    model, bias = tiny_model("gpt2"), LayerSettings(bias=True)
    layers, projection = tracked_layers(model, bias), Projection(settings(entries=entries), checkpoint=checkpoint)
    with Capture(model, layers, projection) as capture:
        found, _ = capture(CausalLM().example_loss, ragged_batch)
        width = capture.width
    whole = one_backward_per_example(
        model, layers, Projection(ProjectionSettings(kind="none")), CausalLM().example_loss, examples(ragged_batch)
    )
    assert width == whole.shape[1]
    matrix = drawn(whole.shape[1], 10, 4, 7, checkpoint, entries, torch.float64)
    torch.testing.assert_close(found, whole @ matrix / 10**0.5, rtol=1e-9, atol=1e-12)
    (block,) = capture.modules
    assert (block.name, block.inputs, block.start, block.stop) == ("all modules", whole.shape[1], 0, 10)


def test_the_mean_over_draws_is_the_inner_product():
    torch.manual_seed(0)
    rows = torch.randn(2, 60)
    rows[1] += rows[0]
    ratios = []
    for seed in range(100):
        left, right = TrakProjection(settings(dims=64, block=64, seed=seed), columns(60))(rows)
        ratios.append(float(left @ right / (rows[0] @ rows[1])))
    assert abs(sum(ratios) / len(ratios) - 1) < 0.05


def test_what_was_drawn_is_recorded_and_its_digest_tells_seeds_and_checkpoints_apart():
    first = TrakProjection(settings(), columns(30, 20)).record
    assert first["block_seeds"] == [7, 1_007, 2_007]
    assert (first["projector"], first["drawn_on"], first["dims"]) == ("BasicProjector", "cpu", 10)
    assert TrakProjection(settings(), columns(30, 20)).record == first
    later = TrakProjection(settings(), columns(30, 20), checkpoint=1).record
    assert later["block_seeds"] == [100_007, 101_007, 102_007]
    other = TrakProjection(settings(seed=8), columns(30, 20)).record
    assert len({record["digest"] for record in (first, later, other)}) == 3


def test_the_rows_dtype_and_batches_do_not_change_the_sketch():
    projection = TrakProjection(settings(), columns(30, 20))
    rows = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    together = projection(rows)
    torch.testing.assert_close(torch.cat([projection(rows[:2]), projection(rows[2:])]), together)
    assert projection(rows.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"dims": None}, "needs dims"),
        ({"dims": 101, "block": 1}, "101 blocks, and of more than 100 trak's seeds repeat themselves: set block to 2"),
        ({"rows": "whitened"}, "rows mean nothing to kind trak: leave them out, or choose kind kronecker"),
        ({"p": 8, "q": 8}, "p and q mean nothing to kind trak"),
        (
            {"kind": "kronecker", "block": 100},
            "dims mean nothing to kind kronecker: leave them out, or choose kind trak",
        ),
    ],
)
def test_settings_that_repeat_seeds_or_belong_to_another_kind_are_refused(parts, message):
    with pytest.raises(ValidationError, match=message):
        settings(**parts)


def test_a_hundred_blocks_have_a_hundred_seeds():
    projection = TrakProjection(settings(dims=100, block=1), columns(5))
    after = TrakProjection(settings(dims=100, block=1), columns(5), checkpoint=1)
    assert len({*projection.record["block_seeds"], *after.record["block_seeds"]}) == 200


@pytest.mark.parametrize(("spoil", "message"), [(0.0, "1 zeros and 0 non-finite"), (float("nan"), "0 zeros and 1")])
def test_a_projector_that_returns_a_zero_or_a_nan_is_refused_when_it_is_made(monkeypatch, spoil, message):
    project = projectors.BasicProjector.project

    def spoilt(self, grads, model_id):
        sketch = project(self, grads, model_id)
        sketch[-1, 3] = spoil
        return sketch

    monkeypatch.setattr(projectors.BasicProjector, "project", spoilt)
    with pytest.raises(ProjectionError, match=message):
        TrakProjection(settings(), columns(30))


def test_a_matrix_that_does_not_fit_into_memory_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(trak_projection, "_free", lambda device: 1_000)
    with pytest.raises(ProjectionError, match=r"80 weights × 4 columns, 0\.0 GB.* are free on cpu\. Lower"):
        TrakProjection(settings(), columns(80))


def test_trak_is_imported_only_where_a_recipe_projects_with_it():
    program = "import sys, influence.query.pairwise; assert 'trak' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_rows_of_another_width_are_refused():
    with pytest.raises(ProjectionError, match="31 columns, and the projector was created for 30"):
        TrakProjection(settings(), columns(30))(torch.zeros(1, 31))


@pytest.mark.parametrize(("dims", "found"), [(512, "cpu, torch.float32, 512"), (500, "cpu, torch.float32, 500")])
def test_the_cuda_projector_is_never_replaced_by_another_one(dims, found):
    with pytest.raises(ProjectionError, match=f"works on a GPU.*{found}"):
        TrakProjection(settings(dims=dims, block=100, projector="cuda"), columns(30))


class OnCpu:
    """Stands in for trak's CUDA projector: one block of the basic one."""

    def __init__(self, grad_dim, proj_dim, seed, proj_type, device, max_batch_size):
        self.proj_dim, self.proj_type, self.most = proj_dim, proj_type, max_batch_size
        self.basic = projectors.BasicProjector(grad_dim, proj_dim, seed, proj_type, device, block_size=proj_dim)

    def project(self, grads, model_id):
        assert len(grads) <= self.most
        return self.basic.project(grads, model_id)


@pytest.mark.parametrize("most", [1_000, 60])
def test_wide_gradients_reach_cuda_in_chunks_of_whole_modules_and_at_most_32_rows(monkeypatch, most):
    monkeypatch.setattr(projectors, "CudaProjector", OnCpu)
    monkeypatch.setattr(trak_projection, "_check_cuda", lambda *given: None)
    monkeypatch.setattr(trak_projection, "CUDA_INDICES", most * 32)
    widths = (30, 20, 40, 25)
    projection = TrakProjection(settings(projector="cuda", block=100), columns(*widths), checkpoint=1)
    rows = torch.randn(70, sum(widths), generator=torch.Generator().manual_seed(2))
    chunks = [115] if most == 1_000 else [50, 40, 25]
    assert projection.record["block_seeds"] == list(range(7, 7 + len(chunks)))
    matrix = torch.cat([drawn(c, 10, 10, 7 + n, 1, "rademacher", torch.float32) for n, c in enumerate(chunks)])
    torch.testing.assert_close(projection(rows), rows @ matrix / 10**0.5, rtol=1e-5, atol=1e-5)


def test_a_module_too_wide_for_cuda_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(trak_projection, "_check_cuda", lambda *given: None)
    monkeypatch.setattr(trak_projection, "CUDA_INDICES", 32 * 10)
    with pytest.raises(ProjectionError, match="layer1 has 11 weights"):
        TrakProjection(settings(projector="cuda", block=100), columns(4, 11))
