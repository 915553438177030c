"""`reduction: mean`: the curvature of a mean of L token losses is 1/L of the sum's, so the scores are the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence.curvature.damping import Damping
from influence.model.layers import LayerSettings
from influence.query.pairwise import pairwise
from influence.recipes import recipe
from influence.task import CausalLM, TaskSettings
from tests.reference.toys import network

SUM, MEAN = CausalLM(), CausalLM(TaskSettings(reduction="mean"))
LENGTH = 8
RECIPES = {
    "kfac": recipe("kfac"),
    "ekfac": recipe("ekfac", damping=0.01),
    "empirical ekfac": recipe("ekfac", factors={"labels": "empirical"}),
    "whitened": recipe("whitened", projection={"p": 4, "q": 3}),
    "logra": recipe("logra", projection={"p": 3, "q": 2}),
    "trackstar": recipe("trackstar", projection={"p": 3, "q": 2}),
    "trak": recipe("trak", projection={"dims": 4, "block": 2}, damping=0.1),
}
ATTENTION = LayerSettings(include=("*query_key_value", "*dense_4h_to_h"))


def of_one_length(batch: Any) -> Any:
    """The rows that are long enough, cut to LENGTH tokens."""
    long = batch.attention_mask.sum(dim=1) >= LENGTH
    assert int(long.sum()) >= 3
    cut = {name: getattr(batch, name)[long, :LENGTH] for name in ("input_ids", "attention_mask", "labels")}
    return replace(batch, **cut)


@pytest.mark.parametrize("name", RECIPES)
def test_rows_of_equal_length_score_under_a_mean_loss_as_under_the_sum(tiny_model, ragged_batch, name):
    batch = of_one_length(ragged_batch)
    summed, averaged = (
        pairwise(tiny_model("gptneox"), task, [batch], [batch], RECIPES[name], ATTENTION) for task in (SUM, MEAN)
    )
    torch.testing.assert_close(averaged, summed, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("measured", ["log_likelihood", "log_odds"])
def test_a_fisher_of_ragged_rows_divides_their_sums_by_the_root_of_their_tokens(tiny_model, ragged_batch, measured):
    model, width = tiny_model("gptneox"), {"p": 3, "q": 2}
    plain = recipe("graddot", projection=width, measurement=measured)
    curved = recipe("logra", projection=width, measurement=measured, curvature={"damping": {"value": 0.05}})
    inner = pairwise(model, SUM, [ragged_batch], [ragged_batch], plain, ATTENTION)
    tokens = (ragged_batch.labels[:, 1:] != -100).sum(dim=1)
    if measured == "log_odds":
        inner = inner / SUM.residual(model, ragged_batch)
    # With K = ⟨g_i, g_j⟩ of the sums and L their tokens: gᵀ(Σ gg'ᵀ/LN + λ)⁻¹g' = λ⁻¹(K − K(K + λNL)⁻¹K).
    weighted = inner / tokens
    damping = 0.05 * float(weighted.diagonal().sum()) / len(inner)
    found = pairwise(model, MEAN, [ragged_batch], [ragged_batch], curved_all(curved, damping, model), ATTENTION)
    inverse = torch.linalg.inv(inner + damping * len(inner) * torch.diag(tokens.to(inner)))
    expected = (inner - inner @ inverse @ inner) / damping / len(inner)
    rows = torch.ones_like(inner[0]) if measured == "log_likelihood" else SUM.residual(model, ragged_batch)
    torch.testing.assert_close(found, expected * rows / tokens, rtol=1e-6, atol=1e-9)


def curved_all(curved: Any, damping: float, model: Any) -> Any:
    """The recipe with one block over all columns and an absolute damping."""
    curvature = {**curved.curvature.model_dump(), "blocks": "all", "damping": Damping(kind="absolute", value=damping)}
    return curved.model_validate({**curved.model_dump(), "curvature": curvature})


class MeanSquaredError:
    """The mean over S positions of (y − ŷ)², of batches (x [N, S, I], y [N, S, 1]); measured is the sum of ŷ."""

    def example_loss(self, model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (batch[1] - model(batch[0])).square().mean(dim=(1, 2))

    def measurement(self, model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0]).sum(dim=(1, 2))

    def sampled_loss(self, model: Any, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        predicted = model(batch[0])
        signs = 2 * torch.randint(2, predicted.shape, generator=generator).to(predicted) - 1
        return (predicted.detach() + 0.5**0.5 * signs - predicted).square().mean(dim=(1, 2))

    def averaged_tokens(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.full((len(batch[0]),), batch[0].shape[1])


def test_a_score_of_mean_losses_is_the_derivative_of_the_refitted_optimum_by_the_weight_of_the_row():
    """The unit, by finite differences of a refit of Σ_i w_i · mean over positions of (y − xᵀθ)²."""
    x, y = torch.randn(10, 5, 4, dtype=torch.float64), torch.randn(10, 5, 1, dtype=torch.float64)
    asked, step = torch.randn(3, 5, 4, dtype=torch.float64), 1e-6

    def optimum(weights: Tensor) -> Tensor:
        root = weights.sqrt()[:, None, None]
        return torch.linalg.lstsq((root * x).flatten(0, 1), (root * y).flatten(0, 1)).solution

    weights = torch.ones(10, dtype=torch.float64)
    model, theta = network(4, 1), optimum(weights)
    with torch.no_grad():
        model[0].weight.copy_(theta.T)
    queries = [(asked, torch.zeros(3, 5, 1, dtype=torch.float64))]
    scores = pairwise(model, MeanSquaredError(), [(x, y)], queries, recipe("kfac", damping=0))
    for row in range(10):
        change = optimum(weights + step * nn.functional.one_hot(torch.tensor(row), 10)) - theta
        torch.testing.assert_close(scores[:, row], (asked @ change).sum(dim=(1, 2)) / step, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("graddot", "nats per unit of learning rate (one SGD step on the row's loss, the mean over its tokens)"),
        ("logra", "nats per extra copy of the row (its loss the mean over its tokens)"),
        ("gradcos", "cosine (no unit)"),
        (
            "trak",
            "nats of log-odds per extra copy of the row (its loss the mean over its tokens), p(1−p) taken as 1",
        ),
    ],
)
def test_the_unit_names_the_mean_loss(name, unit):
    assert recipe(name).unit_under("mean") == unit
    assert recipe(name).unit_under("sum") == recipe(name).unit != unit or name == "gradcos"
