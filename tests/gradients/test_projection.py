"""The projection matrices: unbiased, bounded in error, and a pure function of their key."""

import numpy as np
import pytest
import torch

from influence.errors import ProjectionError
from influence.gradients import projection as module
from influence.gradients.projection import Projection, ProjectionSettings


def project(settings: ProjectionSettings, grads: torch.Tensor) -> torch.Tensor:
    sides = Projection(settings).sides("layer", grads.shape[2], grads.shape[1], torch.float64)
    return torch.einsum("qo,noi,pi->nqp", sides.outputs, grads, sides.inputs).flatten(1)


@pytest.mark.parametrize("entries", ["rademacher", "normal"])
def test_the_mean_over_two_thousand_draws_is_the_inner_product(entries):
    torch.manual_seed(0)
    grads = torch.randn(2, 12, 20, dtype=torch.float64)
    grads[1] += grads[0]
    true = float((grads[0] * grads[1]).sum())
    ratios = []
    for seed in range(2000):
        rows = project(ProjectionSettings(p=8, q=8, seed=seed, entries=entries), grads)
        ratios.append(float(rows[0] @ rows[1]) / true)
    assert abs(np.mean(ratios) - 1) < 0.05


@pytest.mark.parametrize("entries", ["rademacher", "normal"])
def test_one_seed_errs_by_at_most_four_norms_over_root_k(entries):
    torch.manual_seed(1)
    grads = torch.randn(12, 64, 96, dtype=torch.float64)
    rows = project(ProjectionSettings(p=16, q=16, seed=5, entries=entries), grads)
    true = grads.flatten(1) @ grads.flatten(1).T
    norms = grads.flatten(1).norm(dim=1)
    assert (((rows @ rows.T) - true).abs() <= 4 * norms[:, None] * norms[None] / 16).all()


def test_entries_are_a_pure_function_of_seed_name_side_and_shape():
    base = Projection(ProjectionSettings(p=4, q=4)).sides("a", 9, 9)
    same = Projection(ProjectionSettings(p=4, q=4)).sides("a", 9, 9)
    assert torch.equal(base.inputs, same.inputs)
    assert not torch.equal(base.inputs, base.outputs)
    others = [
        Projection(ProjectionSettings(p=4, q=4)).sides("b", 9, 9),
        Projection(ProjectionSettings(p=4, q=4, seed=1)).sides("a", 9, 9),
        Projection(ProjectionSettings(p=4, q=4, entries="normal")).sides("a", 9, 9),
    ]
    for other in others:
        assert not torch.equal(base.inputs, other.inputs)


def test_the_rademacher_bits_of_format_version_one_never_change():
    drawn = module.draw("1|0|layer|inputs|2x8|rademacher", (2, 8), "rademacher")
    assert drawn.tolist() == FROZEN


FROZEN = [[-1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0, 1.0, -1.0, -1.0, -1.0]]


def test_a_side_no_wider_than_its_projection_is_kept_whole():
    sides = Projection(ProjectionSettings(p=16, q=4)).sides("lora_A", 16, 5)
    assert sides.inputs is None
    assert sides.p == 16
    assert sides.outputs is not None
    assert sides.q == 4


def test_rademacher_entries_are_exact_in_bfloat16_at_widths_that_are_powers_of_four():
    side = Projection(ProjectionSettings(p=64, q=16)).sides("layer", 500, 500).inputs
    assert torch.equal(side.to(torch.bfloat16).float(), side)


def test_a_projection_with_an_empty_row_is_refused_by_module_name(monkeypatch):
    monkeypatch.setattr(module, "draw", lambda key, shape, entries: np.zeros(shape))
    with pytest.raises(ProjectionError, match=r"mlp\.up \(inputs, 4×9\)"):
        Projection(ProjectionSettings(p=4, q=4)).sides("mlp.up", 9, 9)
